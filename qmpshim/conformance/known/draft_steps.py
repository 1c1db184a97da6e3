"""A draft of the steps beside a write-up that has no schedule: what its stand-alone script does.

Operations on COLO's secondary become steps, and an answer or an end of QEMU's is looked for; of a
pair whose primary leaves COLO, or deadlocks, there are steps, too. What else was seen, and what
else was done, is listed for the author: as long as :data:`~.meaning.TO_WRITE` is there, the steps
make no script.
"""

from __future__ import annotations

import re
from pathlib import Path

from qmpshim.conformance.bundles.any_workload import AnyCase, load_case
from qmpshim.conformance.bundles.bundle import WorkloadCase
from qmpshim.conformance.compare.divergence import NO_ERROR, SUCCESS, Divergence, Ending, stable
from qmpshim.conformance.explore.report.finding_files import is_schedule
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.operations import REQUESTS, Operation, Verb

#: Commands of COLO's secondary, as expressions whose value is QEMU's answer.
_COMMANDS = {
    Verb.START: "replicate()",
    Verb.CHECKPOINT: 'answer("xen-colo-do-checkpoint")',
    Verb.FAILOVER: "replicate(enable=False, failover=True)",
    Verb.STOP: "replicate(enable=False, failover=False)",
    Verb.STATUS: "replication_error()",
}


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
    if isinstance(case, WorkloadCase) and case.spec.workflow == "replication":
        return _of_secondary(case)
    return _by_hand("of 5.2 or later", _listed(case), case.divergence)


def _by_hand(needs: str, done: list[str], seen: Divergence | Cause | None) -> str:
    """What was done and seen as comments."""
    lines = [f"# A QEMU {needs}", "start_qemu()"]
    lines += [f"# {TO_WRITE}: {line}" for line in done]
    return "\n".join([*lines, _to_look_for(seen)]) + "\n"


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


def _to_look_for(seen: Divergence | Cause | None) -> str:
    return f"# {TO_WRITE}: conclude(seen, evidence); what was seen: {' '.join(str(seen).split())}"


def _of_secondary(case: WorkloadCase) -> str:
    found = case.divergence
    done = [one for one in case.operations if found is None or one.number <= found.operation]
    lines = ["# A QEMU with the replication driver", "start_qemu()", _chain(case.spec)]
    ending = found.ending if found else None
    for one in done:
        last = found is not None and one.number == found.operation
        if last and ending is not None:
            lines.append(_crash(ending))
        lines += _step(one, case.spec, named=last and ending is None)
    if ending is not None:
        lines.append('conclude(False, "QEMU lives")')
    else:
        lines.append(_conclusion(done[-1] if done else None, found))
    return "\n".join(lines) + "\n"


def _chain(spec: ChainSpec) -> str:
    return f'secondary_chain({spec.size}, {spec.cluster}, "{spec.secondary}")'


def _step(one: Operation, spec: ChainSpec, named: bool) -> list[str]:
    """An operation as a step; *named*: its answer is ``text``."""
    if one.verb is Verb.CHECK:
        return []  # the images are compared, which changes nothing
    if one.verb is Verb.REBUILD:
        return [f"rebuild({spec.size}, {spec.cluster})"]
    expression = _COMMANDS.get(one.verb)
    if expression is None and one.verb in REQUESTS:
        place = f"{one.start}, {one.count}, {one.number}"
        expression = f'io("{one.side.value}", "{one.verb.value}", {place})[0]'
    if expression is None:
        return [f"# {TO_WRITE}: {' '.join(str(one).split())}"]
    return [f"text = {expression}" if named else expression.removesuffix("[0]")]


def _crash(ending: Ending) -> str:
    words = re.escape(stable(ending.last_words)) if ending.last_words else ".*"
    return f"expect_crash({words!r}, {ending.how!r})"


def _conclusion(last: Operation | None, found: Divergence | None) -> str:
    """What is looked for in the answer to the last step, where it is one that is wrong."""
    if last is None or found is None or last.number != found.operation:
        return _to_look_for(found)
    if found.where not in (last.verb.value, f"{last.side} {last.verb}"):
        return _to_look_for(found)
    fine = '""' if last.verb is Verb.STATUS else '"ok"'
    if found.predicted in (NO_ERROR, SUCCESS):
        return f'conclude(text != {fine}, "{last.verb.value}: %s" % text)'
    if found.observed in (NO_ERROR, SUCCESS):
        return f'conclude(text == {fine}, "{last.verb.value}: %s" % text)'
    return _to_look_for(found)
