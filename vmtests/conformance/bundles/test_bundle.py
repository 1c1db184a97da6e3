"""Replay bundles: they appear whole or not at all, and what is damaged is refused in one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qmpshim
from qmpshim.conformance.bundles.chain import ChainCase, save
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report import finding_files
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.conformance.workload.session import Result, Rig, run_case
from qmpshim.conformance.workload.verify import replay, setup_for
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.operations import Operation, Side, Verb
from vmtests.support.bundles import loaded
from vmtests.support.chains import FlippedByte

MiB = 1 << 20
SPEC = ChainSpec(Workflow.BACKUP, 4 * MiB)
OPERATIONS = (
    Operation(Side.PRIMARY, Verb.WRITE, 0, 128, number=1),
    Operation(Side.CHAIN, Verb.START, number=2),
    Operation(Side.PRIMARY, Verb.WRITE, 3, 1, number=5),
)
CASE = ChainCase(
    SPEC,
    Behaviour(discard_passes_job=True),
    OPERATIONS,
    Divergence(Verdict.CONTENT, "hidden disk (file)", 5, "this", "that"),
    17,
    {"version": "7.2", "command": ["qemu-system-x86_64"], "machine": "none"},
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "bundle", CASE, None)
    return tmp_path / "bundle"


def test_what_was_saved_is_loaded(saved: Path) -> None:
    assert loaded(saved, ChainCase) == CASE
    assert loaded(saved / "case.json", ChainCase) == CASE


def test_a_bundle_has_all_it_takes(qemu_build: Build, workspace: Workspace, tmp_path: Path) -> None:
    setup = replace(setup_for(qemu_build, SPEC), chain=FlippedByte)
    target = tmp_path / "deep" / "bundle"
    found: list[Divergence] = []

    def at_end(rig: Rig | None, result: Result) -> None:
        assert result.divergence is not None
        found.append(result.divergence)
        case = replace(CASE, divergence=result.divergence, behaviour=setup.behaviour)
        save(target, case, rig)

    asyncio.run(run_case(setup, OPERATIONS, workspace.subdirectory("run"), at_end=at_end))
    assert {path.name for path in target.iterdir()} == {
        *("README", "case.json", "operations.txt", "prediction.json", "observation.json"),
        *("images", "qmp.log", "stderr", "stdout", "command-line.txt"),
    }
    assert (target / "operations.txt").read_text().splitlines() == [str(o) for o in OPERATIONS]
    assert "qmpshim replay" in (target / "README").read_text()
    assert str(found[0]) in (target / "README").read_text()
    assert json.loads((target / "observation.json").read_text()) == json.loads(
        json.dumps(found[0].to_json())
    )
    prediction = json.loads((target / "prediction.json").read_text())
    assert prediction["disks"]["hidden"] == {"allocation": {"0": "data"}, "owners": [[0, 128, 1]]}
    assert prediction["disks"]["secondary"]["owners"] == [[0, 3, 1], [3, 1, 5], [4, 124, 1]]
    assert "-machine none" in (target / "command-line.txt").read_text()
    log = [json.loads(line[3:]) for line in (target / "qmp.log").read_text().splitlines()]
    assert {"blockdev-add", "blockdev-backup"} <= {m.get("execute") for m in log}
    images = {path.name: path for path in (target / "images").iterdir()}
    assert images.keys() == {"secondary.raw", "hidden.qcow2"}
    assert images["secondary.raw"].stat().st_size == 4 * MiB
    assert images["secondary.raw"].stat().st_blocks * 512 < MiB  # its holes stay holes
    assert Qcow2Reader.parse(images["hidden.qcow2"].read_bytes()).allocation() == {0: Alloc.DATA}
    case = loaded(target, ChainCase)
    result = asyncio.run(replay(case, setup, workspace, lambda _: None))
    assert result.divergence == found[0]


def test_a_bundle_can_be_read_by_others(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("place", ["file/bundle", "full/bundle"])
def test_what_cannot_be_written(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    if place.startswith("full"):

        def write_text(self: Path, text: str) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(HostError, match=r"cannot write .*bundle") as raised:
        save(tmp_path / place, CASE, None)
    assert "\n" not in str(raised.value)
    left = [path for path in tmp_path.rglob("*") if path.name not in ("file", "full")]
    assert left == []


def test_an_existing_bundle_is_not_overwritten(saved: Path) -> None:
    before = (saved / "case.json").read_text()
    assert save(saved, replace(CASE, seed=18), None).name == "bundle-2"
    assert (saved / "case.json").read_text() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["bundle", "bundle-2"]


def test_a_schedule_s_bundle_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: Any, qemu_build: Build
) -> None:
    """Also when QEMU, run once more for the evidence, finds the disk full."""
    finding = finding_files.load_finding(DIRECTORY / "checkpoint-corrupts-overlay.json")
    for name in ("new", "new-2"):
        assert finding_files.save_finding(tmp_path / "new", finding) == tmp_path / name
    assert finding_files.load_finding(tmp_path / "new-2") == finding

    def full(*_: object) -> None:
        raise HostError("the disk is full")

    monkeypatch.setattr(finding_files, "collect", full)
    with pytest.raises(HostError, match="full"):
        finding_files.save_finding(tmp_path / "bad", finding, qemu_build)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new-2"]


# -- damage --------------------------------------------------------------------------------------


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=r"is no bundle: .*No such file"):
            loaded(path, ChainCase)
    (tmp_path / "case.json").mkdir()
    with pytest.raises(InputError, match=r"is no bundle: .*Is a directory"):
        loaded(tmp_path, ChainCase)
    (tmp_path / "fifo").touch()
    with pytest.raises(InputError, match="is damaged"):
        loaded(tmp_path / "fifo", ChainCase)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\0", bytes(range(256)), b'{"format": 1}']
)
def test_case_files_that_are_no_json(saved: Path, data: bytes) -> None:
    (saved / "case.json").write_bytes(data)
    with pytest.raises(InputError, match=r"is (damaged|no replay bundle)") as raised:
        loaded(saved, ChainCase)
    assert "\n" not in str(raised.value)


def without(*keys: str) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return edit


def with_(new: object, *keys: Any) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return edit


@pytest.mark.parametrize(
    ("edit", "say"),
    [
        (with_(99, "format"), "has format 99; this qmpshim reads format 1"),
        (without("chain"), "is damaged"),
        (without("operations"), "is damaged"),
        (without("divergence", "verdict"), "not a divergence"),
        (with_("vmdk", "chain", "secondary"), "neither raw nor qcow2"),
        (with_(513, "chain", "size"), "no positive multiple of 512"),
        (with_("fast", "chain", "size"), "is damaged"),
        (with_("mirror", "chain", "workflow"), "is damaged"),
        (
            with_(["unknown-defect"], "model", "known"),
            "not the behaviour of a QEMU: .*unknown-defect",
        ),
        (with_(True, "model", "no_such_behaviour"), "nothing is known of no_such_behaviour"),
        (with_("all", "operations"), "not an operation"),
        (with_([[1, "guest", "think", 0, 0]], "operations"), "not an operation"),
        (with_(7, "build"), "is damaged"),
        (with_([[1, "primary", "write", 8191, 2]], "operations"), "beyond the disk"),
        (with_([[1, "guest", "read", 1 << 60, 1]], "operations"), "beyond the disk"),
        (with_([[1, "guest", "read", 0, 0]], "operations"), "touches nothing"),
    ],
)
def test_damaged_cases(saved: Path, edit: Callable[[Any], None], say: str) -> None:
    path = saved / "case.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=say) as raised:
        loaded(saved, ChainCase)
    assert "\n" not in str(raised.value)


def test_a_format_is_fixed() -> None:
    """A bundle of today must be readable tomorrow: a change here changes the format's number."""
    assert CASE.to_json() == {
        "qmpshim": qmpshim.__version__,
        "format": 1,
        "chain": {"workflow": "backup", "size": 4 * MiB, "cluster": 65536, "secondary": "raw"},
        "model": {
            "discard_passes_job": True,
            "unmap_passes_job": True,
            "copy_range": True,
            "backup_copy_range": False,
            "known": [],
        },
        "seed": 17,
        "build": CASE.build,
        "operations": [
            [1, "primary", "write", 0, 128],
            [2, "chain", "start", 0, 0],
            [5, "primary", "write", 3, 1],
        ],
        "divergence": {
            "verdict": "content",
            "where": "hidden disk (file)",
            "operation": 5,
            "predicted": "this",
            "observed": "that",
        },
    }
