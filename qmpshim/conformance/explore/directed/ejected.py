"""Directed cases about a qcow2 image that is ejected while other requests are under way.

QEMU ejects an image whose tables it finds broken (``qcow2_signal_corruption``, block/qcow2.c): all
I/O on it fails from then on, also that which had begun.
"""

from __future__ import annotations

from collections.abc import Callable

from qmpshim.conformance.explore.directed.tools import (
    CLUSTER,
    COUNT,
    Broken,
    add_client,
    add_filter,
    add_image,
    answered,
    held,
    open_image,
    remove_client,
    written,
)
from qmpshim.conformance.explore.harness.io_naming import tags
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_SMALL = 8  # sectors of a cluster
_FAR = (_SMALL * SECTOR // 8) * _SMALL  # the first sector that another table than the first has
_LENGTH = _SMALL * SECTOR
DISK = 2 * _FAR * SECTOR  # bytes: two tables, each for one half


def beside_requests(machine: GatedMachine) -> None:
    """While a read finds broken tables, and its image is ejected for that, other requests wait for
    the tables. Each ends: a read gives the data or fails, and a flush fails.
    """
    data = bytes(pattern.data_of(3, _SMALL, _SMALL))
    for number, (op, length, payload) in enumerate(
        (
            (Nbd.READ, _LENGTH, b""),
            (Nbd.WRITE, 0, data),
            (Nbd.WRITE_ZEROES, _LENGTH, b""),
            (Nbd.TRIM, _LENGTH + SECTOR, b""),  # in two parts
            (Nbd.FLUSH, 0, b""),
        )
    ):
        name = f"image{number}"
        table = _add_broken_image(machine, name)
        add_client(machine, name)
        client = machine.clients[name]
        if op is Nbd.FLUSH:  # one that has something to do
            written(machine, name, 4, _FAR, _SMALL)
        machine.settle()
        machine.gate.hold(_reads_table(name, table))
        first = client.send(Nbd.READ, 0, SECTOR)
        machine.settle()
        (look,) = held(machine, "a read of an image's tables", 1)
        offset = 0 if op is Nbd.FLUSH else _LENGTH
        second = client.send(op, offset, length, payload)
        machine.settle()
        machine.gate.open()
        machine.gate.release(look)
        if not answered(machine, name, first, "a read of an image with broken tables"):
            text = "a read of an image whose tables are broken succeeds"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a read by broken tables")
        errno = answered(machine, name, second, f"a {op.name.lower()} beside an ejection")
        if op is Nbd.FLUSH and not errno:
            text = "a flush succeeds of an image that is ejected before it is done"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a flush beside an ejection")
        if op is Nbd.READ and not errno:
            found = client.answers[second].data
            if found != bytes(pattern.data_of(2, _SMALL, _SMALL)):
                text = "a read beside an ejection gives other data than the image holds"
                raise Broken(Verdict.CONTENT, text, "a read beside an ejection")


def beside_copy(machine: GatedMachine) -> None:
    """While a filter copies what a request is about to change its disk is ejected. No write
    succeeds then.
    """
    for op in (Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM):
        name, spare, over = (f"{op.name.lower()}-{one}" for one in ("image", "spare", "filter"))
        _add_broken_image(machine, name)
        add_image(machine, spare, DISK)
        add_filter(machine, over, name, spare)
        client = machine.clients[over]
        machine.settle()
        machine.gate.hold(_copies_to(spare))
        data = bytes(pattern.data_of(3, COUNT, COUNT)) if op is Nbd.WRITE else b""
        cookie = client.send(op, CLUSTER, 0 if data else CLUSTER, data)
        machine.settle()
        (copy,) = held(machine, f"a {op.name.lower()} through a filter", 1)
        machine.gate.open()
        if not client.call(Nbd.READ, 0, SECTOR).errno:
            text = "a read of an image whose tables are broken succeeds"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a read by broken tables")
        machine.gate.release(copy)
        errno = answered(machine, over, cookie, f"a {op.name.lower()} beside an ejection")
        if op is not Nbd.TRIM and not errno:
            text = f"a {op.name.lower()} succeeds on a disk that was ejected before"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a change of an ejected disk")


def beside_copy_to_it(machine: GatedMachine) -> None:
    """Zeroes that wait for a copy into the same image fail when the image is ejected by that; so
    does the write that is copied for, and nothing is written.
    """
    table = _add_broken_image(machine, "image", backing="secondary")
    remove_client(machine, "primary")
    add_filter(machine, "filter", "secondary", "image")
    add_client(machine, "image")
    machine.settle()
    machine.gate.hold(_reads_table("image", table))
    data = bytes(pattern.data_of(3, 0, COUNT))
    writing = machine.clients["filter"].send(Nbd.WRITE, 0, 0, data)
    machine.settle()
    (look,) = held(machine, "a copy into an image", 1)
    zeroing = machine.clients["image"].send(Nbd.WRITE_ZEROES, 0, CLUSTER)
    machine.settle()
    machine.gate.open()
    machine.gate.release(look)
    for side, cookie in (("filter", writing), ("image", zeroing)):
        if not answered(machine, side, cookie, f"a request of the {side} beside an ejection"):
            text = f"a request of the {side} succeeds though the target was ejected before"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} beside an ejected target")
    old = bytes(pattern.data_of(1, 0, COUNT))
    if bytes(machine.gate.store("secondary").read(0, CLUSTER)) != old:
        text = "what could not be copied is changed all the same"
        raise Broken(Verdict.ORDER, text, "a change without its copy")


def _reads_table(image: str, offset: int) -> Callable[[HeldIO], bool]:
    return lambda io: io.image == image and io.offset <= offset < io.offset + io.length


def _copies_to(image: str) -> Callable[[HeldIO], bool]:
    return lambda io: io.image == image and len(tags(io.data)) > 0


def _add_broken_image(machine: GatedMachine, name: str, **options: str) -> int:
    """Open an image with some clusters of data, the first of which has a broken entry.

    :returns: where the table is that has the entry
    """
    add_image(machine, name, DISK, _LENGTH, **options)
    add_client(machine, name)
    for start in (0, _FAR):
        written(machine, name, 2, start, 2 * COUNT)
    remove_client(machine, name)
    machine.call("blockdev-del", {"node-name": name})
    table = _break_first_entry(machine, name)
    open_image(machine, name, **options)
    return table


def _break_first_entry(machine: GatedMachine, name: str) -> int:
    store = machine.gate.store(name)
    first = Qcow2Reader.parse(store.snapshot()).header.l1_offset
    table = int.from_bytes(store.read(first, 8), "big") & (1 << 56) - (1 << 9)
    store.write(table + 6, bytes([2]))  # an odd sector
    return table
