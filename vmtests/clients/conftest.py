"""A libvirtd for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.libvirt import Libvirt, why_not


@pytest.fixture(scope="module")
def libvirt(qemu_build: Build) -> Iterator[Libvirt]:
    """One whose domains' devices are not observed."""
    if why := why_not():
        pytest.skip(why)
    with Libvirt(qemu_build) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def following(qemu_build: Build) -> Iterator[Libvirt]:
    """One whose domains' devices are on write logs."""
    if why := why_not():
        pytest.skip(why)
    with Libvirt(qemu_build, {"QMPSHIM_LOG_WRITES": "1"}) as daemon:
        yield daemon
