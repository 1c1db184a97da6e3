"""Lists of overlapping requests: finding a conflict with a range, and waiting until none is left.

Restates block/reqlist.c (QEMU 7.2) and its forerunner, the ``inflight_reqs`` list of block/backup.c
(QEMU 2.8).  Positions are whatever the list's user counts in: clusters or sectors.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

from qmpshim.model.runtime.coroutines import Co, CoQueue


class RangeRequest:
    """A request in progress over [start, end); overlapping requests wait in its queue."""

    __slots__ = ("end", "start", "wait_queue")

    def __init__(self, start: int = 0, end: int = 0, label: str = "request") -> None:
        self.start = start
        self.end = end
        self.wait_queue = CoQueue(f"{label} [{start}, {end})")


class RequestList(list[Any]):
    """Requests in flight, newest first.

    :meth:`looked` and :meth:`changed` are overridden to record which ranges a step of a coroutine
    depends on or changes; here they do nothing.
    """

    def looked(self, start: int, end: int) -> None:
        """The requests in [start, end) were looked up."""

    def changed(self, start: int, end: int) -> None:
        """A request over [start, end) came, went, or changed."""

    def find(self, start: int, end: int) -> Any | None:
        """The newest request that overlaps [start, end) (``reqlist_find_conflict``)."""
        self.looked(start, end)
        for req in self:
            if end > req.start and start < req.end:
                return req
        return None

    def insert(self, index: SupportsIndex, req: Any) -> None:
        list.insert(self, index, req)
        self.changed(req.start, req.end)

    def remove(self, req: Any) -> None:
        list.remove(self, req)
        self.changed(req.start, req.end)

    def wait_one(self, start: int, end: int) -> Co[bool]:
        """Wait for one overlapping request; whether there was one (``reqlist_wait_one``)."""
        req = self.find(start, end)
        if req is None:
            return False
        yield from req.wait_queue.wait()
        return True

    def wait_all(self, start: int, end: int) -> Co[None]:
        """Wait until no request overlaps: after each wake-up the list is looked at again."""
        while (req := self.find(start, end)) is not None:
            yield from req.wait_queue.wait()

    def end(self, req: Any) -> None:
        """Take *req* out of the list and wake all that wait for it (``reqlist_remove_req``)."""
        self.remove(req)
        req.wait_queue.restart_all()

    def shrink(self, req: Any, end: int) -> None:
        """Let go of the tail of *req* from *end* on and wake all (``reqlist_shrink_req``)."""
        if end != req.end:
            old, req.end = req.end, end
            self.changed(req.start, old)
            req.wait_queue.restart_all()
