"""The target of a backup job: an exported script sees what the explorer saw, however the job ended.

Each case is taken with storage that works and with storage that does not: a mutant of the gate, and
the same one of the script's own server.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EIO
from pathlib import Path

import pytest

from qmpshim.conformance.explore.harness.choices import Complete, Fail, RealChoice, Start
from qmpshim.conformance.explore.harness.push import ending_of_job
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import scenarios_called
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.tracker import script_of_schedule
from qmpshim.machine.builds.build import EMULATOR, Build, read_version
from qmpshim.machine.builds.programs import write_programs
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.variants import JOB
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support.gate import drop
from vmtests.support.mutants.disks import never_copied
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer, known

LEFT_OUT = "completed-backup-lacks-failed-copies"
_PERFORM = "images[r.image].perform(r)"
_SERVER = "server = socket.socket("
_IMAGE = "    return images[name].data\n"


@dataclass(frozen=True)
class Storage:
    """How the disks behave, here and in a script."""

    release: Release = faithfully
    mutant: Callable[[GatedMachine], None] = lambda machine: None
    in_script: tuple[tuple[str, str], ...] = ()

    def of(self, script: str) -> str:
        """The script with such disks."""
        for right, wrong in self.in_script:
            assert script.count(right) == 1, right
            script = script.replace(right, wrong)
        return script


SOUND = Storage()
LOST = Storage(  # data that is written to the target is not there
    release=drop("hidden"),
    in_script=((
        _PERFORM,
        f"b'' if (r.image, r.op) == ('hidden', WRITE) and r.guest is not None else {_PERFORM}",
    ),),
)  # fmt: skip
BLANK = Storage(  # the target is as it was made
    mutant=never_copied,
    in_script=(
        (_SERVER, f"blank = bytes(images['hidden'].data)\n{_SERVER}"),
        (_IMAGE, f"    return blank if name == 'hidden' else{_IMAGE.removeprefix('    return')}"),
    ),
)


@dataclass(frozen=True)
class Case:
    """A backup job.

    :ivar starts: the operations in the order in which they start
    :ivar late: I/Os that are done before the second one does
    :ivar fails: of the I/Os of this kind the second fails
    :ivar stops: the job is paused at an error of its target
    """

    scenario: str
    starts: tuple[int, int]
    ending: Ending
    broken: Storage
    late: int = 99
    fails: str = ""
    stops: bool = False

    def next(self, system: RealSystem) -> RealChoice:
        """The step to take."""
        left, steps = system.enabled(), system.now.steps
        done = [one for one in steps if isinstance(one, Complete)]
        if not steps or (len(done) >= self.late and Start(self.starts[1]) in left):
            return Start(self.starts[bool(steps)])
        failing = [one for one in left if isinstance(one, Fail) and one.io.kind == self.fails]
        if failing and any(one.io.kind == self.fails for one in done):
            return failing[0]
        return next((one for one in left if isinstance(one, Complete)), left[0])


CASES = {
    "completed": Case("push-Wf", (1, 0), Ending.COMPLETED, LOST),
    "subclusters": Case(
        "primary_write+backup_full,form=push,subclusters=overlays", (1, 0), Ending.COMPLETED, LOST
    ),
    "cancelled": Case("push-Sf", (1, 0), Ending.CANCELLED, LOST, late=1),
    "failed": Case("push-id", (0, 1), Ending.FAILED, LOST, fails="hidden write"),
    "paused": Case(
        "push-Wi", (1, 0), Ending.COMPLETED, LOST, fails="hidden write", stops=True
    ),
    # What has to read as zeroes does not where nothing was copied: the target has a backing file.
    "zeroes": Case(
        "primary_zero+backup_incremental,form=push,target=backed",
        (0, 1), Ending.COMPLETED, BLANK,
    ),
}  # fmt: skip


def scenario(name: str) -> RealScenario:
    (one,) = scenarios_called(name)
    return one


def taken(case: Case, build: Build, storage: Storage) -> tuple[Finding, RealViolation | None]:
    """A case as a finding about the target, and what is wrong with it."""
    errnos = (EIO,) if case.fails else ()
    pool = QemuPool(build)
    try:
        one = scenario(case.scenario)
        if case.stops:
            one = replace(one, options=((JOB, "on-target-error", "stop"),))
        system = RealSystem(pool, one, injection=Injection(errnos=errnos), release=storage.release)
        system.reset()
        storage.mutant(system.machine)
        while system.enabled():
            system.take(case.next(system))
        system.finish()
        assert not system.derailed and ending_of_job(system.machine) is case.ending
        wrong, now = system.violation, system.now
        cause = wrong.cause if wrong else Cause(CauseKind.NO_POINT_IN_TIME, "target")
        finding = Finding(
            Verdict.CONTENT, cause, str(cause), True, 1, (one.name,), one, tuple(now.steps),
            tuple(now.events), errnos=errnos, build={"version": list(read_version(build)[0])},
        )  # fmt: skip
    finally:
        pool.close()
    return finding, wrong


@pytest.mark.parametrize("name", CASES)
def test_a_broken_target_is_seen(
    name: str, each_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    case = CASES[name]
    finding, wrong = taken(case, each_build, case.broken)
    assert wrong is not None and wrong.kind is Verdict.CONTENT
    assert wrong.cause.subject == "target"
    write_programs(each_build, tmp_path)
    programs = [str(tmp_path / name) for name in (EMULATOR, "qemu-img")]
    script = export_script(finding)
    status, output = reproducer(case.broken.of(script), *programs)
    assert status == SEEN and "never sent" not in output, output
    assert f"the backup job: {case.ending.name.lower()}\n" in output
    status, output = reproducer(script, *programs)
    assert status == NOT_SEEN and "never sent" not in output, output


@pytest.mark.parametrize("name", CASES)
def test_a_sound_target_is_not_wrong(name: str, qemu_build: Build) -> None:
    _, wrong = taken(CASES[name], qemu_build, SOUND)
    assert wrong is None


@pytest.mark.parametrize(
    ("cause", "sign"),
    [
        (Cause(CauseKind.BITMAP_MISSES, "b0"), "bitmaps"),
        (Cause(CauseKind.JOB_STATE, "status"), "job state"),
        (Cause(CauseKind.JOB_ENDS, "backup job", "failed", ("completed",)), "ending"),
        (Cause(CauseKind.ERROR_MASKED, "backup job", "hidden write"), "unknown"),
    ],
)
def test_what_a_script_looks_for_and_what_is_left_to_its_reader(cause: Cause, sign: str) -> None:
    finding = replace(known(LEFT_OUT), cause=cause)
    assert f"'sign': {{'kind': '{sign}'" in export_script(finding)


def test_a_script_sees_how_a_job_ends(reproducer: Reproducer) -> None:
    """And not where the job goes on, or the operations end otherwise."""
    script = script_of_schedule(known("backup-top-fails-at-first-error"))
    assert reproducer(script)[0] == SEEN
    for right, wrong, status in (
        ("'ending': 'failed'", "'ending': 'cancelled'", NOT_SEEN),
        ("'answers': ['ok']", "'answers': ['refused']", UNTESTED),
    ):
        assert right in script
        assert reproducer(script.replace(right, wrong))[0] == status


def test_a_filter_that_copies_what_a_bitmap_names(
    qemu_build: Build, reproducer: Reproducer
) -> None:
    """The script makes the bitmap, too; without it nothing can be read of the snapshot."""
    pool = QemuPool(qemu_build)
    try:
        one = scenario("primary_write+guest_read,form=fleecing,bitmap=middle")
        system = RealSystem(pool, one)
        system.reset()
        while system.enabled():
            system.take(replace(CASES["completed"], starts=(0, 1)).next(system))
        system.finish()
        assert system.violation is None
        finding = Finding(
            Verdict.CONTENT, Cause(CauseKind.DATA_FITS_NO_ORDER), "data", True, 1, (one.name,), one,
            tuple(system.now.steps), tuple(system.now.events),
            build={"version": list(read_version(qemu_build)[0])},
        )  # fmt: skip
    finally:
        pool.close()
    script = export_script(finding)
    assert reproducer(LOST.of(script))[0] == SEEN
    status, output = reproducer(script)
    assert status == NOT_SEEN, output
    making = 'for command, words in CASE["bitmaps"].get'
    assert making in script
    assert reproducer(script.replace(making, "for command, words in {}.get"))[0] == UNTESTED


_STEP = "        taken += 1\n        take(step)\n        settle()\n"
_ENDED = 'if jobs:\n    say("the backup job:"'
_CLEARED = """
        for node in need("query-named-block-nodes"):
            for one in node.get("dirty-bitmaps", []):
                if one.get("name") and not one["busy"]:
                    names = {"node": node["node-name"], "name": one["name"]}
                    qmp.call("block-dirty-bitmap-clear", **names)
