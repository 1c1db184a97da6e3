"""What a pair's guests printed and wrote, recorded from real ones, judged with one thing changed.

A pair of machines with CPUs is too slow, and on the system's QEMU too deadly, for the quick tests;
so one machine runs here, and the pair's workload is given its console and its disk.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.guest.program import PROGRAM, random_operations
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.conformance.pair.checker import PairChecker
from qmpshim.conformance.pair.guest_log import BootWorkload
from qmpshim.conformance.pair.linux import LinuxWorkload
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.pair.workload import PairWorkload
from qmpshim.conformance.workload.pattern import data_of
from qmpshim.machine.builds.build import Build
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.guest.boot_sector import BLOCK, BootGuest, console_lines
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Verb
from vmtests.support.guest_rigs import MiB, at_work

SIZE = 8 * MiB
SECTORS = SIZE // 512
DONE = list(random_operations(1, 400, 1, SECTORS))


@dataclass(frozen=True)
class Recording:
    """What a guest printed, and its disk in the end."""

    console: bytes
    disk: bytes

    def with_bytes(self, start: int, data: bytes) -> Recording:
        """The same with other bytes from sector *start* on."""
        at = start * 512
        return Recording(self.console, self.disk[:at] + data + self.disk[at + len(data) :])

    def with_line(self, number: int, change: Callable[[bytes], bytes]) -> Recording:
        """The same with another line about operation *number*."""
        line = re.compile(rb"(?m)^%d .*\n" % number)
        assert len(line.findall(self.console)) == 1
        return Recording(line.sub(lambda found: change(found[0]), self.console), self.disk)


def workload(plan: PairPlan, recorded: Recording, directory: Path) -> Iterator[PairWorkload]:
    """The workload of a pair whose primary left this behind."""
    model = PairModel(bytes(plan.size), plan.cluster, Behaviour())
    pair = Pair(plan.spec, (Build.system(), Build.system()), directory, lambda *_: None)
    pair.primary.console.write_bytes(recorded.console)
    pair.primary.disk.write_bytes(recorded.disk)
    kind = LinuxWorkload if plan.guest == "linux" else BootWorkload
    made = kind(plan, pair, model, PairChecker(model))
    asyncio.run(made.join())
    yield made
    made.close()


def judged(plan: PairPlan, recorded: Recording, directory: Path) -> list[Divergence]:
    """What is found wrong with it."""
    for made in workload(plan, recorded, directory):
        found = [*made.complaints(), *made.acknowledged(made.pair.primary, 0)]
    return list(dict.fromkeys(found))


def seen(found: list[Divergence]) -> set[tuple[Verdict, str]]:
    return {(one.verdict, one.where) for one in found}


# -- Linux -------------------------------------------------------------------------------------

LOST = (Verdict.LOST_WRITE, "acknowledged writes on the disk of the primary")
GUEST = "guest of the primary"


def next_is(kind: Verb) -> int:
    """After how many operations the next one is of a kind."""
    return next(operation.number - 1 for operation in DONE[60:] if operation.verb is kind)


def last(kind: Verb, times: int) -> Operation:
    """The last operation of a kind among the first *times*."""
    return [operation for operation in DONE[:times] if operation.verb is kind][-1]


RECORDED: dict[str, dict[Verb, Recording]] = {}


@pytest.fixture
def linux(image: GuestImage, qemu_build: Build) -> dict[Verb, Recording]:
    """By the kind of the operation that is due next; recorded once for each build."""
    recorded = RECORDED.setdefault(qemu_build.name, {})

    async def run(work: GuestWork) -> None:
        await work.command(Verb.START)
        for kind in (Verb.WRITE, Verb.ZERO):
            work.rig.machine.run(f"{PROGRAM} {work.chain.disk} zero 1 0 {SECTORS}")
            command = f"random 1 {next_is(kind)} 1 0 {SECTORS}"
            output = work.rig.machine.run(f"{PROGRAM} {work.chain.disk} {command}").output
            with closing(work.chain.inspect("guest")) as client:
                recorded[kind] = Recording(output.encode(), bytes(client.read(SIZE, 0)))

    if not recorded:
        with Workspace() as workspace:
            assert at_work(qemu_build, image, workspace, run) is None
    return recorded


PLAN = PairPlan(guest="linux", size=SIZE)


@pytest.mark.parametrize("kind", [Verb.WRITE, Verb.ZERO])
def test_linux_as_it_was(kind: Verb, linux: dict[Verb, Recording], tmp_path: Path) -> None:
    assert judged(PLAN, linux[kind], tmp_path) == []


def test_linux_whose_next_write_is_under_way(linux: dict[Verb, Recording], tmp_path: Path) -> None:
    recorded, due = linux[Verb.WRITE], DONE[next_is(Verb.WRITE)]
    data = bytes(data_of(due.number, due.start, due.count))
    assert len(data) > 512
    for name, done in (("all", data), ("a part", data[:512])):
        directory = tmp_path / name
        directory.mkdir()
        assert judged(PLAN, recorded.with_bytes(due.start, done), directory) == []


def test_linux_whose_next_zeroing_is_under_way(
    linux: dict[Verb, Recording], tmp_path: Path
) -> None:
    due = DONE[next_is(Verb.ZERO)]
    changed = linux[Verb.ZERO].with_bytes(due.start, bytes(due.count * 512))
    assert judged(PLAN, changed, tmp_path) == []


def _all_lost(recorded: Recording) -> Recording:
    return Recording(recorded.console, bytes(SIZE))


def _one_sector_lost(recorded: Recording) -> Recording:
    """A sector of zeroes, of the last write: in no place where the next operation goes to."""
    return recorded.with_bytes(last(Verb.WRITE, next_is(Verb.WRITE)).start, bytes(512))


def _next_elsewhere(recorded: Recording) -> Recording:
    due = DONE[next_is(Verb.WRITE)]
    start = (due.start + SECTORS // 2) % SECTORS
    return recorded.with_bytes(start, bytes(data_of(due.number, start, 1)))


def _write_fails(recorded: Recording) -> Recording:
    number = last(Verb.WRITE, next_is(Verb.WRITE)).number
    return recorded.with_line(number, lambda line: line.replace(b"ok", b"5"))


def _reads_another_place(recorded: Recording) -> Recording:
    """Data of the right operation, but of another sector."""

    def change(line: bytes) -> bytes:
        return re.sub(rb"([ +])([1-9]\d*)x", rb"\1\2@5x", line, count=1)

    wanted = re.compile(rb"(?m)^(\d+) read .*[ +][1-9]\d*x\d+")
    return recorded.with_line(int(wanted.findall(recorded.console)[-1]), change)


def _reads_what_was_lost(recorded: Recording) -> Recording:
    def change(line: bytes) -> bytes:
        head, _, runs = line.rstrip().rpartition(b" ")
        return head + b" " + re.sub(rb"\d+x", b"0x", runs) + b"\n"

    wanted = re.compile(rb"(?m)^(\d+) read .*[ +][1-9]\d*x\d+")
    return recorded.with_line(int(wanted.findall(recorded.console)[-1]), change)


def _leaves_one_out(recorded: Recording) -> Recording:
    return recorded.with_line(9, lambda line: b"")


def _does_another(recorded: Recording) -> Recording:
    number = last(Verb.WRITE, next_is(Verb.WRITE)).number
    return recorded.with_line(number, lambda line: line.replace(b" write ", b" zero "))


def _reports_nonsense(recorded: Recording) -> Recording:
    number = last(Verb.READ, next_is(Verb.WRITE)).number
    return recorded.with_line(number, lambda line: line.rpartition(b" ")[0] + b" hello\n")


@pytest.mark.parametrize(
    ("change", "killed"),
    [
        (_all_lost, LOST),
        (_one_sector_lost, LOST),
        (_next_elsewhere, LOST),
        (_write_fails, (Verdict.ERROR_CONTRACT, GUEST)),
        (_reads_another_place, (Verdict.CONTENT, GUEST)),
        (_reads_what_was_lost, (Verdict.CONTENT, GUEST)),
        (_leaves_one_out, (Verdict.PROTOCOL, GUEST)),
        (_does_another, (Verdict.PROTOCOL, GUEST)),
        (_reports_nonsense, (Verdict.PROTOCOL, GUEST)),
    ],
)
def test_linux_with_one_thing_changed(
    change: Callable[[Recording], Recording],
    killed: tuple[Verdict, str],
    linux: dict[Verb, Recording],
    tmp_path: Path,
) -> None:
    found = judged(PLAN, change(linux[Verb.WRITE]), tmp_path)
    assert killed in seen(found), found


# -- the boot sector ---------------------------------------------------------------------------

SMALL = BootGuest()
BOOT = PairPlan(guest="boot", size=8 * MiB)


def boot(build: Build, directory: Path, disk_words: str = "", damage: bool = False) -> Recording:
    """What a real boot-sector guest printed and wrote.

    :param damage: somebody empties its disk behind its back
    """
    disk, console = directory / "disk.raw", directory / "console"
    disk.write_bytes(SMALL.sector().ljust(BOOT.size, b"\0"))
    words = ["-accel", "tcg", *SMALL.words(console)]
    words += ["-blockdev", f"raw,node-name=file,file.driver=file,file.filename={disk}"]
    words += ["-blockdev", disk_words or "raw,node-name=disk,file=file"]
    words += ["-device", "virtio-blk-pci,drive=disk,werror=report,rerror=report"]

    def printed() -> bytes:
        return console.read_bytes() if console.exists() else b""

    async def run() -> None:
        qemu = Qemu(build.command(), directory, words, "pc", build.env)
        await qemu.start()
        try:
            while len(console_lines(printed())) < 60:
                if damage and len(console_lines(printed())) > 5:
                    with disk.open("r+b") as file:
                        file.seek(SMALL.base * 512)
                        file.write(bytes(SMALL.end - SMALL.base * 512))
                assert qemu.alive()
                await asyncio.sleep(0.01)
            await qemu.execute("stop")
        finally:
            await qemu.close()

    asyncio.run(asyncio.wait_for(run(), 120))
    return Recording(printed(), disk.read_bytes())


def test_boot_as_it_was_and_with_one_block_lost(qemu_build: Build, tmp_path: Path) -> None:
    recorded = boot(qemu_build, tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    assert judged(BOOT, recorded, tmp_path / "a") == []
    assert len(console_lines(recorded.console)) >= 60
    lost = recorded.with_bytes(SMALL.place(30), bytes(BLOCK))
    assert seen(judged(BOOT, lost, tmp_path / "b")) == {LOST}


def test_boot_on_a_disk_that_forgets(qemu_build: Build, tmp_path: Path) -> None:
    recorded = boot(qemu_build, tmp_path, damage=True)
    (tmp_path / "a").mkdir()
    found = judged(BOOT, recorded, tmp_path / "a")
    assert (Verdict.CONTENT, GUEST) in seen(found), found


def test_boot_on_a_disk_that_fails(qemu_build: Build, tmp_path: Path) -> None:
    fails = "blkdebug,node-name=disk,image=file,inject-error.0.event=pwritev"
    recorded = boot(qemu_build, tmp_path, fails + ",inject-error.0.iotype=write")
    (tmp_path / "a").mkdir()
    found = judged(BOOT, recorded, tmp_path / "a")
    assert (Verdict.ERROR_CONTRACT, GUEST) in seen(found), found
