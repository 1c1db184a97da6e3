"""Scripts of what pairs show: each sees it where it is, and nothing where it is not.

What goes wrong is put into the script's own copy of the chain, its link or its QEMUs.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpshim.cli import main
from qmpshim.codec import encode
from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.conformance.compare.evidence import (
    AcknowledgedAlone,
    Answered,
    DiskLeft,
    DisksDiffer,
    Evidence,
    GuestReports,
    GuestSees,
    MigrationStatus,
    ReplicationStatus,
    Unsound,
)
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.steps.of_pair import steps_of_pair
from qmpshim.conformance.known.tracker import takes_guest, tracker_text
from qmpshim.conformance.pair.bundle import PairCase, Shown, finding_json, from_json
from qmpshim.conformance.pair.plan import Failover, PairFinding, PairPlan
from qmpshim.errors import Exit
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.programs import write_programs
from qmpshim.machine.guest.image import GuestImage
from qmpshim.model.check.cause import Cause, CauseKind, migration_detail
from qmpshim.model.check.verdict import Verdict
from vmtests.support.pairs import LostWrite, colo_works, go
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer

_CHECKPOINT = '        command(secondary, "xen-colo-do-checkpoint")\n'
_REQUEST = '    command(primary, "migrate-set-parameters", x_checkpoint_delay=NEVER)\n'
_LATE = '    cut()\n    writes("primary", 3)\n'
_REFTABLE = """\
    with open(at("hidden"), "r+b") as file:
        file.seek(48)
        file.seek(struct.unpack(">Q", file.read(8))[0])
        file.write(bytes(8))