"""


@pytest.mark.parametrize("name", ["completed", "cancelled", "failed", "paused"])
def test_bitmaps_beside_a_job_are_compared(
    name: str, qemu_build: Build, reproducer: Reproducer
) -> None:
    """What storage and QEMU leave of them is right; a bitmap that is cleared meanwhile is not.

    It is in use for as long as a job is paused, so there it is cleared afterwards.
    """
    finding, wrong = taken(CASES[name], qemu_build, SOUND)
    assert wrong is None
    cause = Cause(CauseKind.BITMAP_MISSES, "b0")
    script = export_script(replace(finding, cause=cause, verdict=Verdict.LOST_WRITE))
    status, output = reproducer(script)
    assert status == NOT_SEEN and "bitmap b0 names granules" in output, output
    place, cleared = _STEP, _STEP + _CLEARED
    if CASES[name].stops:
        place, cleared = _ENDED, textwrap.dedent(_CLEARED) + _ENDED
    assert script.count(place) == 1
    status, output = reproducer(script.replace(place, cleared))
    assert status == SEEN, output


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (Cause(CauseKind.CORRUPTION, "hidden"), NOT_SEEN),
        (Cause(CauseKind.JOB_ENDS, "backup job", "failed"), NOT_SEEN),
        (Cause(CauseKind.JOB_ENDS, "backup job", "completed"), SEEN),
        (Cause(CauseKind.JOB_STATE, "status", "running", ("paused",)), NOT_SEEN),
        (Cause(CauseKind.JOB_STATE, "status", "paused", ("running",)), SEEN),
        (Cause(CauseKind.JOB_STATE, "paused", "False", ("True",)), NOT_SEEN),
        (Cause(CauseKind.JOB_STATE, "paused", "True", ("False",)), SEEN),
        (Cause(CauseKind.JOB_ACTION, "target", "report", ("stop",)), NOT_SEEN),
        (Cause(CauseKind.JOB_ACTION, "target", "stop", ("ignore", "report")), SEEN),
        (Cause(CauseKind.JOB_ACTION, "source", "stop", ()), NOT_SEEN),
    ],
)
def test_a_job_that_an_error_has_paused(
    cause: Cause, status: int, paused: Finding, reproducer: Reproducer
) -> None:
    """It is seen as what it is, and resumed; then it completes."""
    seen, output = reproducer(export_script(replace(paused, cause=cause)))
    assert seen == status, output
    assert "afterwards: block-job-resume\n" in output and "the backup job: completed\n" in output


@pytest.fixture(scope="module")
def paused(qemu_build: Build) -> Finding:
    """A run in which an error pauses the job, a write is done meanwhile, and all is right."""
    finding, wrong = taken(CASES["paused"], qemu_build, SOUND)
    assert wrong is None
    return finding


def test_operations_beside_a_paused_job_are_part_of_the_way(
    paused: Finding, reproducer: Reproducer
) -> None:
    """What is predicted is for those that started while it was paused."""
    script = export_script(replace(paused, cause=Cause(CauseKind.NO_POINT_IN_TIME, "target")))
    assert reproducer(script)[0] == NOT_SEEN
    assert script.count("'paused': [0]") == 1
    script = script.replace("'paused': [0]", "'paused': []").replace("ORDER = 150", "ORDER = 5")
    assert reproducer(script)[0] == UNTESTED


def test_other_answers_have_other_points_in_time(qemu_build: Build, reproducer: Reproducer) -> None:
    """Those of a script are for the answers that there were, and the order of starts and ends."""
    case = CASES["completed"]
    finding, _ = taken(case, qemu_build, case.broken)
    script = case.broken.of(export_script(finding))
    for right, wrong in (("'ok', 'ok'", "'ok', 'refused'"), ("'before': [[1]", "'before': [[]")):
        assert right in script, script
        status, output = reproducer(script.replace(right, wrong))
        assert status == UNTESTED, output
        assert re.search(r"not seen, but (in all )?of \d+ orders ", output), output


def test_a_target_may_be_the_disk_at_each_possible_t0() -> None:
    """The job began before the write, which failed: its target has none of it, and all the rest."""
    assert symptom_of(known(LEFT_OUT)) == {
        "kind": "target",
        "answers": ["errno 5", "ok"],
        "before": [[1], []],
        "endings": ["completed", "failed"],
        "points": [[[0, 256, [1]]]],
    }
