"""The dynamic loader and the libraries that an unpacked prefix brings along."""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

logger = logging.getLogger(__name__)


def library_directories(root: Path) -> list[str]:
    """Directories under ``root`` with shared libraries; also those named only in a RUNPATH."""
    found = {
        library.parent
        for base in ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib")
        for depth in ("", "*/", "*/*/")
        for library in root.glob(f"{base}/{depth}lib*.so*")
    }
    return [str(path) for path in sorted(found, key=lambda path: (len(path.parts), path))]


def private_loader(binary: Path, root: Path) -> Path | None:
    """The dynamic loader that ``binary`` requests, if ``root`` has one that is not the host's."""
    interpreter = interpreter_of(binary)
    if interpreter is None:
        return None
    for path in (root / interpreter.lstrip("/"), root / "usr" / interpreter.lstrip("/")):
        for _hop in range(8):  # as chroot would: /lib/… in a link means root/lib/…
            if not path.is_symlink():
                break
            target = os.readlink(path)
            path = root / target.lstrip("/") if target.startswith("/") else path.parent / target
        if path.is_file():
            theirs = Path(os.path.realpath(path))
            return None if theirs == Path(os.path.realpath(interpreter)) else theirs
    return None


def interpreter_of(binary: Path) -> str | None:
    """PT_INTERP of a 64-bit little-endian ELF file (ELF-64 Object File Format, 5), or None."""
    try:
        with open(binary, "rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                return None
            (table,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            for index in range(count):
                file.seek(table + index * size)
                entry = file.read(56)
                kind, _flags, offset = struct.unpack_from("<IIQ", entry)
                if kind == 3:
                    (length,) = struct.unpack_from("<Q", entry, 32)
                    file.seek(offset)
                    return file.read(min(length, 4096)).rstrip(b"\0").decode()
    except (OSError, struct.error, UnicodeDecodeError):
        logger.debug("%s: no ELF interpreter", binary, exc_info=True)
    return None
