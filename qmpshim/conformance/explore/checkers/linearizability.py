"""What a real QEMU may answer and leave behind: the straight model in every order that fits.

A block device promises something for each sector, not for an operation as a whole: two writes may
come out in one order here and in the other there. So the disk is cut into *cells*, the longest
ranges in which the same operations are at work and which no cluster boundary crosses, and in each
cell there must be an order of the operations, in which nobody comes before somebody who had ended
before it started, such that the straight model gives what was seen there: what reads returned and
what the disks hold. For the answers of commands and the errors there must be one order as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, permutations
from typing import Any

from qmpshim.conformance.explore.checkers.sequential import (
    ENDING,
    FAILS,
    NO_JOB,
    Order,
    Outcome,
    run_in_order,
)
from qmpshim.conformance.explore.scenarios import BASE, ZEROES, RealScenario, cut_off, words
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.linearizability import fits
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.explore.system import Violation


@dataclass(frozen=True, slots=True)
class RealViolation(Violation):
    """A violation on a real QEMU.

    :ivar cause: the same for all schedules that fail in the same way; groups findings
    """

    cause: Cause = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What of an end is not looked at.

    :ivar names: ``primary``, ``secondary``, ``hidden``, ``active``, ``view``, ``status``
    :ivar ops: operations whose answers are, and what they read
    :ivar ranges: first and end sector of what all disks hold
    :ivar clusters: what the overlays hold, and whether it is allocated there
    """

    names: frozenset[str] = frozenset()
    ops: frozenset[int] = frozenset()
    ranges: frozenset[tuple[int, int]] = frozenset()
    clusters: frozenset[int] = frozenset()


NOTHING_SPARED = Unchecked()


