"""What must hold at every instant of an execution, not only at its end.

* *order*: new data comes to the secondary disk only when the hidden disk has the old;
* *copies*: what is sent to the hidden disk is old data;
* *flushes*: what had been written before a flush began is on the disk when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.explore.execution import Execution
from qmpshim.conformance.explore.images import read_overlay
from qmpshim.conformance.explore.io import Names, owners, tags
from qmpshim.conformance.explore.judge import RealViolation
from qmpshim.conformance.explore.scenarios import RealScenario, words
from qmpshim.machine.gate import HeldIO, Kind
from qmpshim.machine.gated_chain import Form, GatedMachine
from qmpshim.machine.nbd_proto import Op as Nbd
from qmpshim.machine.secondary import SECTOR
from qmpshim.model.verdict import Verdict

_EFFECTS = (Kind.PASS, Kind.RELEASE, Kind.APPLY)
_CHANGES = (Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM)


class Watch:
    """Watches one execution of *scenario*.

    :param names: knows the places of the overlays' data
    :ivar quiet: no command changes the chain meanwhile; otherwise little can be said here
    """

    def __init__(self, scenario: RealScenario, machine: GatedMachine, names: Names) -> None:
        self._scenario = scenario
        self._machine = machine
        self._names = names
        self._copies: dict[int, HeldIO] = {}  # by cluster, the write that brings its old data
        self._done: set[int] = set()  # writes that reached their image
        self._read = 0  # how far in the gate's trace
        self._primaries = {
            scenario.number(index)
            for index, op in enumerate(scenario.ops)
            if op.do == "primary_write"
        }
        self.quiet = not any(
            op.do in ("checkpoint", "failover", "stop", "start") for op in scenario.ops
        )

    def answered(self, io: HeldIO) -> None:
        """QEMU was told that this request is done; if it is, is looked at when it matters."""
        if io.image == "hidden" and io.op is Nbd.WRITE:
            start, cluster = self._names.guest_sector(io) or 0, self._scenario.cluster
            for n in range(-(-start // cluster), (start + io.length // SECTOR) // cluster):
                self._copies[n] = io

    def _saved(self, cluster: int) -> bool:
        """Whether the hidden disk has the old data of a cluster: by the gate's effects."""
        trace = self._machine.gate.trace
        for event in trace[self._read :]:
            if event.kind in _EFFECTS and event.op is Nbd.WRITE:
                self._done.add(event.io)
        self._read = len(trace)
        copy = self._copies.get(cluster)
        return copy is not None and copy.seq in self._done

    def arrived(self, io: HeldIO) -> RealViolation | None:
        """What is wrong with a request that is at the gate now."""
        if not self.quiet or self._scenario.form is not Form.REPLICATION:
            return None
        cluster = self._scenario.cluster
        if io.image == "secondary" and io.op in _CHANGES:
            start = self._names.guest_sector(io) or 0
            for n in range(start // cluster, -(-(start + io.length // SECTOR) // cluster)):
                if not self._saved(n):
                    text = "new data is sent to the secondary disk before the old is saved"
                    return RealViolation(
                        Verdict.ORDER, text, cluster=n, cause="new data before old is saved"
                    )
        elif io.image == "hidden" and io.op is Nbd.WRITE:
            start = self._names.guest_sector(io) or 0
            if any(number in self._primaries for _, number, _ in tags(io.data)):
                return RealViolation(
                    Verdict.CONTENT,
                    "the copy that goes to the hidden disk holds new data",
                    cluster=start // cluster,
                    cause="the copy holds new data",
                )
        return None

    def flushed(self, now: Execution, flush: int) -> RealViolation | None:
        """What is wrong now that the flush with this index ended well."""
        if not self.quiet or now.faults:
            return None
        scenario = self._scenario
        primary = scenario.ops[flush].do == "primary_flush"
        verb, name = ("primary_write", "secondary") if primary else ("guest_write", "active")
        if name not in self._machine.images:
            return None
        before = [i for i in now.precedence[flush] if scenario.ops[i].do == verb]
        if not before:
            return None
        if primary and scenario.secondary == "raw":
            found: Sequence[int | None] = owners(self._machine.gate.snapshot(name), 0)
        else:
            found = read_overlay(self._machine, scenario, name).content
        for index in before:
            op = scenario.ops[index]
            # Whoever came later may have written over it.
            allowed = {scenario.number(i) for i in now.started} | {0}
            for sector in range(op.start, op.start + op.count):
                if found[sector] not in allowed:
                    return RealViolation(
                        Verdict.LOST_WRITE,
                        f"{words(op)} is not on the {name} disk when the flush after it ends",
                        index,
                        sector // scenario.cluster,
                        f"{verb} not on disk after {scenario.ops[flush].do}",
                    )
        return None
