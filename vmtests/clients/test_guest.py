"""Backups of a domain with the project's guest, which writes meanwhile."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from qmpshim.conformance.workload.pattern import data_of
from qmpshim.machine.guest.console import Console
from qmpshim.machine.guest.image import GuestImage
from vmtests.support.backup_client import SIZE, BackupSet, Disks, Work, Write, repeated
from vmtests.support.libvirt import NAME, Domain, Libvirt
from vmtests.support.tracked_backups import chains, verdicts_and_bitmaps

pytestmark = pytest.mark.full
_SECTOR, _CLUSTER = 512, 128  # bytes; sectors


class Program:
    """The guest's own program, at work on a disk.

    :param disks: gets what it writes
    """

    def __init__(self, console: Console, disks: Disks) -> None:
        self._console = console
        self._disks = disks
        self._rng = random.Random(1)
        self._next = 1  # operation

    def some(self) -> None:
        """Random operations."""
        self._run(f"random {self._next} 40 {self._next} 0 {SIZE // _SECTOR}", 40)

    def discard(self) -> None:
        """Discard whole clusters. While a backup runs its filter would ignore that."""
        for _ in range(10):
            start = self._rng.randrange(SIZE // _SECTOR // _CLUSTER - 4) * _CLUSTER
            count = self._rng.randrange(1, 4) * _CLUSTER
            self._run(f"discard {self._next} {start} {count}", 1)

    def _run(self, what: str, operations: int) -> None:
        self._next += operations
        for line in self._console.run(f"workload /dev/vda {what}").output.splitlines():
            self._note(*line.split())

    def _note(self, operation: str, kind: str, start: str, count: str, answer: str) -> None:
        if kind in ("read", "flush"):
            return
        assert answer == "ok"
        at, length = int(start), int(count)
        data = (
            bytes(data_of(int(operation), at, length))
            if kind == "write"
            else bytes(length * _SECTOR)
        )
        self._disks.writes.append(Write("vda", at * _SECTOR, data))


def _judged(domain: Domain, backups: BackupSet) -> None:
    """Begin a backup of a guest that writes, and have the shim judge it at two moments."""
    backups.begin("diff")  # which makes no checkpoint for others to rest on
    for _ in range(2):
        domain.libvirt.run("virsh", "suspend", NAME)
        assert len(chains(domain)) == 1
        assert verdicts_and_bitmaps(domain) == ([], ["backup-vda"])
        domain.libvirt.run("virsh", "resume", NAME)
    backups.end()


def test_the_guests_own_program_writes(following: Libvirt, image: GuestImage) -> None:
    disks = Disks(following, "vda")
    with following.domain(disks.images, image) as domain:
        program = Program(domain.console(), disks)
        program.some()
        work = Work(domain, disks, program.some)
        work.back_up("full")
        program.discard()
        work.back_up("inc")
        with repeated(program.some):
            _judged(domain, work.backups)
        work.back_up("diff")
    for backup, (_, after) in enumerate(work.spans[:2]):
        moments = work.moments(backup)
        assert moments, f"backup {backup} is the disk at no moment"
        assert moments[0] < after, "nothing was written during the backup"
    assert disks.moments(work.backups.restore(), *work.spans[2])


class Files:
    """Files of an ext4, one made after another, each with its number as its content.

    :ivar count: of those that are on the disk
    """

    def __init__(self, console: Console) -> None:
        console.run("/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt")
        self._console = console
        self.count = 0

    def add(self) -> None:
        """Make one more."""
        number = self.count + 1
        self._console.run(f"yes {number} | head -c 50000 >/mnt/{number}; sync")
        self.count = number


def _files_of(image: Path) -> int:
    """How many files an ext4 has; a first number of them has to be complete.

    It was in use when it was backed up: its journal is replayed before it has to be clean.
    """
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    subprocess.run(["/sbin/e2fsck", "-p", raw], check=True, capture_output=True)
    subprocess.run(["/sbin/e2fsck", "-f", "-n", raw], check=True, capture_output=True)

    def content(number: int) -> bytes:
        words = ["/sbin/debugfs", "-R", f"cat {number}", str(raw)]
        return subprocess.run(words, check=True, capture_output=True).stdout

    number = 0
    while content(number + 1) == (f"{number + 1}\n".encode() * 50000)[:50000]:
        number += 1
    assert not content(number + 2), "a file without the one that was made before it"
    return number


def test_an_ext4_holds_the_files_of_its_moment(following: Libvirt, image: GuestImage) -> None:
    disks, backups = Disks(following, "vda"), BackupSet(following)
    with following.domain(disks.images, image) as domain:
        files = Files(domain.console())
        for _ in range(5):
            files.add()
        spans = []
        for level in ("full", "inc"):
            before = files.count
            with repeated(files.add):
                backups.add(level)
            spans.append((before, files.count))
        with repeated(files.add):
            _judged(domain, backups)
    for backup, (before, after) in enumerate(spans):
        assert before <= _files_of(backups.restore(backup)["vda"]) < after
