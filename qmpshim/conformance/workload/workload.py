"""Seeded random workloads: the operations of a run, as values that can be stored and replayed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from qmpshim.errors import InputError
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.operations import COMMANDS, Operation, Side, Verb
from qmpshim.model.units import SECTOR

#: What a workload may be made of, by where it enters the chain.
_VERBS: Mapping[Side, frozenset[Verb]] = {
    **dict.fromkeys(
        (Side.PRIMARY, Side.GUEST),
        frozenset((Verb.WRITE, Verb.ZERO, Verb.DISCARD, Verb.FLUSH, Verb.READ)),
    ),
    Side.CHAIN: frozenset((*COMMANDS, Verb.REBUILD, Verb.CHECK)) - {Verb.UNEXPORT},
}


def to_json(operation: Operation) -> list[Any]:
    """A compact form: ``[number, side, verb, start, count]``, positions in sectors."""
    return [
        operation.number,
        operation.side.value,
        operation.verb.value,
        operation.start,
        operation.count,
    ]


def from_json(value: Any, sectors: int) -> Operation:
    """The reverse of :func:`to_json`.

    :param sectors: of the disk
    :raises InputError: *value* is no operation on such a disk
    """
    try:
        number, side, verb, start, count = value
        operation = Operation(Side(side), Verb(verb), int(start), int(count), number=int(number))
        possible = operation.verb in _VERBS[operation.side]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not an operation: {value!r}: {error}") from error
    if not possible or operation.number < 1 or operation.start < 0 or operation.count < 0:
        raise InputError(f"not an operation: {value!r}")
    touches = not operation.is_command and not operation.flushes
    if operation.start + operation.count > sectors or touches != (operation.count > 0):
        raise InputError(f"operation {operation} reaches beyond the disk or touches nothing")
    return operation


# How often each kind comes, by workflow; commands are placed separately.
_MIX: Mapping[str, Mapping[tuple[Side, Verb], int]] = {
    "backup": {
        (Side.PRIMARY, Verb.WRITE): 36,
        (Side.PRIMARY, Verb.ZERO): 8,
        (Side.PRIMARY, Verb.DISCARD): 6,
        (Side.PRIMARY, Verb.FLUSH): 1,
        (Side.PRIMARY, Verb.READ): 9,
        (Side.GUEST, Verb.READ): 40,
    },
    "replication": {
        (Side.PRIMARY, Verb.WRITE): 25,
        (Side.PRIMARY, Verb.ZERO): 5,
        (Side.PRIMARY, Verb.DISCARD): 4,
        (Side.PRIMARY, Verb.FLUSH): 1,
        (Side.PRIMARY, Verb.READ): 6,
        (Side.GUEST, Verb.WRITE): 25,
        (Side.GUEST, Verb.ZERO): 4,
        (Side.GUEST, Verb.DISCARD): 3,
        (Side.GUEST, Verb.FLUSH): 1,
        (Side.GUEST, Verb.READ): 26,
    },
}

# For a chain without a mix of its own: that of backup, where it can do that.
_USUAL = _MIX["backup"]


def _mix(topology: Topology) -> Mapping[tuple[Side, Verb], int]:
    if topology.name in _MIX:
        return _MIX[topology.name]
    return {
        (side, kind): weight
        for (side, kind), weight in _USUAL.items()
        if f"{side}_{kind}" in topology.operations
    }


def _life(topology: Topology) -> tuple[Verb, ...]:
    """A whole life, with every command that there is; at its end nothing runs and all is fresh."""
    if topology.begins is None:  # it runs from the moment that it is open
        return (Verb.REBUILD,)
    short = (Verb.START, Verb.STOP, Verb.REBUILD)
    if "checkpoint" not in topology.operations:
        return short
    return (Verb.START, Verb.STATUS, Verb.CHECKPOINT, Verb.FAILOVER, Verb.REBUILD, *short)


def all_kinds(topology: Topology) -> frozenset[tuple[Side, Verb]]:
    """Every kind of operation that a workload on *topology* may have."""
    commands = (*_life(topology), Verb.CHECK)
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
        self._missing = set(all_kinds(spec.topology)) - {(Side.CHAIN, Verb.CHECK)}
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
        yield self._command(Verb.CHECK)

    def _noted(self, operation: Operation) -> Operation:
        # What ends or renews a life without one is refused, and so is not what was wanted.
        if self._running or operation.verb not in (Verb.CHECKPOINT, Verb.STOP, Verb.FAILOVER):
            self._missing.discard((operation.side, operation.verb))
        if operation.verb is Verb.START:
            self._running, self._fresh = True, False
        elif operation.verb in (Verb.STOP, Verb.FAILOVER):
            self._running = False
        elif operation.verb is Verb.REBUILD:
            self._running, self._fresh = False, True
        return operation

    def _room(self) -> int:
        """How many operations it takes at most to do what did not occur yet."""
        return len(self._missing) + (1 + len(self._life) if self._commands_missing else 0)

    @property
    def _life(self) -> tuple[Verb, ...]:
        return _life(self._spec.topology)

    @property
    def _commands_missing(self) -> bool:
        return any(side is Side.CHAIN for side, _ in self._missing)

    def _left_out(self) -> Iterator[Operation]:
        """What did not occur yet; a command has its place in a life, so that comes as a whole."""
        ios = [pair for pair in self._kinds if pair in self._missing]
        life = self._life if self._commands_missing else ()
        if life and not self._running and not self._fresh:
            yield self._command(Verb.REBUILD)
        if life and not self._running:
            yield self._command(Verb.START)
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
                yield self._command(Verb.STOP)  # in the wrong state: an error is predicted
            if replication:
                yield self._command(Verb.STATUS)
            yield self._command(Verb.START)
            for _ in range(pick.randint(1, 3)):
                yield from self._ios(period // 2, period)
                yield self._command(Verb.CHECK)
                if replication:
                    yield self._command(Verb.CHECKPOINT)
                    yield self._command(Verb.CHECK)
                    if pick.random() < 0.2:
                        yield self._command(Verb.START)  # running already
            yield from self._ios(2, period // 2)
            yield self._command(Verb.CHECK)
            failover = replication and turn % 2 == 0
            yield self._command(Verb.FAILOVER if failover else Verb.STOP)
            if replication:
                yield self._command(Verb.STATUS)
            if failover:
                yield self._command(Verb.CHECK)
            yield from self._ios(4, 24)
            if replication and pick.random() < 0.3:
                yield self._command(Verb.CHECKPOINT)  # after the end: quietly ignored
            if not failover:
                yield self._command(Verb.CHECK)
            yield self._command(Verb.REBUILD)

    def _snapshots(self, period: int) -> Iterator[Operation]:
        """One snapshot after another, each of the disk as the one before left it."""
        while True:
            yield self._command(Verb.REBUILD)
            for _ in range(self._random.randint(1, 3)):
                yield from self._ios(period // 2, period)
                yield self._command(Verb.CHECK)

    def _ios(self, least: int, most: int) -> Iterator[Operation]:
        for _ in range(self._random.randint(least, most)):
            yield self._io()

    def _command(self, kind: Verb) -> Operation:
        self._number += 1
        return Operation(Side.CHAIN, kind, number=self._number)

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
            yield Operation(Side.PRIMARY, Verb.WRITE, start, length, number=self._number)
        self._number += 1
        tail = min(self._size, 40)
        yield Operation(Side.PRIMARY, Verb.WRITE, self._size - tail, tail, number=self._number)

    def _io(self) -> Operation:
        return self._io_of(*self._random.choices(self._kinds, self._weights)[0])

    def _io_of(self, side: Side, kind: Verb) -> Operation:
        self._number += 1
        if kind is Verb.FLUSH:
            return Operation(side, kind, number=self._number)
        start, count = self._place()
        return Operation(side, kind, start, count, number=self._number)

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
