"""Reads a qcow2 image by libqcow, a reader that is neither QEMU's nor ours."""

from __future__ import annotations

import os
import re

import pyqcow

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.host.files import BytesLike
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_header import Incompatible

_UNSUPPORTED = {
    Incompatible.EXTERNAL_DATA: "an external data file",
    Incompatible.COMPRESSION_TYPE: "another compression type than zlib",
    Incompatible.EXTENDED_L2: "extended L2 entries",
}


class QcowReader:
    """What a qcow2 image itself holds, read by libqcow; no backing file is looked at.

    What libqcow (pyqcow 20260703) cannot do, each tried against ``qemu-img convert``, and how this
    class goes round it:

    - ``set_parent`` takes only another pyqcow file, refuses an image without a backing file name
      in its header, and then reads a *zero* cluster from the parent (the sparse flag and "not
      allocated" share one branch of ``libqcow_file.c``); a parent shorter than the overlay is an
      error. So no parent is ever set.
    - An image with a backing file name refuses every read until a parent is set: libqcow is shown
      a header whose name fields are zero.
    - A last host cluster that the file's end cuts short gives a short read, or an error: libqcow is
      shown a file padded with zeroes to whole clusters.
    - An L2 entry whose offset is inside a cluster reads as the cluster around it, and no refcount
      is looked at: for an image's health use ``qcow2_check.py``.
    - It refuses compatible feature bits that it does not know, which any reader may ignore: hidden
      likewise. It also refuses the corrupt bit, header lengths other than 104 and 112, and an L1
      table of no entries (a disk of size 0, which has no content to read anyway).
    - It keeps caches and the file's length from when it was opened: one reader per moment.
    - Extended L2 entries, external data files and other compression than zlib: it refuses them all.
    - Of compressed clusters that share a host cluster it reads one in the place of another, out of
      its cache: an image with any is not shown to it.

    :param image: the image file's bytes; kept, not copied
    :raises ImageError: libqcow refuses the image, or our reader its header
    :raises UnsupportedFeature: a feature that one of the two does not know
    """

    def __init__(self, image: BytesLike) -> None:
        qcow2 = Qcow2Reader.parse(image)
        for flag, feature in _UNSUPPORTED.items():
            if flag in qcow2.header.flags:
                raise UnsupportedFeature(feature)
        if qcow2.has_compressed():
            raise UnsupportedFeature("compressed clusters")
        self.virtual_size = qcow2.virtual_size
        self._file = pyqcow.file()
        self._shown = _ShownToLibqcow(
            memoryview(image).cast("B"), qcow2.cluster_size, qcow2.header.version
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

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the virtual disk: zeroes where the image holds none; past its end nothing.

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
