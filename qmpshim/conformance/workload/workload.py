"""Seeded random workloads: the operations of a run, as values that can be stored and replayed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from qmpshim.errors import InputError
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.units import SECTOR


class Side(StrEnum):
    """Where an operation enters the chain."""

    __hash__ = str.__hash__  # Enum's is slow, and asked for with every operation

    PRIMARY = "primary"  # the NBD export of the secondary disk
    GUEST = "guest"  # the NBD export of the top (in the backup workflow: of the hidden disk)
    CHAIN = "chain"  # a QMP command


class Kind(StrEnum):
    """What an operation does."""

    __hash__ = str.__hash__

    WRITE = "write"
    ZERO = "zero"
    DISCARD = "discard"
    FLUSH = "flush"
    READ = "read"
    START = "start"
    CHECKPOINT = "checkpoint"
    STOP = "stop"
    FAILOVER = "failover"
    REBUILD = "rebuild"  # fresh hidden and active disks, nothing running
    STATUS = "status"
    CHECK = "check"  # cross-check everything now


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    :ivar number: from 1; the owner of what it writes, kept when others are left out
    :ivar start: first sector
    :ivar count: sectors
    """

    number: int
    side: Side
    kind: Kind
    start: int = 0
    count: int = 0

    def __str__(self) -> str:
        if self.side is Side.CHAIN:
            return f"{self.number}: {self.kind}"
        if self.kind is Kind.FLUSH:
            return f"{self.number}: {self.side} flush"
        return (
            f"{self.number}: {self.side} {self.kind} "
            f"{self.start * SECTOR:#x}+{self.count * SECTOR:#x}"
        )

    def smaller(self) -> list[Operation]:
        """Simpler forms of it, simplest first."""
        if self.side is Side.CHAIN or self.count <= 1:
            return []
        forms = [(self.start, 1)]
        if self.count > 8:
            forms.append((self.start, 8))
        half = self.count // 2
        forms.append((self.start + half, self.count - half))
        return [replace(self, start=start, count=count) for start, count in forms]

    def to_json(self) -> list[Any]:
        """A compact form: ``[number, side, kind, start, count]``, positions in sectors."""
        return [self.number, self.side.value, self.kind.value, self.start, self.count]

    @classmethod
    def from_json(cls, value: Any) -> Operation:
        """The reverse of :meth:`to_json`.

        :raises InputError: *value* is no operation
        """
        try:
            number, side, kind, start, count = value
            operation = cls(int(number), Side(side), Kind(kind), int(start), int(count))
        except (TypeError, ValueError) as error:
            raise InputError(f"not an operation: {value!r}: {error}") from error
        if operation.number < 1 or operation.start < 0 or operation.count < 0:
            raise InputError(f"not an operation: {value!r}: a negative position or number")
        return operation


# How often each kind comes, by workflow; commands are placed separately.
_MIX: Mapping[str, Mapping[tuple[Side, Kind], int]] = {
    "backup": {
        (Side.PRIMARY, Kind.WRITE): 36,
        (Side.PRIMARY, Kind.ZERO): 8,
        (Side.PRIMARY, Kind.DISCARD): 6,
        (Side.PRIMARY, Kind.FLUSH): 1,
        (Side.PRIMARY, Kind.READ): 9,
        (Side.GUEST, Kind.READ): 40,
    },
    "replication": {
        (Side.PRIMARY, Kind.WRITE): 25,
        (Side.PRIMARY, Kind.ZERO): 5,
        (Side.PRIMARY, Kind.DISCARD): 4,
        (Side.PRIMARY, Kind.FLUSH): 1,
        (Side.PRIMARY, Kind.READ): 6,
        (Side.GUEST, Kind.WRITE): 25,
        (Side.GUEST, Kind.ZERO): 4,
        (Side.GUEST, Kind.DISCARD): 3,
        (Side.GUEST, Kind.FLUSH): 1,
        (Side.GUEST, Kind.READ): 26,
    },
}

# For a chain without a mix of its own: that of backup, where it can do that.
_USUAL = _MIX["backup"]


def _mix(topology: Topology) -> Mapping[tuple[Side, Kind], int]:
    if topology.name in _MIX:
        return _MIX[topology.name]
    return {
        (side, kind): weight
        for (side, kind), weight in _USUAL.items()
        if f"{side}_{kind}" in topology.operations
    }


