"""Steps of a stand-alone script, made of the plan of a pair and of what was found with it.

A pair without virtual machines does what its plan does, with the same writes; it is judged where
the run was. Of one with a guest there are steps where COLO alone shows it.
"""

from __future__ import annotations

from qmpshim.conformance.compare.evidence import (
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
#: The steps of a failover; it is judged in the second.
_FAILOVERS = {
    Failover.NONE: (),
    Failover.PRIMARY: ("lose_primary()", "secondary_takes_over()"),
    Failover.SECONDARY: ("lose_secondary(killed=True)", "primary_goes_on()"),
    Failover.CUT: ("lose_secondary(killed=False)", "primary_goes_on()"),
}


def steps_of_pair(plan: PairPlan, shown: Shown) -> str:
    """What a script does, as Python, with what ``steps.py.in``, ``colo.py.in`` and ``pair.py.in``
    have; :data:`~.meaning.TO_WRITE` where it has to be written by hand.
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


def _of_disks(plan: PairPlan, shown: Shown) -> str:
    """Where both have disks, and no virtual machine; else ``""``."""
    if plan.colo and plan.guest != "none":
        return ""
    if plan.resume or plan.moment or plan.failover not in _FAILOVERS:
        return ""
    expected = expectation(shown.divergence)
    before, after = _judges(shown)
    if not (expected or before or after):
        return ""
    if expected and shown.cause.subject in _SIDES:
        expected = [f"watch({shown.cause.subject})", *expected]
    failover = _FAILOVERS[plan.failover]
    reported = isinstance(shown.divergence and shown.divergence.evidence, ReplicationStatus)
    lines = [
        "# A QEMU with the replication and the quorum driver",
        f"SIZE, CLUSTER = {plan.size}, {plan.cluster}",
        f"start_pair(colo={plan.colo}, seed={plan.seed})",
        *expected,
        "begin_replication()",
        f"judges[:] = [{before}]",
        f"rounds({plan.checkpoints}, {plan.writes})",
        *failover[:1],
        f"judges[:] = [{after}]",
        *(["judge()"] if reported else failover[1:]),
        'conclude(False, "all is as it has to be")',
    ]
    return "\n".join(lines) + "\n"


def _judges(shown: Shown) -> tuple[str, str]:
    """What looks for it at checkpoints, and what after a failover; ``""`` for nothing."""
    found = shown.divergence
    match found and found.evidence:
        case DisksDiffer():
            return "disks_differ", ""
        case GuestSees():
            return "guest_sees", ""
        case Unsound(image):
            return f'broken("{image}")', ""
        case ReplicationStatus(side, False):
            return f"reports({side}, False)", ""
        case ReplicationStatus(side, True):
            return "", f"reports({side}, True)"
        case DiskLeft(side):
            return "", f"{side}_differs"
    return "", ""
