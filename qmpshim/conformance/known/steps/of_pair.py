"""Steps of a stand-alone script, made of the plan of a pair and of what was found with it.

The script does what the plan does, with the same guest or, without one, the same writes; it is
judged where the run was. Where COLO alone shows it there are no disks.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from qmpshim.conformance.compare.evidence import (
    AcknowledgedAlone,
    Answered,
    DiskLeft,
    DisksDiffer,
    GuestReports,
    GuestSees,
    MigrationStatus,
    ReplicationStatus,
    Unsound,
)
from qmpshim.conformance.known.steps.conclusions import by_hand, expectation
from qmpshim.conformance.pair.bundle import PairCase, Shown
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.machine.guest.boot_sector import BootGuest
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
_AT_ONCE = 20  # so many checkpoints a script takes in the time that it has anyway
#: The steps of a failover: what is lost, and what the side does that is left.
_FAILOVERS = {
    Failover.PRIMARY: ("lose_primary()", "secondary_takes_over()"),
    Failover.SECONDARY: ("lose_secondary()", "primary_goes_on()"),
    Failover.CUT: ("lose_link()", "primary_goes_on()"),
    Failover.STALL: ("stall_link()", "primary_goes_on()"),
    Failover.CUT_LATE: ("lose_link()", "late_checkpoint()"),
}


def steps_of_pair(case: PairCase) -> str:
    """What a script does, as Python, with what the templates ``steps.py.in``, ``colo.py.in``,
    ``pair.py.in`` and those beside it have; ``TO_WRITE`` where it has to be written
    by hand.

    :raises InputError: it shows nothing wrong
    """
    plan, shown = case.plan, case.wrong
    needs = "with COLO" if plan.colo else "with the replication and the quorum driver"
    return (
        _of_colo(plan, shown)
        or _of_disks(plan, shown)
        or by_hand(needs, [f"the plan: {plan}"], shown.divergence or shown.cause)
    )


def _of_colo(plan: PairPlan, shown: Shown) -> str:
    """Where COLO alone shows it, without disks; else ``""``."""
    if not plan.colo or not (plan.accel == "tcg" or plan.guest == "none"):
        return ""
    begin = "# A QEMU with COLO\n{}begin_colo(qmp, secondary)\n"
    match shown.evidence:
        case MigrationStatus(side, status) if (
            not plan.resume
        ):  # it is the first, whatever the guest
            guest = _GUESTS["none" if plan.guest == "none" else "boot"]
            steps = _UNTIL_IT_ENDS.format(side=_SIDES[side], role=side, status=status)
            return begin.format(guest) + steps
    match shown.cause:
        case Cause(CauseKind.PAIR_DEADLOCKED, "primary") if plan.guest == "boot":
            if plan.failover is Failover.NONE:
                steps = _UNTIL_IT_DEADLOCKS.format(checkpoints=plan.checkpoints)
                return begin.format(_GUESTS["boot"]) + steps
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
        return not self.rounds and bool(self.lost or self.left)


def _of_disks(plan: PairPlan, shown: Shown) -> str:
    """Where both have disks; ``""``: it is not known what to look for."""
    expected, judges = _expected(shown), _judges(shown)
    if not expected and judges == _Judges():
        return ""
    if judges.needs_failover and plan.failover is Failover.NONE:
        return ""
    needs = f"{'COLO, ' if plan.colo else ''}the replication and the quorum driver"
    lines = [
        f"# A QEMU with {needs}",
        f"SIZE, CLUSTER = {plan.size}, {plan.cluster}",
        *_start(plan),
        *([f"give_up_after({60 * plan.wanted})"] if plan.wanted > _AT_ONCE else []),
        *expected,
        *_round(plan, shown, judges),
        *_failover(plan, judges),
        *_resumed(plan, shown, judges),
        'conclude(False, "all is as it has to be")',
    ]
    return "\n".join(lines) + "\n"


def _start(plan: PairPlan) -> list[str]:
    match _guest(plan):
        case "none":
            channel = ["open_channel()"] if plan.moment else []
            return [f"start_pair(colo={plan.colo}, seed={plan.seed})", *channel]
        case "boot":
            guest = BootGuest()
            *code, last = textwrap.wrap(guest.code().hex(), 80)
            return [
                "start_boot_pair(",
                *(f'    "{line}"' for line in code),
                f'    "{last}",',
                f"    blocks={guest.blocks}, base={guest.base}, delay={guest.delay}, "
                f'accel="{plan.accel}",',
                ")",
            ]
    booting = plan.guest == "linux-booting"
    return [f'start_linux_pair(seed={plan.seed}, accel="{plan.accel}", booting={booting})']


def _guest(plan: PairPlan) -> str:
    """What writes."""
    return plan.guest if plan.colo else "none"


def _round(plan: PairPlan, shown: Shown, judges: _Judges, again: bool = False) -> list[str]:
    """Replication from its start, with all its checkpoints.

    :param again: with a new secondary, which has to begin with the same disk
    """
    of_a_side = shown.cause.subject in _SIDES and bool(_expected(shown))
    guest = _guest(plan)
    return [
        *(_judged_by(judges.rounds) if not again or judges.left != judges.rounds else []),
        *(["judge()"] if again and judges.rounds == "disks_differ" else []),
        *([f"watch({shown.cause.subject})"] if of_a_side else []),
        "begin_replication()",
        *(["run_program()"] if guest.startswith("linux") and not again else []),
        f"rounds({plan.checkpoints}, {plan.writes})",
        *(["by_the_clock()"] if guest != "none" else []),
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
    if judges.left == judges.rounds:
        return [lose, go_on]
    ended = ["judges.clear()"] if judges.rounds else []
    return [*ended, lose, *_judged_by(judges.left), go_on]


def _resumed(plan: PairPlan, shown: Shown, judges: _Judges) -> list[str]:
    if not plan.resume or judges.needs_failover:
        return []
    survivor = "secondary" if plan.failover is Failover.PRIMARY else "primary"
    return [f"resume({survivor})", *_round(plan, shown, judges, again=True)]


def _judged_by(judge: str) -> list[str]:
    return [f"judges[:] = [{judge}]"] if judge else []


def _expected(shown: Shown) -> list[str]:
    """What is looked for where a side ends, hangs or refuses something."""
    match shown.evidence:
        case Answered(None, str(text)):
            return [f"expect_refusal({text!r})"]
        case Answered(None, int(number)):
            return [f'expect_refusal("errno {number}")']
    return expectation(shown.divergence)


def _judges(shown: Shown) -> _Judges:
    if shown.cause.kind is CauseKind.PAIR_WRITES_LEFT_OUT:
        return _Judges(left="disks_differ")
    match shown.evidence:
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
        case GuestReports(side):
            return _Judges(f'complains("{side}")', left=f'complains("{side}")')
        case DiskLeft(side):
            return _Judges(left=f"{side}_differs")
    return _Judges()
