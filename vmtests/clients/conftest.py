"""A libvirtd for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.libvirt import Libvirt, why_not


@pytest.fixture(scope="module")
def libvirt(qemu_build: Build) -> Iterator[Libvirt]:
    if why := why_not():
        pytest.skip(why)
    with Libvirt(qemu_build) as daemon:
        yield daemon