class LinearizabilityChecker:
    """Knows every straight outcome of one scenario."""

    def __init__(self, scenario: RealScenario, behaviour: Behaviour) -> None:
        self.scenario = scenario
        self.behaviour = behaviour
        self.cells = _cells(scenario)
        self.orders = _orders(scenario, behaviour)
        self._cut_off = cut_off(scenario.ops)
        self._seen: dict[Hashable, RealViolation | None] = {}
        self.straight: dict[Order, Outcome] = {}
        for order in self.orders:
            self.straight[order] = run_in_order(scenario, behaviour, order)

    # -- judging -----------------------------------------------------------------------------------

    def judge(self, seen: Outcome, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        """What is wrong with the end of an execution.

        :param precedence: for each operation those that had ended when it started
        """
        key = (seen, tuple(precedence))
        if key not in self._seen:
            self._seen[key] = self._judge(seen, precedence)
        return self._seen[key]

    def _judge(self, seen: Outcome, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        straight = [one for order, one in self.straight.items() if keeps_to(order, precedence)]
        wrong = self.compare(seen, straight)
        if wrong is not None and self.lenient is not None:
            return wrong if self.lenient.judge(seen, precedence) else self.misled()
        return wrong

    @cached_property
    def lenient(self) -> LinearizabilityChecker | None:
        """A judge for whom failover may report an error, as QEMU's does; ``None``: nobody asks.

        So what comes of this one defect is told from what merely looks like it.
        """
        known = self.behaviour.known
        asked = {"failover", "status"} <= {op.do for op in self.scenario.ops}
        asked = asked and self.scenario.commits
        if not asked or KnownDefect.FAILOVER_REPORTS_ERROR in known:
            return None
        known |= {KnownDefect.FAILOVER_REPORTS_ERROR}
        return LinearizabilityChecker(self.scenario, replace(self.behaviour, known=known))

    @cached_property
    def masking(self) -> tuple[LinearizabilityChecker, ...]:
        """Judges for whom an error of the primary disk may be masked, as QEMU's quorum does.

        None where there is no quorum, or this one is such a judge.
        """
        known = self.behaviour.known
        if not self.scenario.has("quorum") or KnownDefect.QUORUM_MASKS_PRIMARY in known:
            return ()
        return tuple(
            LinearizabilityChecker(self.scenario, replace(self.behaviour, known=known | masks))
            for masks in (
                {KnownDefect.QUORUM_MASKS_PRIMARY, KnownDefect.QUORUM_MASKS_FLUSH},
                {KnownDefect.QUORUM_MASKS_PRIMARY},
            )
        )

    def misled(self) -> RealViolation:
        """The violation that this defect is, when it alone explains an execution."""
        index = next(i for i, op in enumerate(self.scenario.ops) if op.do == "status")
        text = "status answers 'I/O error occurred' while failing over, though nothing failed"
        cause = Cause(CauseKind.MISLEADING_STATUS)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)

    def compare(
        self, seen: Outcome, straight: Sequence[Outcome], spared: Unchecked = NOTHING_SPARED
    ) -> RealViolation | None:
        """What is wrong with an end that must be like one of those of *straight*."""
        judged = [index for index in range(len(self.scenario.ops)) if index not in spared.ops]
        for index in judged:
            answers = {one.answers[index] for one in straight}
            if not any(self._same(index, want, seen) for want in answers):
                return self._wrong_answer(index, seen.answers[index], sorted(answers))
        possible = [
            one
            for one in straight
            if all(self._same(index, one.answers[index], seen) for index in judged)
        ]
        if not possible:
            text = f"the answers {seen.answers} fit no order of the operations"
            return RealViolation(
                Verdict.PROTOCOL, text, cause=Cause(CauseKind.ANSWERS_FIT_NO_ORDER)
            )
        if "view" not in spared.names and seen.view is None and all(one.view for one in possible):
            text = "the disk cannot be read at the guest's end, though nothing keeps it from that"
            return RealViolation(
                Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.VIEW_UNREADABLE)
            )
        free = spared.names
        for start, end in self.cells:
            if any(first < end and start < last for first, last in spared.ranges):
                continue
            copied = start // self.scenario.cluster in spared.clusters
            looked = free | {"hidden", "active"} if copied else free
            if not self._explained(possible, seen, start, end, looked):
                return self._explain(seen, possible, start, end, looked)
        for image, found in enumerate(seen.alloc):
            name = ("hidden", "active")[image]
            for cluster, kind in enumerate(found if name not in free else ()):
                if cluster in spared.clusters:
                    continue
                told = {one.alloc[image][cluster] for one in possible}
                if not any(want == -1 or Alloc(want).admits(Alloc(kind)) for want in told):
                    kinds = tuple(Alloc(want).name.lower() for want in sorted(told))
                    there = Alloc(kind).name.lower()
                    text = (
                        f"cluster {cluster} of the {name} disk is {there}, "
                        f"predicted {' or '.join(kinds)}"
                    )
                    cause = Cause(CauseKind.ALLOCATION, name, there, kinds)
                    return RealViolation(Verdict.ALLOCATION, text, cluster=cluster, cause=cause)
        if "status" not in free and all(one.status != seen.status for one in possible):
            wanted = " or ".join(sorted({str(one.status) for one in possible}))
            text = f"replication's status at the end is {seen.status!r}, predicted {wanted}"
            return RealViolation(
                Verdict.ERROR_CONTRACT,
                text,
                cause=Cause(CauseKind.FINAL_STATUS, detail=str(seen.status)),
            )
        return None

    def _same(self, index: int, want: str, seen: Outcome) -> bool:
        """Whether an answer is the predicted one; who was cut off cannot know whether it was."""
        have = seen.answers[index]
        if want == ENDING:
            return have in ("ok", NO_JOB)
        if want == FAILS:
            return have not in ("ok", "gone")
        cut_off = have == "gone" and self.scenario.ops[index].do in self._cut_off
        return want == have or (cut_off and (want == "ok" or want.startswith("errno")))

    def _wrong_answer(self, index: int, found: str, wanted: list[str]) -> RealViolation:
        op = self.scenario.ops[index]
        text = f"{words(op)} answers {found!r}, predicted {' or '.join(map(repr, wanted))}"
        found = re.sub(r" json:\{.*\}", "", found)  # a node's description, with temporary paths
        cause = Cause(CauseKind.WRONG_ANSWER, op.do, found)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)

    def _explained(
        self,
        possible: Sequence[Outcome],
        seen: Outcome,
        start: int,
        end: int,
        free: Collection[str],
    ) -> bool:
        """Whether some order explains one cell.

        Whether a write is still forwarded when replication stops is decided when it begins, and so
        by another order than what a read beside it returns.
        """
        if any(self._explains(one, seen, start, end, free) for one in possible):
            return True
        does = {op.do for op in self.scenario.ops}
        if not self.scenario.has("quorum") or not does & {"stop", "failover"}:
            return False
        rest = {*free, "secondary"}
        return any(self._explains(one, seen, start, end, rest) for one in possible) and any(
            one.secondary[start:end] == seen.secondary[start:end] for one in possible
        )

    def _explains(
        self, one: Outcome, seen: Outcome, start: int, end: int, free: Collection[str]
    ) -> bool:
        """Whether some order explains one cell."""
        cut = slice(start, end)
        for index, op in enumerate(self.scenario.ops):
            want, have = one.data[index], seen.data[index]
            if want is None or have is None:
                continue
            low, high = max(start, op.start) - op.start, min(end, op.start + op.count) - op.start
            if low < high and want[low:high] != have[low:high]:
                return False
        for name in ("primary", "secondary", "view"):
            want_all, have_all = getattr(one, name), getattr(seen, name)
            if name in free or want_all is None or have_all is None:
                continue
            if want_all[cut] != have_all[cut]:
                return False
        # Where only one of them has something allocated, allocation is what differs.
        return all(
            want_one is None or have_one is None or want_one == have_one
            for name in ("hidden", "active")
            if name not in free
            for want_one, have_one in zip(
                getattr(one, name)[cut], getattr(seen, name)[cut], strict=True
            )
        )

    def _explain(
        self, seen: Outcome, possible: list[Outcome], start: int, end: int, free: Collection[str]
    ) -> RealViolation:
        """In words what no order explains: the first thing wrong in every one of them."""
        where = f"sectors {start}..{end - 1}"
        cluster = start // self.scenario.cluster
        for index, op in enumerate(self.scenario.ops):
            have = seen.data[index]
            if have is None or not (op.start < end and start < op.start + op.count):
                continue
            low, high = max(start, op.start) - op.start, min(end, op.start + op.count) - op.start
            wanted = {one.data[index][low:high] for one in possible if one.data[index] is not None}  # type: ignore[index]
            if have[low:high] not in wanted:
                return self._wrong(
                    f"{words(op)} returns", op.do, have[low:high], wanted, where, cluster, index
                )
        for name in ("primary", "secondary", "view", "hidden", "active"):
            if name in free:
                continue
            have_all = getattr(seen, name)
            wanted = {
                getattr(one, name)[start:end] for one in possible if getattr(one, name) is not None
            }
            if have_all is not None and wanted and have_all[start:end] not in wanted:
                if name in ("hidden", "active") and (
                    None in have_all[start:end] or any(None in want for want in wanted)
                ):
                    continue
                what = "the guest's view ends as" if name == "view" else f"{name} disk ends as"
                return self._wrong(what, name, have_all[start:end], wanted, where, cluster, None)
        writes = sum(
            op.do in ("guest_write", "guest_zero")
            and op.start < end
            and start < op.start + op.count
            for op in self.scenario.ops
        )
        differ = seen.primary and seen.primary[start:end] != seen.secondary[start:end]
        if writes > 1 and differ:
            return RealViolation(
                Verdict.CONTENT,
                f"in {where} the primary and the secondary disk hold the data of operations that "
                f"were done on them in different orders",
                cluster=cluster,
                cause=Cause(CauseKind.DISKS_DIFFER),
            )
        text = f"in {where} what reads returned and what the disks hold fit no order"
        return RealViolation(
            Verdict.ISOLATION, text, cluster=cluster, cause=Cause(CauseKind.DATA_FITS_NO_ORDER)
        )

    def _wrong(
        self,
        what: str,
        name: str,
        have: tuple[int | None, ...],
        wanted: set[Any],
        where: str,
        cluster: int,
        index: int | None,
    ) -> RealViolation:
        kinds = [self._kind(owner) for owner in have]
        told = sorted({self._kind(want[0]) for want in wanted})
        verdict = Verdict.CONTENT
        if name in ("guest_read", "view") and "new data" in kinds:
            verdict = Verdict.ISOLATION
        elif name in ("primary", "secondary", "active", "primary_read", "view", "guest_read"):
            verdict = Verdict.LOST_WRITE
        text = f"{what} {_runs(kinds)} in {where}, predicted {' or '.join(told)}"
        cause = Cause(CauseKind.WRONG_DATA, name, kinds[0], tuple(told))
        return RealViolation(verdict, text, index, cluster, cause=cause)

    def _kind(self, owner: int | None) -> str:
        """Whose data, in words that are the same for all scenarios."""
        if owner is None:
            return "nothing"
        if owner == 0:
            does = {op.do for op in self.scenario.ops}
            if "guest_zero" in does:
                return "the guest's zeroes"
            return "new data" if does & set(ZEROES) else "zeroes"
        if owner < 0:
            return "garbage"
        if owner == BASE:
            return "the old data"
        index = owner - BASE - 1
        if index < len(self.scenario.setup):
            return f"earlier {self.scenario.setup[index].do.replace('_', ' ')}'s data"
        index -= len(self.scenario.setup)
        if index < len(self.scenario.ops):
            guest = self.scenario.ops[index].do == "guest_write"
            return "the guest's data" if guest else "new data"
        return "the probe's data"


