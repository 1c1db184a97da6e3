"""The primary's disk: what the guest's I/O does to its own disk and to the remote secondary's.

A quorum of two children, the primary's own disk first (``read-pattern=fifo``, ``vote-threshold=1``)
and then the replication filter in mode ``primary``, which forwards writes to the NBD export of the
secondary disk. Restates docs/block-replication.txt and docs/COLO-FT.txt, and of the seven failures
there those of this side: an I/O error on the primary disk (1) is reported "to the disk layer", that
is to the request; a write that could not be forwarded (2) to the FT/HA manager, by the status
alone.

Coroutines as in :mod:`~qmpshim.model.chain.secondary`. Positions and lengths are sectors.
"""

from __future__ import annotations

from qmpshim.model.answers import REPLICATION_ERROR
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.chain.secondary import CommandError, Stage
from qmpshim.model.disks.image import Owners, RawImage, owned
from qmpshim.model.runtime.coroutines import AioTaskPool, Co, ModelIOError


class PrimaryChain:
    """The primary's own disk, the secondary disk and the replication filter before that.

    :param size: virtual size in sectors
    :param behaviour: of this version of QEMU
    :ivar error: a write could not be forwarded since replication was started
    """

    def __init__(self, size: int, behaviour: Behaviour | None = None) -> None:
        self.size = size
        self.behaviour = behaviour or Behaviour()
        self.primary = RawImage("primary", size)
        self.secondary = RawImage("secondary", size)
        self.stage = Stage.NONE
        self.error = False

    # -- the guest's side: the quorum --------------------------------------------------------------

    def guest_read(self, start: int, count: int) -> Co[Owners]:
        """What the guest sees: its own disk, whatever the other side has.

        The filter is there to forward writes only (``replication_co_readv``).
        """
        return (yield from self.primary.read(start, count))

    def guest_write(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes its data.

        :raises ModelIOError: the primary's disk refuses it (case 1)
        """
        data = owned(op, count)
        yield from self.write_both(
            self.primary.write(start, data), self.secondary.write(start, data)
        )

    def guest_zero(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes zeroes; the filter forwards them as data.

        :raises ModelIOError: the primary's disk refuses it (case 1)
        """
        yield from self.write_both(
            self.primary.zero(start, count, -op, False),
            self.secondary.write(start, owned(-op, count)),
        )

    def guest_discard(self, start: int, count: int, op: int) -> Co[None]:
        """The quorum has no ``bdrv_co_pdiscard``: nothing happens, and that is not an error."""
        return
        yield

    def guest_flush(self) -> Co[None]:
        """A flush of both disks, whether replication runs or not.

        Only the guest's own disk has to have the data when it ends. A flush is no write request,
        so nothing is promised of the status.

        :raises ModelIOError: the primary's disk cannot be flushed (case 1)
        """
        masks = KnownDefect.QUORUM_MASKS_FLUSH
        yield from self.side_by_side(self.primary.flush(), self._flush_secondary(), masks)

    def write_both(self, own: Co[None], forwarded: Co[None]) -> Co[None]:
        """A write of the guest's disk, forwarded while replication runs: side by side."""
        if self.stage is Stage.RUNNING:
            masks = KnownDefect.QUORUM_MASKS_PRIMARY
            yield from self.side_by_side(own, self.forward(forwarded), masks)
        else:
            yield from own

    def side_by_side(self, own: Co[None], other: Co[int], masks: KnownDefect) -> Co[None]:
        """Do both; where the guest's own disk fails an error is raised, whatever the other does.

        Of two that differ it is the other's (``quorum_get_vote_winner``: the last child that has
        one of those with most votes).

        :param other: has its errno, 0 where it succeeds
        :param masks: the defect by which an error of the guest's own disk is not raised
        """
        errnos: list[int] = []

        def beside() -> Co[None]:
            errnos.append((yield from other))

        both = AioTaskPool()
        yield from both.start(own)
        yield from both.start(beside())
        try:
            yield from both.wait_all()
        except ModelIOError:
            if errnos != [0]:
                raise ModelIOError(errnos[0]) from None
            if masks not in self.behaviour.known:
                raise

    def forward(self, write: Co[None]) -> Co[int]:
        """What the filter returns: success, always."""
        try:
            yield from write
        except ModelIOError:
            self.error = True  # case 2
        return 0

    def _flush_secondary(self) -> Co[int]:
        """Its errno, 0 where it succeeds."""
        try:
            yield from self.secondary.flush()
        except ModelIOError as error:
            return error.errno
        return 0

    # -- the commands ------------------------------------------------------------------------------

    def start(self) -> Co[None]:
        """``xen-set-replication enable=true primary=true``.

        :raises CommandError: it runs already, or is over: this node is started once
        """
        if self.stage is not Stage.NONE:
            raise CommandError("Block replication is running or done")
        self.stage = Stage.RUNNING
        self.error = False
        return
        yield

    def checkpoint(self) -> Co[None]:
        """``xen-colo-do-checkpoint``: the primary has no buffer to drop, and forgets no error."""
        return
        yield

    def stop(self) -> Co[None]:
        """``xen-set-replication enable=false``: nothing more is forwarded, errors are forgotten.

        Once more it does nothing.

        :raises CommandError: it was never started
        """
        if self.stage is Stage.NONE:
            raise CommandError("Block replication is not running")
        self.begin_failover()
        return
        yield

    def begin_failover(self) -> None:
        """``xen-set-replication enable=false failover=true``: the same, and it never fails."""
        if self.stage is Stage.RUNNING:
            self.stage = Stage.DONE
            self.error = False

    def failover(self) -> Co[None]:
        """The whole of it: the primary's leaves nothing running."""
        self.begin_failover()
        return
        yield

    def status(self) -> str | None:
        """``query-xen-replication-status``: the error's text, or ``None``."""
        if self.stage is Stage.NONE:
            return "Block replication is not running"
        return REPLICATION_ERROR if self.error else None
