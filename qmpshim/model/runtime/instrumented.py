"""Instrumented memory: records accesses, for the footprints and fingerprints of explored runs.

Everything the model's coroutines share is kept in numbered *cells*, as fine as a cluster's bit or
a stretch of sectors that is always written as one.  A step's footprint is which cells it looked at
and which it changed.  What a coroutine has seen so far is all that its further way depends on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from typing import Any, SupportsIndex, TypeVar

from qmpshim.model.disks.image import Contents, Owners
from qmpshim.model.disks.request_list import RequestList
from qmpshim.model.disks.serialising import TrackedRequests
from qmpshim.model.runtime.containers import StateContainers
from qmpshim.model.runtime.coroutines import OWN, Co, CoQueue

C = TypeVar("C")


class InstrumentedMemory(StateContainers):
    """Cells, their values, and what the present step does to them.

    Cell numbers stay the same from one execution to the next.

    :param edges: the sectors at which anything ever begins or ends, in order, 0 and the size among
        them; between two edges all sectors share their fate
    :param cluster: the smallest cluster in sectors
    :param ops: how many operations there are
    """

    def __init__(self, edges: list[int], cluster: int, ops: int) -> None:
        self.edges = edges
        self.clusters = range(-(-edges[-1] // cluster))
        self.keys = range(max(ops, self.clusters.stop))  # whatever a bitmap counts
        self._numbers: dict[tuple[str, int], int] = {}
        self.begin()

    def begin(self) -> None:
        """A new execution: all cells have their first value."""
        self.values: list[Hashable] = [None] * len(self._numbers)
        self.reads = self.writes = 0
        self.seen: list[Hashable] = []
        self.task: int | None = None  # the operation whose step it is
        self.past = [0]  # what its coroutine had seen before this step, as a number

    def number(self, space: str, key: int) -> int:
        """The number of a cell."""
        number = self._numbers.get((space, key))
        if number is None:
            number = self._numbers[space, key] = len(self._numbers)
            self.values.append(None)
        return number

    def read(self, number: int) -> None:
        """The step looks at a cell."""
        self.reads |= 1 << number
        self.seen.append(self.values[number])

    def write(self, number: int, value: Hashable) -> None:
        """The step changes a cell."""
        self.writes |= 1 << number
        self.values[number] = value

    def aside(self, co: Co[None]) -> Co[None]:
        before = self.past[0], tuple(self.seen)
        yield from co
        self.past[0], self.seen[:] = before

    # -- the containers ------------------------------------------------------------------------

    def contents(self, name: str, fresh: C) -> C:
        assert isinstance(fresh, Contents)
        return InstrumentedContents(self, name)  # type: ignore[return-value]

    def table(self, name: str) -> dict[int, Any]:
        return InstrumentedTable(self, name)

    def bits(self, name: str) -> set[int]:
        return InstrumentedBits(self, name)

    def requests(self, name: str, kind: type[RequestList] = RequestList) -> Any:
        return _cell_kind(kind)().bind(self, name)

    def pieces(self, start: int, count: int) -> range:
        """The stretches between two edges that a range of sectors touches."""
        end = min(start + count, self.edges[-1])
        return range(bisect_right(self.edges, start) - 1, bisect_left(self.edges, end))

    def queued(self, queue: CoQueue, sleepers: Hashable) -> None:
        """The tasks that now sleep in *queue*."""
        owner = queue.owner if isinstance(queue.owner, int) else OWN
        self.write(self.number(queue.label, owner), sleepers)


@cache
def _cell_kind(kind: type[RequestList]) -> Any:
    return type(f"Cell{kind.__name__}", (_CellRequests, kind), {})


class InstrumentedContents(Contents):
    """The owners of an image's sectors; a cell is a stretch between two edges."""

    __slots__ = ("_cells", "_numbers")

    def __init__(self, cells: InstrumentedMemory, name: str) -> None:
        super().__init__()
        self._cells = cells
        self._numbers = [cells.number(name, i) for i in range(len(cells.edges) - 1)]

    def read(self, start: int, count: int) -> Owners:
        cells = self._cells
        for piece in cells.pieces(start, count):
            cells.read(self._numbers[piece])
        return super().read(start, count)

    def write(self, start: int, owners: Owners) -> None:
        cells = self._cells
        for piece in cells.pieces(start, len(owners)):
            edge = cells.edges[piece]
            assert edge >= start and cells.edges[piece + 1] <= start + len(owners), "not an edge"
            cells.write(self._numbers[piece], owners[edge - start] or None)
        super().write(start, owners)

    def clear(self) -> None:
        for number in self._numbers:
            self._cells.write(number, None)
        super().clear()