def _orders(scenario: RealScenario, behaviour: Behaviour) -> list[Order]:
    """The orders that keep to what comes after what; failover's commit goes on after its answer."""
    ops = scenario.ops
    failovers = [i for i, op in enumerate(ops) if op.do == "failover" and scenario.commits]
    commits = [~index for index in failovers]
    ends = [commit - len(ops) for commit in commits]
    later = [(op.after, index) for index, op in enumerate(ops) if op.after is not None]
    later += [*zip(failovers, commits, strict=True), *zip(commits, ends, strict=True)]
    # That the status tells the end late matters only where it tells of an error until then.
    late = KnownDefect.FAILOVER_REPORTS_ERROR in behaviour.known
    orders = []
    for order in permutations([*range(len(ops)), *commits, *(ends if late else ())]):
        whole = order if late else (*order, *ends)
        if all(whole.index(first) < whole.index(then) for first, then in later):
            orders.append(whole)
    return orders


def keeps_to(order: Order, precedence: Sequence[frozenset[int]]) -> bool:
    """Whether an order keeps to what was seen; nobody waits for a failover's commit."""
    return fits([step for step in order if step >= 0], precedence)


def _runs(kinds: list[str]) -> str:
    distinct = list(dict.fromkeys(kinds))
    return " and ".join(distinct[:3])


def _cells(scenario: RealScenario) -> list[tuple[int, int]]:
    edges = {0, scenario.size, *range(0, scenario.size, scenario.cluster)}
    for op in (*scenario.setup, *scenario.ops):
        if op.count:
            edges |= {op.start, op.start + op.count}
    ordered = sorted(edges)
    return list(pairwise(ordered))
