"""Ways in which the gate can misbehave: what it does to a request instead of letting it go."""

from __future__ import annotations

import functools
from collections.abc import Callable

from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from vmtests.support import misbehaving_gate

REFCOUNTS = 2 * 65536  # bytes: where the first refcount block of a fresh image is


Misbehaviour = Callable[[GatedMachine, NamedIo], None]


def of(image: str, verb: str) -> Callable[[Misbehaviour], Misbehaviour]:
    """A misbehaviour at these requests of this image; all others are let go as they should."""

    def only(misbehaviour: Misbehaviour) -> Misbehaviour:
        @functools.wraps(misbehaviour)
        def release(machine: GatedMachine, named: NamedIo) -> None:
            here = named.io.image == image and named.verb == verb
            (misbehaviour if here else faithfully)(machine, named)

        return release

    return only


@of("hidden", "write")
def never(machine: GatedMachine, named: NamedIo) -> None:
    """Answers that the old data is in the hidden disk, and has lost it."""
    misbehaving_gate.corrupt(machine.gate, named.io, bytes(named.io.length))


@of("secondary", "read")
def new_for_old(machine: GatedMachine, named: NamedIo) -> None:
    """A read of the old data returns what is about to be written."""
    misbehaving_gate.corrupt(
        machine.gate, named.io, bytes(pattern.data_of(2, named.start, named.count))
    )


def drop(image: str) -> Misbehaviour:
    """A write to an image is answered and forgotten."""
    return of(image, "write")(lambda machine, named: misbehaving_gate.drop(machine.gate, named.io))


drop_new, drop_guest, drop_primary = map(drop, ("secondary", "active", "primary"))


@of("primary", "flush")
def drop_primary_flush(machine: GatedMachine, named: NamedIo) -> None:
    """A flush of the primary's own disk is answered and not done."""
    misbehaving_gate.drop(machine.gate, named.io)


@of("primary", "read")
def stale_primary_read(machine: GatedMachine, named: NamedIo) -> None:
    """A read of the primary's own disk returns what was there at the beginning."""
    misbehaving_gate.corrupt(
        machine.gate, named.io, bytes(pattern.data_of(1, named.start, named.count))
    )


def twice(machine: GatedMachine, named: NamedIo) -> None:
    """An answer comes twice."""
    if named.verb in ("read", "write"):
        misbehaving_gate.reply_twice(machine.gate, named.io)
        return
    machine.gate.release(named.io)


class Early:
    """The secondary disk has the new data before the hidden disk has the old.

    As a storage does that answers a write before it is done, and does another one first.
    """

    def __init__(self) -> None:
        self.kept: list[NamedIo] = []

    def __call__(self, machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "hidden" and named.verb == "write":
            self.kept.append(named)
            misbehaving_gate.drop(machine.gate, named.io)
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
        self.kept: list[NamedIo] = []
        self.flushed = False

    def __call__(self, machine: GatedMachine, named: NamedIo) -> None:
        if self.flushed or named.verb == "read":
            for late in self.kept:
                machine.stores["secondary"].write(late.io.offset, late.io.data)
            self.kept.clear()
        if named.io.image == "secondary" and named.verb == "write":
            self.kept.append(named)
            misbehaving_gate.drop(machine.gate, named.io)  # answered, not done yet
            return
        machine.gate.release(named.io)
        self.flushed = named.verb == "flush"
