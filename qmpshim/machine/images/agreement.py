"""Reads an image in three independent ways and reports where they disagree.

The ways: QEMU's own tools (:func:`qemu_img_map`, :func:`qemu_img_check`), qmpshim's own walk of the
qcow2 tables (:class:`ImageView`), and libqcow (:class:`QcowReader`). :func:`agree` holds all three
against each other. Offsets and lengths are guest bytes unless a name contains "host".

An image must hold still while it is looked at. A file is mapped, not copied: reading a mapping
after QEMU cut the file short (a checkpoint empties an overlay that way) is a SIGBUS.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyqcow
from numpy.typing import NDArray

from qmpshim.errors import HostError, MachineHung, UnsupportedFeature
from qmpshim.machine.host.files import map_file as map_file
from qmpshim.machine.images.qcow2 import (
    BytesLike,
    ImageError,
    Incompatible,
    Qcow2Reader,
    Run,
    Severity,
)
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

QEMU_IMG = ("qemu-img",)
_TIMEOUT = 60.0  # seconds
_CHUNK = 16 << 20  # bytes compared in one go


# -- our own walk ------------------------------------------------------------------------------


class Piece(NamedTuple):
    """``length`` bytes at guest ``offset``; ``data`` only for DATA, ``length`` bytes long."""

    offset: int
    length: int
    alloc: Alloc
    data: memoryview | None


class ImageView:
    """The bytes that one image itself holds, as slices of its file; no backing file is looked at.

    The tables are read once, here: look again with a new view after the image changed.

    :param image: the image file's bytes; kept, not copied
    :param raw: a raw image instead of qcow2, all of it DATA
    :param data: the bytes of the image's external data file, if it has one; kept, not copied
    :ivar unit_size: of a subcluster, or of a cluster where the image has none; in bytes
    :raises ImageError: as :meth:`Qcow2Reader.parse` and :meth:`Qcow2Reader.clusters`
    :raises UnsupportedFeature: the same, and an external data file without *data*
    """

    def __init__(
        self, image: BytesLike, *, raw: bool = False, data: BytesLike | None = None
    ) -> None:
        self._image = memoryview(image).cast("B")
        self._runs: list[Run]
        if raw:
            self.virtual_size = self.cluster_size = self.unit_size = len(self._image)
            self._runs = [Run(0, self.virtual_size, Alloc.DATA, 0)]
            self._clusters = None
        else:
            qcow2 = Qcow2Reader.parse(image)
            self.virtual_size, self.cluster_size = qcow2.virtual_size, qcow2.cluster_size
            self.unit_size = qcow2.unit_size
            if qcow2.header.external_data:
                if data is None:
                    raise UnsupportedFeature("an external data file that is out of reach")
                self._image = memoryview(data).cast("B")
            self._clusters = qcow2.clusters()
            self._runs = list(qcow2.runs(self._clusters))
        self._starts = [run.offset for run in self._runs]

    @classmethod
    def open(cls, path: str | Path, *, raw: bool = False) -> ImageView:
        """As the constructor, on a file; the header names an external data file.

        :raises HostError: a file cannot be opened
        """
        image = map_file(path)
        return cls(
            image, raw=raw, data=None if raw else external_data(path, Qcow2Reader.parse(image))
        )

    def runs(self, offset: int = 0, length: int | None = None) -> Iterator[Run]:
        """All of a range, in order and without gaps: UNALLOCATED runs included.

        :param length: None means up to the end; bytes past the virtual size are left out
        """
        end = self.virtual_size if length is None else min(self.virtual_size, offset + length)
        first = max(0, bisect_right(self._starts, offset) - 1)
        for at in range(first, bisect_left(self._starts, end)):
            start, count, alloc, host = self._runs[at]
            if offset < start:
                yield Run(offset, start - offset, Alloc.UNALLOCATED, None)
                offset = start
            skipped, stop = offset - start, min(end, start + count)
            if offset < stop:
                yield Run(offset, stop - offset, alloc, None if host is None else host + skipped)
                offset = stop
        if offset < end:
            yield Run(offset, end - offset, Alloc.UNALLOCATED, None)

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        """As :meth:`runs`, with the bytes: in as few pieces as the image's layout allows."""
        for run in self.runs(offset, length):
            if run.host_offset is None:
                yield Piece(run.offset, run.length, run.alloc, None)
                continue
            data = self._image[run.host_offset : run.host_offset + run.length]
            if len(data):
                yield Piece(run.offset, len(data), run.alloc, data)
            missing = run.length - len(data)  # the file's end cut the last cluster short
            if missing:
                zeroes = memoryview(bytes(missing))
                yield Piece(run.offset + len(data), missing, run.alloc, zeroes)

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """The bytes of a range in one array, zeroes where the image holds none.

        Copies, a cluster at a time and outside Python: for small clusters in random order this is
        faster than to look at each piece; for large runs :meth:`pieces` is.
        """
        length = max(0, min(length, self.virtual_size - offset))
        if self._clusters is None or not length:
            return np.frombuffer(self._image[offset : offset + length], np.uint8)
        size, found = self.unit_size, self._clusters
        first, last = offset // size, (offset + length - 1) // size
        here = slice(*np.searchsorted(found.index, (first, last + 1)))
        data = found.kind[here] == Alloc.DATA
        index, host = found.index[here][data] - first, found.host[here][data] // size
        whole = len(self._image) // size
        if len(host) and int(host.max()) >= whole:  # the file's end cuts that cluster short
            pieces = [
                np.frombuffer(p.data or bytes(p.length), np.uint8)
                for p in self.pieces(offset, length)
            ]
            return np.concatenate(pieces)
        file = np.frombuffer(self._image, np.uint8, whole * size).reshape(whole, size)
        out = np.zeros((last + 1 - first, size), np.uint8)
        out[index] = file[host]
        return out.reshape(-1)[offset - first * size :][:length]


