"""Steps of a stand-alone script, made of the plan of a pair and of what was found with it.

A pair without virtual machines does what its plan does, with the same writes; it is judged where
the run was. Of one with a guest there are steps where COLO alone shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.conformance.compare.evidence import (
    AcknowledgedAlone,
    Answered,
    DiskLeft,
    DisksDiffer,
    GuestSees,
    ReplicationStatus,
    Unsound,
)
from qmpshim.conformance.known.conclusions import by_hand, expectation
from qmpshim.conformance.pair.bundle import Shown
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.model.check.cause import Cause, CauseKind

#: COLO with a guest that writes to its memory without end, or without one.
_GUESTS = {
    "boot": """\
# xor ax, ax; mov ds, ax; again: inc word [0x7000]; jmp again
words = rom(bytes.fromhex("31c0 8ed8 ff060070 ebfa"))
start_qemu(*words, machine="pc")
secondary = start_secondary("pc", *words)
""",
    "none": """\
start_qemu("-m", "16")
secondary = start_secondary("none", "-m", "16")
""",
}
_UNTIL_IT_ENDS = """\
status = ""
deadline = time.time() + 60
while time.time() < deadline and status not in ("colo", "completed", "failed"):
    status = migration({side})
    time.sleep(0.05)
if status not in ("colo", "completed", "failed"):
    end(UNTESTED, "the migration neither ends nor becomes COLO")
conclude(status == {status!r}, "the {role}'s migration is %r" % status)
"""
_UNTIL_IT_DEADLOCKS = """\
in_colo(qmp, secondary)
deadline = time.time() + 60
deadlocked = False
while time.time() < deadline and secondary.events.count("RESUME") < {checkpoints} + 10:
    if not migration(qmp, 20):
        see_whether_it_ended()
        deadlocked = stands(qemu)
        break
    time.sleep(0.1)
taken = secondary.events.count("RESUME")
if not deadlocked and taken < {checkpoints}:
    end(UNTESTED, "too few checkpoints")
