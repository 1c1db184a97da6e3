"""Mutants of serialising writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmpshim.model.chain.protocols import SerialisingWriteProtocol, SerializationProtocol
from qmpshim.model.disks.block_copy import SerialisingJob
from qmpshim.model.disks.image import Alloc, Owners
from qmpshim.model.disks.serialising import TrackedRequest, TrackedRequests
from qmpshim.model.mutants.register import SERIAL, add, with_job
from qmpshim.model.runtime.coroutines import Co


class _NotSerialising(SerialisingJob):
    def put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> Co[None]:
        return self.target.put(start, owners, kinds)


class _ReadsUntracked(SerialisingJob):
    def read_target(self, start: int, count: int, read: Co[Owners]) -> Co[Owners]:
        return read


def _with_tracked(kind: type[TrackedRequests]) -> Callable[[], SerializationProtocol]:
    class Job(SerialisingJob):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.tracked = self.memory.requests("hidden tracked", kind)

    return with_job(SerialisingWriteProtocol, Job)


class _NoneWaits(TrackedRequests):
    def wait_serialising(self, own: TrackedRequest) -> Co[None]:
        return
        yield


class _WritesDoNotWait(TrackedRequests):
    def conflicting(self, own: TrackedRequest) -> TrackedRequest | None:
        return None if own.serialising else super().conflicting(own)


class _SerialisingWaitsOnce(TrackedRequests):
    def wait_serialising(self, own: TrackedRequest) -> Co[None]:
        req = self.conflicting(own)
        if req is not None:
            own.waiting_for = req
            self.changed(own.start, own.end)
            yield from req.wait_queue.wait()
            own.waiting_for = None
            self.changed(own.start, own.end)


class _WaitsForWaiting(TrackedRequests):
    def conflicting(self, own: TrackedRequest) -> TrackedRequest | None:
        self.looked(own.start, own.end)
        for req in self:
            overlaps = own.end > req.start and own.start < req.end
            if req is not own and overlaps and (req.serialising or own.serialising):
                found: TrackedRequest = req
                return found
        return None


class _TrackedNoWakeUp(TrackedRequests):
    def end(self, req: Any) -> None:
        self.remove(req)


# QEMU 2.8 to 2.12 without the explicit interface:
add("target-not-serialising", "backup's writes to the hidden disk are ordinary ones", SERIAL,
     with_job(SERIAL, _NotSerialising), "write-read")  # fmt: skip
add("reads-untracked", "a read of the hidden disk is over before it has fallen through", SERIAL,
     with_job(SERIAL, _ReadsUntracked), "write-read")  # fmt: skip
for _name, _about, _tracked, *_scenarios in (
    ("serialising-in-name-only", "a serialising request is not waited for", _NoneWaits,
     "write-read"),
    ("serialising-does-not-wait", "a serialising write waits for no read", _WritesDoNotWait,
     "write-read"),
    ("serialising-waits-once", "a serialising write waits for one read only",
     _SerialisingWaitsOnce, "write-read-read"),
    ("waits-for-waiting", "requests wait for requests that wait for them", _WaitsForWaiting,
     "write-read-read"),
    ("tracked-no-wake-up", "the end of a tracked request wakes no waiter", _TrackedNoWakeUp,
     "write-read"),
):  # fmt: skip
    add(_name, _about, SERIAL, _with_tracked(_tracked), *_scenarios)
