"""Ways to deceive a directed case: what is asked of QEMU, what it is said to have answered.

QEMU is honest here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.gate import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore, Store
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.machine.qmp.nonblocking import NbdAnswer
from vmtests.support.directed import Sabotage

HALF = 128 * 512  # bytes of a cluster; most disks have two


def answering(command: str, change: Callable[[Any], Any]) -> Sabotage:
    """What a command returns is changed."""

    def sabotage(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            value = call(name, arguments)
            return change(value) if name == command else value

        machine.call = other  # type: ignore[method-assign]

    return sabotage


def asking(command: str, **changes: Any) -> Sabotage:
    """A command has other arguments; without any it is not sent, and says success."""

    def sabotage(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            if name != command:
                return call(name, arguments)
            return call(name, {**(arguments or {}), **changes}) if changes else {}

        machine.call = other  # type: ignore[method-assign]

    return sabotage


def still_exported(machine: GatedMachine) -> None:
    """The export that should be removed stays, and is not shown."""
    asking("block-export-del")(machine)
    answering("query-block-exports", lambda value: value[:1])(machine)


def started(machine: GatedMachine) -> None:
    """Replication runs already."""
    machine.start()


def larger(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All nodes have a sector more."""
    for node in nodes:
        node["image"]["virtual-size"] += 512
    return nodes


def all_shared(graph: dict[str, Any]) -> dict[str, Any]:
    """Every permission is shared."""
    return {**graph, "edges": [{**e, "shared-perm": e["perm"]} for e in graph["edges"]]}


def none_taken(graph: dict[str, Any]) -> dict[str, Any]:
    """No permission is taken."""
    return {**graph, "edges": [{**e, "perm": []} for e in graph["edges"]]}


def more_done(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All jobs have copied a sector more."""
    return [{**job, "offset": job["offset"] + 512} for job in jobs]


def spoilt_store(image: str, offset: int) -> Sabotage:
    """Data of an image is zeroes from the beginning."""
    return lambda machine: machine.stores[image].write(offset, bytes(HALF))


def spoilt_copy(machine: GatedMachine) -> None:
    """The old data in the hidden disk is something else."""
    snapshot, old = machine.gate.snapshot, bytes(pattern.data_of(1, 0, 128))
    machine.gate.snapshot = (  # type: ignore[method-assign, assignment]
        lambda name: bytes(snapshot(name)).replace(old, bytes(len(old)))
    )


def swallowed(side: str, op: Nbd) -> Sabotage:
    """Such requests of this client are answered and not sent."""

    def sabotage(machine: GatedMachine) -> None:
        call = machine.clients[side].call

        def other(asked: Nbd, *words: Any) -> Any:
            return None if asked is op else call(asked, *words)

        machine.clients[side].call = other  # type: ignore[method-assign]

    return sabotage


copied_zeroes = swallowed("primary", Nbd.WRITE_ZEROES)  # there are no zeroes to copy


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


def on_release(then: Callable[[GatedMachine, HeldIO], None]) -> Sabotage:
    """Something else happens before what is held goes on."""

    def sabotage(machine: GatedMachine) -> None:
        release = machine.gate.release

        def first(io: HeldIO) -> None:
            then(machine, io)
            if machine.gate.holds(io):
                release(io)

        machine.gate.release = first  # type: ignore[method-assign]

    return sabotage


kept = swallowed("guest", Nbd.TRIM)  # what the reader of the snapshot discards is there still


def succeeding(machine: GatedMachine) -> None:
    """What should fail succeeds."""
    release = machine.gate.release
    machine.gate.fail = lambda io, errno: release(io)  # type: ignore[method-assign]


def never_open(machine: GatedMachine) -> None:
    """What is held once is held for ever."""
    machine.gate.open = lambda: None  # type: ignore[method-assign]


def client_with(export: str, op: Nbd, answer: NbdAnswer) -> Sabotage:
    """Each request of a kind that a client of an export makes has this answer."""

    def sabotage(machine: GatedMachine) -> None:
        connect = machine.connect

        def other(name: str) -> None:
            connect(name)
            client = machine.clients[name]
            call = client.call
            if name == export:
                client.call = (  # type: ignore[method-assign]
                    lambda one, *words: answer if one is op else call(one, *words)
                )

        machine.connect = other  # type: ignore[method-assign]
        if export in machine.clients:
            machine.connect(export)

    return sabotage


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


def without_flags(export: str) -> Sabotage:
    """Requests of a client of an export lose their flags."""

    def sabotage(machine: GatedMachine) -> None:
        connect = machine.connect

        def other(name: str) -> None:
            connect(name)
            if name == export:
                client = machine.clients[name]
                send = client.send
                client.send = (  # type: ignore[method-assign]
                    lambda op, offset=0, length=0, data=b"", flags=0: send(op, offset, length, data)
                )

        machine.connect = other  # type: ignore[method-assign]
        if export in machine.clients:
            machine.connect(export)

    return sabotage


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


def not_copied(image: str) -> Sabotage:
    """An image is seen as it was when it was made."""

    def sabotage(machine: GatedMachine) -> None:
        add, snapshot = machine.gate.add, machine.gate.snapshot
        blank: dict[str, bytes] = {}

        def added(name: str, store: Store, **words: Any) -> None:
            blank[name] = store.snapshot()
            add(name, store, **words)

        machine.gate.add = added  # type: ignore[method-assign]
        machine.gate.snapshot = (  # type: ignore[method-assign]
            lambda name: blank[name] if name == image else snapshot(name)
        )

    return sabotage


NEW_DATA = on_release(lambda machine, io: machine.stores["secondary"].write(0, bytes(HALF)))
COPIED_WRONG = on_release(lambda machine, io: machine.gate.corrupt(io, bytes(io.length)))
REFUSED = on_release(lambda machine, io: machine.gate.fail(io, 5))
