"""Files as the host sees them: images without their holes, directories that appear whole."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from errno import EACCES, EISDIR, ENXIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

from qmpshim.errors import HostError, os_errors

Bytes: TypeAlias = bytes | bytearray | memoryview
BytesLike: TypeAlias = Bytes | mmap.mmap  # of a file, too

_PIECE = 1 << 20  # bytes
_BLOCK = 1 << 16  # bytes that are left out when they are all zero
_PLENTY = 256 << 20  # bytes that the checks of all images do not take up while one is mapped


def slug(name: str) -> str:
    """A name as one component of a path, which a shell takes as it is."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "x"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_file(path: str | Path) -> memoryview:
    """The bytes of a file, read-only and not copied; unmapped when the last view on them goes.

    A hole that is looked at in a mapping takes up space on tmpfs, and when there is none left the
    answer is a SIGBUS: before it gets near that, what the file stores is read instead.

    :raises HostError: the file cannot be opened
    """
    with os_errors(HostError, f"cannot read {path}"), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            return memoryview(b"")
        space = os.fstatvfs(file.fileno())
        holes = status.st_size - status.st_blocks * 512
        if holes > 0 and space.f_bavail * space.f_frsize < _PLENTY + 4 * holes:
            return _read_stored(file, status.st_size)
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_stored(file: BinaryIO, size: int) -> memoryview:
    view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    for offset, length in _extents(file):
        os.preadv(file.fileno(), [view[offset : offset + length]], offset)
    return view.toreadonly()


def file_extents(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes of what the host's file system stores of a file."""
    with path.open("rb") as file:
        yield from _extents(file)


def _extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    end = os.fstat(file.fileno()).st_size
    offset = 0
    while offset < end:
        try:
            offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == ENXIO:  # only a hole follows
                return
            raise
        hole = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
        for at in range(offset, hole, _PIECE):
            yield at, min(_PIECE, hole - at)
        offset = hole


def copy_sparse(source: str | Path, target: str | Path) -> None:
    """Copy a file's bytes and leave its holes out: a disk of 1 TiB may hold 64 MiB."""
    try:
        with open(source, "rb") as read, open(target, "wb") as write:
            for offset, length in _extents(read):
                write.seek(offset)
                write.write(os.pread(read.fileno(), length, offset))
            write.truncate(os.fstat(read.fileno()).st_size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(error.filename or target)) from error


def write_sparse(path: Path, data: Bytes) -> None:
    """Write a file's bytes and leave its zeroes out."""
    with path.open("wb") as file:
        for at in range(0, len(data), _BLOCK):
            piece = data[at : at + _BLOCK]
            if any(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(data))


def free_name(path: Path) -> Path:
    """The path, or where there is something already the path with a number behind it."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def write_directory(target: Path, write: Callable[[Path], None]) -> Path:
    """Make a directory that appears whole or not at all.

    :param target: what it is to be called; a number is added when that is taken
    :param write: fills it, at another place
    :returns: where it is
    :raises HostError: it cannot be written
    """
    with os_errors(HostError, f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = Path(tempfile.mkdtemp(prefix=".bundle-", dir=target.parent))
        try:
            write(parts)
            os.chmod(parts, 0o755)
            found = free_name(target)
            os.rename(parts, found)
        except BaseException:
            shutil.rmtree(parts, ignore_errors=True)
            raise
    return found


def check_file(path: Path) -> None:
    """Find out whether :func:`write_file` can write a file, and leave no trace of that.

    :raises HostError: it cannot
    """
    with os_errors(HostError, f"cannot write {path}"):
        target = _file_to_replace(path)
        if target is None:
            if not os.access(path, os.W_OK):  # opening a pipe would wait for its reader
                raise PermissionError(EACCES, os.strerror(EACCES), str(path))
            return
        with tempfile.TemporaryFile(dir=target.parent) as probe:
            probe.write(b"\n")


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, over what was there.

    :raises HostError: it cannot be written
    """
    with os_errors(HostError, f"cannot write {path}"):
        target = _file_to_replace(path)
        if target is None:
            path.write_bytes(data)
            return
        handle, part = tempfile.mkstemp(prefix=f".{target.name[:100]}-", dir=target.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(part, target.stat().st_mode & 0o777 if target.exists() else 0o644)
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise


def _file_to_replace(path: Path) -> Path | None:
    """The regular file, links followed, that there is or can be; None: it is a device or a pipe.

    :raises OSError: it is a directory
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    return None if target.exists() and not target.is_file() else target


def copy_tree(source: Path, target: Path, *leave_out: str) -> None:
    """Copy a directory, files without their holes.

    :param leave_out: patterns of names that are left behind
    :raises HostError: something could not be copied
    """
    try:
        shutil.copytree(
            source,
            target,
            ignore=shutil.ignore_patterns(*leave_out),
            copy_function=copy_sparse,
            dirs_exist_ok=True,
        )
    except shutil.Error as error:  # a list of (source, target, why)
        name, _, why = error.args[0][0]
        raise HostError(f"cannot copy {name}: {why}") from error
    except OSError as error:
        raise HostError(f"cannot copy {source} to {target}: {error.strerror}") from error
