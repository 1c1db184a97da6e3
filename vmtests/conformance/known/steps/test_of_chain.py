"""Steps made of a workload on a chain: its nodes and operations, and what was wrong in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmpshim.cli import main
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.bundles import steps_draft
from vmtests.support.reproducer import NOT_SEEN, SEEN, Reproducer

SNAPSHOT = "snapshot-read-returns-new-data"
STOP = write_up("verify/stop-always-fails")


def case_of(tmp_path: Path, operations: list[list[Any]], **divergence: Any) -> Path:
    """A bundle of these operations on COLO's secondary, the last of which shows something."""
    value = json.loads((DIRECTORY / "verify" / "stop-always-fails.json").read_text())["case"]
    value["operations"] = [[number, *one] for number, one in enumerate(operations, 1)]
    value["divergence"] |= {"operation": len(operations), **divergence}
    (tmp_path / "case.json").write_text(json.dumps(value))
    return tmp_path


REFUSED = {"evidence": {"type": "answer", "predicted": None, "observed": "no"}}
RETURNED = [[1, 4], [0, 4]]
WRITE, START = ["primary", "write", 0, 8], ["chain", "start", 0, 0]


@pytest.mark.parametrize(
    "last, divergence, text",
    [
        (
            ["chain", "checkpoint", 0, 0],
            {"evidence": {"type": "answer", "predicted": "no", "observed": None}},
            'text = answer("xen-colo-do-checkpoint", **{})\nconclude(text in ("ok", ""), ',
        ),
        (
            ["guest", "write", 8, 1],
            {"evidence": {"type": "answer", "predicted": None, "observed": 5}},
            'text, data = io("guest", "write", 8, 1, 5)\nconclude(text not in ("ok", ""), ',
        ),
        (
            ["chain", "stop", 0, 0],
            {"verdict": "crash", "ending": ["was killed by SIGABRT", "f: Assertion `x' failed."]},
            """x'\\\\ failed\\\\.", -6)\ntext = answer("xen-set-replication", **{'enable': False""",
        ),
        (
            ["guest", "read", 4, 8],
            {"evidence": {"type": "data", "export": "guest", "start": 4, "owners": RETURNED}},
            'conclude(text == "ok" and data != [1] * 4 + [0] * 4, "it returns',
        ),
        (
            ["guest", "write", 4, 8],
            {"evidence": {"type": "data", "export": "hidden", "start": 4, "owners": RETURNED}},
            'data = look("hidden", 4, 8)\nconclude(data != [1] * 4 + [0] * 4, "there is',
        ),
        (["guest", "read", 0, 8], {"verdict": "content"}, TO_WRITE),
    ],
)
def test_operations_on_a_secondary_become_steps(
    last: list[Any], divergence: dict[str, Any], text: str, tmp_path: Path
) -> None:
    rebuild = ["chain", "rebuild", 0, 0]
    steps = steps_draft(case_of(tmp_path, [WRITE, rebuild, START, WRITE, last], **divergence))
    head = 'above()\nio("primary", "write", 0, 8, 1)\ntake_apart('
    assert head in steps and text in steps
    assert (TO_WRITE in steps) is (text == TO_WRITE)


