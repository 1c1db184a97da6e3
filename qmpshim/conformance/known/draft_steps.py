"""A draft of the steps beside a write-up that has no schedule: what its stand-alone script does.

Operations on a chain of one disk become steps (:mod:`.workload_steps`); of a pair whose primary
leaves COLO, or deadlocks, there are steps, too. What else was seen, and what else was done, is
listed for the author: as long as :data:`~.meaning.TO_WRITE` is there, the steps make no script.
"""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.bundles.any_workload import AnyCase, load_case
from qmpshim.conformance.bundles.bundle import WorkloadCase
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report.finding_files import is_schedule
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.conclusions import to_look_for
from qmpshim.conformance.known.draft import draft
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.points_steps import steps_of_points
from qmpshim.conformance.known.workload_steps import steps_of_workload
from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.conformance.pointintime.bundle import load_steps
from qmpshim.errors import InputError
from qmpshim.model.check.cause import Cause, CauseKind


def steps_draft(bundle: Path) -> str:
    """The steps, ``""`` for a schedule of `explore`, which is a script's steps itself.

    :raises InputError: it is no bundle, or damaged
    """
    if pair_bundle.is_pair(bundle):
        plan, wanted = pair_bundle.load(bundle)
        steps = _of_pair(plan, wanted.cause) if wanted else ""
        seen = wanted.cause if wanted else None
        return steps or _by_hand("with COLO", [f"the plan: {plan}"], seen)
    if is_schedule(bundle):
        return ""
    case = load_case(bundle)
    if isinstance(case, WorkloadCase):
        return steps_of_workload(case)
    if done := load_steps(bundle):
        return steps_of_points(case, done)
    return _by_hand("of 5.2 or later", _listed(case), case.divergence)


def bundle_script(bundle: Path) -> str:
    """The stand-alone script of a bundle that is no schedule of `explore`, as a program.

    :raises InputError: it shows nothing wrong, or what it shows has to be looked for by hand
    """
    content = draft(bundle)
    steps = steps_draft(bundle)
    if TO_WRITE in steps:
        raise InputError(
            f"{bundle}: its steps have to be written by hand, `qmpshim findings new` begins them; "
            "`qmpshim replay` shows the finding"
        )
    verdict = content["verdicts"][0]
    return steps_script(f"{verdict}: {content['title']}", steps)


def _by_hand(needs: str, done: list[str], seen: Divergence | Cause | None) -> str:
    """What was done and seen as comments."""
    lines = [f"# A QEMU {needs}", "start_qemu()"]
    lines += [f"# {TO_WRITE}: {line}" for line in done]
    return "\n".join([*lines, to_look_for(seen)]) + "\n"


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
    status = migration(qmp)
    time.sleep(0.05)
if status not in ("colo", "completed", "failed"):
    end(UNTESTED, "the migration neither ends nor becomes COLO")
conclude(status == {status!r}, "the primary's migration is %r" % status)
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


def _of_pair(plan: PairPlan, cause: Cause) -> str:
    """The steps where COLO alone shows it, with what `steps.py.in` has of guests; else ``""``."""
    if not plan.colo or plan.failover is not Failover.NONE or cause.subject != "primary":
        return ""
    guest, accel = _GUESTS.get(plan.guest, ""), plan.accel == "tcg" or plan.guest == "none"
    if not guest or not accel:
        return ""
    begin = f"# A QEMU with COLO\n{guest}begin_colo(qmp, secondary)\n"
    match cause.kind:
        case CauseKind.PAIR_MIGRATION:
            return begin + _UNTIL_IT_ENDS.format(status=cause.detail.partition(" ")[0])
        case CauseKind.PAIR_DEADLOCKED:
            return begin + _UNTIL_IT_DEADLOCKS.format(checkpoints=plan.checkpoints)
    return ""


def _listed(case: AnyCase) -> list[str]:
    return [" ".join(str(one).split()) for one in case.operations]
