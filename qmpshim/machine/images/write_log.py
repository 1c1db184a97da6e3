"""Reads the write log that QEMU's ``blklogwrites`` driver (or Linux's dm-log-writes) keeps.

Source for every field: the head of QEMU 7.2's ``block/blklogwrites.c``, which restates Linux's
``drivers/md/dm-log-writes.c``. All numbers are little-endian. Sector 0 of the log holds the super
block; each entry is one sector with the header, followed by the sectors that were written. A
sector is the log's own (:attr:`WriteLog.sector_size` bytes), for places in the log and on the disk
alike.

QEMU logs a request once the disk below has answered it, whether well or not, and answers its own
client after that. It takes a request's place in the log before it writes there, so that while
requests overlap the last entries may be holes or half written; it writes the super block at each
flush and each ``log-super-update-interval`` requests only. A log that is still written to is
therefore read with ``live``: up to the first entry that is incomplete, whatever the super block
holds. Give QEMU an empty file to log to: what an older log left behind would look like entries.

A write of zeroes is logged as a write with its zeroes. QEMU 5.2 spoils the log when another request
overlaps with it; upstream's "Fix a bug when logging "write zeroes" operations" mends that, in 7.2
since 7.2.9.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from qmpshim.errors import MachineError
from qmpshim.machine.host.files import BytesLike

MAGIC = 0x6A736677736872
VERSION = 1
_SUPER = struct.Struct("<QQQI")  # magic, version, number of entries, sector size
_HEADER = struct.Struct("<QQQQ")  # sector, number of sectors, flags, length of a mark
_SECTOR_SIZE = 512  # QEMU's default
_LARGEST_SECTOR = 1 << 24


class LogError(MachineError):
    """The bytes are no write log, or one that was damaged."""


class Flag(IntFlag):
    """What an entry is, beside a write."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request that was logged.

    :ivar index: its place in the log's order, from 0
    :ivar sector: where on the disk it begins, in sectors of the log
    :ivar sectors: how many it covers; 0 for a flush and for a mark
    :ivar flags: none for a plain write
    :ivar data: what was written, ``sectors`` long; a mark's text; empty for flush and discard
    :ivar sector_size: bytes of a sector
    :ivar end: the log's sector where the next entry begins
    """

    index: int
    sector: int
    sectors: int
    flags: Flag
    data: memoryview
    sector_size: int
    end: int

    @property
    def offset(self) -> int:
        """Where on the disk it begins, in bytes."""
        return self.sector * self.sector_size

    @property
    def length(self) -> int:
        """How many bytes of the disk it covers."""
        return self.sectors * self.sector_size

    @property
    def is_write(self) -> bool:
        """Whether it changed the disk's content to :attr:`data`."""
        return not self.flags & (Flag.DISCARD | Flag.MARK) and self.sectors > 0


class WriteLog:
    """A log's bytes.

    :param log: the whole log, e.g. an ``mmap`` of its file; entries look into it
    :param sector_size: bytes of a sector, where there is no super block yet; None: QEMU's default
    :raises LogError: there is a super block, and it is none of a write log

    :ivar counted: entries that the super block counts, as of the last flush
    """

    def __init__(self, log: BytesLike, sector_size: int | None = None) -> None:
        self._log = memoryview(log).cast("B")
        self.sector_size = sector_size or _SECTOR_SIZE
        self.counted = 0
        head = bytes(self._log[: _SUPER.size])
        if not any(head):  # nothing was flushed yet
            return
        if len(head) < _SUPER.size:
            raise LogError("the write log ends in its super block")
        magic, version, self.counted, self.sector_size = _SUPER.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise LogError("the bytes do not begin with the super block of a write log")
        size = self.sector_size
        if size & (size - 1) or not _HEADER.size <= size < _LARGEST_SECTOR:
            raise LogError(f"the write log speaks of sectors of {size} bytes")

    def entries(self, after: LogEntry | None = None, live: bool = False) -> Iterator[LogEntry]:
        """Yields the entries in the log's order.

        :param after: the last entry known already, of this log when it was shorter
        :param live: the log is written to now: the first entry that is not whole is the end;
            else the log ends at the super block's count, or where there is nothing more
        :raises LogError: an entry cannot be (always), or is cut short (unless *live*)
        """
        index, at = (0, 1) if after is None else (after.index + 1, after.end)
        while live or not self.counted or index < self.counted:
            entry = self._entry(index, at)
            if entry is None:
                if not live and index < self.counted:
                    raise LogError(f"the write log ends in entry {index} of {self.counted}")
                return
            yield entry
            index, at = entry.index + 1, entry.end

    def _entry(self, index: int, at: int) -> LogEntry | None:
        """The entry at the log's sector *at*, None when it is not all there."""
        size = self.sector_size
        start = at * size
        if start + size > len(self._log):
            return None
        sector, sectors, flags, mark = _HEADER.unpack(self._log[start : start + _HEADER.size])
        if flags & ~15:
            raise LogError(f"entry {index} of the write log has the flags {flags:#x}")
        kind = Flag(flags)
        text = slice(start + _HEADER.size, start + _HEADER.size + mark)
        if kind & Flag.MARK:
            if text.stop > start + size:
                raise LogError(f"entry {index} of the write log has a mark of {mark} bytes")
            return LogEntry(index, sector, sectors, kind, self._log[text], size, at + 1)
        if not (sectors or kind) and index >= self.counted:
            return None  # a hole: QEMU logs no write of nothing
        end = at + 1 if kind & Flag.DISCARD else at + 1 + sectors
        if end * size > len(self._log):
            return None
        data = self._log[start + size : end * size]
        return LogEntry(index, sector, sectors, kind, data, size, end)
