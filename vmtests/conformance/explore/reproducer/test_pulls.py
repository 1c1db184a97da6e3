"""The bitmaps of a pulled snapshot: an exported script, and a replay, see what the explorer saw.

Each case is taken with a QEMU whose bitmaps are wrong, by a mutant of its storage and the same one
of the script, and with one whose bitmaps are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from qmpshim.conformance.explore.harness.choices import Complete, RealChoice, Start
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.machine.builds.build import EMULATOR, Build, read_version
from qmpshim.machine.builds.programs import write_programs
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.pointintime.push import GRANULARITY
from qmpshim.model.units import SECTOR
from vmtests.support.backups import point_of
from vmtests.support.gate import Misbehaviour
from vmtests.support.pulls import (
    cleared,
    finer_bitmaps,
    forgotten,
    in_script,
    recorded,
    stale,
    stopped,
    stray,
)
from vmtests.support.reproducer import NOT_SEEN, SEEN, Reproducer

#: By name: the form and the scenario, what is wrong, and what is found.
CASES = {
    "read": (
        "backup",
        "primary_write+guest_dirty_bitmap,bitmap=ends",
        recorded,
        CauseKind.WRONG_DATA,
    ),
    "frozen": ("backup", "primary_write+status,bitmap=ends", recorded, CauseKind.BITMAP_EXCEEDS),
    "active": (
        "backup",
        "primary_write+primary_zero,relation=before,bitmap=middle",
        cleared,
        CauseKind.BITMAP_MISSES,
    ),
    "state": (
        "backup",
        "primary_write+guest_block_status,bitmap=empty",
        stopped,
        CauseKind.BITMAP_STATE,
    ),
    # An operation starts the pull.
    "late view": (
        "pull",
        "primary_write+start,third=start_then_primary_write",
        stale,
        CauseKind.WRONG_DATA,
    ),
    "late bitmap": (
        "pull",
        "primary_write+start,third=start_then_primary_write",
        forgotten,
        CauseKind.BITMAP_MISSES,
    ),
    "view of two disks": (
        "pull",
        "primary_write+start,third=start_then_primary_write,history=dirty,disks=two",
        stray,
        CauseKind.WRONG_DATA,
    ),
    "bitmaps of two disks": (
        "pull",
        "primary_write+start,third=start_then_primary_write,history=dirty,disks=two",
        forgotten,
        CauseKind.BITMAP_MISSES,
    ),
    "view of two disks that end in a granule": (
        "pull",
        "primary_write+start,third=start_then_primary_write,place=end,disk=odd,disks=two",
        stray,
        CauseKind.WRONG_DATA,
    ),
    "bitmaps of two disks in qcow2": (
        "pull",
        "primary_write+start,third=start_then_primary_write,disk=half,secondary=qcow2,"
        "history=dirty,disks=two",
        forgotten,
        CauseKind.BITMAP_MISSES,
    ),
    "late query": (
        "pull",
        "primary_write+start,third=start_then_dirty_bitmap",
        forgotten,
        CauseKind.WRONG_DATA,
    ),
}


def next_step(enabled: Sequence[RealChoice]) -> RealChoice:
    """One operation after another."""
    return next((one for one in enabled if isinstance(one, Complete)), min(enabled, key=_index))


def _index(choice: RealChoice) -> int:
    return choice.op if isinstance(choice, Start) else 0


def taken(form: str, name: str, release: Misbehaviour, build: Build) -> Finding:
    """What is found with such a storage."""
    pool = QemuPool(build)
    try:
        scenario = point_of(form, name)
        system = RealSystem(pool, scenario, release=release)
        system.reset()
        while system.enabled():
            system.take(next_step(system.enabled()))
        system.finish()
        wrong, now = system.violation, system.now
        assert wrong is not None and not system.derailed
        return Finding(
            wrong.kind, wrong.cause, wrong.text, True, 1, (scenario.name,), scenario,
            tuple(now.steps), tuple(now.events), build={"version": list(read_version(build)[0])},
        )  # fmt: skip
    finally:
        pool.close()


@pytest.mark.parametrize("name", CASES)
def test_wrong_bitmaps_are_seen_by_a_script(
    name: str, each_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    form, scenario, storage, kind = CASES[name]
    finding = taken(form, scenario, storage, each_build)
    assert finding.cause.kind is kind
    write_programs(each_build, tmp_path)
    programs = [str(tmp_path / name) for name in (EMULATOR, "qemu-img")]
    script = export_script(finding)
    status, output = reproducer(in_script(storage, script), *programs)
    assert status == SEEN and "never sent" not in output, output
    status, output = reproducer(script, *programs)
    assert status == NOT_SEEN and "never sent" not in output, output


def test_a_bitmap_of_another_granularity_is_seen_by_a_script(
    qemu_build: Build, reproducer: Reproducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    finer_bitmaps(monkeypatch)
    finding = taken("backup", "primary_write+status,bitmap=ends", faithfully, qemu_build)
    assert finding.cause.kind is CauseKind.BITMAP_STATE
    script, made = export_script(finding), f"'granularity': {GRANULARITY * SECTOR}"
    assert made in script
    half = script.replace(made, f"'granularity': {GRANULARITY * SECTOR // 2}")
    for text, wanted in ((half, SEEN), (script, NOT_SEEN)):
        status, output = reproducer(text)
        assert status == wanted, output


def test_a_bundle_shows_wrong_bitmaps_again(qemu_build: Build, tmp_path: Path) -> None:
    form, scenario, storage, _ = CASES["read"]
    finding = taken(form, scenario, storage, qemu_build)
    again = load_finding(save_finding(tmp_path / "bundle", finding))
    assert again.scenario == finding.scenario
    assert replay_schedule(again, qemu_build, storage).shows(again)
    assert not replay_schedule(again, qemu_build).shows(again)
