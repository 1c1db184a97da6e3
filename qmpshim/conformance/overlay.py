"""An overlay's file as our own reader sees it: what it holds, or what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.machine.images import ImageView
from qmpshim.machine.qcow2 import BytesLike, ImageError, Qcow2
from qmpshim.model.disk import Alloc


@dataclass(frozen=True, slots=True)
class Overlay:
    """A qcow2 image that could be read.

    :ivar allocation: by cluster
    :ivar view: its contents
    """

    allocation: dict[int, Alloc]
    view: ImageView


@dataclass(frozen=True, slots=True)
class Corruption:
    """Broken metadata: what was predicted, and what was observed, in words."""

    predicted: str
    observed: str


def read_overlay(image: BytesLike) -> tuple[Overlay | None, Corruption | None]:
    """Read a qcow2 image's bytes: what it holds, if that can be told, and what is broken in it."""
    try:
        qcow2 = Qcow2.parse(image)
        faults = [str(fault) for fault in qcow2.check()]
        overlay = Overlay(qcow2.allocation(), ImageView(image))
    except ImageError as error:
        return None, Corruption("a valid qcow2 image", str(error))
    if not faults:
        return overlay, None
    return overlay, Corruption("consistent qcow2 metadata", "; ".join(faults[:3]))