def _life(topology: Topology) -> tuple[Kind, ...]:
    """A whole life, with every command that there is; at its end nothing runs and all is fresh."""
    if topology.begins is None:  # it runs from the moment that it is open
        return (Kind.REBUILD,)
    short = (Kind.START, Kind.STOP, Kind.REBUILD)
    if "checkpoint" not in topology.operations:
        return short
    return (Kind.START, Kind.STATUS, Kind.CHECKPOINT, Kind.FAILOVER, Kind.REBUILD, *short)


def all_kinds(topology: Topology) -> frozenset[tuple[Side, Kind]]:
    """Every kind of operation that a workload on *topology* may have."""
    commands = (*_life(topology), Kind.CHECK)
    return frozenset((*_mix(topology), *((Side.CHAIN, kind) for kind in commands)))


_PERIOD = 1000  # operations between two checkpoints, at most
_SMALL = 128  # sectors: backup's smallest granularity
_FILL_MOST = 8 << 11  # sectors of the secondary disk that are written before anything starts


def _of_seed(spec: ChainSpec) -> str:
    """What a seed is mixed with: as it always was, so that it still names the same workload."""
    return (
        f"ChainSpec(workflow=<Workflow.{spec.workflow.upper()}: {spec.workflow!r}>, "
        f"size={spec.size}, cluster={spec.cluster}, secondary={spec.secondary!r})"
    )


