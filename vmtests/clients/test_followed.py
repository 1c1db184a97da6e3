"""The shim follows what libvirt does for a backup, and judges it while it runs.

`$QMPSHIM_LOG_WRITES` has it see what the domain's devices write.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from vmtests.support.backup_client import BackupSet, Disks, KiB
from vmtests.support.libvirt import Libvirt
from vmtests.support.tracked_backups import chains, verdicts, verdicts_and_bitmaps

#: What no other write writes: found again in an image's file.
_MARK, _PLACE, _LENGTH = 0xA5, 8 << 20, 64 * KiB


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


def test_a_backup_of_two_disks_is_followed_and_judged(following: Libvirt) -> None:
    rng, disks, backups = random.Random(1), Disks(following, "vda", "vdb"), BackupSet(following)
    with following.domain(disks.images) as domain:
        disks.some(domain, 30, rng)
        disks.write(domain, "vda", _PLACE, _LENGTH, _MARK)
        backups.begin("full")
        disks.some(domain, 30, rng)
        wanted = {
            f"backup-{target}-{domain.node(target)}": domain.node(target) for target in disks.images
        }
        assert {job: nodes[0] for job, nodes in chains(domain).items()} == wanted
        assert verdicts(domain) == []
        # The fault: new data came to the disk, and nothing was copied before.
        with _Flipped(disks.images["vda"]):
            wrong = [("content", "secondary disk"), ("isolation", "hidden disk")]
            assert verdicts(domain) == wrong
        assert verdicts(domain) == []
        # The fault: what was copied is not what the disk held.
        disks.write(domain, "vda", _PLACE, _LENGTH, 0)
        with _Flipped(backups.scratch("vda")):
            assert verdicts(domain) == [("isolation", "hidden disk")]
        assert verdicts(domain) == []
        backups.end()
        assert chains(domain) == {}


def test_what_an_increment_is_to_save_is_followed_and_judged(following: Libvirt) -> None:
    rng, disks, backups = random.Random(2), Disks(following, "vda", "vdb"), BackupSet(following)
    both = ["backup-vda", "backup-vdb"]
    with following.domain(disks.images) as domain:
        disks.some(domain, 30, rng)
        backups.begin("full")
        disks.some(domain, 30, rng)
        assert verdicts_and_bitmaps(domain) == ([], [])
        backups.end()
        disks.some(domain, 30, rng)
        backups.begin("inc")
        disks.some(domain, 30, rng)
        assert verdicts_and_bitmaps(domain) == ([], both)
        backups.end()
        # The fault: what was written is no longer named.
        disks.some(domain, 30, rng)
        bitmap = {"node": domain.node("vda"), "name": "virtnbdbackup.1"}
        domain.ask_behind("block-dirty-bitmap-clear", bitmap)
        backups.begin("inc")
        (wrong,), compared = verdicts_and_bitmaps(domain)
        assert wrong[0] == "lost-write"
        assert "backup-vda" in wrong[1]
        assert compared == both
        backups.end()


@pytest.mark.full
def test_a_device_that_is_not_observed_is_named_and_nothing_is_claimed(libvirt: Libvirt) -> None:
    rng, disks, backups = random.Random(3), Disks(libvirt, "vda"), BackupSet(libvirt)
    with libvirt.domain(disks.images) as domain:
        disks.some(domain, 10, rng)
        backups.begin("full")
        disks.some(domain, 10, rng)
        status = domain.ask("x-shim-status")
        assert [chain["job"][:10] for chain in status["chains"]] == ["backup-vda"]
        assert "device" in {one["writer"] for one in status["unobserved"]}
        verified = domain.ask("x-shim-verify")
        assert verified["verdicts"] == []
        assert verified["doubts"]
        assert not verified["as-predicted"]
        backups.end()
