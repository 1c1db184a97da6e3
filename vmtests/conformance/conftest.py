"""Fixtures of the conformance tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine

from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.machine.builds.build import Build


@pytest.fixture(scope="module")
def stage(qemu_build: Build) -> Iterator[QemuPool]:
    """A QEMU of the build under test that is explored again and again."""
    stage = QemuPool(qemu_build)
    yield stage
    stage.close()


@pytest.fixture
def qmpshim(tmp_path: Path, qemu_on_path: None) -> Iterator[CommandLine]:
    """The command line, on the build under test; the test fails when it leaves something behind."""
    # Not below tmp_path: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="cli-") as temporary:
        line = CommandLine(tmp_path, Path(temporary))
        yield line
        assert line.left(patience=30.0) == []
