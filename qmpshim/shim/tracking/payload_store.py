"""What bytes each observed write wrote: turns the model's owners back into data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qmpshim.errors import HostError, os_errors
from qmpshim.machine.host.files import Bytes
from qmpshim.model.disks.image import Owners
from qmpshim.model.units import SECTOR, runs_of


class PayloadStore:
    """Data by operation number, kept in an unlinked file.

    :param directory: where the file goes
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (it lives as long as us)
        self._end = 0
        self._entries: dict[int, tuple[int, int]] = {}  # operation: first sector, file offset
        self.operations = 0

    def count(self) -> int:
        """Number an operation that wrote nothing."""
        self.operations += 1
        return self.operations

    def note(self, start: int, data: Bytes | None) -> int:
        """Enter a write to sector *start*, or of zeroes (None); gives its operation number.

        :raises HostError: no space for the data
        """
        number = self.count()
        if data is not None:
            with os_errors(HostError, "no room to keep what was written"):
                done = 0
                while done < len(data):  # where space runs out a part of it is written
                    done += os.pwrite(self._file.fileno(), data[done:], self._end + done)
            self._entries[number] = (start, self._end)
            self._end += len(data)
        return number

    def data(self, owners: Owners, start: int) -> bytes:
        """The bytes of the sectors from *start* on that have these *owners*."""
        pieces = []
        for at, end, owner in runs_of(owners, start):
            length = (end - at) * SECTOR
            if owner <= 0:
                pieces.append(bytes(length))
            else:
                first, offset = self._entries[owner]
                place = offset + (at - first) * SECTOR
                pieces.append(os.pread(self._file.fileno(), length, place))
        return b"".join(pieces)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()
