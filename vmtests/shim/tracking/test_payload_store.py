"""What was written is kept whole, or it is reported that there is no space."""

from __future__ import annotations

import resource
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.errors import HostError
from qmpshim.shim.tracking.payload_store import PayloadStore

ROOM = 10_000  # bytes a file may have, no whole number of sectors


@pytest.fixture
def little_room() -> Iterator[None]:
    """Writes end in the middle, as on a disk that gets full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_gets_full(tmp_path: Path, little_room: None) -> None:
    store = PayloadStore(tmp_path)
    first = store.note(0, b"a" * 8192)
    with pytest.raises(HostError, match="no room to keep what was written"):
        store.note(16, b"b" * 8192)
    assert store.data(array("q", [first] * 16), 0) == b"a" * 8192
    store.close()
