"""Mutants of commands and images."""

from __future__ import annotations

from typing import Any

from qmpshim.model.chain.drain import Drain
from qmpshim.model.disks.image import Alloc, Fill, Owners, Qcow2Image
from qmpshim.model.explore.model_system import InstrumentedChain
from qmpshim.model.mutants.register import COW, add
from qmpshim.model.runtime.coroutines import Co, Io


class _DoesNotWait(Drain):
    def command(self, number: int, co: Co[Any]) -> Co[Any]:
        self.drainers.add(number)
        try:
            return (yield from co)
        finally:
            self.drainers.discard(number)
            self._resumed.restart_all()


class _DoesNotHold(Drain):
    def request(self, number: int, co: Co[Any]) -> Co[Any]:
        self.busy.add(number)
        try:
            return (yield from co)
        finally:
            self.busy.discard(number)
            if self.drainers and not self.busy:
                self._idle.restart_all()


class _DoesNotResume(Drain):
    def command(self, number: int, co: Co[Any]) -> Co[Any]:
        self.drainers.add(number)
        while self.busy:
            yield from self._idle.wait()
        result = yield from co
        self.drainers.discard(number)
        return result


class _LooseQcow2(Qcow2Image):
    def write(self, start: int, owners: Owners, fill: Fill | None = None) -> Co[None]:
        end = start + len(owners)
        low, high = self.edges(start, len(owners))
        fresh = self.alloc.get(start // self.cluster) is not Alloc.DATA
        if fresh and low < start:
            owners = (yield from self._rest(low, start - low, fill)) + owners
            start = low
        if fresh and end < high:
            owners = owners + (yield from self._rest(end, high - end, fill))
        yield Io("write", self.name, start, len(owners), lambda: self._do_write(start, owners))


class _LooseChain(InstrumentedChain):
    def rebuild(self) -> None:
        super().rebuild()
        self.active = _LooseQcow2("active", self.size, self.cluster, True, self.memory)


class _NeverEmpty(Qcow2Image):
    def _do_empty(self) -> None:
        pass


class _KeepsActive(InstrumentedChain):
    def rebuild(self) -> None:
        super().rebuild()
        self.active = _NeverEmpty("active", self.size, self.cluster, True, self.memory)


for _name, _about, _more, *_scenarios in (
    ("checkpoint-undrained", "a checkpoint resets the bitmap while a copy is in flight",
     {"drained": False}, "write-checkpoint"),
    ("drain-does-not-wait", "a command does not wait for requests in flight",
     {"drain": _DoesNotWait}, "write-checkpoint"),
    ("drain-does-not-hold", "new requests start while a command runs", {"drain": _DoesNotHold},
     "write-checkpoint", "write-read-checkpoint"),
    ("drain-does-not-resume", "held requests are not woken after a command",
     {"drain": _DoesNotResume}, "write-checkpoint"),
    ("failover-undrained", "failover commits while a copy is in flight", {"drained": False},
     "write-failover", "guest-failover-read"),
    ("checkpoint-keeps-active", "a checkpoint does not empty the active disk",
     {"chain": _KeepsActive}, "guest-read-checkpoint"),
    ("allocations-overlap", "writes to a cluster do not wait for its allocation",
     {"chain": _LooseChain}, "guest-guest", "guest-parts"),
):  # fmt: skip
    add(_name, _about, COW, COW, *_scenarios, **_more)
