"""Fixtures that tests of more than one package use."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.image import GuestImage
from vmtests.support.command_line import CommandLine
from vmtests.support.shim_harness import Loop

# No test is timed: a host that is busy is not a failure. Fixtures are for all examples of a test.
_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("untimed", deadline=None, suppress_health_check=_CHECKS)
settings.load_profile("untimed")

_COROUTINE = 600.0  # seconds for a test that is a coroutine


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    words = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters
    }
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**words), _COROUTINE))
    return True


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest image; on a new machine it is built from Debian's mirror."""
    return guest_image.build()


@pytest.fixture(scope="module")
def pool(qemu_build: Build) -> Iterator[QemuPool]:
    """A QEMU of the build under test that is explored again and again."""
    pool = QemuPool(qemu_build)
    yield pool
    pool.close()


@pytest.fixture
def qmpshim(tmp_path: Path, qemu_on_path: None) -> Iterator[CommandLine]:
    """The command line, on the build under test; the test fails when it leaves something behind."""
    # Not below tmp_path: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="cli-") as temporary:
        line = CommandLine(tmp_path, Path(temporary))
        yield line
        assert line.left(patience=30.0) == []


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A running event loop in its own thread."""
    made = Loop()
    yield made
    made.close()