def external_data(path: str | Path, qcow2: Qcow2Reader) -> BytesLike | None:
    """The bytes of the external data file that an image's header names; None without a name.

    :param path: of the image, whose directory a relative name begins at
    :raises HostError: the file cannot be opened
    """
    name = qcow2.header.data_file
    if not qcow2.header.external_data or name is None:
        return None
    return map_file(Path(path).parent / name)


def through(
    chain: Sequence[ImageView], offset: int = 0, length: int | None = None
) -> Iterator[Piece]:
    """A range as a reader of a chain of images sees it: every piece is DATA or ZERO.

    :param chain: the top image first, each one's backing file after it; the range is clipped to the
        top's size, and what no image holds (or is past the end of a shorter backing file) is ZERO
    """
    top, below = chain[0], chain[1:]
    for piece in top.pieces(offset, length):
        if piece.alloc is not Alloc.UNALLOCATED:
            yield piece
            continue
        covered = 0
        if below:
            covered = max(0, min(piece.length, below[0].virtual_size - piece.offset))
            yield from through(below, piece.offset, covered)
        if covered < piece.length:
            yield Piece(piece.offset + covered, piece.length - covered, Alloc.ZERO, None)


# -- libqcow -----------------------------------------------------------------------------------


_NOT_LIBQCOWS = {
    Incompatible.EXTERNAL_DATA: "an external data file",
    Incompatible.COMPRESSION_TYPE: "another compression type than zlib",
    Incompatible.EXTENDED_L2: "extended L2 entries",
}


class Backing(Protocol):
    """What an overlay's unallocated clusters read through to."""

    virtual_size: int

    def read(self, offset: int, length: int) -> bytes: ...


class QcowReader:
    """A qcow2 image's content, read by libqcow; its backing chain is followed here.

    What libqcow (pyqcow 20260703) cannot do, each tried against ``qemu-img convert``, and how this
    class goes round it:

    - ``set_parent`` takes only another pyqcow file, refuses an image without a backing file name
      in its header, and then reads a *zero* cluster from the parent (the sparse flag and "not
      allocated" share one branch of ``libqcow_file.c``); a parent shorter than the overlay is an
      error. So no parent is ever set: which clusters are unallocated comes from
      :class:`Qcow2Reader`.
    - An image with a backing file name refuses every read until a parent is set: libqcow is shown
      a header whose name fields are zero.
    - A last host cluster that the file's end cuts short gives a short read, or an error: libqcow is
      shown a file padded with zeroes to whole clusters.
    - An L2 entry whose offset is inside a cluster reads as the cluster around it, and no refcount
      is looked at: for an image's health use :meth:`Qcow2Reader.check`.
    - It refuses compatible feature bits that it does not know, which any reader may ignore: hidden
      likewise. It also refuses the corrupt bit, header lengths other than 104 and 112, and an L1
      table of no entries (a disk of size 0, which has no content to read anyway).
    - It keeps caches and the file's length from when it was opened: one reader per moment.
    - Extended L2 entries, external data files and other compression than zlib: it refuses them all.

    :param image: the image file's bytes; kept, not copied
    :param backing: what unallocated clusters read through to; without it they read as zeroes
    :raises ImageError: either reader refuses the image
    :raises UnsupportedFeature: a feature that one of the readers does not know
    """

    def __init__(self, image: BytesLike, backing: Backing | None = None) -> None:
        qcow2 = Qcow2Reader.parse(image)
        for flag, feature in _NOT_LIBQCOWS.items():
            if flag in qcow2.flags:
                raise UnsupportedFeature(feature)
        self._view = ImageView(image)
        self._backing = backing
        self.virtual_size = qcow2.virtual_size
        self._file = pyqcow.file()
        self._shown = _ShownToLibqcow(
            memoryview(image).cast("B"), qcow2.cluster_size, qcow2.version
        )
        if not self.virtual_size:
            return
        try:
            self._file.open_file_object(self._shown)
        except (OSError, ValueError, MemoryError) as error:
            raise ImageError(f"libqcow refuses the image: {_innermost(error)}") from error
        if self._file.get_media_size() != self.virtual_size:
            raise ImageError(
                f"libqcow reads a size of {self._file.get_media_size()} bytes, "
                f"the header says {self.virtual_size}"
            )

    def own(self, offset: int, length: int) -> bytes:
        """What libqcow alone reads: zeroes where the image itself holds nothing.

        :raises ImageError: libqcow cannot read there
        """
        length = max(0, min(length, self.virtual_size - offset))
        if not length:
            return b""
        try:
            data = self._file.read_buffer_at_offset(length, offset)
        except (OSError, ValueError, MemoryError) as error:
            raise ImageError(f"libqcow cannot read at {offset:#x}: {_innermost(error)}") from error
        if len(data) != length:
            raise ImageError(f"libqcow read {len(data)} of {length} bytes at {offset:#x}")
        return bytes(data)

    def read(self, offset: int, length: int) -> bytes:
        """What a reader sees through the backing chain; past the virtual size nothing.

        :raises ImageError: libqcow cannot read there
        """
        parts = []
        for run in self._view.runs(offset, length):
            if run.alloc is Alloc.DATA:
                parts.append(self.own(run.offset, run.length))
            elif run.alloc is Alloc.UNALLOCATED and self._backing is not None:
                parts.append(self._backing.read(run.offset, run.length).ljust(run.length, b"\0"))
            else:
                parts.append(bytes(run.length))
        return b"".join(parts)


