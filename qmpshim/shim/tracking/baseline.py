"""What the disks of a chain hold when the shim meets it: where its model starts from.

Contents come through QEMU (the secondary disk) or from the files (the overlays, of which a reader
through QEMU sees the chain only). Allocation comes from the files; where the secondary disk's
cannot be known it is :attr:`Alloc.UNKNOWN`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.host.files import Bytes, BytesLike
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Chain, Workflow
from qmpshim.model.disks.image import Alloc, Image, is_zero, owned
from qmpshim.model.disks.image import Qcow2Image as ModelQcow2
from qmpshim.model.disks.subclusters import ExtendedQcow2
from qmpshim.model.units import SECTOR, runs_of
from qmpshim.shim.tracking.discovery import ChainNodes, Geometry
from qmpshim.shim.tracking.payload_store import PayloadStore

BASELINE_LIMIT = 4 << 30  # bytes of old data that are remembered
_STEP = 8 << 20  # bytes of them read at once
_MOST_UNKNOWN = 1 << 20  # clusters of a disk whose allocation is not known

#: Called with what a replay has to write before anything begins: first sector, sectors, operation's
#: number, and whether it is data.
Note: TypeAlias = Callable[[int, int, int, bool], None]


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The bytes of an image's file, and of its external data file if it has one."""

    image: BytesLike
    data: BytesLike | None = None


async def flush(execute: Callable[..., Awaitable[Any]], node: str) -> None:
    """Have QEMU write qcow2 tables to the file, without stopping the VM (which all would see)."""
    line = f'qemu-io {node} "flush"'
    await execute("human-monitor-command", {"command-line": line})


