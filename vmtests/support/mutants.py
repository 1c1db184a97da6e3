"""Mutants for directed cases: what is sent to QEMU, what comes from it, what its disks do.

QEMU itself is the one under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EINVAL, ENOSPC
from typing import Any

from qmpshim.conformance.workload import pattern
from qmpshim.errors import BuildError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.gate import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore, Store
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.machine.qmp.nonblocking import NbdAnswer, NonBlockingNbd
from vmtests.support.directed import Mutant

HALF = 128 * 512  # bytes of a cluster; most disks have two


def answering(command: str, change: Callable[[Any], Any]) -> Mutant:
    """What a command returns is changed."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            value = call(name, arguments)
            return change(value) if name == command else value

        machine.call = other  # type: ignore[method-assign]

    return mutant


def asking(command: str, **changes: Any) -> Mutant:
    """A command has other arguments; without any it is not sent, and says success."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            if name != command:
                return call(name, arguments)
            return call(name, {**(arguments or {}), **changes}) if changes else {}

        machine.call = other  # type: ignore[method-assign]

    return mutant


def still_exported(machine: GatedMachine) -> None:
    """The export that should be removed stays, and is not shown."""
    asking("block-export-del")(machine)
    answering("query-block-exports", lambda value: [])(machine)


def started(machine: GatedMachine) -> None:
    """Replication runs already."""
    machine.start()


def larger(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All nodes have a sector more."""
    for node in nodes:
        node["image"]["virtual-size"] += 512
    return nodes


def all_shared(node: str) -> Mutant:
    """Every permission of a node is shared."""
    return _permissions(node, {"shared-perm": ["write", "resize"]})


def none_taken(node: str) -> Mutant:
    """No permission of a node is taken."""
    return _permissions(node, {"perm": []})


def _permissions(node: str, change: dict[str, list[str]]) -> Mutant:
    def changed(graph: dict[str, Any]) -> dict[str, Any]:
        (number,) = (one["id"] for one in graph["nodes"] if one["name"] == node)
        edges = [{**e, **(change if e["child"] == number else {})} for e in graph["edges"]]
        return {**graph, "edges": edges}

    return answering("x-debug-query-block-graph", changed)


def not_shrunk(machine: GatedMachine) -> None:
    """A disk that should shrink to its first size says success."""
    call = machine.call

    def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        size = (arguments or {}).get("size")
        return {} if (name, size) == ("block_resize", 2 * HALF) else call(name, arguments)

    machine.call = other  # type: ignore[method-assign]


