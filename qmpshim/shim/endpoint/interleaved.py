"""QMP messages and a QEMU's printed text in one stream, taken apart in their order.

QEMU prints to its standard output (``qemu-io`` of HMP, help texts), where a user of ``-qmp stdio``
has QMP as well. Only one stream for both keeps the order in which QEMU wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

# A message is a line of its own that ends with CR and LF (QEMU 7.2 monitor/monitor.c,
# monitor_puts_locked); "id" comes first in 5.2's errors.
_BEGINNING = re.compile(rb'\{"(?:return|error|timestamp|event|id|QMP)": ')


class Interleaved:
    """Takes the stream apart; :meth:`feed` gives what is complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bool, bytes]]:
        """Take bytes; give messages (True, without line end) and text (False, as printed)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            at = _message_in(line)
            if at is None:
                yield False, line + b"\n"
                continue
            if at:
                yield False, line[:at]
            yield True, line[at:-1]
        # Text without line end, as of a progress bar, does not wait for it.
        brace = self._rest.find(b"{")
        text = self._rest if brace < 0 else self._rest[:brace]
        self._rest = self._rest[len(text) :]
        if text:
            yield False, text

    def end(self) -> bytes:
        """The text that is left when nothing more comes."""
        rest, self._rest = self._rest, b""
        return rest


def _message_in(line: bytes) -> int | None:
    """Where the message begins that ends with *line*; None: there is none."""
    if not line.endswith(b"}\r"):
        return None
    for found in _BEGINNING.finditer(line):
        try:
            json.loads(line[found.start() : -1])
        except ValueError:
            continue
        return found.start()
    return None