class _ShownToLibqcow:
    """The file object libqcow reads from: whole clusters, and only the header fields it bears."""

    def __init__(self, image: memoryview, cluster_size: int, version: int) -> None:
        self._image = image
        self._size = -(-len(image) // cluster_size) * cluster_size
        self._at = 0
        self._head = bytearray(image[:104])
        self._head[8:20] = bytes(12)  # backing_file_offset, backing_file_size
        if version == 3:
            self._head[80:88] = bytes(8)  # compatible_features

    def get_size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """Never more than ``size``: libqcow copies the answer without looking at its length."""
        at, end = self._at, min(self._at + size, self._size)
        self._at = max(at, end)
        data = bytes(self._image[at:end])
        if at < len(self._head):
            head = bytes(self._head[at:end])
            data = head + data[len(head) :]
        return data.ljust(end - at, b"\0") if len(data) < end - at else data


def _innermost(error: BaseException) -> str:
    """libqcow's reason, out of a message that goes "pyqcow_f: text. innermost: text. outer: …"."""
    message = re.findall(r"\b(?:py|lib)\w+: ([^.]+)", str(error))
    return message[min(1, len(message) - 1)] if message else type(error).__name__


# -- QEMU's tools ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapExtent:
    """One entry of ``qemu-img map``.

    :param start: guest offset, bytes
    :param depth: which image of the chain holds it; 0 is the image itself
    :param present: some image of the chain holds it; None before QEMU 6.1, which does not report it
    :param host_offset: where in that image's file, bytes; None if nowhere
    """

    start: int
    length: int
    depth: int
    present: bool | None
    zero: bool
    data: bool
    host_offset: int | None

    @property
    def alloc(self) -> Alloc | None:
        """Allocation in image ``depth`` itself; None where an old QEMU leaves it open."""
        if self.data:
            return Alloc.DATA
        if self.present is None:
            return Alloc.ZERO if self.host_offset is not None else None
        return Alloc.ZERO if self.present else Alloc.UNALLOCATED


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What ``qemu-img check`` counted, and its complaints (empty for a healthy image)."""

    corruptions: int
    leaks: int
    text: str


def qemu_img_map(
    image: str | Path,
    tool: Sequence[str] = QEMU_IMG,
    *,
    driver: str | None = "qcow2",
    force_share: bool = False,
    timeout: float = _TIMEOUT,
) -> list[MapExtent]:
    """``qemu-img map``: which bytes of the virtual disk are held where, by QEMU's account.

    :param image: a path, or any name that qemu-img opens (``json:{...}``, ``nbd+unix://...``)
    :param tool: the command qemu-img is started with
    :param driver: the image's format; None for a name that contains it (``json:``). Never left to
        QEMU's probing: an overlay with a broken header would pass as a healthy raw image.
    :param force_share: ``-U``: read although a QEMU has the image open
    :param timeout: seconds
    :raises HostError: qemu-img is missing
    :raises ImageError: qemu-img refuses the image
    :raises MachineHung: qemu-img did not end in time
    """
    done = _qemu_img(tool, "map", image, driver, force_share, timeout)
    if done.returncode:
        raise ImageError(f"qemu-img map refuses the image: {_complaint(done)}")
    return [
        MapExtent(
            start=extent["start"],
            length=extent["length"],
            depth=extent["depth"],
            present=extent.get("present"),
            zero=extent["zero"],
            data=extent["data"],
            host_offset=extent.get("offset"),
        )
        for extent in _json(done)
    ]


def qemu_img_check(
    image: str | Path,
    tool: Sequence[str] = QEMU_IMG,
    *,
    driver: str | None = "qcow2",
    force_share: bool = False,
    timeout: float = _TIMEOUT,
) -> CheckResult:
    """``qemu-img check``, which repairs nothing; parameters and errors as :func:`qemu_img_map`."""
    done = _qemu_img(tool, "check", image, driver, force_share, timeout)
    # qemu-img(1): 0 healthy, 2 corruptions, 3 leaks only; 1 the check did not complete.
    if done.returncode not in (0, 2, 3):
        raise ImageError(f"qemu-img check refuses the image: {_complaint(done)}")
    counted = _json(done)
    return CheckResult(counted.get("corruptions", 0), counted.get("leaks", 0), done.stderr.strip())


def _qemu_img(
    tool: Sequence[str],
    verb: str,
    image: str | Path,
    driver: str | None,
    force_share: bool,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    options = ["-U"] if force_share else []
    options += [] if driver is None else ["-f", driver]
    command = [*tool, verb, "--output=json", *options, str(image)]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise MachineHung(f"qemu-img {verb} did not end in {timeout:g} s: {image}") from error
    except OSError as error:
        raise HostError(f"cannot start {tool[0]}: {error.strerror} (package qemu-utils)") from error


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise ImageError(f"qemu-img answered no JSON: {_complaint(done)}") from error


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """qemu-img's own first line about itself; hints and other programs' words come after it."""
    own = re.search(r"^\S*qemu-img: (.+)$", done.stderr, re.MULTILINE)
    lines = done.stderr.split("\n") if not own else [own[1]]
    return next(filter(None, lines), f"exit status {done.returncode}")


# -- all against all ---------------------------------------------------------------------------


class Agreement(NamedTuple):
    """The result of comparing the readers of one image.

    :ivar disagreements: a sentence for each disagreement on health, allocation or content
    :ivar unconsulted: a sentence for each reader that does not know a feature of the image
    """

    disagreements: list[str]
    unconsulted: list[str]


def agree(
    path: str | Path, tool: Sequence[str] = QEMU_IMG, *, force_share: bool = False
) -> list[str]:
    """The disagreements that :func:`consult` finds; parameters and errors as there."""
    return consult(path, tool, force_share=force_share).disagreements


def consult(
    path: str | Path, tool: Sequence[str] = QEMU_IMG, *, force_share: bool = False
) -> Agreement:
    """Holds the three readers of one qcow2 file against each other, without its backing chain.

    An image that all of them call corrupt is no disagreement: use :meth:`Qcow2Reader.check` for
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
        disagreements, both_corrupt = _disagree_on_health(image, alone, tool, force_share)
    except UnsupportedFeature as error:
        unconsulted.append(f"the independent check: {error.feature}")
    extents = view = None
    refusals = []
    try:
        extents = qemu_img_map(alone, tool, driver=None, force_share=force_share)
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
    image: memoryview, alone: str, tool: Sequence[str], force_share: bool
) -> tuple[list[str], bool]:
    """The disagreements, and whether both checks call it corrupt: then either may refuse it.

    :raises UnsupportedFeature: the independent check does not support the image
    """
    ours, leaks = "", 0
    try:
        findings = Qcow2Reader.parse(image).check()
        ours = next((f.text for f in findings if f.severity is Severity.CORRUPTION), "")
        leaks = sum(f.severity is Severity.LEAK for f in findings)
    except ImageError as error:
        ours = str(error)
    try:
        result = qemu_img_check(alone, tool, driver=None, force_share=force_share)
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
            ours = _placed(run.alloc, run.host_offset, start - run.offset)
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
                if any(reader.own(at, min(SECTOR, end - at))):
                    yield (
                        f"at {at:#x}: libqcow reads data, "
                        f"the independent reader says {piece.alloc.name.lower()}"
                    )
            continue
        for at in range(0, piece.length, _CHUNK):
            ours = np.frombuffer(piece.data[at : at + _CHUNK], np.uint8)
            theirs = np.frombuffer(reader.own(piece.offset + at, len(ours)), np.uint8)
            if not np.array_equal(ours, theirs):
                first = piece.offset + at + int(np.argmax(ours != theirs))
                yield f"at {first:#x}: libqcow and the independent reader read different bytes"
