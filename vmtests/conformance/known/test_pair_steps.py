"""Scripts of what pairs show: each sees it where it is, and nothing where it is not.

What goes wrong is put into the script's own copy of the chain, its link or its QEMUs.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.conformance.compare.evidence import (
    DiskLeft,
    DisksDiffer,
    Evidence,
    GuestSees,
    ReplicationStatus,
    Unsound,
)
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.pair_steps import steps_of_pair
from qmpshim.conformance.pair.bundle import Shown
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.errors import Exit
from qmpshim.machine.builds.build import Build
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from vmtests.support.pairs import LostWrite, colo_works, go
from vmtests.support.reproducer import NOT_SEEN, SEEN, Reproducer

_CHECKPOINT = '        command(secondary, "xen-colo-do-checkpoint")\n'
_AGAIN = '    judge()\n    serve("again")'
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


def differs(evidence: Evidence) -> Shown:
    found = Divergence(Verdict.CONTENT, "", 1, "", "", evidence=evidence)
    return Shown(Verdict.CONTENT, Cause(CauseKind.PAIR_DIVERGES), True, found)


def stuck(kind: CauseKind, verdict: Verdict, ending: Ending | None = None) -> Shown:
    return Shown(
        verdict, Cause(kind, "secondary"), True, Divergence(verdict, "", 1, "", "", ending)
    )


ABORTED = stuck(CauseKind.PAIR_ENDED, Verdict.CRASH, Ending(Exit(-signal.SIGABRT), ""))
HUNG = stuck(CauseKind.PAIR_UNRESPONSIVE, Verdict.HANG)
CASES: dict[str, tuple[Shown, Failover, bool, tuple[str, str]]] = {
    # by name: what was found, in which run, and what is done to the script's pair
    "a write is lost": (
        *(differs(DisksDiffer()), Failover.NONE, False),
        ("        written(side, start", "        number == 7 or written(side, start"),
    ),
    "a checkpoint is not sent": (*(differs(GuestSees()), Failover.NONE, False, (_CHECKPOINT, "")),),
    "no refcounts": (
        *(differs(Unsound("hidden")), Failover.NONE, False),
        ("def judge():\n", "def judge():\n" + _REFTABLE),
    ),
    "an error is reported": (
        *(differs(ReplicationStatus("secondary", False)), Failover.NONE, False),
        ('status["error"] is wanted', "False"),
    ),
    "no error is reported": (
        *(differs(ReplicationStatus("primary", True)), Failover.CUT, False),
        ("        cut()\n", ""),
    ),
    "the secondary's disk": (
        *(differs(DiskLeft("secondary")), Failover.PRIMARY, False),
        (_AGAIN, _overwritten("secondary") + _AGAIN),
    ),
    "the secondary's disk, with COLO": (
        *(differs(DiskLeft("secondary")), Failover.PRIMARY, True),
        (_AGAIN, _overwritten("secondary") + _AGAIN),
    ),
    "the primary's disk": (
        *(differs(DiskLeft("primary")), Failover.SECONDARY, False),
        ('    command(primary, "stop")\n    judge', _overwritten("primary") + "    judge"),
    ),
    "the secondary aborts": (ABORTED, Failover.NONE, False, _signal("SIGABRT")),
    "the secondary hangs": (HUNG, Failover.NONE, False, _signal("SIGSTOP")),
    "no checkpoint": (
        *(stuck(CauseKind.PAIR_STUCK, Verdict.HANG), Failover.NONE, True),
        ('        command(primary, "migrate-set-parameters", x_checkpoint_delay=NEVER)\n', ""),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_of_a_pair(name: str, qemu_build: Build, reproducer: Reproducer) -> None:
    shown, failover, colo, (right, wrong) = CASES[name]
    if colo and not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    plan = PairPlan(colo, "none", checkpoints=2, writes=10, failover=failover)
    script = steps_script("A title", steps_of_pair(plan, shown))
    status, lines = reproducer(script)
    assert status == NOT_SEEN, lines
    assert script.count(right) == 1
    status, lines = reproducer(
        script.replace(right, wrong).replace("PATIENCE = 10 ", "PATIENCE = 2 ")
    )
    assert status == SEEN, lines


@pytest.mark.parametrize(
    ("plan", "shown"),
    [
        (PairPlan(colo=False, resume=True, failover=Failover.PRIMARY), differs(DisksDiffer())),
        (PairPlan(failover=Failover.CUT_LATE, guest="none"), differs(DisksDiffer())),
        (PairPlan(guest="linux"), differs(DisksDiffer())),
        (PairPlan(colo=False), Shown(Verdict.CONTENT, Cause(CauseKind.PAIR_DIVERGES), True)),
        (PairPlan(colo=False), stuck(CauseKind.PAIR_FAILS, Verdict.ERROR_CONTRACT)),
    ],
    ids=["resumed", "cut late", "with Linux", "no data", "refused"],
)
def test_what_is_left_to_the_author(plan: PairPlan, shown: Shown) -> None:
    assert TO_WRITE in steps_of_pair(plan, shown)


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
