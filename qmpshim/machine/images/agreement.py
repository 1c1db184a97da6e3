"""Reads an image in three independent ways and reports where they disagree.

The ways: QEMU's own tools (``qemu_img.py``), qmpshim's own walk of the qcow2 tables
(``image_view.py``), and libqcow (``libqcow.py``). Offsets and lengths are guest bytes unless a name
contains "host".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.images.libqcow import QcowReader
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import Severity, check
from qmpshim.machine.images.qemu_img import QEMU_IMG, MapExtent, qemu_img_check, qemu_img_map
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_CHUNK = 16 << 20  # bytes compared in one go


class Agreement(NamedTuple):
    """The result of comparing the readers of one image.

    :ivar disagreements: a sentence for each disagreement on health, allocation or content
    :ivar unconsulted: a sentence for each reader that does not know a feature of the image
    """

    disagreements: list[str]
    unconsulted: list[str]


def agree(path: str | Path, tool: Sequence[str] = QEMU_IMG) -> list[str]:
    """The disagreements that :func:`consult` finds; parameters and errors as there."""
    return consult(path, tool).disagreements


def consult(path: str | Path, tool: Sequence[str] = QEMU_IMG) -> Agreement:
    """Holds the three readers of one qcow2 file against each other, without its backing chain.

    An image that all of them call corrupt is no disagreement: use ``qcow2_check.py`` for
    its health.

    :param path: a qcow2 file that is not written to meanwhile
    :raises HostError: the file, its external data file or qemu-img is missing
    :raises MachineHung: qemu-img did not end in time
    """
    image = map_file(path)
    # Named so, QEMU opens the image without the backing file that its header may name.
    alone = "json:" + json.dumps(
        {
            "driver": "qcow2",
            "backing": None,
            "file": {"driver": "file", "filename": os.path.abspath(path)},
        }
    )
    unconsulted: list[str] = []
    disagreements: list[str] = []
    both_corrupt = False
    try:
        disagreements, both_corrupt = _disagree_on_health(image, alone, tool)
    except UnsupportedFeature as error:
        unconsulted.append(f"the independent check: {error.feature}")
    extents = view = None
    refusals = []
    try:
        extents = qemu_img_map(alone, tool, driver=None)
    except ImageError as error:
        refusals.append(str(error))
    try:
        view = ImageView.open(path)
    except ImageError as error:
        refusals.append(f"the independent reader refuses the image: {error}")
    except UnsupportedFeature as error:
        unconsulted.append(f"the independent reader: {error.feature}")
        return Agreement(disagreements, unconsulted)
    if extents is None or view is None:
        silent = both_corrupt or len(refusals) == 2
        return Agreement(disagreements + ([] if silent else refusals), unconsulted)
    disagreements += _disagree_on_allocation(extents, view)
    try:
        reader = QcowReader(image)
        disagreements += _disagree_on_content(reader, view, Qcow2Reader.parse(image).cluster_size)
    except ImageError as error:
        disagreements += (
            [] if both_corrupt else [f"the independent reader reads the image; {error}"]
        )
    except UnsupportedFeature as error:
        unconsulted.append(f"libqcow: {error.feature}")
    return Agreement(disagreements, unconsulted)


def _disagree_on_health(
    image: memoryview, alone: str, tool: Sequence[str]
) -> tuple[list[str], bool]:
    """The disagreements, and whether both checks call it corrupt: then either may refuse it.

    :raises UnsupportedFeature: the independent check does not support the image
    """
    ours, leaks = "", 0
    try:
        findings = check(Qcow2Reader.parse(image))
        ours = next((f.text for f in findings if f.severity is Severity.CORRUPTION), "")
        leaks = sum(f.severity is Severity.LEAK for f in findings)
    except ImageError as error:
        ours = str(error)
    try:
        result = qemu_img_check(alone, tool, driver=None)
    except ImageError as error:
        theirs = str(error)
    else:
        theirs = f"{result.corruptions} corruptions" if result.corruptions else ""
    if bool(ours) != bool(theirs):
        message = f"qemu-img check: {theirs or 'no corruption'}; the independent check: "
        return [message + (ours or "no corruption")], False
    if not ours and leaks != result.leaks:
        message = f"qemu-img check counts {result.leaks} leaks, the independent check {leaks}"
        return [message], False
    return [], bool(ours)


def _disagree_on_allocation(extents: list[MapExtent], view: ImageView) -> Iterator[str]:
    """Sweeps both accounts of the disk at once."""
    covered = sum(extent.length for extent in extents)
    if covered != view.virtual_size:
        yield f"qemu-img map covers {covered} bytes, the header says {view.virtual_size}"
        return
    runs = view.runs()
    run = next(runs, None)
    for extent in extents:
        end = extent.start + extent.length
        while run is not None and run.offset < end:
            start = max(run.offset, extent.start)
            alloc = extent.alloc
            if (
                extent.present is None
                and alloc is Alloc.ZERO
                and view.unit_size < view.cluster_size
            ):
                alloc = None  # the host cluster may be there for other subclusters
            theirs = _placed(alloc, extent.host_offset, start - extent.start)
            place = None if view.is_compressed(run) else run.host_offset
            ours = _placed(run.alloc, place, start - run.offset)
            if theirs != ours and not (alloc is None and run.alloc is not Alloc.DATA):
                yield (
                    f"at {start:#x}: qemu-img map says {theirs}, the independent reader says {ours}"
                )
            if run.offset + run.length > end:
                break
            run = next(runs, None)


def _placed(alloc: Alloc | None, host: int | None, skipped: int) -> str:
    if alloc is Alloc.DATA and host is not None:
        return f"data (host offset {host + skipped:#x})"
    return "nothing certain" if alloc is None else alloc.name.lower()


def _disagree_on_content(reader: QcowReader, view: ImageView, cluster_size: int) -> Iterator[str]:
    """Compares all DATA; of ZERO a sector a cluster and of each gap a sector must read as zero.

    libqcow looks a cluster up once and then treats all of it alike, so a sector stands for it.
    """
    for piece in view.pieces():
        end = piece.offset + piece.length
        if piece.data is None:
            step = cluster_size if piece.alloc is Alloc.ZERO else piece.length
            for at in range(piece.offset, end, step):
                if any(reader.read(at, min(SECTOR, end - at))):
                    yield (
                        f"at {at:#x}: libqcow reads data, "
                        f"the independent reader says {piece.alloc.name.lower()}"
                    )
            continue
        for at in range(0, piece.length, _CHUNK):
            ours = np.frombuffer(piece.data[at : at + _CHUNK], np.uint8)
            theirs = np.frombuffer(reader.read(piece.offset + at, len(ours)), np.uint8)
            if not np.array_equal(ours, theirs):
                first = piece.offset + at + int(np.argmax(ours != theirs))
                yield f"at {first:#x}: libqcow and the independent reader read different bytes"
