"""Directed cases about a qcow2 image that is ejected while other requests are under way.

QEMU ejects an image whose tables it finds broken (``qcow2_signal_corruption``, block/qcow2.c): all
I/O on it fails from then on, also that which had begun.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    Broken,
    CaseMachine,
    content,
    copies_to,
)
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_SMALL = 8  # sectors of a cluster
_FAR = (_SMALL * SECTOR // 8) * _SMALL  # the first sector that another table than the first has
_LENGTH = _SMALL * SECTOR
DISK = 2 * _FAR * SECTOR  # bytes: two tables, each for one half


def beside_requests(machine: CaseMachine) -> None:
    """While a read finds broken tables, and its image is ejected for that, other requests wait for
    the tables. Each ends: a read gives the data or fails, and a flush fails.
    """
    for op, start, count in (
        (Nbd.READ, _SMALL, _SMALL),
        (Nbd.WRITE, _SMALL, _SMALL),
        (Nbd.WRITE_ZEROES, _SMALL, _SMALL),
        (Nbd.TRIM, _SMALL, _SMALL + 1),  # in two parts
        (Nbd.FLUSH, 0, 0),
    ):
        name = f"image-{op.name.lower()}"
        table = _add_broken_image(machine, name)
        machine.add_client(name)
        if op is Nbd.FLUSH:  # one that has something to do
            machine.written(name, 4, _FAR, _SMALL)
        first = machine.begun(name, _reads_table(name, table), Nbd.READ, 0, 1)
        (look,) = machine.held("a read of an image's tables", 1)
        second = machine.sent(name, op, start, count, 3)
        machine.gate.open()
        machine.gate.release(look)
        if not machine.answered(name, first, "a read of an image with broken tables"):
            text = "a read of an image whose tables are broken succeeds"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a read by broken tables")
        errno = machine.answered(name, second, f"a {op.name.lower()} beside an ejection")
        if op is Nbd.FLUSH and not errno:
            text = "a flush succeeds of an image that is ejected before it is done"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a flush beside an ejection")
        given = machine.clients[name].answers[second].data
        if op is Nbd.READ and not errno and given != content(2, _SMALL, _SMALL):
            text = "a read beside an ejection gives other data than the image holds"
            raise Broken(Verdict.CONTENT, text, "a read beside an ejection")


def beside_copy(machine: CaseMachine) -> None:
    """While a filter copies what a request is about to change its disk is ejected. No write
    succeeds then.
    """
    for op in (Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM):
        name, spare, over = (f"{op.name.lower()}-{one}" for one in ("image", "spare", "filter"))
        _add_broken_image(machine, name)
        machine.add_image(spare, DISK)
        machine.add_filter(over, name, spare)
        cookie = machine.begun(over, copies_to(spare), op, COUNT, COUNT)
        (copy,) = machine.caught(f"a {op.name.lower()} through a filter", 1)
        if not machine.io(over, Nbd.READ, 0, 1).errno:
            text = "a read of an image whose tables are broken succeeds"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a read by broken tables")
        machine.gate.release(copy)
        errno = machine.answered(over, cookie, f"a {op.name.lower()} beside an ejection")
        if op is not Nbd.TRIM and not errno:
            text = f"a {op.name.lower()} succeeds on a disk that was ejected before"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a change of an ejected disk")


def beside_copy_to_it(machine: CaseMachine) -> None:
    """Zeroes that wait for a copy into the same image fail when the image is ejected by that; so
    does the write that is copied for, and nothing is written.
    """
    table = _add_broken_image(machine, "image", backing="secondary")
    machine.remove_client("primary")
    machine.add_filter("filter", "secondary", "image")
    machine.add_client("image")
    writing = machine.begun("filter", _reads_table("image", table), Nbd.WRITE, 0, COUNT)
    (look,) = machine.held("a copy into an image", 1)
    zeroing = machine.sent("image", Nbd.WRITE_ZEROES, 0, COUNT)
    machine.gate.open()
    machine.gate.release(look)
    for side, cookie in (("filter", writing), ("image", zeroing)):
        if not machine.answered(side, cookie, f"a request of the {side} beside an ejection"):
            text = f"a request of the {side} succeeds though the target was ejected before"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} beside an ejected target")
    old = content(1, 0, COUNT)
    if bytes(machine.gate.store("secondary").read(0, CLUSTER)) != old:
        text = "what could not be copied is changed all the same"
        raise Broken(Verdict.ORDER, text, "a change without its copy")


def _reads_table(image: str, offset: int) -> Callable[[HeldIO], bool]:
    return lambda io: io.image == image and io.offset <= offset < io.offset + io.length


def _add_broken_image(machine: CaseMachine, name: str, **options: Any) -> int:
    """Open an image with some clusters of data, the first of which has a broken entry.

    :returns: where the table is that has the entry
    """
    machine.add_image(name, DISK, _LENGTH, **options)
    machine.add_client(name)
    for start in (0, _FAR):
        machine.written(name, 2, start, 2 * COUNT)
    machine.remove_client(name)
    machine.call("blockdev-del", {"node-name": name})
    table = _break_first_entry(machine, name)
    machine.open_image(name, **options)
    return table


def _break_first_entry(machine: CaseMachine, name: str) -> int:
    store = machine.gate.store(name)
    first = Qcow2Reader.parse(store.snapshot()).header.l1_offset
    table = int.from_bytes(store.read(first, 8), "big") & (1 << 56) - (1 << 9)
    store.write(table + 6, bytes([2]))  # an odd sector
    return table
