"""What may come of an execution in which I/Os failed, by the model and QEMU's failure contract.

The straight run is made to meet the same failures, in every order and by each operation that may
have met them; the real end must be like one of these: answers, contents, allocation and status.
On top of that comes docs/block-replication.txt, which names seven failures and where each is told:
the backup failing (3) and the secondary disk failing (4) to the FT/HA manager, which has nothing
but the status to look at; the active disk failing (5) to who asked; the failover failing (7) by the
status, and the guest's data stay where they are. (1 and 2 are the primary's, 6 is in
:mod:`~qmpshim.conformance.explore.directed`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from qmpshim.conformance.explore.io import Named, tags
from qmpshim.conformance.explore.judge import Judge, RealViolation, keeps_to
from qmpshim.conformance.explore.scenarios import RealScenario, words
from qmpshim.conformance.explore.straight import AnyRead, Fate, Hit, NoCommit, Seen, run_in_order
from qmpshim.machine.gated_chain import Form
from qmpshim.model.disk import Alloc
from qmpshim.model.verdict import Verdict

_MOST = 4  # I/Os on one image that an operation under way may have had behind it


class FaultyJudge:
    """Judges executions of one scenario in which something failed.

    :param judge: the one for executions in which nothing does
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._scenario = judge.scenario
        self._lenient: FaultyJudge | None = None
        self._before: dict[tuple[Hit, int], list[Seen]] = {}
        self._ends: dict[tuple[Hit, ...], list[tuple[tuple[int, ...], Seen]]] = {}

    def judge(
        self, seen: Seen, precedence: Sequence[frozenset[int]], failed: Sequence[tuple[Named, Hit]]
    ) -> RealViolation | None:
        """What is wrong with the end of an execution in which these I/Os failed."""
        hits = tuple(hit for _, hit in failed)
        wrong = self._silence(seen, failed)
        if wrong is not None:
            return wrong
        wrong = self._compare(seen, self._fitting(hits, precedence), hits)
        lenient = self._judge.lenient
        if wrong is not None and lenient is not None:
            if self._lenient is None:
                self._lenient = FaultyJudge(lenient)
            return wrong if self._lenient.judge(seen, precedence, failed) else lenient.misled()
        return wrong or self._unreported(seen, hits)

    # -- by the model ------------------------------------------------------------------------------

    def _fitting(self, hits: tuple[Hit, ...], precedence: Sequence[frozenset[int]]) -> list[Seen]:
        if hits not in self._ends:
            self._ends[hits] = list(dict.fromkeys(self._straight(hits)))
        ends = [end for order, end in self._ends[hits] if keeps_to(order, precedence)]
        return list(dict.fromkeys(ends))

    def _straight(self, hits: tuple[Hit, ...]) -> Iterator[tuple[tuple[int, ...], Seen]]:
        """The ends of the straight runs that meet all these failures."""
        judge = self._judge
        for order in judge.orders:
            for choice in product(*(self._victims(hit) for hit in hits)):
                fates = [how() for how in choice]
                end = run_in_order(self._scenario, judge.behaviour, order, fates)
                if all(fate.met or fate.hit.gone for fate in fates):
                    yield order, end

    def _victims(self, hit: Hit) -> list[Callable[[], Fate]]:
        """Who may meet a failure; an image that is gone, after how many I/Os of whom."""
        count = len(self._scenario.ops)
        under_way = [op for op in range(count) if op not in hit.over | hit.unstarted]
        if not hit.gone:
            ways: list[Callable[[], Fate]] = [partial(Fate, hit, op) for op in under_way]
            if hit.reader is not None:
                ways.append(partial(AnyRead, hit, hit.reader))
            return ways
        return [
            partial(Fate, hit, done=dict(zip(under_way, done, strict=True)))
            for done in product(range(_MOST), repeat=len(under_way))
        ]

    def _compare(
        self, seen: Seen, ends: Sequence[Seen], hits: tuple[Hit, ...]
    ) -> RealViolation | None:
        scenario = self._scenario
        if not ends or (self._commits() and any(hit.verb == "flush" for hit in hits)):
            # Nothing in the model does such an I/O: it is qcow2's own, or a flush of a commit.
            return self._isolation(seen)
        free: set[str] = {"status"} if not self._commits() else set()
        for hit in hits:
            if hit.gone:  # neither read nor flushed any more
                free |= {hit.image, "view", "hidden", "active"}
        ends = [*ends, *(loose for end in ends for loose in self._loosened(end, seen, hits))]
        wrong = self._judge.compare(seen, ends, sorted(free))
        if wrong is None:
            return self._isolation(seen)
        return replace(wrong, cause=f"{wrong.cause}, after {self._what(hits, scenario)}")

    def _commits(self) -> bool:
        return any(op.do == "failover" for op in self._scenario.ops)

    def _loosened(self, end: Seen, seen: Seen, hits: tuple[Hit, ...]) -> Iterator[Seen]:
        """The same end, with what a failed operation may have done besides, or not done yet.

        One on several clusters goes on with the others, so they may have been copied. A commit may
        have come anywhere.
        """
        scenario = self._scenario
        alloc = [list(kinds) for kinds in end.alloc]
        hidden, secondary = list(end.hidden), list(end.secondary)
        for index, op in enumerate(scenario.ops):
            failed = end.answers[index].startswith("errno") and op.do.startswith("primary")
            if failed and op.count > scenario.cluster // 2:
                cluster = scenario.cluster
                for n in range(op.start // cluster, -(-(op.start + op.count) // cluster)):
                    if alloc[0][n] != seen.alloc[0][n]:
                        alloc[0][n] = int(Alloc.DATA)
                        hidden[n * cluster : (n + 1) * cluster] = [1] * cluster
            if op.do == "failover" and end.status is not None:
                for before in self._uncommitted(index, hits):
                    for sector, owner in enumerate(seen.secondary):
                        view = end.view[sector] if end.view else None
                        if owner in (before.secondary[sector], view):
                            secondary[sector] = owner
        loose = replace(
            end,
            alloc=tuple(tuple(kinds) for kinds in alloc),
            hidden=tuple(hidden),
            secondary=tuple(secondary),
        )
        if loose != end:
            yield loose

    def _uncommitted(self, failover: int, hits: tuple[Hit, ...]) -> list[Seen]:
        """The ends if the commit had not written anything, nor anything else failed."""
        key = hits[0], failover
        if key not in self._before:
            judge = self._judge
            self._before[key] = [
                run_in_order(self._scenario, judge.behaviour, order, [NoCommit(hits[0], failover)])
                for order in judge.orders
            ]
        return self._before[key]

    def _isolation(self, seen: Seen) -> RealViolation | None:
        """No reader above the hidden disk sees what the primary wrote, whatever failed."""
        scenario = self._scenario
        if any(op.do in ("checkpoint", "failover", "stop", "start") for op in scenario.ops):
            return None
        primaries = {
            scenario.number(index)
            for index, op in enumerate(scenario.ops)
            if op.do == "primary_write"
        }
        for index, data in enumerate(seen.data):
            if data and scenario.ops[index].do == "guest_read" and primaries & set(data):
                text = f"{words(scenario.ops[index])} returns new data after an I/O error"
                cause = "guest_read: new data after an I/O error"
                return RealViolation(Verdict.ISOLATION, text, index, cause=cause)
        if seen.view and primaries & set(seen.view):
            text = "the guest's view shows new data after an I/O error"
            cause = "view: new data after an I/O error"
            return RealViolation(Verdict.ISOLATION, text, cause=cause)
        return None

    # -- by the contract ---------------------------------------------------------------------------

    def _silence(self, seen: Seen, failed: Sequence[tuple[Named, Hit]]) -> RealViolation | None:
        """The operation whose own data was refused must not say success."""
        numbers = {self._scenario.number(i): i for i in range(len(self._scenario.ops))}
        for named, hit in failed:
            for _, number, _ in tags(named.io.data):
                index = numbers.get(number)
                if index is None or index in hit.over or index != named.op:
                    continue  # another's affair: a commit's, which writes what was answered before
                if seen.answers[index] == "ok":
                    op = self._scenario.ops[index]
                    return RealViolation(
                        Verdict.ERROR_CONTRACT,
                        f"{words(op)} says success, though its data was refused by the "
                        f"{named.io.image} disk",
                        index,
                        cause=f"{op.do} says success after a refused {named.io.image} write",
                    )
        return None

    def _unreported(self, seen: Seen, hits: tuple[Hit, ...]) -> RealViolation | None:
        """Failures 3 and 4 are told to the FT/HA manager: by the status, there is nothing else."""
        scenario = self._scenario
        if scenario.form is not Form.REPLICATION or seen.status is not None:
            return None
        if any(op.do in ("checkpoint", "failover", "stop", "start") for op in scenario.ops):
            return None
        for hit in hits:
            case = None
            if hit.image == "hidden" and hit.verb in ("write", "zero"):
                case = "3. backup failed"
            elif hit.image == "secondary":
                case = "4. I/O error on the secondary disk"
            if case is not None:
                return RealViolation(
                    Verdict.ERROR_CONTRACT,
                    f"case {case}: query-xen-replication-status reports no error",
                    cause=f"case {case}: not in the status",
                )
        return None

    @staticmethod
    def _what(hits: tuple[Hit, ...], scenario: RealScenario) -> str:
        hit = hits[0]
        if hit.gone:
            return f"the {hit.image} disk went away"
        return f"a failed {hit.image} {hit.verb}"
