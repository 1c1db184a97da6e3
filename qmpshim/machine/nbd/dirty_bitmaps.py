"""Reads dirty bitmaps by NBD: the ``qemu:dirty-bitmap:NAME`` contexts of an export.

docs/interop/nbd.txt: bit 0 of an extent's status gives that it is dirty.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from qmpshim.errors import MachineDied

_DIRTY = 1
_MOST = 1 << 30  # bytes queried about at once


def read_dirty_bitmaps(uri: str, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """The dirty extents of bitmaps: (offset, length) in bytes, by name.

    :param uri: of an export that was made with these ``bitmaps``
    :raises MachineDied: the server does not answer, or does not know one of them
    """
    nbd = importlib.import_module("nbd")
    contexts = {f"qemu:dirty-bitmap:{name}": name for name in names}
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    handle = nbd.NBD()
    try:
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_uri(uri)
        size = handle.get_size()
        for context, name in contexts.items():
            if not handle.can_meta_context(context):
                raise MachineDied(f"the NBD server does not know the context {context}")
            _read(handle, context, size, found[name])
        handle.shutdown()
    except nbd.Error as error:
        raise MachineDied(f"NBD connection to {uri}: {error.string}") from error
    return found


def _read(handle: Any, context: str, size: int, into: list[tuple[int, int]]) -> None:
    at = 0

    def note(name: str, offset: int, entries: list[int], _error: Any) -> int:
        nonlocal at
        if name == context and offset == at:
            for length, status in zip(entries[::2], entries[1::2], strict=True):
                if status & _DIRTY:
                    into.append((at, length))
                at += length
        return 0

    while at < size:
        before = at
        handle.block_status(min(size - at, _MOST), at, note)
        if at == before:
            raise MachineDied(f"the NBD server says nothing of {context} from {at} on")
