"""Maps of the disks of a backup job: its target is shown, which no one order predicts."""

from __future__ import annotations

from dataclasses import replace

from qmpshim.conformance.check.report.cluster_maps import maps_of_schedule
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import scenarios_called
from qmpshim.machine.builds.build import Build
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from vmtests.support.reproducer import known


def test_a_finding_of_a_backup_job_has_maps(pool: QemuPool, qemu_build: Build) -> None:
    finding = known("completed-backup-lacks-failed-copies")
    system = RealSystem(pool, finding.scenario)
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    maps = maps_of_schedule(replace(finding, schedule=tuple(system.now.steps)), qemu_build)
    assert maps is not None
    (target,) = [one for one in maps["disks"] if one["name"] == "the target"]
    held = {run["owner"] for cell in target["clusters"] for run in cell["observed"]["runs"]}
    assert held and held <= {"old data", "op 0: primary write [128, 256)"}
    assert not maps["wrong"]


def test_what_a_bitmap_and_a_block_status_name_is_no_operation(
    pool: QemuPool, qemu_build: Build
) -> None:
    """Each bundle with such an operation could not be checked, nor its finding be bisected."""
    (with_bitmap,) = scenarios_called(
        "primary_write+status,form=backup,third=with_dirty_bitmap,bitmap=middle"
    )
    (with_status,) = scenarios_called("primary_write+guest_block_status,form=backup")
    assert _returned(pool, qemu_build, with_bitmap) <= {
        "named by the bitmap",
        "not named by the bitmap",
    }
    assert _returned(pool, qemu_build, with_status) <= {"zeroes", "reported as what may be data"}


def _returned(pool: QemuPool, build: Build, scenario: RealScenario) -> set[str]:
    """Whose what the operations have read is, by the maps of a schedule of a scenario."""
    system = RealSystem(pool, scenario)
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    finding = replace(
        known("snapshot-read-returns-new-data"),
        scenario=scenario,
        schedule=tuple(system.now.steps),
    )
    maps = maps_of_schedule(finding, build)
    assert maps is not None
    returned = [disk for disk in maps["disks"] if disk["name"].startswith("what op")]
    found = {
        run["owner"]
        for disk in returned
        for cell in disk["clusters"]
        for run in cell["observed"]["runs"]
    }
    assert found
    return found
