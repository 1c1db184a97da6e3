"""An I/O that was made to fail, and which I/O of the sequential execution is that one."""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.machine.chain.chains import DISKS
from qmpshim.model.runtime.coroutines import Io

_CHANGES = frozenset({"write", "zero", "discard"})
#: In the place of a verb: what failed is of a qcow2 image's tables, and has no place on the disk.
METADATA = "metadata"


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """An I/O that failed.

    :ivar start: first sector, :ivar count: sectors (0 for a flush)
    :ivar tables: the image has tables, which are ordered by flushes
    :ivar reader: the reading operation that met it, if it was one
    :ivar gone: the image is gone for good with it, and all its I/O fails from then on
    :ivar disk: of two disks, 0 or 1: the one that it is of
    :ivar over: operations that had ended before, :ivar unstarted: those that began after
    """

    image: str
    verb: str
    start: int
    count: int
    errno: int
    gone: bool = False
    over: frozenset[int] = frozenset()
    unstarted: frozenset[int] = frozenset()
    reader: int | None = None
    tables: bool = False
    disk: int = 0

    @property
    def may_be_of_copy(self) -> bool:
        """Whether it may be of a copy into the hidden disk, or of a table that a copy needs."""
        if self.image == "hidden":
            return self.verb in ("write", "zero", "flush", METADATA)
        return self.image == "secondary" and self.verb in ("read", METADATA) and self.reader is None

    def fits(self, io: Io) -> bool:
        """Whether the sequential execution's *io* is this one."""
        if io.disk != self.image:
            return False
        if self.verb == "flush":  # or one that qcow2 needs before it can link a new cluster, or
            # with which it empties itself
            flushes = io.op in _CHANGES or io.op == "empty"
            tables = self.tables or self.image not in DISKS
            return io.op == "flush" or (flushes and tables)
        alike = io.op == self.verb or {io.op, self.verb} <= _CHANGES
        return alike and io.start < self.start + self.count and self.start < io.start + io.count
