"""A libvirtd for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.libvirt import Libvirt, why_not


@pytest.fixture(scope="module")
def able(qemu_build: Build) -> None:
    """Skips where there is no libvirt, or none that backs up with this build."""
    if why := why_not():
        pytest.skip(why)
    # libvirt makes checkpoints since QEMU has blockdev-reopen (6.1); a device that is there already
    # is put on a write log since 6.2.
    if read_version(qemu_build)[0] < (6, 2):
        pytest.skip("libvirt makes no incremental backups with this QEMU")


@pytest.fixture(scope="module")
def libvirt(qemu_build: Build, able: None) -> Iterator[Libvirt]:
    """One whose domains' devices are not observed."""
    with Libvirt(qemu_build) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def following(qemu_build: Build, able: None) -> Iterator[Libvirt]:
    """One whose domains' devices are on write logs."""
    with Libvirt(qemu_build, {"QMPSHIM_LOG_WRITES": "1"}) as daemon:
        yield daemon
