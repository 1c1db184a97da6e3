"""The shim follows what libvirt does for a backup, and judges it while it runs.

`$QMPSHIM_LOG_WRITES` has it see what the domain's devices write.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.backup_client import BackupSet, Disks, KiB
from vmtests.support.libvirt import Domain, Libvirt, why_not

#: What no other write writes: found again in an image's file.
_MARK, _PLACE, _LENGTH = 0xA5, 8 << 20, 64 * KiB


@pytest.fixture(scope="module")
def libvirt(qemu_build: Build) -> Iterator[Libvirt]:
    if why := why_not():
        pytest.skip(why)
    with Libvirt(qemu_build, {"QMPSHIM_LOG_WRITES": "1"}) as daemon:
        yield daemon


def _chains(domain: Domain) -> dict[str, tuple[str, str]]:
    """Of each chain that is followed the job, and what is said of its two disks: their nodes."""
    status = domain.ask("x-shim-status")
    assert status["unobserved"] == []
    assert status["doubts"] == []
    nodes = [{one["disk"]: one["node"] for one in c["nodes"]} for c in status["chains"]]
    return {
        chain["job"]: (disks["secondary"], disks["hidden"])
        for chain, disks in zip(status["chains"], nodes, strict=True)
    }


def _verdicts(domain: Domain) -> list[tuple[str, str]]:
    """What is wrong, and where; nothing may be left open."""
    verified: dict[str, Any] = domain.ask("x-shim-verify")
    assert verified["doubts"] == []
    assert verified["compared"]
    wrong = [(one["verdict"], one["where"]) for one in verified["verdicts"]]
    assert verified["as-predicted"] is not bool(wrong)
    return sorted(wrong)


class _Flipped:
    """Wrong bytes in an image's file, behind QEMU's back, while the context lasts."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._at = image.read_bytes().index(bytes([_MARK]) * _LENGTH)

    def _put(self, byte: int) -> None:
        with self._image.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([byte]), self._at)

    def __enter__(self) -> None:
        self._put(_MARK ^ 0xFF)

    def __exit__(self, *_: object) -> None:
        self._put(_MARK)


def test_a_backup_of_two_disks_is_followed_and_judged(libvirt: Libvirt) -> None:
    rng, disks, backups = random.Random(1), Disks(libvirt, "vda", "vdb"), BackupSet(libvirt)
    with libvirt.domain(disks.images) as domain:
        disks.some(domain, 30, rng)
        disks.write(domain, "vda", _PLACE, _LENGTH, _MARK)
        backups.begin("full")
        disks.some(domain, 30, rng)
        wanted = {
            f"backup-{target}-{domain.node(target)}": domain.node(target) for target in disks.images
        }
        assert {job: nodes[0] for job, nodes in _chains(domain).items()} == wanted
        assert _verdicts(domain) == []
        # The fault: new data came to the disk, and nothing was copied before.
        with _Flipped(disks.images["vda"]):
            wrong = [("content", "secondary disk"), ("isolation", "hidden disk")]
            assert _verdicts(domain) == wrong
        assert _verdicts(domain) == []
        # The fault: what was copied is not what the disk held.
        disks.write(domain, "vda", _PLACE, _LENGTH, 0)
        with _Flipped(backups.scratch("vda")):
            assert _verdicts(domain) == [("isolation", "hidden disk")]
        assert _verdicts(domain) == []
        backups.end()
        assert _chains(domain) == {}