class InstrumentedTable(dict[int, Any]):
    """A table by cluster; a cell is an entry."""

    __slots__ = ("_cells", "_name")

    def __init__(self, cells: InstrumentedMemory, name: str) -> None:
        super().__init__()
        self._cells = cells
        self._name = name

    def _look(self, key: int) -> None:
        self._cells.read(self._cells.number(self._name, key))

    def _look_all(self) -> None:
        for key in self._cells.clusters:
            self._look(key)

    def get(self, key: int, default: Any = None) -> Any:
        self._look(key)
        return dict.get(self, key, default)

    def __getitem__(self, key: int) -> Any:
        self._look(key)
        return dict.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, int)
        self._look(key)
        return dict.__contains__(self, key)

    def __iter__(self) -> Iterator[int]:
        self._look_all()
        return dict.__iter__(self)

    def __setitem__(self, key: int, value: Any) -> None:
        cells = self._cells
        if isinstance(value, CoQueue):
            value.owner = cells.task
            cells.write(cells.number(self._name, key), cells.task)
        else:
            cells.write(cells.number(self._name, key), value)
        dict.__setitem__(self, key, value)

    def __delitem__(self, key: int) -> None:
        self._cells.write(self._cells.number(self._name, key), None)
        dict.__delitem__(self, key)

    def clear(self) -> None:
        for key in self._cells.clusters:
            self._cells.write(self._cells.number(self._name, key), None)
        dict.clear(self)


class InstrumentedBits(set[int]):
    """A bitmap; a cell is a bit."""

    __slots__ = ("_all", "_cells", "_numbers")

    def __init__(self, cells: InstrumentedMemory, name: str) -> None:
        super().__init__()
        self._cells = cells
        self._numbers = [cells.number(name, key) for key in cells.keys]
        self._all = sum(1 << number for number in self._numbers)

    def __contains__(self, bit: object) -> bool:
        assert isinstance(bit, int)
        self._cells.read(self._numbers[bit])
        return set.__contains__(self, bit)

    def __bool__(self) -> bool:
        self._cells.reads |= self._all
        self._cells.seen.append(frozenset(self))
        return set.__len__(self) > 0

    def add(self, bit: int) -> None:
        self._cells.write(self._numbers[bit], True)
        set.add(self, bit)

    def discard(self, bit: object) -> None:
        assert isinstance(bit, int)
        self._cells.write(self._numbers[bit], None)
        set.discard(self, bit)

    def update(self, *others: Iterable[int]) -> None:
        for other in others:
            for bit in other:
                self.add(bit)

    def clear(self) -> None:
        for number in self._numbers:
            self._cells.write(number, None)
        set.clear(self)


class _CellRequests(RequestList):
    """Mixed into a kind of request list; a cell is a cluster, or a stretch between two edges."""

    def bind(self, cells: InstrumentedMemory, name: str) -> _CellRequests:
        """Keep the list's cells in *cells*."""
        self._cells = cells
        self._name = name
        return self

    def _range(self, start: int, end: int) -> range:
        """The keys of the cells of [start, end)."""
        if isinstance(self, TrackedRequests):
            return self._cells.pieces(start, end - start)
        return range(start, end)

    def _covers(self, req: Any, key: int) -> bool:
        if isinstance(self, TrackedRequests):
            edges = self._cells.edges
            return bool(req.start < edges[key + 1] and edges[key] < req.end)
        return bool(req.start <= key < req.end)

    def looked(self, start: int, end: int) -> None:
        for key in self._range(start, end):
            self._cells.read(self._cells.number(self._name, key))

    def changed(self, start: int, end: int) -> None:
        for key in self._range(start, end):
            requests = tuple(
                (
                    req.wait_queue.owner,
                    req.start,
                    req.end,
                    getattr(req, "serialising", None),
                    getattr(req, "waiting_for", None) is not None,
                )
                for req in self
                if self._covers(req, key)
            )
            self._cells.write(self._cells.number(self._name, key), requests or None)

    def wait_all(self, start: int, end: int) -> Co[None]:
        return self._cells.aside(super().wait_all(start, end))

    def insert(self, index: SupportsIndex, req: Any) -> None:
        req.wait_queue.owner = self._cells.task
        super().insert(index, req)
