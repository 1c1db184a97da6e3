"""The directed cases about the monitor, jobs, ranges and snapshots see what they look at.

QEMU is honest here; what is asked of it, or what it is said to have answered, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.gate import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore, Store
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.machine.qmp.nonblocking import NbdAnswer
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Sabotage, run_spoilt

ERROR_CONTRACT, PROTOCOL = Verdict.ERROR_CONTRACT, Verdict.PROTOCOL
HALF = 128 * 512  # bytes of a cluster; the disk has two


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


def copied_zeroes(machine: GatedMachine) -> None:
    """There are no zeroes to copy."""
    call = machine.clients["primary"].call

    def other(op: Nbd, *words: Any) -> Any:
        return None if op is Nbd.WRITE_ZEROES else call(op, *words)

    machine.clients["primary"].call = other  # type: ignore[method-assign]


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


def kept(machine: GatedMachine) -> None:
    """What the reader of the snapshot discards is not discarded."""
    call = machine.clients["guest"].call

    def other(op: Nbd, *words: Any) -> Any:
        return None if op is Nbd.TRIM else call(op, *words)

    machine.clients["guest"].call = other  # type: ignore[method-assign]


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


@pytest.mark.parametrize(
    ("name", "sabotage", "verdict", "cause"),
    [
        ("start-without-backend", still_exported, ERROR_CONTRACT,
         "xen-set-replication fails silently"),
        ("io-before-start", started, ERROR_CONTRACT, "guest write before the start"),
        ("io-before-start", asking("xen-set-replication"), ERROR_CONTRACT, "guest read fails"),
        ("io-before-start", spoilt_store("secondary", 0), Verdict.CONTENT, "guest data of before"),
        ("start-read-only", spoilt_store("secondary", 0), Verdict.ISOLATION,
         "hidden disk read-only at the start"),
        ("job-progress", answering("query-block-jobs", more_done), PROTOCOL,
         "job status before the first write"),
        ("job-progress", asking("blockdev-backup", speed=1 << 20), PROTOCOL,
         "job status before the first write"),
        ("job-progress", copied_zeroes, Verdict.ALLOCATION, "the copy of zeroes is no zero"),
        ("job-progress", spoilt_copy, Verdict.CONTENT, "the copy beside zeroes"),
        ("sizes-stay", answering("query-named-block-nodes", larger), PROTOCOL, "size of "),
        ("write-threshold", asking("block-set-write-threshold", **{"write-threshold": 512}),
         PROTOCOL, "BLOCK_WRITE_THRESHOLD"),
        ("quorum-reads-first", event_without_reason, PROTOCOL, "quorum event without a failure"),
        ("quorum-reads-first", spoilt_store("primary", 0), Verdict.CONTENT, "quorum read"),
        ("quorum-permissions", answering("x-debug-query-block-graph", all_shared), PROTOCOL,
         "permissions that a quorum shares"),
        ("quorum-permissions", answering("x-debug-query-block-graph", none_taken), PROTOCOL,
         "permissions that a filter takes"),
        ("quorum-refused", asking("blockdev-add"), ERROR_CONTRACT, "blockdev-add fails silently"),
        ("backup-refused", asking("blockdev-backup"), ERROR_CONTRACT,
         "blockdev-backup fails silently"),
        ("backup-refused", answering("query-block-jobs", lambda jobs: [{}]), PROTOCOL,
         "a job that was refused"),
        ("job-progress", answering("query-block-jobs", lambda jobs: []), PROTOCOL, "job status"),
        ("backup-source-error", nothing_held, Verdict.ORDER, "a backup job: other I/O"),
        ("backup-source-error", asking("blockdev-backup", **{"on-source-error": "report"}),
         ERROR_CONTRACT, "on-source-error=stop"),
        ("backup-source-error", spoilt_copy, Verdict.CONTENT, "a backup's content"),
        ("backup-of-bitmap", asking("block-dirty-bitmap-add", granularity=2 * HALF), PROTOCOL,
         "a bitmap's count after a discard"),
        ("backup-of-bitmap", asking("blockdev-backup", **{"bitmap-mode": "always"}), PROTOCOL,
         "a bitmap's count after a backup"),
        ("backup-of-bitmap", spoilt_copy, Verdict.CONTENT, "a backup's content"),
        ("backup-of-bitmap", other_job_failed, PROTOCOL, "end of a backup job"),
        ("backup-keeps-failed-copies", nothing_held, Verdict.ORDER, "a backup job: other I/O"),
        ("backup-keeps-failed-copies", succeeding, PROTOCOL, "end of a backup job"),
        ("backup-keeps-failed-copies", asking("blockdev-backup", **{"bitmap-mode": "never"}),
         PROTOCOL, "a bitmap's count after a backup that copied a quarter"),
        ("backup-of-overlay", asking("blockdev-backup", sync="full"), PROTOCOL,
         "end of a backup of an overlay"),
        ("backup-of-overlay", not_copied("early"), Verdict.ALLOCATION,
         "clusters of a backup of an overlay: early"),
        ("backup-of-overlay", client_with("full", Nbd.READ, NbdAnswer(0, bytes(HALF))),
         Verdict.CONTENT, "data of a backup of an overlay: full"),
        ("backup-of-overlay", nothing_held, Verdict.ORDER, "a job that looks what an overlay"),
        ("backup-of-overlay", succeeding, ERROR_CONTRACT, "sync=top without the overlay's tables"),
        ("backup-of-snapshot", client_with("image", Nbd.READ, NbdAnswer(0, bytes(4 * HALF))),
         Verdict.CONTENT, "data of a backup of a snapshot"),
        ("backup-of-snapshot", client_with("guest", Nbd.READ, NbdAnswer(22, b"")), PROTOCOL,
         "what a backup of a snapshot gives up"),
        ("copy-of-zeroes-in-part", copied_zeroes, Verdict.ALLOCATION, "the copy of zeroes in part"),
        ("copy-of-zeroes-in-part", spoilt_store("secondary", HALF), Verdict.CONTENT,
         "the data beside zeroes"),
        ("copy-fills-clusters", client_with("image", Nbd.READ, NbdAnswer(0, bytes(4 * HALF))),
         Verdict.CONTENT, "a copy of a part of the target's cluster"),
        ("neighbours-of-copy", nothing_held, Verdict.ORDER, "a request of the guest: other I/O"),
        ("neighbours-of-copy", never_open, Verdict.HANG, "a write waits for what it only touches"),
        ("neighbours-of-copy", REFUSED, ERROR_CONTRACT, "guest fails beside its neighbours"),
        ("neighbours-of-snapshot", never_open, Verdict.HANG, "a write waits for what it only"),
        ("discard-in-part", asking("blockdev-add", discard="ignore"), Verdict.ALLOCATION,
         "a discard frees what is in it"),
        ("discard-in-part", client_with("image", Nbd.TRIM, NbdAnswer(5, b"")), ERROR_CONTRACT,
         "a discard fails"),
        ("discard-in-part", client_with("image", Nbd.READ, NbdAnswer(0, bytes(HALF // 2))),
         Verdict.LOST_WRITE, "data is lost beside a discard"),
        ("bitmap-grows", asking("block_resize"), PROTOCOL, "a bitmap after the disk grew"),
        ("bitmap-grows", asking("blockdev-backup"), ERROR_CONTRACT, "block_resize fails silently"),
        ("backup-between-files", client_with("same", Nbd.READ, NbdAnswer(0, bytes(4 * HALF))),
         Verdict.CONTENT, "a backup to a raw file"),
        ("reads-wait-for-copy", nothing_held, Verdict.ORDER, "a primary write: other I/O"),
        ("reads-wait-for-copy", REFUSED, ERROR_CONTRACT, "primary fails beside the other"),
        ("reads-wait-for-copy", COPIED_WRONG, Verdict.ISOLATION, "a read of the target beside"),
        ("quorum-flush-fails", nothing_held, Verdict.ORDER, "a flush of a quorum: other I/O"),
        ("quorum-flush-fails", succeeding, PROTOCOL, "quorum event of a failed flush"),
        ("bitmap-names-edges", asking("block-dirty-bitmap-add", granularity=512), PROTOCOL,
         "a bitmap after a write of sectors"),
        ("parts-of-blocks", client_with("blocks", Nbd.WRITE_ZEROES, NbdAnswer(5, b"")),
         ERROR_CONTRACT, "a request of sectors fails"),
        ("parts-of-blocks", client_with("blocks", Nbd.READ, NbdAnswer(0, bytes(2 * HALF))),
         Verdict.CONTENT, "parts of blocks"),
        ("bitmap-is-stored", asking("block-dirty-bitmap-add", persistent=False), PROTOCOL,
         "a bitmap that was stored after write 1"),
        ("bitmap-is-stored", asking("block-dirty-bitmap-remove"), PROTOCOL,
         "a bitmap that was removed"),
        ("ejected-target", client_with("snapshot", Nbd.READ, NbdAnswer(0, b"")), ERROR_CONTRACT,
         "I/O above an ejected image"),
        ("fua-is-durable", without_flags("image"), Verdict.LOST_WRITE,
         "a write with FUA is not durable"),
        ("throttled-job-obeys", asking("block-job-set-speed"), Verdict.HANG,
         "throttled-job-obeys: hang"),
        ("throttled-job-obeys", not_cancelled, PROTOCOL, "end of a cancelled job"),
        ("zeroes-are-detected", asking("blockdev-add", **{"detect-zeroes": "on"}),
         Verdict.ALLOCATION, "detect-zeroes=unmap"),
        ("zeroes-are-detected", client_with("failing", Nbd.FLUSH, NbdAnswer(0, b"")),
         ERROR_CONTRACT, "a flush's error is lost"),
        ("snapshot-of-nothing", client_with("snapshot", Nbd.READ, NbdAnswer(0, b"")),
         ERROR_CONTRACT, "a read of no snapshot"),
        ("snapshot-of-nothing", spoilt_store("secondary", 0), Verdict.LOST_WRITE,
         "a discard of no snapshot"),
        ("ejected-target", sound_tables, ERROR_CONTRACT, "I/O of an ejected image"),
        ("ejected-target", asking("blockdev-backup"), ERROR_CONTRACT,
         "blockdev-backup fails silently"),
        ("checkpoint-of-ejected-disk", succeeding, ERROR_CONTRACT,
         "xen-colo-do-checkpoint fails silently"),
        ("checkpoint-to-the-end", asking("xen-colo-do-checkpoint"), Verdict.ISOLATION,
         "the end of a disk after a checkpoint"),
        ("replication-refused", asking("blockdev-add"), ERROR_CONTRACT,
         "blockdev-add fails silently"),
        ("filter-permissions", answering("x-debug-query-block-graph", all_shared), PROTOCOL,
         "permissions that a filter shares: secondary"),
        ("filter-permissions", answering("x-debug-query-block-graph", none_taken), PROTOCOL,
         "permissions that a filter takes: secondary"),
        ("filter-passes-on", spoilt_store("secondary", 3 * HALF), Verdict.CONTENT,
         "data of a filter, seen through it"),
        ("filter-passes-on", not_flushed, Verdict.LOST_WRITE, "a flush through a filter"),
        ("filter-passes-on", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(HALF))),
         Verdict.ISOLATION, "the snapshot after changes through a filter"),
        ("filter-passes-on", client_with("primary", Nbd.TRIM, NbdAnswer(5, b"")), ERROR_CONTRACT,
         "I/O through a filter fails"),
        ("filter-reports", succeeding, ERROR_CONTRACT, "primary write hides an error"),
        ("filter-reports", on_failure, Verdict.ORDER, "a change without its copy"),
        ("filter-reports", nothing_held, Verdict.ORDER, "a write of the primary: other I/O"),
        ("filter-keeps-holes", without_flags("primary"), Verdict.ALLOCATION,
         "zeroes below a filter"),
        ("snapshot-read-freezes", nothing_held, Verdict.ORDER, "a read of the snapshot: other"),
        ("snapshot-read-freezes", answered_early, Verdict.ORDER,
         "a write overtakes a snapshot's read"),
        ("snapshot-read-freezes", NEW_DATA, Verdict.ISOLATION, "a snapshot's read beside a write"),
        ("snapshot-read-freezes", REFUSED, ERROR_CONTRACT, "guest fails beside the other"),
        ("snapshot-discard-stays", kept, Verdict.ISOLATION,
         "a discarded part of a snapshot can be read"),
        ("snapshot-discard-stays", spoilt_store("secondary", 0), Verdict.ISOLATION,
         "the rest of a discarded snapshot"),
    ],
)  # fmt: skip
def test_a_case_sees(
    name: str, sabotage: Sabotage, verdict: Verdict, cause: str, qemu_build: Build
) -> None:
    found = run_spoilt(name, sabotage, qemu_build)
    assert found is not None
    assert (found.kind, str(found.cause)[: len(cause)]) == (verdict, cause), found.text
