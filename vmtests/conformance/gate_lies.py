"""Ways in which the gate can lie to QEMU: what it does to a request instead of letting it go."""

from __future__ import annotations

from qmpshim.conformance import pattern
from qmpshim.conformance.explore.io import Named
from qmpshim.machine.gated_chain import GatedMachine

REFCOUNTS = 2 * 65536  # bytes: where the first refcount block of a fresh image is


def never(machine: GatedMachine, named: Named) -> None:
    """Says that the old data is in the hidden disk, and has lost it."""
    if named.io.image == "hidden" and named.verb == "write":
        machine.gate.corrupt(named.io, bytes(named.io.length))
        return
    machine.gate.release(named.io)


def new_for_old(machine: GatedMachine, named: Named) -> None:
    """A read of the old data returns what is about to be written."""
    if named.io.image == "secondary" and named.verb == "read":
        data = bytes(pattern.data_of(2, named.start, named.count))
        machine.gate.corrupt(named.io, data)
        return
    machine.gate.release(named.io)


def drop_new(machine: GatedMachine, named: Named) -> None:
    """A write to the secondary disk is answered and forgotten."""
    if named.io.image == "secondary" and named.verb == "write":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def drop_guest(machine: GatedMachine, named: Named) -> None:
    """A write to the active disk is answered and forgotten."""
    if named.io.image == "active" and named.verb == "write":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def drop_primary(machine: GatedMachine, named: Named) -> None:
    """A write to the primary's own disk is answered and forgotten."""
    if named.io.image == "primary" and named.verb == "write":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def drop_primary_flush(machine: GatedMachine, named: Named) -> None:
    """A flush of the primary's own disk is answered and not done."""
    if named.io.image == "primary" and named.verb == "flush":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def stale_primary_read(machine: GatedMachine, named: Named) -> None:
    """A read of the primary's own disk returns what was there at the beginning."""
    if named.io.image == "primary" and named.verb == "read":
        machine.gate.corrupt(named.io, bytes(pattern.data_of(1, named.start, named.count)))
        return
    machine.gate.release(named.io)


def twice(machine: GatedMachine, named: Named) -> None:
    """An answer comes twice."""
    if named.verb in ("read", "write"):
        machine.gate.reply_twice(named.io)
        return
    machine.gate.release(named.io)


class Early:
    """The secondary disk has the new data before the hidden disk has the old.

    As a storage does that answers a write before it is done, and does another one first.
    """

    def __init__(self) -> None:
        self.kept: list[Named] = []

    def __call__(self, machine: GatedMachine, named: Named) -> None:
        if named.io.image == "hidden" and named.verb == "write":
            self.kept.append(named)
            machine.gate.drop(named.io)
            return
        machine.gate.release(named.io)
        if named.io.image == "secondary" and named.verb == "write":
            for late in self.kept:
                machine.stores["hidden"].write(late.io.offset, late.io.data)
            self.kept.clear()


class ForgetfulFlush:
    """A cache that answers a flush first and writes what it holds at the next opportunity.

    In the end everything is where it belongs; only a crash in between would lose a write.
    """

    def __init__(self) -> None:
        self.kept: list[Named] = []
        self.flushed = False

    def __call__(self, machine: GatedMachine, named: Named) -> None:
        if self.flushed or named.verb == "read":
            for late in self.kept:
                machine.stores["secondary"].write(late.io.offset, late.io.data)
            self.kept.clear()
        if named.io.image == "secondary" and named.verb == "write":
            self.kept.append(named)
            machine.gate.drop(named.io)  # answered, not done yet
            return
        machine.gate.release(named.io)
        self.flushed = named.verb == "flush"