"""


def _signal(name: str) -> tuple[str, str]:
    return _CHECKPOINT, f"        os.kill(secondary.process.pid, signal.{name})\n{_CHECKPOINT}"


def _overwritten(name: str) -> str:
    return f'    open(at("{name}"), "r+b").write(bytes(1 << 20))\n'


def case_of(plan: PairPlan, shown: Shown) -> PairCase:
    return PairCase(plan, shown, {})


def differs(evidence: Evidence) -> Shown:
    found = Divergence(Verdict.CONTENT, "", 1, "", "", evidence=evidence)
    return Shown(Verdict.CONTENT, Cause(CauseKind.PAIR_DIVERGES), True, found, evidence)


def stuck(
    kind: CauseKind, verdict: Verdict, ending: Ending | None = None, subject: str = "secondary"
) -> Shown:
    return Shown(verdict, Cause(kind, subject), True, Divergence(verdict, "", 1, "", "", ending))


def refusal(error: str | int) -> Shown:
    verdict, evidence = Verdict.ERROR_CONTRACT, Answered(None, error)
    found = Divergence(verdict, "", 1, "", "", evidence=evidence)
    cause = Cause(CauseKind.PAIR_FAILS, detail=f"a command: {error}")
    return Shown(verdict, cause, True, found, evidence)


ABORTED = stuck(CauseKind.PAIR_ENDED, Verdict.CRASH, Ending(Exit(-signal.SIGABRT), ""))
HUNG = stuck(CauseKind.PAIR_UNRESPONSIVE, Verdict.HANG)
FAILED_OVER = "    judge()\n    promoted()"
_REFUSED = "Block replication is running or done"


def plan_of(colo: bool = False, failover: Failover = Failover.NONE, **more: Any) -> PairPlan:
    return PairPlan(colo, "none", checkpoints=2, writes=10, failover=failover, **more)


def with_guest(failover: Failover = Failover.NONE, **more: Any) -> PairPlan:
    return PairPlan(checkpoints=2, writes=10, failover=failover, **more)


def _killed_at(message: str, right: str, wrong: str) -> tuple[Shown, PairPlan, tuple[str, str]]:
    """The checkpoint in which the primary is killed has to be taken, or has to be not."""
    plan = plan_of(True, Failover.PRIMARY, moment=message, resume=True)
    return differs(DiskLeft("secondary")), plan, (right, wrong)


_TAKEN = '    if message != "checkpoint-reply":\n        checkpoint_taken()\n'
CASES: dict[str, tuple[Shown, PairPlan, tuple[str, str]]] = {
    # by name: what was found, in which run, and what is done to the script's pair
    "a write is lost": (
        *(differs(DisksDiffer()), plan_of()),
        ("        written(side, *", "        number == 7 and next_write(side) or written(side, *"),
    ),
    "a checkpoint is not sent": (differs(GuestSees()), plan_of(), (_CHECKPOINT, "")),
    "no refcounts": (
        *(differs(Unsound("hidden")), plan_of()),
        ("def judge():\n", "def judge():\n" + _REFTABLE),
    ),
    "an error is reported": (
        *(differs(ReplicationStatus("secondary", False)), plan_of()),
        ('status["error"] is wanted', "False"),
    ),
    "no error is reported": (
        *(differs(ReplicationStatus("primary", True)), plan_of(failover=Failover.CUT)),
        ("    cut()\n    writes", "    writes"),
    ),
    "a silent link is not waited for": (
        *(differs(AcknowledgedAlone()), plan_of(failover=Failover.STALL)),
        ("    flows.clear()\n", "    kept.append(b'')\n"),
    ),
    "the secondary's disk": (
        *(differs(DiskLeft("secondary")), plan_of(failover=Failover.PRIMARY)),
        (FAILED_OVER, _overwritten("secondary") + FAILED_OVER),
    ),
    "the secondary's disk, with COLO": (
        *(differs(DiskLeft("secondary")), plan_of(True, Failover.PRIMARY)),
        (FAILED_OVER, _overwritten("secondary") + FAILED_OVER),
    ),
    "the primary's disk": (
        *(differs(DiskLeft("primary")), plan_of(failover=Failover.SECONDARY)),
        (
            '    command(primary, "stop")\n    judge()\n\n\ndef late',
            _overwritten("primary") + "    judge()\n\n\ndef late",
        ),
    ),
    "the primary's disk, after a silence": (
        *(differs(DiskLeft("primary")), plan_of(True, Failover.STALL)),
        (
            '    command(primary, "stop")\n    judge()\n\n\ndef late',
            _overwritten("primary") + "    judge()\n\n\ndef late",
        ),
    ),
    "killed before the checkpoint": _killed_at(
        "checkpoint-reply", _TAKEN, "    checkpoint_taken()\n"
    ),
    "killed in the checkpoint": _killed_at("vmstate-received", _TAKEN, ""),
    "killed after the checkpoint": _killed_at("vmstate-loaded", _TAKEN, ""),
    "the new secondary's disk": (
        *(differs(DisksDiffer()), plan_of(failover=Failover.CUT, resume=True)),
        ("    attach()\n    meet", _overwritten("secondary.new") + "    attach()\n    meet"),
    ),
    "the new secondary's disk, with COLO": (
        *(differs(DisksDiffer()), plan_of(True, Failover.PRIMARY, resume=True)),
        ("    attach()\n    meet", _overwritten("secondary.new") + "    attach()\n    meet"),
    ),
    "the new secondary's guest": (
        *(differs(GuestSees()), plan_of(failover=Failover.PRIMARY, resume=True)),
        ("    inherited(survivor)\n", "    inherited(survivor)\n    base[7] = 7\n"),
    ),
    "the secondary aborts": (ABORTED, plan_of(), _signal("SIGABRT")),
    "the new secondary aborts": (
        *(ABORTED, plan_of(failover=Failover.SECONDARY, resume=True)),
        (
            '    say("the disk is mirrored',
            '    secondary.process.send_signal(signal.SIGABRT)\n    say("the disk is mirrored',
        ),
    ),
    "the secondary hangs": (HUNG, plan_of(), _signal("SIGSTOP")),
    "the primary is in a deadlock": (
        *(stuck(CauseKind.PAIR_DEADLOCKED, Verdict.HANG, subject="primary"), plan_of(True)),
        (_REQUEST, f"    primary.process.send_signal(signal.SIGSTOP)\n{_REQUEST}"),
    ),
    "no checkpoint": (
        *(stuck(CauseKind.PAIR_STUCK, Verdict.HANG), plan_of(True)),
        (_REQUEST, "    pass\n"),
    ),
    "a command is refused": (
        *(refusal(_REFUSED), plan_of()),
        ("\nbegin_replication()", "\nbegin_replication()\nbegin_replication()"),
    ),
    "a write is refused": (
        *(refusal(22), plan_of()),
        ('"quorum")\n    clients["primary"]', '"quorum", False)\n    clients["primary"]'),
    ),
}


_JUDGE = "def judge():\n"
_ABORTS = f"    secondary.process.send_signal(signal.SIGABRT)\n{_REQUEST}"
WITH_GUEST: dict[str, tuple[Shown, PairPlan, tuple[str, str]]] = {
    "the disks differ": (
        *(differs(DisksDiffer()), with_guest()),
        (_JUDGE, _JUDGE + _overwritten("secondary")),
    ),
    "a byte under the secondary's guest": (
        *(differs(GuestSees()), with_guest()),
        (_JUDGE, _JUDGE + _overwritten("secondary")),
    ),
    "a guest's block is lost": (
        *(differs(GuestReports("primary")), with_guest()),
        (
            _JUDGE,
            f'{_JUDGE}    open(at("primary"), "r+b").write(boot_sector.ljust(5 << 20, b"\\0"))\n',
        ),
    ),
    "the guest stands still": (
        *(stuck(CauseKind.PAIR_GUEST_STOPS, Verdict.HANG, subject="primary"), with_guest()),
        (
            '    writes("primary", count)\n\n\ndef write_that',
            '    command(primary, "stop")\n    writes("primary", count)\n\n\ndef write_that',
        ),
    ),
    "the secondary aborts": (ABORTED, with_guest(), (_REQUEST, _ABORTS)),
    "a silent link is not waited for": (
        *(differs(AcknowledgedAlone()), with_guest(Failover.STALL)),
        ("    time.sleep(0.3)\n    judge", "    flows.set()\n    until(answered, '')\n    judge"),
    ),
    "killed in a checkpoint": (
        differs(DiskLeft("secondary")),
        with_guest(Failover.PRIMARY, moment="vmstate-received"),
        (FAILED_OVER, _overwritten("secondary") + FAILED_OVER),
    ),
    "the new secondary's disk": (
        *(differs(DisksDiffer()), with_guest(Failover.PRIMARY, resume=True)),
        ("    attach()\n    meet", _overwritten("secondary.new") + "    attach()\n    meet"),
    ),
}


WITH_LINUX: dict[str, tuple[Shown, PairPlan, tuple[str, str]]] = {
    "a byte under the secondary's guest": (
        *(differs(GuestSees()), with_guest(guest="linux")),
        (_JUDGE, _JUDGE + _overwritten("secondary")),
    ),
    "what the guest reads": (
        *(differs(GuestReports("primary")), with_guest(guest="linux-booting")),
        (_JUDGE, f'{_JUDGE}    open(at("primary"), "r+b").write(b"x" * SIZE)\n'),
    ),
    "killed in a checkpoint": (
        differs(DiskLeft("secondary")),
        with_guest(Failover.PRIMARY, guest="linux", moment="vmstate-loaded"),
        (FAILED_OVER, _overwritten("secondary") + FAILED_OVER),
    ),
    "the new secondary's disk": (
        *(differs(DisksDiffer()), with_guest(Failover.SECONDARY, guest="linux", resume=True)),
        ("    attach()\n    meet", _overwritten("secondary.new") + "    attach()\n    meet"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_of_a_pair(name: str, qemu_build: Build, reproducer: Reproducer) -> None:
    if CASES[name][1].colo and not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    sees_what_is_there(*CASES[name], reproducer)


@pytest.mark.parametrize("name", WITH_GUEST)
def test_a_script_of_a_pair_with_a_guest(
    name: str, colo_build: tuple[str, ...], reproducer: Reproducer
) -> None:
    sees_what_is_there(*WITH_GUEST[name], reproducer, *colo_build)


@pytest.mark.full
@pytest.mark.parametrize("name", WITH_LINUX)
def test_a_script_of_a_pair_with_linux(
    name: str, colo_build: tuple[str, ...], image: GuestImage, reproducer: Reproducer
) -> None:
    words = (*colo_build, str(image.kernel), str(image.initramfs))
    sees_what_is_there(*WITH_LINUX[name], reproducer, *words)


def test_many_checkpoints_have_the_time_they_need() -> None:
    few, many = with_guest(resume=True, failover=Failover.PRIMARY), PairPlan(checkpoints=100)
    assert "give_up_after" not in steps_of_pair(case_of(few, differs(DisksDiffer())))
    assert "\ngive_up_after(6000)\n" in steps_of_pair(case_of(many, differs(DisksDiffer())))


def test_a_report_of_a_pair_with_linux_attaches_the_guest(tmp_path: Path) -> None:
    """Of one without there is the script alone."""
    one = replace(write_up("pair/checkpoint-after-lost-writes"), path=tmp_path / "found.json")
    for plan, attached in ((with_guest(guest="linux"), True), (with_guest(), False)):
        (tmp_path / "found.py.in").write_text(steps_of_pair(case_of(plan, differs(DisksDiffer()))))
        text = tracker_text(one, "x.py")
        assert takes_guest(one) is attached
        assert ("x.py QEMU-SYSTEM-BINARY QEMU-IMG KERNEL INITRAMFS\n" in text) is attached
        assert ("It needs Python 3 and QEMU alone." in text) is not attached


def test_a_script_with_linux_takes_one(reproducer: Reproducer) -> None:
    steps = steps_of_pair(case_of(with_guest(guest="linux"), differs(DisksDiffer())))
    script = steps_script("A title", steps)
    assert "reproducer.py QEMU-SYSTEM-BINARY QEMU-IMG KERNEL INITRAMFS\n" in script
    status, lines = reproducer(script)
    assert status == UNTESTED and "usage: " in lines


@pytest.fixture
def colo_build(each_build: Build, tmp_path: Path) -> tuple[str, ...]:
    """QEMU and its qemu-img, if COLO works there with a guest."""
    if not colo_works(each_build, "boot"):
        pytest.skip("COLO does not work with a guest on this build (known)")
    write_programs(each_build, tmp_path)
    return tuple(str(tmp_path / name) for name in ("qemu-system-x86_64", "qemu-img"))


def sees_what_is_there(
    shown: Shown, plan: PairPlan, change: tuple[str, str], reproducer: Reproducer, *words: str
) -> None:
    """Not without a change to the script's pair."""
    right, wrong = change
    script = steps_script("A title", steps_of_pair(case_of(plan, shown)))
    status, lines = reproducer(script, *words)
    assert status == NOT_SEEN, lines
    assert script.count(right) == 1
    script = script.replace(right, wrong)
    if "\nexpect_hang()\n" in script:
        script = script.replace("PATIENCE = 10 ", "PATIENCE = 2 ")
    status, lines = reproducer(script, *words)
    assert status == SEEN, lines


