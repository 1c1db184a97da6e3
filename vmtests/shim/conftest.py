"""Fixtures of a shim, for its clients and for its own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.shim_harness import Process
from vmtests.support.stand_in import SERVE, started


@pytest.fixture
def address(tmp_path: Path, qemu_on_path: None) -> Iterator[Path]:
    """A shim process with a QEMU of its own, at a socket."""
    path = tmp_path / "s"
    with started([*SERVE, f"unix:{path}"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield path
        process.terminate()


@pytest.fixture
def process(qemu_build: Build) -> Iterator[Process]:
    """A QEMU that a shim can stand in front of."""
    made = Process(qemu_build)
    yield made
    made.close()
