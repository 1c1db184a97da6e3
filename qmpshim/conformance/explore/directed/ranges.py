"""Directed cases about where requests begin and end: neighbours, parts of clusters, a new end."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EIO

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    any_of,
    clusters_in_words,
    content,
    copies_to,
    io_of,
)
from qmpshim.conformance.explore.harness.io_naming import owners as owners_of
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import CMD_FUA
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_BLOCK = 8  # sectors of a block
_EDGE = _BLOCK + 3  # a sector inside one
_READS = 8  # more than wait for a copy at first
_BITMAP = {"node": "image", "name": "changed"}


def zeroes_in_part(machine: CaseMachine) -> None:
    """Clusters that are zeroes in part are copied with the data of their rest.

    Those that are zeroes as a whole are zeroes in the copy, too; so is the end of the disk.
    """
    half, end = COUNT // 2, machine.shape.size // SECTOR
    machine.io("primary", Nbd.WRITE_ZEROES, 0, 3 * half)  # half a cluster, and wholes
    machine.learn_block_status()  # of all the data: what is discarded then has to be forgotten
    machine.io("primary", Nbd.TRIM, 5 * half, end - 5 * half)
    machine.start()
    machine.written("primary", 2, 0, end)
    found = machine.allocation("hidden")
    wanted = {0: Alloc.ZERO, 1: Alloc.DATA, 2: Alloc.DATA, 3: Alloc.ZERO, 4: Alloc.ZERO}
    if found != wanted:
        text = f"after a copy of zeroes and data the hidden disk has {clusters_in_words(found)}"
        raise Broken(Verdict.ALLOCATION, text, "the copy of zeroes in part")
    data = content(1, 3 * half, 2 * half)
    rest = bytes((end - 5 * half) * SECTOR)
    if machine.read("guest", 0, end) != bytes(3 * half * SECTOR) + data + rest:
        text = "the copy of clusters that are zeroes in part is not the old data"
        raise Broken(Verdict.CONTENT, text, "the data beside zeroes")


def whole_clusters(machine: CaseMachine) -> None:
    """A target without a backing file gets the whole of each of its clusters, however large they
    are: what is missing in a cluster would read as zeroes.
    """
    machine.add_image("image", machine.shape.size, 4 * CLUSTER)
    job = {"job-id": "job", "device": "secondary", "target": "image", "sync": "none"}
    machine.call("blockdev-backup", job)
    machine.written("primary", 2, 5 * COUNT + 3, 1)
    found = {n for n, kind in machine.allocation("image").items() if kind is Alloc.DATA}
    machine.add_client("image")
    data = machine.read("image", 4 * COUNT, 4 * COUNT)
    if found != {1} or data != content(1, 4 * COUNT, 4 * COUNT):
        text = f"a copy to clusters of 256 KiB fills {sorted(found)}, not all of cluster 1"
        raise Broken(Verdict.CONTENT, text, "a copy of a part of the target's cluster")


def neighbours(machine: CaseMachine) -> None:
    """What only touches the range of a request under way goes on and ends: a read of old data, a
    copy.
    """
    machine.start()
    for side, op in (("guest", Nbd.READ), ("primary", Nbd.WRITE)):
        cookie = machine.begun(side, io_of("secondary", Nbd.READ), op, COUNT, COUNT)
        (first,) = machine.caught(f"a request of the {side}", 1)
        for cluster in (0, 2):
            _goes_on(machine, cluster, f"a request of the {side}")
        machine.gate.release(first)
        machine.succeeds(side, cookie, f"{side} fails beside its neighbours")


def _goes_on(machine: CaseMachine, cluster: int, beside: str) -> None:
    """Write a cluster; it must end while the other request is under way."""
    cookie = machine.sent("primary", Nbd.WRITE, cluster * COUNT, COUNT, 3)
    if not machine.ends_beside(cookie, 3 * COUNT):
        text = f"a write to cluster {cluster} waits for {beside} in cluster 1"
        raise Broken(Verdict.HANG, text, "a write waits for what it only touches")
    machine.answered("primary", cookie, "a primary write")


def waits_for_all(machine: CaseMachine) -> None:
    """A write waits for every copy that is under way in what it changes, whichever ends first."""
    machine.start()
    machine.written("primary", 2, 4 * COUNT, COUNT)  # read later, so that answers are seen
    half = COUNT // 2
    for first, ends in ((0, 0), (2, 1)):
        machine.settle()
        machine.gate.hold(copies_to("hidden"))
        cookies = [
            machine.sent("primary", Nbd.WRITE, start, COUNT, number)
            for number, start in ((3, first * COUNT), (4, (first + 1) * COUNT))
        ]
        copies = machine.held("two writes", 2)
        start = first * COUNT + half
        cookies.append(machine.sent("primary", Nbd.WRITE, start, COUNT, 5))
        machine.gate.release(copies[ends])
        done = machine.ends_beside(cookies[2], 4 * COUNT, reader="guest")
        below = machine.gate.store("secondary").read(start * SECTOR, CLUSTER)
        if done or 5 in owners_of(below, start):
            text = "a write of two clusters goes on when one of two copies of them has ended"
            raise Broken(Verdict.ORDER, text, "a write waits for one copy only")
        machine.gate.open()
        machine.gate.release(copies[1 - ends])
        if any(machine.answered("primary", cookie, "a primary write") for cookie in cookies):
            text = "a primary write fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "primary write fails")
    machine.shows("guest", 1, 0, 4 * COUNT, "the target after writes that waited")


def reads_beside_copy(machine: CaseMachine) -> None:
    """A read of the target waits for the copy of what it reads, whatever else has come and gone.

    It would look below the copy otherwise, and meet new data there.
    """
    machine.start()
    for cluster in (0, 2, 3):
        machine.written("primary", 2, cluster * COUNT, COUNT)

    def hold(io: HeldIO) -> bool:
        below = (io.image, io.offset, io.length) == ("secondary", CLUSTER, SECTOR)
        return below or copies_to("hidden")(io)

    writing = machine.begun("primary", hold, Nbd.WRITE, COUNT, COUNT)
    (copy,) = machine.held("a primary write", 1)
    reader, readings = machine.clients["guest"], []
    for _ in range(_READS):
        readings.append(machine.sent("guest", Nbd.READ, COUNT, 1))
        machine.held("a read that should wait for a copy", 1)
        machine.read("guest", 0, 1)
    machine.gate.open()
    machine.gate.release(copy)
    for side, cookies in (("primary", [writing]), ("guest", readings)):
        if any(machine.answered(side, cookie, f"the {side}'s request") for cookie in cookies):
            text = f"the {side}'s request fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} fails beside the other")
    if {reader.answers[one].data for one in readings} != {content(1, COUNT, 1)}:
        text = "a read of the target that waited for a copy is not the old data"
        raise Broken(Verdict.ISOLATION, text, "a read of the target beside a copy")


def ragged_discard(machine: CaseMachine) -> None:
    """A discard from inside a cluster to inside another frees the clusters between, and no data
    of those two is lost.
    """
    machine.add_image("image", 2 * SIZE)
    machine.add_client("image")
    machine.written("image", 2, 0, 4 * COUNT)
    half = COUNT // 2
    if errno := machine.io("image", Nbd.TRIM, half, 3 * COUNT).errno:
        text = f"a discard of parts of clusters fails with errno {errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a discard fails")
    found = machine.allocation("image")
    if {n for n, kind in found.items() if kind is Alloc.DATA} != {0, 3}:
        there = clusters_in_words(found)
        text = f"a discard of clusters 1 and 2, and of parts of 0 and 3, leaves {there}"
        raise Broken(Verdict.ALLOCATION, text, "a discard frees what is in it")
    for start in (0, 7 * half):
        machine.shows("image", 2, start, half, "data is lost beside a discard", Verdict.LOST_WRITE)


def padded(machine: CaseMachine) -> None:
    """On a disk with blocks of 4096 bytes what is around data, zeroes and discards of sectors
    stays.
    """
    block, end = _BLOCK, SIZE // SECTOR
    _add_blocks(machine)
    owners = [1] * end
    for number, (op, start, count) in enumerate(
        (
            (Nbd.WRITE_ZEROES, 3, 2),  # inside a block
            (Nbd.WRITE_ZEROES, block + 3, 3 * block),  # from inside one to inside another
            (Nbd.WRITE_ZEROES, 6 * block, block + 1),
            (Nbd.WRITE_ZEROES, 9 * block + 1, 2 * block - 1),
            (Nbd.WRITE_ZEROES, end - 1, 1),
            (Nbd.WRITE, 13 * block + 7, 2),
            (Nbd.WRITE, 17 * block + 3, 2 * block),
            (Nbd.TRIM, 20 * block + 3, 2),
            (Nbd.TRIM, 21 * block + 3, 3 * block),
        ),
        2,
    ):
        if errno := machine.io("blocks", op, start, count, number).errno:
            text = f"a request of {count} sectors fails with errno {errno}"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a request of sectors fails")
        if op is Nbd.TRIM:  # the whole blocks of it
            start, after = -(-start // block) * block, (start + count) // block * block
            count = max(0, after - start)
        owners[start : start + count] = [number if op is Nbd.WRITE else 0] * count
    found = owners_of(machine.read("blocks", 0, end), 0)
    wrong = [sector for sector in range(end) if found[sector] != owners[sector]]
    if wrong:
        text = f"requests of parts of blocks leave other data in sectors {wrong}"
        raise Broken(Verdict.CONTENT, text, "parts of blocks")


def padded_read_fails(machine: CaseMachine) -> None:
    """On a disk with blocks of 4096 bytes a request of sectors fails when what is around it cannot
    be read.
    """
    _add_blocks(machine)
    _fail_each(machine, Nbd.WRITE, Nbd.READ, 2)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.READ, 2)


def padded_write_fails(machine: CaseMachine) -> None:
    """On a disk with blocks of 4096 bytes a request of sectors fails when a part of it cannot be
    written; what is around it stays.
    """
    _add_blocks(machine)
    _fail_each(machine, Nbd.WRITE, Nbd.WRITE, 1)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.WRITE, 2)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.WRITE_ZEROES, 1)


def _add_blocks(machine: CaseMachine) -> None:
    """Open a disk with blocks of 4096 bytes, ``blocks``, and connect to its export."""
    # Without opt-discard a discard of part of a block ends QEMU (directed/blkdebug-small-discard).
    sizes = {"align": _BLOCK * SECTOR, "opt-discard": _BLOCK * SECTOR}
    words = {"driver": "blkdebug", "node-name": "blocks", "discard": "unmap", **sizes}
    machine.remove_client("primary")
    machine.call("blockdev-add", {**words, "image": "secondary"})
    machine.add_client("blocks")


def _fail_each(machine: CaseMachine, op: Nbd, part: Nbd, count: int) -> None:
    """Each I/O of a kind that a request has fails in turn: so must the request.

    :param count: how many there are of this kind
    """
    around = [n for n in range(SIZE // SECTOR) if n not in range(_EDGE, _EDGE + 3 * _BLOCK)]
    for failing in range(count):
        cookie = machine.begun("blocks", lambda io: io.image == "secondary", op, _EDGE, 3 * _BLOCK)
        what = f"a {op.name.lower()} of parts of blocks"
        parts = 0
        while waiting := machine.gate.held:
            if waiting[0].op is part and parts == failing:
                machine.gate.fail(waiting[0], EIO)
            else:
                machine.gate.release(waiting[0])
            parts += waiting[0].op is part
            machine.settle()
        machine.gate.open()
        if parts <= failing:
            text = f"{what} has {parts} I/Os of the kind {part.name.lower()}, not {count}"
            raise Broken(Verdict.ORDER, text, "I/Os of a request of parts of blocks")
        if not machine.answered("blocks", cookie, what):
            text = f"{what} succeeds, though a {part.name.lower()} for it failed"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"a failed {part.name.lower()} of {what}")
        found = owners_of(machine.read("blocks", 0, SIZE // SECTOR), 0)
        if wrong := [sector for sector in around if found[sector] != 1]:
            text = f"{what} that failed leaves other data in sectors {wrong}"
            raise Broken(Verdict.LOST_WRITE, text, "what is around a failed request")


def resized(machine: CaseMachine) -> None:
    """A bitmap grows and shrinks with its disk, which cannot change its size below a job."""
    machine.add_image("image", SIZE)
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    _resize(machine, 2 * SIZE, "after the disk grew")
    machine.add_client("image")
    machine.written("image", 2, 3 * COUNT, COUNT)
    machine.expect_bitmaps("image", [CLUSTER], "after a write to what is new", 2 * SIZE)
    other = {"node": "image", "name": "later"}
    machine.call("block-dirty-bitmap-add", {**other, "granularity": CLUSTER})
    merge = {"node": "image", "target": "later", "bitmaps": ["changed"]}  # of the same size
    machine.call("block-dirty-bitmap-merge", merge)
    machine.expect_bitmaps("image", [CLUSTER] * 2, "after a merge", 2 * SIZE)
    machine.call("block-dirty-bitmap-remove", other)
    machine.remove_client("image")
    _resize(machine, SIZE, "after the disk shrank")
    for source, target in (("secondary", "image"), ("image", "hidden")):
        job = {"job-id": "job", "device": source, "target": target, "sync": "none"}
        machine.call("blockdev-backup", job)
        machine.fails("block_resize", {"node-name": "image", "size": 2 * SIZE})
        machine.call("block-job-cancel", {"device": "job"})
        machine.job_ended()


def edges_of_bitmap(machine: CaseMachine) -> None:
    """A bitmap names each granule of which a sector was changed, and none that is only touched.
    Its own name is less than 1024 bytes long (qapi/block-core.json).
    """
    granule = 8  # sectors
    words = {"node": "secondary", "name": "changed", "granularity": granule * SECTOR}
    machine.call("block-dirty-bitmap-add", words)
    named = 0
    for op, start, count, granules in (
        (Nbd.WRITE, 7, 2, 2),
        (Nbd.WRITE, 16, granule, 1),
        (Nbd.TRIM, 39, 2, 2),
        (Nbd.TRIM, 56, granule, 1),
        (Nbd.WRITE_ZEROES, 79, 2, 2),
        (Nbd.WRITE_ZEROES, 96, granule, 1),
    ):
        machine.io("primary", op, start, count)
        named += granules * granule * SECTOR
        machine.expect_bitmaps("secondary", [named], f"after a {op.name.lower()} of sectors")
    machine.call("block-dirty-bitmap-add", {"node": "hidden", "name": "n" * 1023})
    machine.fails("block-dirty-bitmap-add", {"node": "hidden", "name": "n" * 1024})


def granularity(machine: CaseMachine) -> None:
    """The granularity of a bitmap is what was given; else that of its disk's clusters, but between
    4 and 64 KiB, and 64 KiB where there are none (docs/interop/bitmaps.rst).
    """
    sizes = {f"image{kib}": kib << 10 for kib in (1, 16, 256)}
    for name, cluster in sizes.items():
        machine.add_image(name, SIZE, cluster)
    wanted = {name: max(4 << 10, min(64 << 10, cluster)) for name, cluster in sizes.items()}
    for name, size in {**wanted, "secondary": 64 << 10}.items():
        machine.call("block-dirty-bitmap-add", {"node": name, "name": "own"})
        given = {"node": name, "name": "given", "granularity": 8 << 10}
        machine.call("block-dirty-bitmap-add", given)
        found = {one["name"]: one["granularity"] for one in machine.bitmaps(name)}
        if found != {"own": size, "given": 8 << 10}:
            text = f"bitmaps of {name} have the granularities {found}, not {size} and what is given"
            raise Broken(Verdict.PROTOCOL, text, "granularity of a bitmap")


def enabled_in_vain(machine: CaseMachine) -> None:
    """A transaction that enables a bitmap an export has is refused, and changes nothing."""
    machine.add_image("image", SIZE)
    name = {"node": "image", "name": "changed"}
    machine.call("block-dirty-bitmap-add", {**name, "granularity": CLUSTER})
    machine.add_export("image", "offers", writable=True, bitmaps=["changed"])
    enable = {"type": "block-dirty-bitmap-enable", "data": name}
    machine.fails("transaction", {"actions": [enable]})
    machine.add_client("image")
    machine.written("image", 2, 0, COUNT)
    machine.settle()
    (bitmap,) = machine.bitmaps("image")
    count, records = bitmap["count"], bitmap["recording"]
    if count != CLUSTER or not records:
        what = "a write after a refused transaction is not in the bitmap"
        text = (
            f"after a refused transaction the bitmap names {count} of the {CLUSTER} bytes that "
            f"were written, and recording is {records}"
        )
        raise Broken(Verdict.LOST_WRITE, text, what)
    machine.remove_client("image")


def stored_bitmap(machine: CaseMachine) -> None:
    """A persistent bitmap is in its image when that is closed, and goes on when it is opened."""
    machine.add_image("image", SIZE)
    words = {**_BITMAP, "granularity": CLUSTER, "persistent": True}
    machine.call("block-dirty-bitmap-add", words)
    for number, cluster in ((2, 1), (3, 0)):
        machine.add_client("image")
        machine.written("image", number, cluster * COUNT, 1)
        machine.remove_client("image")
        count = (number - 1) * CLUSTER
        machine.expect_bitmaps("image", [count], f"after write {number - 1}")
        machine.call("blockdev-del", {"node-name": "image"})
        machine.open_image("image")
        machine.expect_bitmaps("image", [count], f"that was stored after write {number - 1}")
        (bitmap,) = machine.bitmaps("image")
        seen = [bitmap[name] for name in ("name", "persistent", "recording", "busy")]
        if seen != ["changed", True, True, False] or bitmap.get("inconsistent"):
            text = f"a bitmap that was stored is {bitmap}"
            raise Broken(Verdict.PROTOCOL, text, "state of a bitmap that was stored")
    machine.call("block-dirty-bitmap-remove", _BITMAP)
    machine.call("blockdev-del", {"node-name": "image"})
    machine.open_image("image")
    if machine.bitmaps("image"):
        text = "a persistent bitmap that was removed is there when its image is opened again"
        raise Broken(Verdict.PROTOCOL, text, "a bitmap that was removed")


def durable_fua(machine: CaseMachine) -> None:
    """What a request with FUA did is durable when it is answered: data, zeroes and discards."""
    for op, cookie in _changes(machine, CMD_FUA):
        machine.succeeds("image", cookie, f"a {op} with FUA fails")
        _is_durable(machine, f"a {op} with FUA")


def flushes_in_line(machine: CaseMachine) -> None:
    """Several flushes at once end, each by itself: one that fails is the only one that does."""
    machine.written("primary", 2, 0, 1)
    machine.settle()
    machine.gate.hold(any_of(Nbd.FLUSH))
    flushes = [machine.sent("primary", Nbd.FLUSH, 0, 0) for _ in range(3)]
    first, *others = machine.caught("flushes")
    machine.gate.fail(first, EIO)
    for io in others:
        machine.gate.release(io)
    errnos = [machine.answered("primary", cookie, "one of several flushes") for cookie in flushes]
    if sorted(errnos) != [0, 0, EIO]:
        text = f"of several flushes, one of which failed on the disk, the errnos are {errnos}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a flush that fails beside another")


def durable_flush(machine: CaseMachine) -> None:
    """What was answered before a flush is durable when that is answered: data, zeroes, discards."""
    for op, cookie in _changes(machine, 0):
        machine.succeeds("image", cookie, f"a {op} fails")
        if errno := machine.io("image", Nbd.FLUSH, 0, 0).errno:
            text = f"a flush after a {op} fails with errno {errno}, though the disk is well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a flush fails")
        _is_durable(machine, f"a flush after a {op}")


def _changes(machine: CaseMachine, flags: int) -> Iterator[tuple[str, int]]:
    """Send requests that change an image, one when the one before was judged: name and cookie."""
    machine.add_image("image", SIZE)
    machine.add_client("image")
    machine.settle()
    machine.gate.keep_journals()
    client, data = machine.clients["image"], content(2, 0, COUNT)
    for op, length, payload in (
        (Nbd.WRITE, 0, data),
        (Nbd.WRITE_ZEROES, CLUSTER, b""),
        (Nbd.WRITE, 0, data),
        (Nbd.TRIM, CLUSTER, b""),
    ):
        yield op.name.lower(), client.send(op, 0, length, payload, flags)


def _is_durable(machine: CaseMachine, what: str) -> None:
    if lost := machine.gate.journal("image").volatile:
        text = f"{what} is answered, and {len(lost)} writes may be lost with the power"
        raise Broken(Verdict.LOST_WRITE, text, f"{what} is not durable")


def _resize(machine: CaseMachine, size: int, when: str) -> None:
    machine.settle()
    machine.call("block_resize", {"node-name": "image", "size": size})
    machine.expect_bitmaps("image", [0], when, size)
