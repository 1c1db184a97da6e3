"""The orders in which the sequential execution takes the steps of a scenario's operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.check.linearizability import fits


@dataclass(frozen=True, slots=True)
class Do:
    """Operation *op* runs, from its start to its answer."""

    op: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What operation *op* leaves running is done: a failover's commit, or a backup job."""

    op: int


@dataclass(frozen=True, slots=True)
class StatusOver:
    """From here on the status has that as over which operation *op* left running."""

    op: int


Step = Do | Commit | StatusOver
Order = tuple[Step, ...]


def orders_of(scenario: RealScenario, behaviour: Behaviour) -> list[Order]:
    """The orders that keep to what comes after what.

    Failover's commit and a backup job go on after the command's answer.
    """
    ops = scenario.ops
    going_on = [index for index, op in enumerate(ops) if scenario.goes_on(op)]
    commits = [Commit(index) for index in going_on]
    ends = [StatusOver(index) for index in going_on]
    later: list[tuple[Step, Step]] = [
        (Do(op.after), Do(index)) for index, op in enumerate(ops) if op.after is not None
    ]
    later += [(Do(index), Commit(index)) for index in going_on]
    later += [(Commit(index), StatusOver(index)) for index in going_on]
    # That the status shows the end late matters only where it reports an error until then.
    late = KnownDefect.FAILOVER_REPORTS_ERROR in behaviour.known
    orders: list[Order] = []
    for order in permutations([*map(Do, range(len(ops))), *commits, *(ends if late else ())]):
        whole: Order = order if late else (*order, *ends)
        place = {step: n for n, step in enumerate(whole)}
        if all(place[first] < place[then] for first, then in later):
            orders.append(whole)
    return orders


def operations_in(order: Order) -> list[int]:
    """The operations in the order in which they run."""
    return [step.op for step in order if isinstance(step, Do)]


def keeps_to(order: Order, precedence: Sequence[frozenset[int]]) -> bool:
    """Whether an order keeps to what was seen; nothing waits for a failover's commit.

    :param precedence: for each operation those that had ended when it started
    """
    return fits(operations_in(order), precedence)


def ways(
    scenario: RealScenario,
    behaviour: Behaviour,
    precedence: Sequence[frozenset[int]],
    uncertain: Sequence[int],
) -> Iterator[tuple[Order, tuple[int, ...]]]:
    """The orders that keep to what was seen, each with all choices of what is not done in it.

    :param uncertain: operations that may be done or not
    """
    for order in orders_of(scenario, behaviour):
        if keeps_to(order, precedence):
            for undone in subsets(uncertain):
                yield order, undone


def subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All choices of some of these, the smallest first: of what may be done or not, what is."""
    return (some for n in range(len(items) + 1) for some in combinations(items, n))