class Baseline:
    """Takes over into a model what the disks hold.

    :param note: called with each write that a replay has to do first
    :ivar doubts: what the model cannot know, so that it must not judge
    :ivar unrecordable: why a replay cannot begin with these disks, or ``""``
    """

    def __init__(self, chain: Chain, found: ChainNodes, payloads: PayloadStore, note: Note) -> None:
        self._chain = chain
        self._found = found
        self._payloads = payloads
        self._note = note
        self.doubts: list[str] = []
        self.unrecordable = ""

    def take(self, files: Mapping[str, ImageFiles], uri: str) -> None:
        """Read everything.

        :param files: by role, as far as they are in reach; nothing may change in them meanwhile
        :param uri: of a read-only NBD export of the secondary disk
        :raises HostError: no space to keep the data
        :raises IOFailed: the secondary disk cannot be read
        """
        for role, geometry in self._found.geometry.items():
            if geometry.version < 3:
                self.doubts.append(str(UnsupportedFeature("qcow2 version 2")))
                return
            kind = ExtendedQcow2 if geometry.extended_l2 else ModelQcow2
            sectors = geometry.cluster // SECTOR
            self._chain.place(kind(role, self._found.size // SECTOR, sectors, role != "secondary"))
            if role != "secondary":
                self._overlay(role, files.get(role))
            if geometry != Geometry(self._found.cluster, False, 3):
                self._cannot_record("subclusters, or clusters of several sizes")
        with contextlib.closing(NbdClient(uri)) as client:
            extents = client.data_extents()
            if sum(length for _, length in extents) > BASELINE_LIMIT:
                self.doubts.append("the secondary disk held too much data to remember it")
                return
            secondary = self._chain.secondary
            if isinstance(secondary, ModelQcow2):
                self._qcow2_secondary(client, extents, secondary, files.get("secondary"))
            else:
                for at, length in _steps(extents):
                    self._remember(secondary, at, client.read(length, at))

    def _cannot_record(self, why: str) -> None:
        self.unrecordable = self.unrecordable or why

    def _remember(self, image: Image, at: int, data: Bytes) -> None:
        """Enter what is at byte *at* of a disk; zeroes need no entry."""
        if not any(data):
            return
        start, count = at // SECTOR, len(data) // SECTOR
        number = self._payloads.note(start, data)
        if image is self._chain.secondary:
            self._note(start, count, number, True)
        image.contents.write(start, owned(number, count))

    # -- the secondary disk --------------------------------------------------------------------

    def _qcow2_secondary(
        self,
        client: NbdClient,
        extents: list[tuple[int, int]],
        image: ModelQcow2,
        files: ImageFiles | None,
    ) -> None:
        try:
            if files is None or self._found.based:
                raise UnsupportedFeature("a disk that is not one file in reach")
            qcow2 = Qcow2Reader.parse(files.image)
            self.set_allocation(image, qcow2)
            runs = [(run.offset, run.length) for run in qcow2.runs() if run.alloc is Alloc.DATA]
        except (UnsupportedFeature, ImageError):
            self._cannot_record("a secondary disk whose allocation is not known")
            count = -(-image.size // image.cluster)
            if count > _MOST_UNKNOWN:
                self.doubts.append("the secondary disk's allocation is not known")
                return
            image.alloc.update(dict.fromkeys(range(count), Alloc.UNKNOWN))
            runs = extents
        cluster = image.cluster * SECTOR
        for at, length in _steps(_whole_clusters(runs, cluster, self._found.size)):
            data = client.read(length, at)
            for low, high in _not_zero(data, cluster):
                self._remember(image, at + low, data[low:high])
        for start, count, kind in list(image.runs(0, image.size)):
            if kind is Alloc.DATA:
                self.distrust_zeroes(image, start, count)
            elif kind is Alloc.ZERO:
                if any(map(image.is_preallocated, image.clusters(start, count))):
                    self._cannot_record("clusters of zeroes that are allocated")
                self._note(start, count, self._payloads.note(start, None), False)

    def distrust_zeroes(self, image: ModelQcow2, start: int, count: int) -> None:
        """DATA that is zero may be reported as either where the image was preallocated.

        Block status then queries the file, too, whether it has a hole there
        (``qcow2_co_block_status``, ``BDRV_BLOCK_RECURSE``).
        """
        for index in image.clusters(start, count):
            low = index * image.cluster
            if is_zero(image.contents.read(low, min(image.cluster, image.size - low))):
                image.alloc[index] = Alloc.UNKNOWN
                self._cannot_record("clusters of zeroes that are allocated")

    def set_allocation(self, image: ModelQcow2, qcow2: Qcow2Reader) -> None:
        """The allocation that an image's tables hold.

        :raises ImageError: they are broken
        :raises UnsupportedFeature: they cannot be read, or have compressed clusters, which the
            model does not know: QEMU zeroes them in another way (``zero_in_l2_slice``)
        """
        if qcow2.has_compressed():
            raise UnsupportedFeature("compressed clusters")
        image.alloc.update(qcow2.allocation())
        hosts = qcow2.host_clusters()
        if isinstance(image, ExtendedQcow2):
            image.hosts.update(hosts)
        else:
            image.preallocated.update(i for i in hosts if image.alloc.get(i) is Alloc.ZERO)

    # -- the overlays --------------------------------------------------------------------------

    def _overlay(self, role: str, files: ImageFiles | None) -> None:
        image = getattr(self._chain, role)
        if files is None:
            # Replication empties its overlays when it starts.
            if self._found.workflow is Workflow.BACKUP:
                self.doubts.append(f"cannot judge: the {role} disk's file is out of reach")
            return
        try:
            qcow2 = Qcow2Reader.parse(files.image)
            self.set_allocation(image, qcow2)
            if not image.alloc:
                return
            if self._found.workflow is Workflow.BACKUP:
                self._cannot_record(f"a {role} disk that is not empty")
            view = ImageView(files.image, data=files.data)
            runs = [run for run in view.runs() if run.alloc is Alloc.DATA]
            if sum(run.length for run in runs) > BASELINE_LIMIT:
                self.doubts.append(f"the {role} disk held too much data to remember it")
                return
            for at, length in _steps((run.offset, run.length) for run in runs):
                self._remember(image, at, view.read(at, length).data)
        except UnsupportedFeature as error:
            self.doubts.append(f"{role} disk: {error}")
        except ImageError as error:
            self.doubts.append(f"the {role} disk was broken before: {error}")


def _steps(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges of bytes (offset, length) in pieces that are read at once."""
    for offset, length in runs:
        for at in range(offset, offset + length, _STEP):
            yield at, min(_STEP, offset + length - at)


def _whole_clusters(
    runs: Iterable[tuple[int, int]], cluster: int, size: int
) -> Iterator[tuple[int, int]]:
    """Ranges of bytes, in order, rounded outwards to clusters; none comes twice."""
    done = 0
    for offset, length in runs:
        low = max(done, offset - offset % cluster)
        done = max(done, min(size, -(-(offset + length) // cluster) * cluster))
        if low < done:
            yield low, done - low


def _not_zero(data: bytearray, cluster: int) -> Iterator[tuple[int, int]]:
    """Runs of clusters in *data* (first byte, end) that do not read as zeroes."""
    used = (any(data[at : at + cluster]) for at in range(0, len(data), cluster))
    for first, end, is_used in runs_of(used):
        if is_used:
            yield first * cluster, min(end * cluster, len(data))
