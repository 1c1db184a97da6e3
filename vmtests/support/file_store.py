"""A store of the gate whose bytes are in a file, which others may read meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from qmpshim.errors import HostError
from qmpshim.machine.nbd.gate.store import BLOCK, Store


class FileStore(Store):
    """An image in a file, which others may read (not write) meanwhile.

    The file's holes, found with ``SEEK_DATA``, are its first allocation states; zeroing writes
    zeroes. Reads and writes are system calls rather than a mapping, so that a full disk is an
    ``OSError`` and not a SIGBUS.

    :param path: an existing file; its length is the image's size, or is made so
    :param size: bytes; None takes the file's length
    :raises HostError: the file cannot be opened
    :raises InputError: the image would be empty
    """

    fast_zero = False

    def __init__(self, path: Path, size: int | None = None) -> None:
        try:
            if size is not None:
                path.touch()
                os.truncate(path, size)
            super().__init__(path.stat().st_size)
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot open the image {path}: {error.strerror}") from error
        for start, end in self._data_ranges():
            self.mark_blocks(start // BLOCK, -(-end // BLOCK), 0)

    def _data_ranges(self) -> Iterator[tuple[int, int]]:
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield start, end

    def get_bytes(self, offset: int, length: int) -> bytes:
        pieces = []
        while length:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                raise OSError(errno.EIO, "the image file was cut short")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def put_bytes(self, offset: int, data: bytes | memoryview) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)

    def flush(self) -> None:
        """``fdatasync`` the file."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
