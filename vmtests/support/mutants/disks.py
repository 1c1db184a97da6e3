"""Mutants of QEMU's disks: what is held, what fails, what is in them."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO, ENOSPC
from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore, Store
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from vmtests.support import misbehaving_gate
from vmtests.support.directed import Mutant


def spoilt_store(image: str, offset: int) -> Mutant:
    """Data of an image is zeroes from the beginning."""
    return lambda machine: machine.stores[image].write(offset, bytes(CLUSTER))


def seen_as(image: str, change: Callable[[bytes], bytes]) -> Mutant:
    """What an image's file holds is seen as something else."""

    def mutant(machine: GatedMachine) -> None:
        snapshot = machine.gate.snapshot
        machine.gate.snapshot = (  # type: ignore[method-assign]
            lambda name: change(snapshot(name)) if name == image else snapshot(name)
        )

    return mutant


def taken_for(method: str, image: str, other: str) -> Mutant:
    """A method of the gate's takes an image for another one.

    :param method: ``store`` or ``snapshot``
    """

    def mutant(machine: GatedMachine) -> None:
        right = getattr(machine.gate, method)
        setattr(machine.gate, method, lambda name: right(other if name == image else name))

    return mutant


def spoilt_copy(machine: GatedMachine) -> None:
    """The old data in the hidden disk is something else."""
    old = bytes(pattern.data_of(1, 0, 128))
    seen_as("hidden", lambda image: image.replace(old, bytes(len(old))))(machine)


def copied_once(machine: GatedMachine) -> None:
    """The hidden disk is seen as the first job has left it."""
    first: list[bytes] = []

    def seen(image: bytes) -> bytes:
        first.append(image)
        return first[0]

    seen_as("hidden", seen)(machine)


def never_copied(machine: GatedMachine) -> None:
    """The hidden disk is seen as it was at first."""
    seen_as("hidden", lambda image: machine.blank("hidden"))(machine)


def nothing_held(machine: GatedMachine) -> None:
    """No I/O ever waits."""
    machine.gate.hold = lambda *what: None  # type: ignore[method-assign]


def on_release(then: Callable[[GatedMachine, HeldIO], None]) -> Mutant:
    """Something else happens before what is held goes on."""

    def mutant(machine: GatedMachine) -> None:
        release = machine.gate.release

        def first(io: HeldIO) -> None:
            then(machine, io)
            if machine.gate.holds(io):
                release(io)

        machine.gate.release = first  # type: ignore[method-assign]

    return mutant


def succeeding(machine: GatedMachine) -> None:
    """What should fail succeeds."""
    release = machine.gate.release
    machine.gate.fail = lambda io, errno: release(io)  # type: ignore[method-assign]


def failing_otherwise(machine: GatedMachine) -> None:
    """What should fail with EIO fails with ENOSPC."""
    fail = machine.gate.fail
    machine.gate.fail = lambda io, errno: fail(io, ENOSPC)  # type: ignore[method-assign]


def never_open(machine: GatedMachine) -> None:
    """What is held once is held for ever."""
    machine.gate.open = lambda: None  # type: ignore[method-assign]


def not_flushed(machine: GatedMachine) -> None:
    """Flushes are not counted."""
    counts = machine.gate.counts
    machine.gate.counts = (  # type: ignore[method-assign]
        lambda name: {**counts(name), Nbd.FLUSH: 0}
    )


def on_failure(machine: GatedMachine) -> None:
    """The disk is changed before a copy fails."""
    fail = machine.gate.fail

    def changed(io: HeldIO, errno: int) -> None:
        machine.stores["secondary"].write(0, bytes(CLUSTER))
        fail(io, errno)

    machine.gate.fail = changed  # type: ignore[method-assign]


def sound_tables(machine: GatedMachine) -> None:
    """What is broken in an image is not."""
    store = machine.gate.store
    machine.gate.store = (  # type: ignore[method-assign]
        lambda name: MemoryStore(store(name).snapshot())
    )


def not_copied(image: str) -> Mutant:
    """An image is seen as it was when it was made."""

    def mutant(machine: GatedMachine) -> None:
        add, snapshot = machine.gate.add, machine.gate.snapshot
        blank: dict[str, bytes] = {}

        def added(name: str, store: Store, **words: Any) -> None:
            blank[name] = store.snapshot()
            add(name, store, **words)

        machine.gate.add = added  # type: ignore[method-assign]
        machine.gate.snapshot = (  # type: ignore[method-assign]
            lambda name: blank[name] if name == image else snapshot(name)
        )

    return mutant


NEW_DATA = on_release(lambda machine, io: machine.stores["secondary"].write(0, bytes(CLUSTER)))
COPIED_WRONG = on_release(
    lambda machine, io: misbehaving_gate.corrupt(machine.gate, io, bytes(io.length))
)
REFUSED = on_release(lambda machine, io: machine.gate.fail(io, EIO))
