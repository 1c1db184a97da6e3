"""Write a cpio archive in the "newc" format, as the kernel unpacks it for an initramfs.

Device nodes are entries like any other here, so no root is needed. The same tree gives the same
bytes: entries are sorted, belong to root, and have no time. Source: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

_FIELDS = "070701" + "%08X" * 13
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One file of the archive.

    :ivar mode: type and permissions as in ``st_mode``
    :ivar data: the content of a file, the target of a symbolic link
    :ivar device: major and minor number of a device node
    """

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """The files of an archive by absolute path; directories on the way are made."""

    def __init__(self) -> None:
        self._entries: dict[str, ArchiveEntry] = {}

    def file(self, path: str, data: bytes, executable: bool = False) -> None:
        """Add a regular file."""
        self._add(path, ArchiveEntry(stat.S_IFREG | (0o755 if executable else 0o644), data))

    def directory(self, path: str) -> None:
        """Add a directory."""
        self._add(path, ArchiveEntry(stat.S_IFDIR | 0o755))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device's node."""
        self._add(path, ArchiveEntry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def _add(self, path: str, entry: ArchiveEntry) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = entry

    def paths(self) -> list[str]:
        """All paths, sorted: a directory comes before what is in it."""
        return sorted(self._entries)

    def archive(self) -> bytes:
        """The archive."""
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        for number, path in enumerate(self.paths(), 1):
            yield from _record(number, path.lstrip("/"), self._entries[path])
        yield from _record(0, _TRAILER, ArchiveEntry(0))


def _record(number: int, name: str, entry: ArchiveEntry) -> Iterator[bytes]:
    words = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    head = _FIELDS % (
        *(number, entry.mode, 0, 0, links, 0),  # inode, mode, uid, gid, links, time
        *(len(entry.data), 0, 0, *entry.device, len(words), 0),
    )
    for piece in (head.encode() + words, entry.data):
        yield piece
        yield bytes(-len(piece) % 4)
