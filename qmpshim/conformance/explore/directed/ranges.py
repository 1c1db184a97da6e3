"""Directed cases about where requests begin and end: neighbours, parts of clusters, a new end."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EIO

from qmpshim.conformance.explore.directed.tools import (
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    add_client,
    add_image,
    allocation,
    answered,
    ends_beside,
    expect_bitmaps,
    fails,
    held,
    job_ended,
    open_image,
    read,
    remove_client,
    written,
)
from qmpshim.conformance.explore.harness.io_naming import owners as owners_of
from qmpshim.conformance.explore.harness.io_naming import tags
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol.transmission import CMD_FUA
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_BLOCK = 8  # sectors of a block
_EDGE = _BLOCK + 3  # a sector inside one
_READS = 8  # more than wait for a copy at first
_BITMAP = {"node": "image", "name": "changed"}


def zeroes_in_part(machine: GatedMachine) -> None:
    """Clusters that are zeroes in part are copied with the data of their rest.

    Those that are zeroes as a whole are zeroes in the copy, too; so is the end of the disk.
    """
    half, end = COUNT // 2, machine.shape.size // SECTOR
    client = machine.clients["primary"]
    client.call(Nbd.WRITE_ZEROES, 0, 3 * half * SECTOR)  # half a cluster, and wholes
    machine.learn_block_status()  # of all the data: what is discarded then has to be forgotten
    client.call(Nbd.TRIM, 5 * half * SECTOR, (end - 5 * half) * SECTOR)
    machine.start()
    written(machine, "primary", 2, 0, end)
    found = allocation(machine, "hidden")
    wanted = {0: Alloc.ZERO, 1: Alloc.DATA, 2: Alloc.DATA, 3: Alloc.ZERO, 4: Alloc.ZERO}
    if found != wanted:
        text = f"the copy of zeroes and data is {found} on the hidden disk"
        raise Broken(Verdict.ALLOCATION, text, "the copy of zeroes in part")
    data = bytes(pattern.data_of(1, 3 * half, 2 * half))
    rest = bytes((end - 5 * half) * SECTOR)
    if read(machine, "guest", 0, end) != bytes(3 * half * SECTOR) + data + rest:
        text = "the copy of clusters that are zeroes in part is not the old data"
        raise Broken(Verdict.CONTENT, text, "the data beside zeroes")


def whole_clusters(machine: GatedMachine) -> None:
    """A target without a backing file gets the whole of each of its clusters, however large they
    are: what is missing in a cluster would read as zeroes.
    """
    add_image(machine, "image", machine.shape.size, 4 * CLUSTER)
    job = {"job-id": "job", "device": "secondary", "target": "image", "sync": "none"}
    machine.call("blockdev-backup", job)
    written(machine, "primary", 2, 5 * COUNT + 3, 1)
    found = {n for n, kind in allocation(machine, "image").items() if kind is Alloc.DATA}
    add_client(machine, "image")
    data = read(machine, "image", 4 * COUNT, 4 * COUNT)
    if found != {1} or data != bytes(pattern.data_of(1, 4 * COUNT, 4 * COUNT)):
        text = f"a copy to clusters of 256 KiB fills {sorted(found)}, not all of cluster 1"
        raise Broken(Verdict.CONTENT, text, "a copy of a part of the target's cluster")


def neighbours(machine: GatedMachine) -> None:
    """What only touches the range of a request under way goes on and ends: a read of old data, a
    copy.
    """
    machine.start()
    data = bytes(pattern.data_of(2, COUNT, COUNT))
    for side, op, payload in (("guest", Nbd.READ, b""), ("primary", Nbd.WRITE, data)):
        machine.settle()
        machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.READ)
        cookie = machine.clients[side].send(op, CLUSTER, 0 if payload else CLUSTER, payload)
        machine.settle()
        (first,) = held(machine, f"a request of the {side}", 1)
        machine.gate.open()
        for cluster in (0, 2):
            _goes_on(machine, cluster, f"a request of the {side}")
        machine.gate.release(first)
        if errno := answered(machine, side, cookie, f"the {side}'s request"):
            text = f"the {side}'s request fails with errno {errno}, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} fails beside its neighbours")


def _goes_on(machine: GatedMachine, cluster: int, beside: str) -> None:
    """Write a cluster; it must end while the other request is under way."""
    data = bytes(pattern.data_of(3, cluster * COUNT, COUNT))
    cookie = machine.clients["primary"].send(Nbd.WRITE, cluster * CLUSTER, 0, data)
    if not ends_beside(machine, cookie, 3 * COUNT):
        text = f"a write to cluster {cluster} waits for {beside} in cluster 1"
        raise Broken(Verdict.HANG, text, "a write waits for what it only touches")
    answered(machine, "primary", cookie, "a primary write")


def waits_for_all(machine: GatedMachine) -> None:
    """A write waits for every copy that is under way in what it changes, whichever ends first."""
    machine.start()
    written(machine, "primary", 2, 4 * COUNT, COUNT)  # read later, so that answers are seen
    client, half = machine.clients["primary"], COUNT // 2
    for first, ends in ((0, 0), (2, 1)):
        machine.settle()
        machine.gate.hold(
            lambda io: len(tags(io.data)) > 0 and io.op is Nbd.WRITE and io.image == "hidden"
        )
        cookies = []
        for number, start in ((3, first * COUNT), (4, (first + 1) * COUNT)):
            data = bytes(pattern.data_of(number, start, COUNT))
            cookies.append(client.send(Nbd.WRITE, start * SECTOR, 0, data))
            machine.settle()
        copies = held(machine, "two writes", 2)
        start = first * COUNT + half
        data = bytes(pattern.data_of(5, start, COUNT))
        cookies.append(client.send(Nbd.WRITE, start * SECTOR, 0, data))
        machine.settle()
        machine.gate.release(copies[ends])
        done = ends_beside(machine, cookies[2], 4 * COUNT, reader="guest")
        below = machine.gate.store("secondary").read(start * SECTOR, CLUSTER)
        if done or 5 in owners_of(below, start):
            text = "a write of two clusters goes on when one of two copies of them has ended"
            raise Broken(Verdict.ORDER, text, "a write waits for one copy only")
        machine.gate.open()
        machine.gate.release(copies[1 - ends])
        if any(answered(machine, "primary", cookie, "a primary write") for cookie in cookies):
            text = "a primary write fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "primary write fails")
    if read(machine, "guest", 0, 4 * COUNT) != bytes(pattern.data_of(1, 0, 4 * COUNT)):
        text = "the target is not the old data after writes that waited for copies"
        raise Broken(Verdict.ISOLATION, text, "the target after writes that waited")


def reads_beside_copy(machine: GatedMachine) -> None:
    """A read of the target waits for the copy of what it reads, whatever else has come and gone.

    It would look below the copy otherwise, and meet new data there.
    """
    machine.start()
    for cluster in (0, 2, 3):
        written(machine, "primary", 2, cluster * COUNT, COUNT)
    machine.settle()
    machine.gate.hold(
        lambda io: (
            (io.image == "hidden" and len(tags(io.data)) > 0)
            or (io.image, io.offset, io.length) == ("secondary", CLUSTER, SECTOR)
        )
    )
    data = bytes(pattern.data_of(2, COUNT, COUNT))
    writing = machine.clients["primary"].send(Nbd.WRITE, CLUSTER, 0, data)
    machine.settle()
    (copy,) = held(machine, "a primary write", 1)
    reader, readings = machine.clients["guest"], []
    for _ in range(_READS):
        readings.append(reader.send(Nbd.READ, CLUSTER, SECTOR))
        machine.settle()
        held(machine, "a read that should wait for a copy", 1)
        read(machine, "guest", 0, 1)
    machine.gate.open()
    machine.gate.release(copy)
    for side, cookies in (("primary", [writing]), ("guest", readings)):
        if any(answered(machine, side, cookie, f"the {side}'s request") for cookie in cookies):
            text = f"the {side}'s request fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} fails beside the other")
    if {reader.answers[one].data for one in readings} != {bytes(pattern.data_of(1, COUNT, 1))}:
        text = "a read of the target that waited for a copy is not the old data"
        raise Broken(Verdict.ISOLATION, text, "a read of the target beside a copy")


def ragged_discard(machine: GatedMachine) -> None:
    """A discard from inside a cluster to inside another frees the clusters between, and no data
    of those two is lost.
    """
    add_image(machine, "image", 2 * SIZE)
    add_client(machine, "image")
    written(machine, "image", 2, 0, 4 * COUNT)
    half = COUNT // 2
    answer = machine.clients["image"].call(Nbd.TRIM, half * SECTOR, 3 * CLUSTER)
    if answer.errno:
        text = f"a discard of parts of clusters fails with errno {answer.errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a discard fails")
    found = allocation(machine, "image")
    if {n for n, kind in found.items() if kind is Alloc.DATA} != {0, 3}:
        text = f"a discard of clusters 1 and 2, and of parts of 0 and 3, leaves {found}"
        raise Broken(Verdict.ALLOCATION, text, "a discard frees what is in it")
    for start in (0, 7 * half):
        if read(machine, "image", start, half) != bytes(pattern.data_of(2, start, half)):
            text = f"the data in sectors {start} to {start + half} is lost beside a discard"
            raise Broken(Verdict.LOST_WRITE, text, "data is lost beside a discard")


def padded(machine: GatedMachine) -> None:
    """On a disk with blocks of 4096 bytes what is around data, zeroes and discards of sectors
    stays.
    """
    block, end = _BLOCK, SIZE // SECTOR
    _add_blocks(machine)
    client, owners = machine.clients["blocks"], [1] * end
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
        is_write = op is Nbd.WRITE
        data = bytes(pattern.data_of(number, start, count)) if is_write else b""
        answer = client.call(op, start * SECTOR, 0 if is_write else count * SECTOR, data)
        if answer.errno:
            text = f"a request of {count} sectors fails with errno {answer.errno}"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a request of sectors fails")
        if op is Nbd.TRIM:  # the whole blocks of it
            start, after = -(-start // block) * block, (start + count) // block * block
            count = max(0, after - start)
        owners[start : start + count] = [number if is_write else 0] * count
    found = owners_of(read(machine, "blocks", 0, end), 0)
    wrong = [sector for sector in range(end) if found[sector] != owners[sector]]
    if wrong:
        text = f"requests of parts of blocks leave other data in sectors {wrong}"
        raise Broken(Verdict.CONTENT, text, "parts of blocks")


def padded_read_fails(machine: GatedMachine) -> None:
    """On a disk with blocks of 4096 bytes a request of sectors fails when what is around it cannot
    be read.
    """
    _add_blocks(machine)
    _fail_each(machine, Nbd.WRITE, Nbd.READ, 2)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.READ, 2)


def padded_write_fails(machine: GatedMachine) -> None:
    """On a disk with blocks of 4096 bytes a request of sectors fails when a part of it cannot be
    written; what is around it stays.
    """
    _add_blocks(machine)
    _fail_each(machine, Nbd.WRITE, Nbd.WRITE, 1)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.WRITE, 2)
    _fail_each(machine, Nbd.WRITE_ZEROES, Nbd.WRITE_ZEROES, 1)


def _add_blocks(machine: GatedMachine) -> None:
    """Open a disk with blocks of 4096 bytes, ``blocks``, and connect to its export."""
    # Without opt-discard a discard of part of a block ends QEMU (directed/blkdebug-small-discard).
    sizes = {"align": _BLOCK * SECTOR, "opt-discard": _BLOCK * SECTOR}
    words = {"driver": "blkdebug", "node-name": "blocks", "discard": "unmap", **sizes}
    remove_client(machine, "primary")
    machine.call("blockdev-add", {**words, "image": "secondary"})
    add_client(machine, "blocks")


def _fail_each(machine: GatedMachine, op: Nbd, part: Nbd, count: int) -> None:
    """Each I/O of a kind that a request has fails in turn: so must the request.

    :param count: how many there are of this kind
    """
    around = [n for n in range(SIZE // SECTOR) if n not in range(_EDGE, _EDGE + 3 * _BLOCK)]
    for failing in range(count):
        data = bytes(pattern.data_of(2, _EDGE, 3 * _BLOCK)) if op is Nbd.WRITE else b""
        length = 0 if data else 3 * _BLOCK * SECTOR
        machine.settle()
        machine.gate.hold(lambda io: io.image == "secondary")
        cookie = machine.clients["blocks"].send(op, _EDGE * SECTOR, length, data)
        machine.settle()
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
        if not answered(machine, "blocks", cookie, what):
            text = f"{what} succeeds, though a {part.name.lower()} for it failed"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"a failed {part.name.lower()} of {what}")
        found = owners_of(read(machine, "blocks", 0, SIZE // SECTOR), 0)
        if wrong := [sector for sector in around if found[sector] != 1]:
            text = f"{what} that failed leaves other data in sectors {wrong}"
            raise Broken(Verdict.LOST_WRITE, text, "what is around a failed request")


def resized(machine: GatedMachine) -> None:
    """A bitmap grows and shrinks with its disk, which cannot change its size below a job."""
    add_image(machine, "image", SIZE)
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    _resize(machine, 2 * SIZE, "after the disk grew")
    add_client(machine, "image")
    written(machine, "image", 2, 3 * COUNT, COUNT)
    expect_bitmaps(machine, "image", [CLUSTER], "after a write to what is new", 2 * SIZE)
    other = {"node": "image", "name": "later"}
    machine.call("block-dirty-bitmap-add", {**other, "granularity": CLUSTER})
    merge = {"node": "image", "target": "later", "bitmaps": ["changed"]}  # of the same size
    machine.call("block-dirty-bitmap-merge", merge)
    expect_bitmaps(machine, "image", [CLUSTER] * 2, "after a merge", 2 * SIZE)
    machine.call("block-dirty-bitmap-remove", other)
    remove_client(machine, "image")
    _resize(machine, SIZE, "after the disk shrank")
    for source, target in (("secondary", "image"), ("image", "hidden")):
        job = {"job-id": "job", "device": source, "target": target, "sync": "none"}
        machine.call("blockdev-backup", job)
        fails(machine, "block_resize", {"node-name": "image", "size": 2 * SIZE})
        machine.call("block-job-cancel", {"device": "job"})
        job_ended(machine)


def edges_of_bitmap(machine: GatedMachine) -> None:
    """A bitmap names each granule of which a sector was changed, and none that is only touched.
    Its own name is less than 1024 bytes long (qapi/block-core.json).
    """
    granule = 8  # sectors
    words = {"node": "secondary", "name": "changed", "granularity": granule * SECTOR}
    machine.call("block-dirty-bitmap-add", words)
    client, data, named = machine.clients["primary"], bytes(pattern.data_of(2, 0, granule)), 0
    for op, start, count, granules in (
        (Nbd.WRITE, 7, 2, 2),
        (Nbd.WRITE, 16, granule, 1),
        (Nbd.TRIM, 39, 2, 2),
        (Nbd.TRIM, 56, granule, 1),
        (Nbd.WRITE_ZEROES, 79, 2, 2),
        (Nbd.WRITE_ZEROES, 96, granule, 1),
    ):
        length, payload = (0, data[: count * SECTOR]) if op is Nbd.WRITE else (count * SECTOR, b"")
        client.call(op, start * SECTOR, length, payload)
        named += granules * granule * SECTOR
        expect_bitmaps(machine, "secondary", [named], f"after a {op.name.lower()} of sectors")
    machine.call("block-dirty-bitmap-add", {"node": "hidden", "name": "n" * 1023})
    fails(machine, "block-dirty-bitmap-add", {"node": "hidden", "name": "n" * 1024})


def granularity(machine: GatedMachine) -> None:
    """The granularity of a bitmap is what was given; else that of its disk's clusters, but between
    4 and 64 KiB, and 64 KiB where there are none (docs/interop/bitmaps.rst).
    """
    sizes = {f"image{kib}": kib << 10 for kib in (1, 16, 256)}
    for name, cluster in sizes.items():
        add_image(machine, name, SIZE, cluster)
    wanted = {name: max(4 << 10, min(64 << 10, cluster)) for name, cluster in sizes.items()}
    for name, size in {**wanted, "secondary": 64 << 10}.items():
        machine.call("block-dirty-bitmap-add", {"node": name, "name": "own"})
        given = {"node": name, "name": "given", "granularity": 8 << 10}
        machine.call("block-dirty-bitmap-add", given)
        nodes = machine.call("query-named-block-nodes", {"flat": True})
        (bitmaps,) = (one["dirty-bitmaps"] for one in nodes if one["node-name"] == name)
        found = {one["name"]: one["granularity"] for one in bitmaps}
        if found != {"own": size, "given": 8 << 10}:
            text = f"bitmaps of {name} have the granularities {found}, not {size} and what is given"
            raise Broken(Verdict.PROTOCOL, text, "granularity of a bitmap")


def enabled_in_vain(machine: GatedMachine) -> None:
    """A transaction that enables a bitmap an export has is refused, and changes nothing."""
    add_image(machine, "image", SIZE)
    name = {"node": "image", "name": "changed"}
    machine.call("block-dirty-bitmap-add", {**name, "granularity": CLUSTER})
    offered = {"type": "nbd", "id": "offers", "name": "offers", "node-name": "image"}
    machine.call("block-export-add", {**offered, "writable": True, "bitmaps": ["changed"]})
    enable = {"type": "block-dirty-bitmap-enable", "data": name}
    fails(machine, "transaction", {"actions": [enable]})
    add_client(machine, "image")
    written(machine, "image", 2, 0, COUNT)
    machine.settle()
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    (bitmap,) = next(one["dirty-bitmaps"] for one in nodes if one["node-name"] == "image")
    count, records = bitmap["count"], bitmap["recording"]
    if count != CLUSTER or not records:
        what = "a write after a refused transaction is not in the bitmap"
        text = (
            f"after a refused transaction the bitmap names {count} of the {CLUSTER} bytes that "
            f"were written, and recording is {records}"
        )
        raise Broken(Verdict.LOST_WRITE, text, what)
    remove_client(machine, "image")


def stored_bitmap(machine: GatedMachine) -> None:
    """A persistent bitmap is in its image when that is closed, and goes on when it is opened."""
    add_image(machine, "image", SIZE)
    words = {**_BITMAP, "granularity": CLUSTER, "persistent": True}
    machine.call("block-dirty-bitmap-add", words)
    for number, cluster in ((2, 1), (3, 0)):
        add_client(machine, "image")
        written(machine, "image", number, cluster * COUNT, 1)
        remove_client(machine, "image")
        count = (number - 1) * CLUSTER
        expect_bitmaps(machine, "image", [count], f"after write {number - 1}")
        machine.call("blockdev-del", {"node-name": "image"})
        open_image(machine, "image")
        expect_bitmaps(machine, "image", [count], f"that was stored after write {number - 1}")
        nodes = machine.call("query-named-block-nodes", {"flat": True})
        (node,) = (one for one in nodes if one["node-name"] == "image")
        (bitmap,) = node["dirty-bitmaps"]
        seen = [bitmap[name] for name in ("name", "persistent", "recording", "busy")]
        if seen != ["changed", True, True, False] or bitmap.get("inconsistent"):
            text = f"a bitmap that was stored is {bitmap}"
            raise Broken(Verdict.PROTOCOL, text, "state of a bitmap that was stored")
    machine.call("block-dirty-bitmap-remove", _BITMAP)
    machine.call("blockdev-del", {"node-name": "image"})
    open_image(machine, "image")
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    if any(one.get("dirty-bitmaps") for one in nodes if one["node-name"] == "image"):
        text = "a persistent bitmap that was removed is there when its image is opened again"
        raise Broken(Verdict.PROTOCOL, text, "a bitmap that was removed")


def durable_fua(machine: GatedMachine) -> None:
    """What a request with FUA did is durable when it is answered: data, zeroes and discards."""
    for op, cookie in _changes(machine, CMD_FUA):
        _succeeds(machine, cookie, f"a {op} with FUA")
        _is_durable(machine, f"a {op} with FUA")


def flushes_in_line(machine: GatedMachine) -> None:
    """Several flushes at once end, each by itself: one that fails is the only one that does."""
    client, flushes = machine.clients["primary"], []
    written(machine, "primary", 2, 0, 1)
    machine.settle()
    machine.gate.hold(lambda io: io.op is Nbd.FLUSH)
    for _ in range(3):
        flushes.append(client.send(Nbd.FLUSH))
        machine.settle()
    first, *others = held(machine, "flushes")
    machine.gate.open()
    machine.gate.fail(first, EIO)
    for io in others:
        machine.gate.release(io)
    errnos = [answered(machine, "primary", cookie, "one of several flushes") for cookie in flushes]
    if sorted(errnos) != [0, 0, EIO]:
        text = f"of several flushes, one of which failed on the disk, the errnos are {errnos}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a flush that fails beside another")


def durable_flush(machine: GatedMachine) -> None:
    """What was answered before a flush is durable when that is answered: data, zeroes, discards."""
    for op, cookie in _changes(machine, 0):
        _succeeds(machine, cookie, f"a {op}")
        if errno := machine.clients["image"].call(Nbd.FLUSH, 0, 0).errno:
            text = f"a flush after a {op} fails with errno {errno}, though the disk is well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a flush fails")
        _is_durable(machine, f"a flush after a {op}")


def _changes(machine: GatedMachine, flags: int) -> Iterator[tuple[str, int]]:
    """Send requests that change an image, one when the one before was judged: name and cookie."""
    add_image(machine, "image", SIZE)
    add_client(machine, "image")
    machine.settle()
    machine.gate.keep_journals()
    client, data = machine.clients["image"], bytes(pattern.data_of(2, 0, COUNT))
    for op, length, payload in (
        (Nbd.WRITE, 0, data),
        (Nbd.WRITE_ZEROES, CLUSTER, b""),
        (Nbd.WRITE, 0, data),
        (Nbd.TRIM, CLUSTER, b""),
    ):
        yield op.name.lower(), client.send(op, 0, length, payload, flags)


def _succeeds(machine: GatedMachine, cookie: int, what: str) -> None:
    if errno := answered(machine, "image", cookie, what):
        text = f"{what} fails with errno {errno}, though the disk is well"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what} fails")


def _is_durable(machine: GatedMachine, what: str) -> None:
    if lost := machine.gate.journal("image").volatile:
        text = f"{what} is answered, and {len(lost)} writes may be lost with the power"
        raise Broken(Verdict.LOST_WRITE, text, f"{what} is not durable")


def _resize(machine: GatedMachine, size: int, when: str) -> None:
    machine.settle()
    machine.call("block_resize", {"node-name": "image", "size": size})
    expect_bitmaps(machine, "image", [0], when, size)
