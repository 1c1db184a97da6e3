"""Power loss: the images as they may be when every disk loses its volatile cache at this instant.

A disk keeps what was flushed, and any part of the rest, torn at sectors
(:mod:`qmpshim.machine.nbd.gate.journal`). Whatever it keeps,

* each qcow2 image is sound: QEMU orders its tables by flushes (``qcow2_cache_set_dependency()`` and
  ``qcow2_cache_depends_on_flush()`` in block/qcow2-cache.c, QEMU 10.0), so that space may be lost,
  and nothing else;
* what a client's flush acknowledged is there, on the disk that the flush was for.

QEMU promises no order between the disks of a chain: new data may outlive the loss on the secondary
disk where the old data in the hidden disk do not, unless a client flushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from qmpshim.conformance.explore.checkers.orders import subsets
from qmpshim.conformance.explore.harness.overlays import faults_of
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import ImageError
from qmpshim.machine.chain.parts import first_of
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.journal import Journal
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

if TYPE_CHECKING:
    from qmpshim.conformance.explore.harness.real_system import RealSystem

_FEW = 4  # effects of which every subset is tried
POWER_LOSS = "after a loss of power"  # the reader of what it leaves


def after_power_loss(system: RealSystem) -> RealViolation | None:
    """What a loss of power at this instant may break."""
    machine = system.machine
    for name in machine.images:
        for image in losses(machine.gate.journal(name)):
            if name in machine.qcow2_images and (fault := _fault(image)):
                return RealViolation(
                    Verdict.CORRUPTION,
                    f"a loss of power at this instant may leave the {name} disk broken: {fault}",
                    cause=Cause(CauseKind.BROKEN_BY_CRASH, first_of(name), POWER_LOSS),
                )
            lost = system.watch.lost(system.now, name, image)
            if lost is not None:
                return lost
    return None


def _fault(image: bytes) -> str:
    """What is broken in an image; schedules meet the same images again and again."""
    key = sha256(image).digest()
    if key not in _FAULTS:
        try:
            _FAULTS[key] = next(iter(faults_of(Qcow2Reader.parse(image))), "")
        except ImageError as error:
            _FAULTS[key] = str(error)
    return _FAULTS[key]


_FAULTS: dict[bytes, str] = {}  # by digest of an image


def losses(journal: Journal) -> Iterator[bytes]:
    """What may be left of an image, each content once.

    Of few volatile effects every subset is kept; of many none, each one alone, all but each one,
    and each beginning of their sequence. Each is also torn in the middle, alone and after all that
    came before it.
    """
    count = len(journal.volatile)
    seen: set[bytes] = set()
    for kept in _subsets(count):
        yield from _new(journal.after_loss(kept), seen)
    for index, effect in enumerate(journal.volatile):
        middle = effect.length // 2 // SECTOR * SECTOR
        if effect.durable or not middle:
            continue
        for kept in ((), tuple(range(index))):
            for start, end in ((0, middle), (middle, effect.length)):
                yield from _new(journal.after_loss(kept, (index, start, end)), seen)


def _new(image: bytes, seen: set[bytes]) -> Iterator[bytes]:
    if image not in seen:
        seen.add(image)
        yield image


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    everything = range(count)
    if count <= _FEW:
        yield from subsets(everything)
        return
    yield ()
    for one in everything:
        yield (one,)
        yield tuple(index for index in everything if index != one)
        yield tuple(range(one + 1))
