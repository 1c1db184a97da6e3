"""Maps of the disks of a backup job: its target is shown, which no one order predicts."""

from __future__ import annotations

from dataclasses import replace

from qmpshim.conformance.check.report.cluster_maps import maps_of_schedule
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
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
