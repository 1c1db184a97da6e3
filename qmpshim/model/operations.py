"""Operations: requests of a chain's clients, and commands; the only ones that there are.

Positions and lengths are sectors. An operation's name, as in ``primary_write``, is what scenarios,
bundles and write-ups call it; it is also the method of the model's chain that does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from qmpshim.model.units import SECTOR


class Side(StrEnum):
    """Where an operation enters the chain."""

    __hash__ = str.__hash__  # Enum's is slow

    PRIMARY = "primary"  # the export of the secondary disk, by which the primary writes
    GUEST = "guest"  # the export of the top; in plain backup and fleecing of the snapshot
    SNAPSHOT = "snapshot"  # the model's reader of a snapshot that is not the guest
    CHAIN = "chain"  # the monitor


class Verb(StrEnum):
    """What an operation does."""

    __hash__ = str.__hash__

    READ = "read"
    WRITE = "write"
    WRITE_FUA = "write_fua"  # it is durable when it ends
    ZERO = "zero"
    ZERO_NO_HOLE = "zero_no_hole"  # zeroes that stay allocated
    ZERO_FAST = "zero_fast"  # zeroes where they cost less than data, else an error
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block_status"  # where it reads as zeroes, as far as that is known
    DIRTY_BITMAP = "dirty_bitmap"  # what a bitmap names that the snapshot's export offers
    DISCONNECT = "vanish"  # the client is gone at once
    START = "start"
    CHECKPOINT = "checkpoint"
    FAILOVER = "failover"
    STOP = "stop"
    STATUS = "status"
    JOB_PAUSE = "job_pause"
    JOB_RESUME = "job_resume"
    JOB_SPEED = "job_speed"  # the job may copy next to nothing by itself from now on
    JOB_CANCEL = "job_cancel"  # also where the job is paused
    UNEXPORT = "unexport"  # the primary's export is removed
    BACKUP_FULL = "backup_full"  # a backup job is started, which copies in the background
    BACKUP_INCREMENTAL = "backup_incremental"  # what the bitmap names; bitmap-mode=on-success
    BACKUP_ALWAYS = "backup_always"  # the same with bitmap-mode=always
    BACKUP_NEVER = "backup_never"  # and with bitmap-mode=never
    BACKUP_AND_BITMAP = "backup_and_bitmap"  # a transaction: a new bitmap, and a full backup
    BACKUP_TOP = "backup_top"  # what the image itself holds
    BITMAP_CLEAR = "bitmap_clear"
    BITMAP_DISABLE = "bitmap_disable"
    BITMAP_ENABLE = "bitmap_enable"
    BITMAP_REMOVE = "bitmap_remove"
    BITMAP_ADD = "bitmap_add"  # a second one
    BITMAP_MERGE = "bitmap_merge"  # the first one into that
    REBUILD = "rebuild"  # of a workload: fresh overlays, nothing running
    CHECK = "check"  # of a workload: everything is compared


#: Without their flags (FUA, NO_HOLE).
_PLAIN = {
    Verb.WRITE_FUA: Verb.WRITE,
    Verb.ZERO_NO_HOLE: Verb.ZERO,
    Verb.ZERO_FAST: Verb.ZERO,
}
_ZEROES = frozenset((Verb.ZERO, Verb.ZERO_NO_HOLE, Verb.ZERO_FAST, Verb.DISCARD))
_OF_PRIMARY = (Verb.ZERO_NO_HOLE, Verb.ZERO_FAST)
_WRITES = frozenset((Verb.WRITE, Verb.WRITE_FUA))
_CHANGES = _ZEROES | _WRITES
_STATUS = frozenset((Verb.BLOCK_STATUS, Verb.DIRTY_BITMAP))
_READS = _STATUS | {Verb.READ}
#: Requests of the primary and the guest.
REQUESTS = tuple(verb for verb in Verb if verb in _CHANGES | {Verb.READ, Verb.FLUSH})
#: Commands to the monitor.
COMMANDS = (Verb.START, Verb.CHECKPOINT, Verb.FAILOVER, Verb.STOP, Verb.STATUS, Verb.UNEXPORT)
#: Commands to a job that goes on.
JOB_CONTROLS = (Verb.JOB_PAUSE, Verb.JOB_RESUME, Verb.JOB_SPEED)
#: Commands to a backup job that an operation has started.
OF_JOB = (Verb.STOP, Verb.JOB_RESUME, Verb.JOB_CANCEL)
#: Commands that start a backup job; it goes on when they are answered.
BACKUPS = (
    Verb.BACKUP_FULL,
    Verb.BACKUP_INCREMENTAL,
    Verb.BACKUP_ALWAYS,
    Verb.BACKUP_NEVER,
    Verb.BACKUP_AND_BITMAP,
    Verb.BACKUP_TOP,
)
#: Commands that change a dirty bitmap and nothing else.
BITMAPS = (
    Verb.BITMAP_CLEAR,
    Verb.BITMAP_DISABLE,
    Verb.BITMAP_ENABLE,
    Verb.BITMAP_REMOVE,
    Verb.BITMAP_ADD,
    Verb.BITMAP_MERGE,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    :ivar start: first sector
    :ivar count: sectors; 0 where it has no place
    :ivar after: index of the concurrent operation that has to end before this one starts
    :ivar number: of a workload's operation, from 1: the owner of what it writes, kept when others
        are left out; 0 in a scenario
    """

    side: Side
    verb: Verb
    start: int = 0
    count: int = 0
    after: int | None = None
    number: int = field(default=0, kw_only=True)

    @property
    def name(self) -> str:
        """``primary_write`` or ``checkpoint``."""
        return self.verb.value if self.is_command else f"{self.side.value}_{self.verb.value}"

    @property
    def plain(self) -> Operation:
        """The same without flags: a write with FUA is a write, too."""
        return replace(self, verb=_PLAIN.get(self.verb, self.verb))

    @property
    def is_command(self) -> bool:
        """Whether it goes to the monitor."""
        return self.side is Side.CHAIN

    @property
    def is_primary(self) -> bool:
        """Whether it goes to the export of the secondary disk."""
        return self.side is Side.PRIMARY

    @property
    def is_guest(self) -> bool:
        """Whether it goes to the export of the top."""
        return self.side is Side.GUEST

    @property
    def is_request(self) -> bool:
        """Whether it is a request to an export."""
        return not self.is_command and not self.disconnects

    @property
    def reads(self) -> bool:
        """Whether it returns data, or what is known of them."""
        return self.verb in _READS

    @property
    def queries_status(self) -> bool:
        """Whether it queries block status, which another client of the export does."""
        return self.verb in _STATUS

    @property
    def writes(self) -> bool:
        """Whether it brings data of its own."""
        return self.verb in _WRITES

    @property
    def changes(self) -> bool:
        """Whether it changes what a disk holds where it is."""
        return self.verb in _CHANGES

    @property
    def zeroes(self) -> bool:
        """Whether it leaves zeroes."""
        return self.verb in _ZEROES

    @property
    def flushes(self) -> bool:
        """Whether it is a flush."""
        return self.verb is Verb.FLUSH

    @property
    def makes_durable(self) -> bool:
        """Whether its success means that something outlives a loss of power."""
        return self.verb in (Verb.FLUSH, Verb.WRITE_FUA)

    @property
    def disconnects(self) -> bool:
        """Whether the client goes away."""
        return self.verb is Verb.DISCONNECT

    @property
    def queries(self) -> bool:
        """Whether it is a command that changes nothing."""
        return self.verb is Verb.STATUS

    @property
    def reconfigures(self) -> bool:
        """Whether it is a command that changes the chain."""
        return self.is_command and not self.queries

    @property
    def backs_up(self) -> bool:
        """Whether it starts a backup job."""
        return self.verb in BACKUPS

    @property
    def sectors(self) -> range:
        """Its sectors."""
        return range(self.start, self.start + self.count)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether one of its sectors is in ``[start, end)``."""
        return self.start < end and start < self.start + self.count

    def smaller(self) -> list[Operation]:
        """Simpler forms of it, simplest first."""
        return [replace(self, start=a, count=n) for a, n in smaller_places(self.start, self.count)]

    def __str__(self) -> str:
        what = self.name.replace("_", " ")
        if self.number:  # a workload's: in bytes
            place = f" {self.start * SECTOR:#x}+{self.count * SECTOR:#x}" if self.count else ""
            return f"{self.number}: {what}{place}"
        return f"{what} [{self.start}, {self.start + self.count})" if self.count else what

    def to_json(self) -> dict[str, Any]:
        """As :func:`operation_from_json` reads it."""
        value: dict[str, Any] = {"do": self.name}
        if self.count:
            value["at"] = [self.start, self.count]
        if self.after is not None:
            value["after"] = self.after
        return value


def operation(name: str, start: int = 0, count: int = 0, after: int | None = None) -> Operation:
    """The operation of a name such as ``primary_write`` or ``checkpoint``.

    :raises ValueError: there is none of that name
    """
    if name not in _NAMED:
        raise ValueError(f"no operation {name!r}; there are {', '.join(_NAMED)}")
    return Operation(*_NAMED[name], start, count, after)


def operation_from_json(value: Mapping[str, Any]) -> Operation:
    """The reverse of :meth:`Operation.to_json`.

    :raises KeyError, TypeError, ValueError: it is none
    """
    start, count = value.get("at", (0, 0))
    return operation(value["do"], int(start), int(count), value.get("after"))


def smaller_places(start: int, count: int) -> list[tuple[int, int]]:
    """Smaller parts of *count* sectors from *start*, as (start, count), smallest first."""
    if count <= 1:
        return []
    half = count // 2
    smallest = [(start, 1), (start, 8)] if count > 8 else [(start, 1)]
    return [*smallest, (start + half, count - half)]


def does(ops: Iterable[Operation], *verbs: Verb) -> bool:
    """Whether one of the operations does one of these."""
    return any(op.verb in verbs for op in ops)


#: What operations there are, by name.
_NAMED: dict[str, tuple[Side, Verb]] = {
    one.name: (one.side, one.verb)
    for one in (
        *(Operation(Side.PRIMARY, verb) for verb in REQUESTS),
        *(Operation(Side.GUEST, verb) for verb in REQUESTS if verb not in _OF_PRIMARY),
        *(Operation(Side.GUEST, verb) for verb in (Verb.BLOCK_STATUS, Verb.DIRTY_BITMAP)),
        *(Operation(Side.SNAPSHOT, verb) for verb in (Verb.READ, Verb.DISCARD)),
        *(
            Operation(Side.CHAIN, verb)
            for verb in (*COMMANDS, *JOB_CONTROLS, Verb.JOB_CANCEL, *BACKUPS, *BITMAPS)
        ),
        *(Operation(side, Verb.DISCONNECT) for side in (Side.PRIMARY, Side.GUEST)),
    )
}
NAMES = tuple(_NAMED)
