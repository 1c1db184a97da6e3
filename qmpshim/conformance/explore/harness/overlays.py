"""The overlays' bytes as they are on "disk" now: content and allocation, by our own reader."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qmpshim.conformance.compare.divergence import stable
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import ImageError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import disk_of, first_of
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import Severity, check
from qmpshim.machine.images.qcow2_header import Incompatible
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class OverlayState:
    """What an overlay holds.

    :ivar content: whose each sector is, ``None`` where the image has nothing
    :ivar kinds: allocation by cluster, or by subcluster
    :ivar violation: the image is broken, and how; the rest has no meaning then
    """

    content: tuple[int | None, ...]
    kinds: tuple[int, ...]
    violation: RealViolation | None = None


def read_overlay(machine: GatedMachine, scenario: RealScenario, name: str) -> OverlayState:
    """Read the qcow2 image *name* from the gate's bytes."""
    return overlay_in(machine.gate.snapshot(name), scenario, name)


def overlay_in(image: bytes, scenario: RealScenario, name: str) -> OverlayState:
    """Read the bytes of the qcow2 image *name*."""
    first = disk_of(name) * scenario.apart
    words = scenario.disk_size, scenario.unit_of(name), name, first
    for known, its_words, overlay in _RECENT:
        if its_words == words and known == image:
            return overlay
    overlay = read_state(image, *words)
    _RECENT.appendleft((image, words, overlay))
    return overlay


# Most schedules of a scenario end with one of a few images; to compare is cheaper than to hash.
_RECENT: deque[tuple[bytes, tuple[int, int, str, int], OverlayState]] = deque(maxlen=16)


def read_state(image: bytes, size: int, cluster: int, name: str, first: int = 0) -> OverlayState:
    """The state of an overlay's image; *size* and *cluster* are sectors.

    :param cluster: of a subcluster, where it has some
    :param first: the number of its first sector, where its disk is not the first one
    :raises UnsupportedFeature: the image has what the model lacks
    """
    content: list[int | None] = [None] * size
    kinds = [0] * -(-size // cluster)
    try:
        qcow2 = Qcow2Reader.parse(image)
        found = qcow2.clusters()
        faults = faults_of(qcow2)
        data = qcow2.with_decompressed(found)
    except ImageError as error:
        faults, found = [str(error)], None
    if faults or found is None:
        violation = RealViolation(
            Verdict.CORRUPTION,
            f"{name} disk: {'; '.join(faults[:3])}",
            cause=Cause(CauseKind.CORRUPTION, first_of(name), stable(faults[0])),
        )
        return OverlayState(tuple(content), tuple(kinds), violation)
    for index, kind, host in zip(
        found.index.tolist(), found.kind.tolist(), found.host.tolist(), strict=True
    ):
        kinds[index] = kind
        start = index * cluster
        end = min(start + cluster, size)
        if kind == Alloc.DATA:
            piece = bytes(data[host : host + (end - start) * SECTOR])
            piece += bytes((end - start) * SECTOR - len(piece))
            content[start:end] = owners(piece, first + start)
        else:
            content[start:end] = [0] * (end - start)
    return OverlayState(tuple(content), tuple(kinds))


def faults_of(qcow2: Qcow2Reader) -> list[str]:
    """What is broken in an image. Refcounts of a dirty one are not: QEMU counts when it opens it.

    :raises UnsupportedFeature: it is more than our reader can judge
    """
    faults = [str(f) for f in check(qcow2) if f.severity is Severity.CORRUPTION]
    if Incompatible.DIRTY in qcow2.header.flags:
        faults = [fault for fault in faults if "refcount" not in fault]
    return faults


def places_of(machine: GatedMachine, name: str, first: int = 0) -> dict[int, int]:
    """Where the sectors of a qcow2 image's disk are in its file: by place, the disk's sector.

    Those of compressed clusters have no places of their own.

    :param first: the number of the disk's first sector
    """
    qcow2 = Qcow2Reader.parse(machine.gate.snapshot(name))
    found = qcow2.clusters()
    unit = qcow2.unit_size // SECTOR
    return {
        host // SECTOR + offset: first + index * unit + offset
        for index, kind, host in zip(
            found.index.tolist(), found.kind.tolist(), found.host.tolist(), strict=True
        )
        if kind == Alloc.DATA and host < qcow2.extra_at
        for offset in range(unit)
    }
