"""Tracked requests of one node, some of them serialising: those have their range to themselves.

Restates ``BdrvTrackedRequest``, ``bdrv_find_conflicting_request``,
``bdrv_wait_serialising_requests`` and ``tracked_request_set_serialising`` of block/io.c (QEMU 7.2).
Positions are sectors.
"""

from __future__ import annotations

from qmpshim.model.disks.request_list import RangeRequest, RequestList
from qmpshim.model.runtime.coroutines import Co


class TrackedRequest(RangeRequest):
    """One request to a node from its first moment to its last.

    :ivar serialising: it waits for every request it overlaps with, and each of them for it
    :ivar waiting_for: the request it sleeps for; a request that waits is itself not waited for
    """

    __slots__ = ("serialising", "waiting_for")

    def __init__(self, start: int, end: int) -> None:
        super().__init__(start, end, "tracked request")
        self.serialising = False
        self.waiting_for: TrackedRequest | None = None


class TrackedRequests(RequestList):
    """The requests that a node (here: the hidden disk) is working on."""

    def begin(self, start: int, end: int) -> TrackedRequest:
        """A request over the sectors [start, end) begins (``tracked_request_begin``)."""
        req = TrackedRequest(start, end)
        self.insert(0, req)
        return req

    def set_serialising(self, req: TrackedRequest, align: int) -> None:
        """Make *req* serialising and round its range outwards to *align* sectors."""
        req.serialising = True
        req.start -= req.start % align
        req.end += -req.end % align
        self.changed(req.start, req.end)

    def conflicting(self, own: TrackedRequest) -> TrackedRequest | None:
        """The newest request that *own* has to wait for."""
        self.looked(own.start, own.end)
        for req in self:
            if req is own or not (req.serialising or own.serialising):
                continue
            if own.end > req.start and own.start < req.end and req.waiting_for is None:
                found: TrackedRequest = req
                return found
        return None

    def wait_serialising(self, own: TrackedRequest) -> Co[None]:
        """Sleep until *own* has no conflict (``bdrv_wait_serialising_requests``)."""
        while (req := self.conflicting(own)) is not None:
            own.waiting_for = req
            self.changed(own.start, own.end)
            yield from req.wait_queue.wait()
            own.waiting_for = None
            self.changed(own.start, own.end)
