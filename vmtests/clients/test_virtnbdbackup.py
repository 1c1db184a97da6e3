"""virtnbdbackup and libvirt on a domain whose emulator is `qmpshim-qemu`.

A backup is right when it is the disks after some number of the writes that were made one after
another, no less than before it began and no more than when it had ended.
"""

from __future__ import annotations

import random
from functools import partial

import pytest

from vmtests.support.backup_client import Disks, Work
from vmtests.support.libvirt import Libvirt


def test_a_full_backup_and_increments_are_the_disk_at_their_moments(libvirt: Libvirt) -> None:
    disks = Disks(libvirt, "vda")
    with libvirt.domain(disks.images) as domain:
        some = partial(disks.some, domain, rng=random.Random(1))
        some(30)
        work = Work(domain, disks, partial(some, 1))
        work.back_up("full")
        work.back_up("inc")
        # From here on the fault: what the next increment is to save is forgotten.
        node = domain.node("vda")
        domain.ask("block-dirty-bitmap-clear", {"node": node, "name": "virtnbdbackup.1"})
        work.back_up("inc")
    for backup, (_, after) in enumerate(work.spans[:2]):
        moments = work.moments(backup)
        assert moments, f"backup {backup} is the disk at no moment"
        assert moments[0] < after, "nothing was written during the backup"
    assert not work.moments(2), "writes that no bitmap names cannot be in an increment"
    everything = len(disks.writes)
    assert disks.moments(disks.images, everything, everything), "the domain's disk is another"


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_two_disks_are_backed_up_at_one_moment(libvirt: Libvirt, seed: int) -> None:
    disks = Disks(libvirt, "vda", "vdb")
    with libvirt.domain(disks.images) as domain:
        some = partial(disks.some, domain, rng=random.Random(seed))
        some(30)
        work = Work(domain, disks, partial(some, 1))
        for level in ("full", "inc", "inc", "diff", "diff"):
            work.back_up(level)
    restored = [work.backups.restore(checkpoint) for checkpoint in range(3)]
    for images, span in zip(restored, work.spans, strict=False):
        assert disks.moments(images, *span), "a backup is the disks at no moment"
    mixed = {"vda": restored[0]["vda"], "vdb": restored[1]["vdb"]}
    assert not disks.moments(mixed, 0, len(disks.writes)), "two moments pass for one"
    last = work.backups.restore()
    assert disks.moments(last, *work.spans[4]), "the differential backup is the disks at no moment"
