"""An overlay's file as our own reader sees it: what it holds, what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qmpshim.conformance.compare.evidence import Allocated
from qmpshim.errors import ImageError
from qmpshim.machine.host.files import BytesLike
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import check
from qmpshim.model.disks.image import Alloc


@dataclass(frozen=True, slots=True)
class Overlay:
    """A qcow2 image that could be read.

    :ivar allocation: by cluster
    :ivar view: its contents
    """

    allocation: dict[int, Alloc]
    view: ImageView


@dataclass(frozen=True, slots=True)
class OverlayFault:
    """Something wrong in it: what was predicted, and what was observed, in words."""

    predicted: str
    observed: str


@dataclass(frozen=True, slots=True)
class WrongCluster(OverlayFault):
    """A cluster whose allocation is wrong.

    :ivar index: its number
    :ivar allowed: what it may be
    """

    index: int
    allowed: tuple[Alloc, ...]

    def evidence(self, image: str) -> Allocated:
        """The same as data.

        :param image: the name of the image in its chain
        """
        return Allocated(image, self.index, tuple(one.name.lower() for one in self.allowed))


def read_overlay(image: BytesLike) -> tuple[Overlay | None, OverlayFault | None]:
    """Read a qcow2 image's bytes: what it holds, if it can be read, and what is broken in it.

    :raises UnsupportedFeature: it may be sound; our reader does not know the feature
    """
    try:
        qcow2 = Qcow2Reader.parse(image)
        faults = [str(fault) for fault in check(qcow2)]
        overlay = Overlay(qcow2.allocation(), ImageView(image))
    except ImageError as error:
        return None, OverlayFault("a valid qcow2 image", str(error))
    if not faults:
        return overlay, None
    return overlay, OverlayFault("consistent qcow2 metadata", "; ".join(faults[:3]))


def wrong_allocation(
    predicted: Mapping[int, Alloc], observed: Mapping[int, Alloc], cluster: int
) -> WrongCluster | None:
    """The first cluster whose allocation is not as predicted, if there is one.

    :param predicted: by cluster; which is left out is unallocated
    :param observed: the same
    :param cluster: bytes
    """
    if predicted == observed:
        return None
    none = Alloc.UNALLOCATED
    wrong = [
        index
        for index in sorted(predicted.keys() | observed.keys())
        if not predicted.get(index, none).admits(observed.get(index, none))
    ]
    if not wrong:
        return None
    index = wrong[0]
    more = f" (and {len(wrong) - 1} more clusters)" if len(wrong) > 1 else ""
    where = f"cluster {index} (byte {index * cluster}) "
    wanted = predicted.get(index, none)
    return WrongCluster(
        where + wanted.name.lower(),
        where + observed.get(index, none).name.lower() + more,
        index,
        tuple(one for one in (none, Alloc.ZERO, Alloc.DATA) if wanted.admits(one)),
    )