def test_steps_made_of_operations_are_a_script_that_runs(
    qemu_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    """Fresh overlays, requests of both sides, and what the stop answers in the end."""
    read_back, stop = ["guest", "read", 0, 8], ["chain", "stop", 0, 0]
    middle = [["chain", "rebuild", 0, 0], START, WRITE, read_back, ["chain", "checkpoint", 0, 0]]
    status, lines = reproducer(
        steps_script("A title", steps_draft(case_of(tmp_path, [WRITE, *middle, stop], **REFUSED)))
    )
    assert status == (SEEN if STOP.concerns(read_version(qemu_build)[0]) else NOT_SEEN), lines


@pytest.mark.parametrize("owners", ["[1] * 8", "[2] * 8"])
def test_steps_of_a_backup_compare_what_is_read(
    owners: str, qemu_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    """Old data is right, and seen where something else was to be expected."""
    stop, read_back = ["chain", "stop", 0, 0], ["guest", "read", 0, 8]
    middle = [START, WRITE, stop, ["chain", "rebuild", 0, 0], WRITE, START, WRITE]
    evidence = {"type": "data", "export": "guest", "start": 0, "owners": [[6, 8]]}
    bundle = case_of(tmp_path, [WRITE, *middle, read_back], verdict="content", evidence=evidence)
    case = json.loads((bundle / "case.json").read_text())
    case["chain"] |= {"workflow": "backup", "options": [["hidden", "detect-zeroes", "unmap"]]}
    (bundle / "case.json").write_text(json.dumps(case))
    steps = steps_draft(bundle)
    assert "data != [6] * 8" in steps and "'detect-zeroes': 'unmap'" in steps
    status, lines = reproducer(steps_script("A title", steps.replace("[6] * 8", owners)))
    assert status == SEEN, lines
    assert "[0, 8): operation 6" in lines
    status, lines = reproducer(steps_script("A title", steps))
    assert status == NOT_SEEN, lines


def test_wrong_data_of_a_workload_is_seen_by_its_steps(
    qemu_build: Build, reproducer: Reproducer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 9.0 a snapshot's reader may get new data: found at random, and seen without us."""
    if not write_up(SNAPSHOT).concerns(read_version(qemu_build)[0]):
        pytest.skip("this QEMU does not have it")
    monkeypatch.chdir(tmp_path)
    words = ("--workflow", "fleecing", "--size", "4M", "--cluster", "64k", "--build")
    assert main(["verify", "--strict", "--ops", "400", *words, qemu_build.name]) == 1
    (bundle,) = (tmp_path / "qmpshim-bundles").iterdir()
    status, lines = reproducer(steps_script("A title", steps_draft(bundle)))
    assert status == SEEN, lines


#: What is compared after a write beside the snapshot, rightly and wrongly.
COMPARED = [
    (
        {"type": "file", "images": ["hidden"], "start": 0, "owners": [[1, 8]]},
        {"type": "file", "images": ["hidden"], "start": 0, "owners": [[4, 8]]},
    ),
    (
        {"type": "file", "images": ["secondary"], "start": 0, "owners": [[4, 8], [0, 8]]},
        {"type": "file", "images": ["secondary"], "start": 0, "owners": [[1, 8]]},
    ),
    (
        {"type": "data", "export": "hidden", "start": 0, "owners": [[1, 8]]},
        {"type": "data", "export": "hidden", "start": 0, "owners": [[4, 8]]},
    ),
    (
        {"type": "allocation", "image": "hidden", "cluster": 0, "allowed": ["data"]},
        {"type": "allocation", "image": "hidden", "cluster": 0, "allowed": ["zero"]},
    ),
    (
        {"type": "allocation", "image": "hidden", "cluster": 1, "allowed": ["unallocated"]},
        {"type": "allocation", "image": "active", "cluster": 0, "allowed": ["data", "zero"]},
    ),
    (
        {"type": "nothing", "image": "hidden", "ranges": [[128, 8]]},
        {"type": "nothing", "image": "hidden", "ranges": [[0, 128]]},
    ),
]


@pytest.mark.parametrize("right, wrong", COMPARED, ids=lambda one: f"{one['type']}")
def test_steps_compare_files_and_views(
    right: dict[str, Any],
    wrong: dict[str, Any],
    qemu_build: Build,
    reproducer: Reproducer,
    tmp_path: Path,
) -> None:
    """The old data of a write after the start is in the hidden disk, and nothing else."""
    operations = [WRITE, ["chain", "rebuild", 0, 0], START, WRITE]
    for evidence, wanted in ((right, NOT_SEEN), (wrong, SEEN)):
        steps = steps_draft(case_of(tmp_path, operations, verdict="content", evidence=evidence))
        status, lines = reproducer(steps_script("A title", steps))
        assert status == wanted, lines


def test_steps_check_an_image(qemu_build: Build, reproducer: Reproducer, tmp_path: Path) -> None:
    """It is sound; one whose refcounts were spoilt is not."""
    evidence = {"type": "check", "image": "hidden"}
    operations = [WRITE, ["chain", "rebuild", 0, 0], START, WRITE]
    steps = steps_draft(case_of(tmp_path, operations, verdict="corruption", evidence=evidence))
    status, lines = reproducer(steps_script("A title", steps))
    assert status == NOT_SEEN, lines
    spoil = """\
need("human-monitor-command", command_line="qemu-io hidden flush")
with open(at("hidden"), "r+b") as file:
    file.seek(2 * 65536)
    file.write(bytes(64))
conclude("""
    status, lines = reproducer(steps_script("A title", steps.replace("conclude(", spoil)))
    assert status == SEEN, lines
