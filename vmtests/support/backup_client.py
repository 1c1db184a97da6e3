"""virtnbdbackup on a domain, and what its disks held at each moment."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmtests.support.libvirt import NAME, Domain, Libvirt
from vmtests.support.waiting import wait_until

KiB, MiB = 1 << 10, 1 << 20
SIZE = 16 * MiB
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Write:
    """One write: where it begins, in bytes."""

    target: str
    offset: int
    data: bytes


class Disks:
    """New disks for a domain, and all that was written to them.

    :param targets: their names, as ``vda``
    """

    def __init__(self, libvirt: Libvirt, *targets: str) -> None:
        place = libvirt.place()
        self.images = {target: place / f"{target}.qcow2" for target in targets}
        for image in self.images.values():
            libvirt.run("qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE))
        self.writes: list[Write] = []

    def write(self, domain: Domain, target: str, offset: int, length: int, byte: int) -> None:
        """Write as the domain's device does: *length* times *byte*; zeroes as zeroes."""
        number = list(self.images).index(target)
        what = f"-P {byte}" if byte else "-z"
        line = (
            f"qemu-io -d /machine/peripheral/virtio-disk{number}/virtio-backend "
            f'"write {what} {offset} {length}"'
        )
        domain.ask("human-monitor-command", {"command-line": line})
        self.writes.append(Write(target, offset, bytes([byte]) * length))

    def some(self, domain: Domain, count: int, rng: random.Random) -> None:
        """Do *count* random writes."""
        for _ in range(count):
            offset = rng.randrange(SIZE // _SECTOR) * _SECTOR
            length = min(rng.randrange(1, 256) * _SECTOR, SIZE - offset)
            byte = rng.choice((0, rng.randrange(1, 256), rng.randrange(1, 256)))
            self.write(domain, rng.choice(list(self.images)), offset, length, byte)

    def moments(self, restored: Mapping[str, Path], first: int, last: int) -> list[int]:
        """After how many of the writes the disks held what is in *restored*.

        :param first: look no earlier
        :param last: nor later
        """
        found = set(range(first, last + 1))
        for target, image in restored.items():
            wanted = read(image)
            now = bytearray(SIZE)
            for number, write in enumerate([*self.writes, None]):
                if number in found and now != wanted:
                    found.remove(number)
                if write is not None and write.target == target:
                    now[write.offset : write.offset + len(write.data)] = write.data
        return sorted(found)


@contextlib.contextmanager
def repeated(work: Callable[[], None]) -> Iterator[None]:
    """Do something again and again in a thread, while the context lasts."""
    over = threading.Event()
    failed: list[BaseException] = []

    def go_on() -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failed, failed


def read(image: Path) -> bytes:
    """What a disk reads as."""
    raw = image.with_suffix(".raw")
    convert = ["qemu-img", "convert", "-O", "raw", str(image), str(raw)]
    subprocess.run(convert, check=True, timeout=60)
    content = raw.read_bytes()
    raw.unlink()
    return content


class BackupSet:
    """A directory of virtnbdbackup's: a full backup and those that rest on it."""

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt
        self._place = libvirt.place()
        self.directory = self._place / "backup"

    def add(self, level: str) -> None:
        """Back the domain up.

        :param level: ``full``, ``inc`` or ``diff``
        """
        self._run("-l", level)

    def begin(self, level: str) -> None:
        """Begin a backup as :meth:`add` does, and save nothing."""
        self._run("-l", level, "--startonly")

    def end(self) -> None:
        """End the backup that was begun.

        libvirt only cancels its jobs before it answers; here it has let go of their nodes as well.
        """
        self._run("--killonly")
        wait_until(lambda: "None" in self._libvirt.run("virsh", "domjobinfo", NAME))

    def scratch(self, target: str) -> Path:
        """The overlay that takes the old data of a disk, while it is backed up."""
        (found,) = self._place.glob(f"backup.*.{target}")
        return found

    def _run(self, *words: str) -> None:
        self._libvirt.run(
            *("virtnbdbackup", "-U", "qemu:///session", "-d", NAME, "-n", *words),
            *("-o", self.directory, "-S", self._place, "-f", self._place / "backup.sock"),
        )

    def restore(self, checkpoint: int | None = None) -> dict[str, Path]:
        """Restore the disks; their images by target.

        :param checkpoint: up to which, from 0 on; None: all that was backed up
        """
        into = self._place / f"restored-{checkpoint}"
        until = () if checkpoint is None else ("-u", f"virtnbdbackup.{checkpoint}")
        self._libvirt.run(
            *("virtnbdrestore", "-i", self.directory, "-o", into, "-n", *until),
            *("-f", self._place / "restore.sock"),
        )
        return {image.stem: image for image in into.glob("*.qcow2")}


class Work:
    """Backups of a domain's disks while they are written.

    :param write: does one or more writes, and adds them to those of the disks
    :ivar spans: of each backup, the number of writes before it began and when it had ended
    """

    def __init__(self, domain: Domain, disks: Disks, write: Callable[[], None]) -> None:
        self.disks = disks
        self.backups = BackupSet(domain.libvirt)
        self.spans: list[tuple[int, int]] = []
        self._write = write

    def back_up(self, level: str) -> None:
        """Back up while it is written."""
        before = len(self.disks.writes)
        with repeated(self._write):
            self.backups.add(level)
        self.spans.append((before, len(self.disks.writes)))

    def moments(self, backup: int) -> list[int]:
        """The moments of which a backup is that made a checkpoint of its own."""
        return self.disks.moments(self.backups.restore(backup), *self.spans[backup])
