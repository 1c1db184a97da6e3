"""What of an execution can be observed, and whether the specification explains it.

An execution ends in :class:`Observations`, a map from observable to value; the specification, run
in each order of the operations that is possible, gives one such map an order. Answers have to be
explained by one order as a whole. A block device promises something for each sector, not for an
operation as a whole, so of the orders that explain the answers another one may explain each cell:
the longest ranges in which the same operations are at work and which no cluster boundary crosses.

This is linearizability (Herlihy and Wing 1990). It is decided here once, for the model under the
scheduler and for a real QEMU; an exported script decides by the same maps, as data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from qmpshim.model.answers import admits
from qmpshim.model.disks.image import Alloc


class Aspect(StrEnum):
    """What is looked at."""

    __hash__ = str.__hash__

    ANSWER = "answer"  # of an operation: an answer, or a prediction of one
    READABLE = "readable"  # whether the guest's end can be read at all
    DATA = "data"  # of an operation, in a cell: the owners that it read
    DISK = "disk"  # of a disk, in a cell: the owners there; absent where it has nothing
    ALLOCATION = "allocation"  # of an overlay, in a cluster: an Alloc's number
    COPIED = "copied"  # in a cell: the copy bitmap
    STATUS = "status"  # the error that replication's status reports, or None
    STAGE = "stage"  # of replication


#: The owner of a sector that, by a block status, may not be zeroes: no more is known of it.
NOT_ZEROES = -3
#: In the place of the owner of a sector: whether a dirty bitmap names it.
MARKED, UNMARKED = -4, -5


class Observable(NamedTuple):
    """Something that can be observed.

    :ivar of: an operation's index, or a disk's name; the guest's end is the disk ``view``
    :ivar place: a cell's or a cluster's number; -1: it has no place
    """

    aspect: Aspect
    of: int | str = ""
    place: int = -1


class Observations(dict[Observable, Any]):
    """What was observed, or is predicted; not to be changed once it is complete."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def agrees(observable: Observable, predicted: Any, observed: Any) -> bool:
    """Whether a value is as predicted."""
    if predicted == observed:
        return True
    match observable.aspect:
        case Aspect.ANSWER:
            return admits(predicted, observed)
        case Aspect.DATA if isinstance(observed, tuple):  # of each sector, not of a whole cell
            pairs = zip(predicted, observed, strict=True)
            return all(there in (want, NOT_ZEROES) for want, there in pairs)
        case Aspect.ALLOCATION:
            return Alloc(predicted).admits(Alloc(observed))
    return False


#: The group of what one order has to explain for all others, too.
COMMON = "common"
Group = Callable[[Observable], Hashable]


@dataclass(frozen=True, slots=True)
class Unexplained:
    """The first thing that no order explains.

    :ivar group: what has to be explained together
    :ivar observable: of it what no order gives; ``None``: each alone is given by one
    :ivar observed: its value
    :ivar predicted: the values that the orders give, each once
    """

    group: Hashable
    observable: Observable | None = None
    observed: Any = None
    predicted: tuple[Any, ...] = ()


def unexplained(
    observed: Mapping[Observable, Any], orders: Sequence[Mapping[Observable, Any]], group: Group
) -> Unexplained | None:
    """What no order explains; ``None``: all is as it may be.

    :param observed: what is to be explained: what is not to be looked at is left out
    :param orders: the predictions; what one does not mention it leaves open
    :param group: what has to be explained by the same order; first of all :data:`COMMON`
    """
    groups: dict[Hashable, list[Observable]] = {}
    for one in observed:
        groups.setdefault(group(one), []).append(one)

    def explains(order: Mapping[Observable, Any], one: Observable) -> bool:
        return one not in order or agrees(one, order[one], observed[one])

    possible = list(orders)
    for name in sorted(groups, key=lambda name: name != COMMON):
        members = groups[name]
        fitting = [order for order in possible if all(explains(order, one) for one in members)]
        if not fitting:
            return _first(name, members, observed, possible)
        if name == COMMON:
            possible = fitting
    return None


def _first(
    group: Hashable,
    members: Sequence[Observable],
    observed: Mapping[Observable, Any],
    orders: Sequence[Mapping[Observable, Any]],
) -> Unexplained:
    for one in members:
        predicted = tuple(dict.fromkeys(order[one] for order in orders if one in order))
        if predicted and not any(agrees(one, value, observed[one]) for value in predicted):
            return Unexplained(group, one, observed[one], predicted)
    return Unexplained(group)