def test_a_checkpoint_without_writes(qemu_build: Build, reproducer: Reproducer) -> None:
    """What all builds show (known): not seen where the writes are there."""
    if not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    shown = replace(differs(DisksDiffer()), cause=Cause(CauseKind.PAIR_WRITES_LEFT_OUT))
    script = steps_script("", steps_of_pair(case_of(plan_of(True, Failover.CUT_LATE), shown)))
    status, lines = reproducer(script)
    assert status == SEEN, lines
    assert script.count(_LATE) == 1
    status, lines = reproducer(script.replace(_LATE, "    cut()\n"))
    assert status == NOT_SEEN, lines


@pytest.mark.parametrize(
    ("plan", "shown"),
    [
        (plan_of(), differs(DiskLeft("primary"))),
        (plan_of(), Shown(Verdict.CONTENT, Cause(CauseKind.PAIR_DIVERGES), True)),
        (plan_of(), stuck(CauseKind.PAIR_FAILS, Verdict.ERROR_CONTRACT)),
    ],
    ids=["no failover", "no data", "refused by the human monitor"],
)
def test_what_is_left_to_the_author(plan: PairPlan, shown: Shown) -> None:
    assert TO_WRITE in steps_of_pair(case_of(plan, shown))


@pytest.mark.parametrize("error", ["", "no (such) route"])
def test_how_a_migration_ended_is_read_from_all_bundles(error: str) -> None:
    """As data, and in older ones from the text: the script looks for the status alone."""
    seen = MigrationStatus("primary", "failed")
    cause = Cause(CauseKind.PAIR_MIGRATION, seen.side, migration_detail(seen.status, error))
    divergence = Divergence(Verdict.PROTOCOL, "start of COLO", 0, "COLO", "", evidence=seen)
    new = finding_json(PairFinding(divergence, cause, contract=True))
    old = {key: value for key, value in new.items() if key != "evidence"}
    oldest = {key: value for key, value in old.items() if key != "cause_fields"}
    for finding in (new, old, oldest):
        bundle = {"format": 1, "kind": "pair", "plan": encode(PairPlan()), "findings": [finding]}
        case = from_json(bundle, Path("pair.json"))
        assert case.wrong.evidence == seen
        steps = steps_of_pair(case)
        assert "conclude(status == 'failed', \"the primary's" in steps


def test_a_bundle_of_a_pair_makes_a_script(
    qemu_build: Build,
    tmp_path: Path,
    reproducer: Reproducer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = PairPlan(colo=False, checkpoints=1, writes=10)
    _, bundle = go(plan, qemu_build, tmp_path, LostWrite)
    assert main(["export", str(bundle)]) == 0
    status, lines = reproducer(capsys.readouterr().out)
    assert status == NOT_SEEN, lines  # what lost the write is no part of this QEMU