def more_done(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All jobs have copied a sector more."""
    return [{**job, "offset": job["offset"] + 512} for job in jobs]


def spoilt_store(image: str, offset: int) -> Mutant:
    """Data of an image is zeroes from the beginning."""
    return lambda machine: machine.stores[image].write(offset, bytes(HALF))


def seen_as(image: str, change: Callable[[bytes], bytes]) -> Mutant:
    """What an image's file holds is seen as something else."""

    def mutant(machine: GatedMachine) -> None:
        snapshot = machine.gate.snapshot
        machine.gate.snapshot = (  # type: ignore[method-assign]
            lambda name: change(snapshot(name)) if name == image else snapshot(name)
        )

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


def since(version: tuple[int, int], mutant: Mutant) -> Mutant:
    """A mutant that changes something from this version on.

    :raises BuildError: by the mutant, on an older QEMU
    """

    def only(machine: GatedMachine) -> None:
        if machine.version < version:
            raise BuildError("this QEMU has nothing that the mutant changes")
        mutant(machine)

    return only


def not_recording(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """No bitmap records."""
    for node in nodes:
        for bitmap in node.get("dirty-bitmaps", []):
            bitmap["recording"] = False
    return nodes


def jobs_failed(machine: GatedMachine) -> None:
    """Each job that ended has failed, as its event has it."""

    def failed(status: Any) -> Any:
        for event in machine.qmp.events:
            if event.get("event") == "BLOCK_JOB_COMPLETED":
                event["data"]["error"] = "no space"
        return status

    answering("query-status", failed)(machine)


def event_without_reason(machine: GatedMachine) -> None:
    """A disk of the quorum is said to be bad."""
    machine.qmp.events.append({"event": "QUORUM_REPORT_BAD", "data": {"node-name": "forward"}})


def other_job_failed(machine: GatedMachine) -> None:
    """A job is said to have ended before."""
    data = {"device": "backup", "offset": 0, "len": 2 * HALF, "error": "no space"}
    machine.qmp.events.append({"event": "BLOCK_JOB_COMPLETED", "data": data})


def nothing_held(machine: GatedMachine) -> None:
    """No I/O ever waits."""
    machine.gate.hold = lambda *what: None  # type: ignore[method-assign]


def answered_early(machine: GatedMachine) -> None:
    """The primary's write is answered at once."""
    client = machine.clients["primary"]
    send = client.send

    def at_once(*words: Any) -> int:
        cookie = send(*words)
        client.answers[cookie] = NbdAnswer(0, b"")
        return cookie

    client.send = at_once  # type: ignore[method-assign]


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


def on_connect(export: str, change: Callable[[NonBlockingNbd], None]) -> Mutant:
    """Each client of an export is changed."""

    def mutant(machine: GatedMachine) -> None:
        connect = machine.connect

        def other(name: str) -> None:
            connect(name)
            if name == export:
                change(machine.clients[name])

        machine.connect = other  # type: ignore[method-assign]
        if export in machine.clients:
            machine.connect(export)

    return mutant


def client_doing(export: str, op: Nbd, instead: Callable[..., NbdAnswer]) -> Mutant:
    """Requests of a kind that a client of an export waits for are done in another way.

    :param instead: has the client's ``call``, and the arguments that follow the kind
    """

    def change(client: NonBlockingNbd) -> None:
        call = client.call
        client.call = (  # type: ignore[method-assign]
            lambda one, *words: instead(call, *words) if one is op else call(one, *words)
        )

    return on_connect(export, change)


def client_with(export: str, op: Nbd, answer: NbdAnswer) -> Mutant:
    """Requests of a kind are not sent, and have this answer."""
    return client_doing(export, op, lambda call, *words: answer)


def _inverted(call: Callable[..., NbdAnswer], *words: Any) -> NbdAnswer:
    return NbdAnswer(0 if call(Nbd.READ, *words).errno else EINVAL, b"")


def _widened(unit: int) -> Callable[..., NbdAnswer]:
    """Discards all of what a discard has a part of, in units of so many bytes."""

    def discard(call: Callable[..., NbdAnswer], offset: int, length: int, *more: Any) -> NbdAnswer:
        start = offset // unit * unit
        return call(Nbd.TRIM, start, -(-(offset + length) // unit) * unit - start)

    return discard


def _beyond(offset: int, answer: NbdAnswer) -> Callable[..., NbdAnswer]:
    """Reads that end beyond *offset* have this answer."""
    return lambda call, start, length: (
        answer if start + length > offset else call(Nbd.READ, start, length)
    )


def _copying(call: Callable[..., NbdAnswer], offset: int, length: int, data: bytes) -> NbdAnswer:
    call(Nbd.READ, offset, len(data))
    return call(Nbd.WRITE, offset, length, data)


DONE = NbdAnswer(0, b"")
copied_zeroes = client_with("primary", Nbd.WRITE_ZEROES, DONE)  # there are no zeroes to copy
kept = client_with("guest", Nbd.TRIM, DONE)  # what the reader of the snapshot discards is there
read_differently = client_doing("guest", Nbd.READ, _inverted)  # fails where it should not
whole_discarded = client_doing("guest", Nbd.TRIM, _widened(HALF))  # clusters
blocks_discarded = client_doing("blocks", Nbd.TRIM, _widened(4096))
second_readable = client_doing("guest", Nbd.READ, _beyond(HALF, DONE))
copied_first = client_doing("primary", Nbd.WRITE, _copying)  # reads what it writes to


def only_unreadable(machine: GatedMachine) -> None:
    """A whole cluster that the reader of the snapshot discards is copied, and cannot be read."""
    discarded: list[int] = []

    def discard(call: Callable[..., NbdAnswer], offset: int, length: int) -> NbdAnswer:
        if length == HALF:
            discarded.append(offset)
        return DONE

    def read(call: Callable[..., NbdAnswer], offset: int, length: int) -> NbdAnswer:
        if any(offset < one + HALF and one < offset + length for one in discarded):
            return NbdAnswer(EINVAL, b"")
        return call(Nbd.READ, offset, length)

    client_doing("guest", Nbd.TRIM, discard)(machine)
    client_doing("guest", Nbd.READ, read)(machine)


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
        machine.stores["secondary"].write(0, bytes(HALF))
        fail(io, errno)

    machine.gate.fail = changed  # type: ignore[method-assign]


def without_flags(export: str, *ops: Nbd) -> Mutant:
    """Requests of these kinds of a client of an export, or all, lose their flags."""

    def change(client: NonBlockingNbd) -> None:
        send = client.send
        client.send = (  # type: ignore[method-assign]
            lambda op, offset=0, length=0, data=b"", flags=0: send(
                op, offset, length, data, 0 if not ops or op in ops else flags
            )
        )

    return on_connect(export, change)


def not_cancelled(machine: GatedMachine) -> None:
    """A job that is to be cancelled is done at full speed."""
    call = machine.call

    def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if name == "block-job-cancel":
            return call("block-job-set-speed", {**(arguments or {}), "speed": 0})
        return call(name, arguments)

    machine.call = other  # type: ignore[method-assign]


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


NEW_DATA = on_release(lambda machine, io: machine.stores["secondary"].write(0, bytes(HALF)))
COPIED_WRONG = on_release(lambda machine, io: machine.gate.corrupt(io, bytes(io.length)))
REFUSED = on_release(lambda machine, io: machine.gate.fail(io, 5))