conclude(deadlocked, "checkpoints: %d; the primary answers: %s" % (taken, not deadlocked))
"""
_SIDES = {"primary": "qmp", "secondary": "secondary"}  # their monitors
#: The steps of a failover: what is lost, and what the side does that is left.
_FAILOVERS = {
    Failover.PRIMARY: ("lose_primary()", "secondary_takes_over()"),
    Failover.SECONDARY: ("lose_secondary()", "primary_goes_on()"),
    Failover.CUT: ("lose_link()", "primary_goes_on()"),
    Failover.STALL: ("stall_link()", "primary_goes_on()"),
    Failover.CUT_LATE: ("lose_link()", "late_checkpoint()"),
}


def steps_of_pair(plan: PairPlan, shown: Shown) -> str:
    """What a script does, as Python, with what the templates ``steps.py.in``, ``colo.py.in``,
    ``pair.py.in`` and those beside it have; :data:`~.meaning.TO_WRITE` where it has to be written
    by hand.
    """
    needs = "with COLO" if plan.colo else "with the replication and the quorum driver"
    return (
        _of_colo(plan, shown.cause)
        or _of_disks(plan, shown)
        or by_hand(needs, [f"the plan: {plan}"], shown.divergence or shown.cause)
    )


def _of_colo(plan: PairPlan, cause: Cause) -> str:
    """Where COLO alone shows it, without disks; else ``""``."""
    guest, accel = _GUESTS.get(plan.guest, ""), plan.accel == "tcg" or plan.guest == "none"
    if not plan.colo or plan.failover is not Failover.NONE or not guest or not accel:
        return ""
    begin = f"# A QEMU with COLO\n{guest}begin_colo(qmp, secondary)\n"
    match cause.kind:
        case CauseKind.PAIR_MIGRATION:
            side, status = _SIDES[cause.subject], cause.detail.partition(" ")[0]
            return begin + _UNTIL_IT_ENDS.format(side=side, role=cause.subject, status=status)
        case CauseKind.PAIR_DEADLOCKED if cause.subject == "primary" and plan.guest != "none":
            return begin + _UNTIL_IT_DEADLOCKS.format(checkpoints=plan.checkpoints)
    return ""


@dataclass(frozen=True, slots=True)
class _Judges:
    """What looks for it: at checkpoints, when a side or the link is lost, after the failover."""

    rounds: str = ""
    lost: str = ""
    left: str = ""

    @property
    def needs_failover(self) -> bool:
        """Whether only a failover shows it."""
        return bool(self.lost or self.left)


def _of_disks(plan: PairPlan, shown: Shown) -> str:
    """Where both have disks, and no virtual machine; else ``""``."""
    if plan.colo and plan.guest != "none":
        return ""
    expected, judges = _expected(shown), _judges(shown)
    if not expected and judges == _Judges():
        return ""
    if judges.needs_failover and plan.failover is Failover.NONE:
        return ""
    needs = f"{'COLO, ' if plan.colo else ''}the replication and the quorum driver"
    lines = [
        f"# A QEMU with {needs}",
        f"SIZE, CLUSTER = {plan.size}, {plan.cluster}",
        f"start_pair(colo={plan.colo}, seed={plan.seed})",
        *(["open_channel()"] if plan.moment else []),
        *expected,
        *_round(plan, shown, judges),
        *_failover(plan, judges),
        *_resumed(plan, shown, judges),
        'conclude(False, "all is as it has to be")',
    ]
    return "\n".join(lines) + "\n"


def _round(plan: PairPlan, shown: Shown, judges: _Judges, *at_once: str) -> list[str]:
    """Replication from its start, with all its checkpoints."""
    of_a_side = shown.cause.subject in _SIDES and bool(_expected(shown))
    return [
        *_judged_by(judges.rounds),
        *at_once,
        *([f"watch({shown.cause.subject})"] if of_a_side else []),
        "begin_replication()",
        f"rounds({plan.checkpoints}, {plan.writes})",
    ]


def _failover(plan: PairPlan, judges: _Judges) -> list[str]:
    if plan.failover is Failover.NONE:
        return []
    lose, go_on = _FAILOVERS[plan.failover]
    if plan.moment:
        lose = f'lose_primary_at("{plan.moment}")'
    if judges.lost and plan.failover is Failover.STALL:
        return [*_judged_by(judges.lost), lose]
    if judges.lost:
        return [lose, *_judged_by(judges.lost), "judge()"]
    ended = ["judges.clear()"] if judges.rounds else []
    return [*ended, lose, *_judged_by(judges.left), go_on]


def _resumed(plan: PairPlan, shown: Shown, judges: _Judges) -> list[str]:
    """The same with a new secondary, which has to begin with the same disk."""
    if not plan.resume or judges.needs_failover:
        return []
    survivor = "secondary" if plan.failover is Failover.PRIMARY else "primary"
    at_once = ["judge()"] if judges.rounds == "disks_differ" else []
    return [f"resume({survivor})", *_round(plan, shown, judges, *at_once)]


def _judged_by(judge: str) -> list[str]:
    return [f"judges[:] = [{judge}]"] if judge else []


def _expected(shown: Shown) -> list[str]:
    """What is looked for where a side ends, hangs or refuses something."""
    found = shown.divergence
    match found and found.evidence:
        case Answered(None, str(text)):
            return [f"expect_refusal({text!r})"]
        case Answered(None, int(number)):
            return [f'expect_refusal("errno {number}")']
    return expectation(found)


def _judges(shown: Shown) -> _Judges:
    if shown.cause.kind is CauseKind.PAIR_WRITES_LEFT_OUT:
        return _Judges(left="disks_differ")
    found = shown.divergence
    match found and found.evidence:
        case DisksDiffer():
            return _Judges("disks_differ")
        case GuestSees():
            return _Judges("guest_sees")
        case Unsound(image):
            return _Judges(f'broken("{image}")')
        case ReplicationStatus(side, False):
            return _Judges(f'reports("{side}", False)')
        case ReplicationStatus(side, True):
            return _Judges(lost=f'reports("{side}", True)')
        case AcknowledgedAlone():
            return _Judges(lost="answered_early")
        case DiskLeft(side):
            return _Judges(left=f"{side}_differs")
    return _Judges()
