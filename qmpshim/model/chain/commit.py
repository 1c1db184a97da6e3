"""The commit of a failover: what the overlays hold is written into the secondary disk.

Restates ``commit_active_start`` and ``mirror_iteration`` (block/mirror.c, QEMU 7.2). Positions and
lengths are sectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qmpshim.model.disks.image import Alloc, Image, Owners, Qcow2Image, is_zero
from qmpshim.model.runtime.coroutines import Co


def commit(
    secondary: Image, overlays: Sequence[Qcow2Image], read: Callable[[int, int], Co[Owners]]
) -> Co[None]:
    """Write every granule in which an overlay holds something into the secondary disk, and flush.

    :param overlays: topmost first
    :param read: what the guest sees of a range: first sector and count
    """
    # bdrv_get_default_bitmap_granularity()
    granule = min(max(8, secondary.info_cluster), 128) if isinstance(secondary, Qcow2Image) else 128
    for index in sorted(_dirty(overlays, granule)):
        start = index * granule
        count = min(granule, secondary.size - start)
        owners = yield from read(start, count)
        if isinstance(secondary, Qcow2Image) and count == granule >= secondary.cluster:
            kind = _kind((*overlays, secondary), start, count)
            yield from secondary.put(start, owners, kind)
        elif isinstance(secondary, Qcow2Image) and is_zero(owners):
            # How many granules mirror takes at once decides whether whole clusters of the
            # secondary come together and can be zero clusters.
            yield from secondary.write(start, owners)
            for cluster in secondary.clusters(start, count):
                low = cluster * secondary.cluster
                length = min(secondary.cluster, secondary.size - low)
                if is_zero(secondary.contents.read(low, length)):
                    secondary.alloc[cluster] = Alloc.ALLOCATED
        else:
            yield from secondary.write(start, owners)
    yield from secondary.flush()  # mirror_run(): before it counts as done


def _dirty(overlays: Sequence[Qcow2Image], granule: int) -> set[int]:
    """The granules in which an overlay holds something."""
    dirty: set[int] = set()
    for overlay in overlays:
        for index in overlay.alloc:
            low = index * overlay.cluster
            high = min(low + overlay.cluster, overlay.size)
            dirty.update(range(low // granule, (high - 1) // granule + 1))
    return dirty


def _kind(images: Sequence[Image], start: int, count: int) -> Alloc:
    """ZERO when one block status covers the whole granule and is zero, else DATA."""
    for image in images:
        runs = list(image.runs(start, count))
        if len(runs) > 1:
            return Alloc.DATA
        if runs[0][2] is not Alloc.UNALLOCATED:
            break
    return image.status_zero(start, count)
