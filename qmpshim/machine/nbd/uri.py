"""The NBD URI of an export (NBD project, doc/uri.md): any name, any path."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def nbd_uri(export: str, socket: Path | str) -> str:
    """``nbd+unix:///EXPORT?socket=PATH``, as libnbd, qemu-img and nbdinfo take it.

    :param socket: path of the UNIX socket
    """
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(os.fsencode(socket))}"