class Workload:
    """An endless seeded stream of operations on one chain; :meth:`take` cuts it off.

    Positions favour a few hot clusters (where operations meet) and the end of the disk (where a
    cluster may be cut short); lengths range from one sector to several clusters. Every kind of
    operation occurs, if there is room for it: what chance left out comes at the end.
    """

    def __init__(self, spec: ChainSpec, seed: int) -> None:
        self._spec = spec
        self._random = random.Random(f"{seed}/{_of_seed(spec)}")
        self._number = 0
        self._size = spec.size // SECTOR
        self._cluster = max(_SMALL, spec.cluster // SECTOR)
        mix = _mix(spec.topology)
        self._kinds = list(mix)
        self._weights = list(mix.values())
        hot = min(self._size, 24 * self._cluster)
        self._hot = self._random.randrange(0, self._size - hot + 1, 8)
        self._hot_length = hot
        self._missing = set(all_kinds(spec.topology)) - {(Side.CHAIN, Kind.CHECK)}
        self._running = False  # replication or backup
        self._fresh = True  # the hidden and active disks, since nothing ran on them

    def take(self, count: int) -> Iterator[Operation]:
        """The first *count* operations; the last is a check."""
        stream = self._stream(count)
        left = count - 1
        while left > self._room():
            yield self._noted(next(stream))
            left -= 1
        for operation in itertools.islice(self._left_out(), left):
            yield self._noted(operation)
            left -= 1
        for _ in range(left):
            yield self._noted(self._io())
        yield self._command(Kind.CHECK)

    def _noted(self, operation: Operation) -> Operation:
        # What ends or renews a life without one is refused, and so is not what was wanted.
        if self._running or operation.kind not in (Kind.CHECKPOINT, Kind.STOP, Kind.FAILOVER):
            self._missing.discard((operation.side, operation.kind))
        if operation.kind is Kind.START:
            self._running, self._fresh = True, False
        elif operation.kind in (Kind.STOP, Kind.FAILOVER):
            self._running = False
        elif operation.kind is Kind.REBUILD:
            self._running, self._fresh = False, True
        return operation

    def _room(self) -> int:
        """How many operations it takes at most to do what did not occur yet."""
        return len(self._missing) + (1 + len(self._life) if self._commands_missing else 0)

    @property
    def _life(self) -> tuple[Kind, ...]:
        return _life(self._spec.topology)

    @property
    def _commands_missing(self) -> bool:
        return any(side is Side.CHAIN for side, _ in self._missing)

    def _left_out(self) -> Iterator[Operation]:
        """What did not occur yet; a command has its place in a life, so that comes as a whole."""
        ios = [pair for pair in self._kinds if pair in self._missing]
        life = self._life if self._commands_missing else ()
        if life and not self._running and not self._fresh:
            yield self._command(Kind.REBUILD)
        if life and not self._running:
            yield self._command(Kind.START)
        for side, kind in ios:
            yield self._io_of(side, kind)
        for kind in life[1:]:
            yield self._command(kind)

    def _stream(self, total: int) -> Iterator[Operation]:
        pick = self._random
        yield from self._fill(min(16, max(1, total // 20)))
        replication = "checkpoint" in self._spec.topology.operations
        # A short run must see every command, too: there they come closer together.
        period = max(20, min(_PERIOD, total // 4))
        if self._spec.topology.begins is None:
            yield from self._snapshots(period)
        for turn in itertools.count():
            yield from self._ios(2, 8)
            if pick.random() < 0.3:
                yield self._command(Kind.STOP)  # in the wrong state: an error is predicted
            if replication:
                yield self._command(Kind.STATUS)
            yield self._command(Kind.START)
            for _ in range(pick.randint(1, 3)):
                yield from self._ios(period // 2, period)
                yield self._command(Kind.CHECK)
                if replication:
                    yield self._command(Kind.CHECKPOINT)
                    yield self._command(Kind.CHECK)
                    if pick.random() < 0.2:
                        yield self._command(Kind.START)  # running already
            yield from self._ios(2, period // 2)
            yield self._command(Kind.CHECK)
            failover = replication and turn % 2 == 0
            yield self._command(Kind.FAILOVER if failover else Kind.STOP)
            if replication:
                yield self._command(Kind.STATUS)
            if failover:
                yield self._command(Kind.CHECK)
            yield from self._ios(4, 24)
            if replication and pick.random() < 0.3:
                yield self._command(Kind.CHECKPOINT)  # after the end: quietly ignored
            if not failover:
                yield self._command(Kind.CHECK)
            yield self._command(Kind.REBUILD)

    def _snapshots(self, period: int) -> Iterator[Operation]:
        """One snapshot after another, each of the disk as the one before left it."""
        while True:
            yield self._command(Kind.REBUILD)
            for _ in range(self._random.randint(1, 3)):
                yield from self._ios(period // 2, period)
                yield self._command(Kind.CHECK)

    def _ios(self, least: int, most: int) -> Iterator[Operation]:
        for _ in range(self._random.randint(least, most)):
            yield self._io()

    def _command(self, kind: Kind) -> Operation:
        self._number += 1
        return Operation(self._number, Side.CHAIN, kind)

    def _fill(self, pieces: int) -> Iterator[Operation]:
        """Old contents worth keeping: without them every copy would be a copy of nothing."""
        length = max(1, min(_FILL_MOST, self._size // 2) // pieces)
        length = min(length, 2048)
        for index in range(pieces):
            if index % 2:
                start = self._random.randrange(0, self._size - length + 1)
            else:
                start = self._hot + self._random.randrange(max(1, self._hot_length - length + 1))
            start = max(0, min(start, self._size - length))
            self._number += 1
            yield Operation(self._number, Side.PRIMARY, Kind.WRITE, start, length)
        self._number += 1
        tail = min(self._size, 40)
        yield Operation(self._number, Side.PRIMARY, Kind.WRITE, self._size - tail, tail)

    def _io(self) -> Operation:
        return self._io_of(*self._random.choices(self._kinds, self._weights)[0])

    def _io_of(self, side: Side, kind: Kind) -> Operation:
        self._number += 1
        if kind is Kind.FLUSH:
            return Operation(self._number, side, kind)
        start, count = self._place()
        return Operation(self._number, side, kind, start, count)

    def _place(self) -> tuple[int, int]:
        pick, cluster, size = self._random, self._cluster, self._size
        shape = pick.random()
        if shape < 0.3:
            count = 1
        elif shape < 0.6:
            count = 8
        elif shape < 0.8:
            count = pick.randint(1, cluster)
        elif shape < 0.94:
            count = cluster
        else:
            count = pick.randint(cluster, 4 * cluster)
        count = min(count, size, 4096)
        where = pick.random()
        if where < 0.92:
            start = self._hot + pick.randrange(self._hot_length)
        elif where < 0.95:
            start = pick.randrange(size)
        else:
            start = size - pick.randint(1, 2 * cluster)
        align = pick.random()
        if align < 0.35:
            start -= start % cluster
        elif align < 0.6:
            start -= start % 8
        elif align < 0.75:  # across a cluster's edge
            start = start - start % cluster + cluster - max(1, count // 2)
        start = max(0, min(start, size - 1))
        return start, min(count, size - start)
