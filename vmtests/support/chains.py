"""Real chains on which one thing goes wrong; none of it needs a change to QEMU."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.conformance.workload.session import Setup
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.errors import CommandFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.files import Bytes, map_file
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.client import BlockClient, NbdClient
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR

MiB = 1 << 20
_OFFSET = 0x00FF_FFFF_FFFF_FE00

Data = Bytes


class Meddler(NbdClient):
    """A client that does not always do what it is called for.

    :param export: ``primary`` or ``guest``
    """

    def __init__(self, chain: Meddled, export: str) -> None:
        super().__init__(chain.uri(export), chain.qemu.limit, plain=True)
        self.chain = chain
        self.export = export

    def done(self, client: BlockClient, cookie: int) -> int:
        """Wait for a request of another client, and give a cookie of ours that means as much."""
        client.wait(cookie)
        return self.submit_flush()


class Meddled(SecondaryChain):
    """A chain whose clients are meddlers, and whose images are spoiled before each cross-check."""

    meddler = Meddler
    started = False

    def connect(self, export: str) -> NbdClient:
        return self.meddler(self, export)

    async def start(self) -> None:
        await super().start()
        self.started = True

    async def rebuild(self) -> None:
        self.started = False
        await super().rebuild()

    async def settle(self) -> None:
        await super().settle()
        self.spoil()

    def spoil(self) -> None:
        """What happens to the image files behind QEMU's back."""


# -- the images ----------------------------------------------------------------------------------


def data_cluster(path: Path) -> tuple[int, int] | None:
    """(index, host offset) of an image's first cluster with data."""
    clusters = Qcow2Reader.parse(map_file(path)).clusters()
    for index, kind, host in zip(clusters.index, clusters.kind, clusters.host, strict=True):
        if kind == Alloc.DATA:
            return int(index), int(host)
    return None


def word(path: Path, at: int) -> int:
    """The big-endian 64-bit word at byte *at*."""
    with path.open("rb") as file:
        file.seek(at)
        return int(struct.unpack(">Q", file.read(8))[0])


def l2_entry(path: Path, index: int) -> int:
    """Where the L2 entry of cluster *index* is in the file."""
    bits = int.from_bytes(path.read_bytes()[20:24], "big")
    table, slot = divmod(index, (1 << bits) // 8)
    return (word(path, word(path, 40) + 8 * table) & _OFFSET) + 8 * slot


def flip(path: Path, at: int, bits: int, length: int = 1) -> None:
    """Flip *bits* of the big-endian number of *length* bytes at byte *at*."""
    with path.open("r+b") as file:
        file.seek(at)
        value = int.from_bytes(file.read(length), "big") ^ bits
        file.seek(at)
        file.write(value.to_bytes(length, "big"))


class Once(Meddled):
    """Spoils the hidden disk's first cluster with data, once."""

    spoiled = False

    def spoil(self) -> None:
        path = self.image("hidden")
        found = data_cluster(path)
        if found is not None and not self.spoiled:
            self.spoiled = True
            self.spoil_cluster(path, *found)

    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        """Do it to the cluster *index* at *host* bytes of the file."""


class FlippedByte(Once):
    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        flip(path, host + 700, 0xFF)


class ZeroBitInL2(Once):
    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        flip(path, l2_entry(path, index), 1, 8)


class CopiedBitInL2(Once):
    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        flip(path, l2_entry(path, index), 1 << 63, 8)


class OffsetBitInL2(Once):
    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        flip(path, l2_entry(path, index), self.spec.cluster << 4, 8)


class EntryGone(Once):
    """The cluster's mapping is lost and its space with it: a leak, and an allocation missing."""

    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        at = l2_entry(path, index)
        flip(path, at, word(path, at), 8)


class Leak(Once):
    """A refcount for a host cluster that nothing refers to."""

    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        free = -(-path.stat().st_size // self.spec.cluster)
        with path.open("r+b") as file:
            file.truncate((free + 1) * self.spec.cluster)
        block = word(path, word(path, 48)) & ~0x1FF
        flip(path, block + 2 * free, 1, 2)


class CutShort(Once):
    """The file ends where the cluster's data begins, as after a lost write to the host's disk."""

    def spoil_cluster(self, path: Path, index: int, host: int) -> None:
        os.truncate(path, host)


class AroundQemu(Meddled):
    """The primary's data goes straight into the secondary's file."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export != "primary" or not self.chain.started:
                return super().submit_write(data, offset, fua)
            with self.chain.image("secondary").open("r+b") as file:
                file.seek(offset)
                file.write(data)
            return self.submit_flush()


# -- I/O -----------------------------------------------------------------------------------------


class GuestOnPrimary(Meddled):
    """The guest's writes go to the primary's export, once replication runs."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export != "guest" or not self.chain.started:
                return super().submit_write(data, offset, fua)
            other = self.chain.primary
            return self.done(other, other.submit_write(data, offset))


class PrimaryOnGuest(Meddled):
    """The primary's writes go to the guest's export, once replication runs."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export != "primary" or not self.chain.started:
                return super().submit_write(data, offset, fua)
            other = self.chain.guest
            return self.done(other, other.submit_write(data, offset))


class WrongPlace(Meddled):
    """A primary write that does not end with the disk lands one sector too far."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export == "primary" and offset + len(data) < self.chain.spec.size:
                offset += SECTOR
            return super().submit_write(data, offset, fua)


class Dropped(Meddled):
    """Writes of the guest are answered and not done, once replication runs."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export == "guest" and self.chain.started:
                return self.submit_flush()
            return super().submit_write(data, offset, fua)


class Torn(Meddled):
    """Only the first half of a primary write reaches QEMU."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            half = len(data) // SECTOR // 2 * SECTOR
            if self.export == "primary" and half:
                data = memoryview(data)[:half]
            return super().submit_write(data, offset, fua)


class ZeroLost(Meddled):
    """A write of zeroes is answered and not done."""

    class meddler(Meddler):
        def submit_zero(self, length: int, offset: int, no_hole: bool = False) -> int:
            return (
                self.submit_flush()
                if self.export == "primary"
                else super().submit_zero(length, offset, no_hole)
            )


class Stale(Meddled):
    """The guest reads what was there before its own last write, until the next checkpoint."""

    async def checkpoint(self) -> None:
        await super().checkpoint()
        assert isinstance(self.guest, Stale.meddler)
        self.guest.before.clear()

    class meddler(Meddler):
        def __init__(self, chain: Meddled, export: str) -> None:
            super().__init__(chain, export)
            self.before: dict[int, bytearray] = {}
            self.reading: tuple[bytearray | memoryview, int] | None = None

        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export == "guest" and self.chain.started:
                for at in range(offset, offset + len(data), SECTOR):
                    self.before[at] = self.read(SECTOR, at)
            return super().submit_write(data, offset, fua)

        def submit_read(self, buffer: bytearray | memoryview, offset: int) -> int:
            cookie = super().submit_read(buffer, offset)
            self.reading = buffer, offset
            return cookie

        def wait(self, cookie: int) -> None:
            super().wait(cookie)
            if self.reading is not None:
                buffer, offset = self.reading
                self.reading = None
                for at in range(offset, offset + len(buffer), SECTOR):
                    if at in self.before:
                        buffer[at - offset : at - offset + SECTOR] = self.before[at]


class ReadsSecondary(Meddled):
    """The guest's reads are answered from the secondary disk, as if nothing had been copied."""

    class meddler(Meddler):
        def submit_read(self, buffer: bytearray | memoryview, offset: int) -> int:
            if self.export != "guest" or not self.chain.started:
                return super().submit_read(buffer, offset)
            other = self.chain.primary
            return self.done(other, other.submit_read(buffer, offset))


class ErrorsSwallowed(Meddled):
    """Every request is answered with success."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export == "guest" and not self.chain.started:
                return self.chain.primary.submit_flush()
            return super().submit_write(data, offset, fua)

        def wait(self, cookie: int) -> None:
            if self.export == "guest" and not self.chain.started:
                return
            super().wait(cookie)


# -- commands ------------------------------------------------------------------------------------


class StartedLate(Meddled):
    """Backup starts only when the next command comes: the writes before it are not copied."""

    late = False

    async def start(self) -> None:
        await self.catch_up()
        if self.started:
            await super().start()
        self.late = not self.started

    async def catch_up(self) -> None:
        if self.late:
            self.late = False
            await super().start()

    async def settle(self) -> None:
        await self.catch_up()
        await super().settle()

    async def stop(self) -> None:
        await self.catch_up()
        await super().stop()
        self.started = False

    async def rebuild(self) -> None:
        self.late = False
        await super().rebuild()


class NoCheckpoint(Meddled):
    async def checkpoint(self) -> None:
        await self.qemu.execute("query-status")


class NoStop(Meddled):
    async def stop(self) -> None:
        await self.qemu.execute("query-status")


class StopInsteadOfFailover(Meddled):
    """Failover without ``failover: true``, its error ignored."""

    async def failover(self) -> None:
        try:
            await self.qemu.execute("xen-set-replication", {"enable": False, "primary": False})
        except CommandFailed as error:
            if "cancelled unexpectedly" not in error.desc:
                raise


class WrongStatus(Meddled):
    async def status(self) -> str | None:
        await super().status()
        return None


class DiesOnCheckpoint(Meddled):
    async def checkpoint(self) -> None:
        os.kill(self.qemu.pid, signal.SIGSEGV)
        await super().checkpoint()


class DiesWhileBuilding(Meddled):
    async def build_overlays(self) -> None:
        os.kill(self.qemu.pid, signal.SIGSEGV)
        await super().build_overlays()


class DiesOnDiscard(Meddled):
    class meddler(Meddler):
        def submit_discard(self, length: int, offset: int) -> int:
            os.kill(self.chain.qemu.pid, signal.SIGKILL)
            return super().submit_discard(length, offset)


class HangsOnZero(Meddled):
    class meddler(Meddler):
        def submit_zero(self, length: int, offset: int, no_hole: bool = False) -> int:
            os.kill(self.chain.qemu.pid, signal.SIGSTOP)
            return super().submit_zero(length, offset, no_hole)


class HangsOnStop(Meddled):
    async def stop(self) -> None:
        os.kill(self.qemu.pid, signal.SIGSTOP)
        await asyncio.sleep(0)
        await super().stop()


# -- the model -----------------------------------------------------------------------------------


def small_clusters(spec: ChainSpec, behaviour: Behaviour) -> Oracle:
    """A model that takes the images to have clusters half their size."""
    return Oracle(replace(spec, cluster=spec.cluster // 2), behaviour)


# -- the list ------------------------------------------------------------------------------------


def misbehaving(qemu_img: Sequence[str], old: bytes, new: bytes, of: str = "") -> tuple[str, ...]:
    """A ``qemu-img`` that says *new* for *old*, where a word of its command line has *of*."""
    return (
        sys.executable,
        "-c",
        "import subprocess, sys\n"
        f"done = subprocess.run([*{list(qemu_img)!r}, *sys.argv[1:]], capture_output=True)\n"
        f"wrong = any({of!r} in word for word in sys.argv)\n"
        f"out = done.stdout.replace({old!r}, {new!r}) if wrong else done.stdout\n"
        "sys.stdout.buffer.write(out); sys.stderr.buffer.write(done.stderr)\n"
        "sys.exit(done.returncode)",
    )


def data_as_zeroes(qemu_img: Sequence[str]) -> tuple[str, ...]:
    """A ``qemu-img`` whose map calls data zeroes."""
    return misbehaving(qemu_img, b'"zero": false, "data": true', b'"zero": true, "data": false')


def everything(_: Operation) -> bool:
    return True


def without_reads(operation: Operation) -> bool:
    """Leaves it to the cross-checks to notice."""
    return operation.verb is not Verb.READ


def kinds(*wanted: Verb) -> Callable[[Operation], bool]:
    """Only these kinds; for what takes long to show."""
    return lambda operation: operation.verb in wanted


def primary_alone(operation: Operation) -> bool:
    """The guest does nothing."""
    return operation.side is not Side.GUEST


def primary_io(operation: Operation) -> bool:
    """Neither guest nor commands."""
    return operation.side is Side.PRIMARY


def writes_and_checks(operation: Operation) -> bool:
    """Nothing is ever started."""
    return operation.verb in (Verb.WRITE, Verb.ZERO, Verb.CHECK)


def without_checks(operation: Operation) -> bool:
    """Leaves it to the reads to notice."""
    return operation.verb is not Verb.CHECK


@dataclass(frozen=True)
class Mutant:
    """One mutant and what must come of it.

    :ivar verdict: the right one
    :ivar where: where it must be noticed
    :ivar most: operations a minimal case may have
    :ivar of: which operations of the workload are used; decides which check finds it first
    :ivar quick: False when it is much like another one: then only with ``--full``
    """

    name: str
    workflow: Workflow
    verdict: Verdict
    where: str
    most: int
    chain: type[Meddled] = Meddled
    oracle: Callable[[ChainSpec, Behaviour], Oracle] = Oracle
    of: Callable[[Operation], bool] = everything
    secondary: str = "raw"
    tools: Callable[[Sequence[str]], tuple[str, ...]] = tuple
    limit: float = 30.0
    quick: bool = True

    def setup(self, build: Build, size: int = 4 * MiB) -> Setup:
        """How to run it on a build."""
        spec = ChainSpec(self.workflow, size, secondary=self.secondary)
        reference = setup_for(build, spec, limit=self.limit)
        qemu_img = self.tools(reference.qemu_img)
        return replace(reference, qemu_img=qemu_img, chain=self.chain, oracle=self.oracle)

    def __str__(self) -> str:
        return self.name


B, R = Workflow.BACKUP, Workflow.REPLICATION
HIDDEN, SECONDARY = (f"{node} disk (file)" for node in ("hidden", "secondary"))
V = Verdict
MUTANTS = [
    # the images
    Mutant("byte flipped in hidden disk", B, V.CONTENT, HIDDEN, 3, FlippedByte),
    Mutant("zero bit in hidden's L2", R, V.ALLOCATION, HIDDEN, 3, ZeroBitInL2),
    Mutant("copied bit in hidden's L2", B, V.CORRUPTION, HIDDEN, 3, CopiedBitInL2),
    Mutant("offset bit in hidden's L2", R, V.CORRUPTION, HIDDEN, 3, OffsetBitInL2, quick=False),
    Mutant("L2 entry lost", R, V.CORRUPTION, HIDDEN, 3, EntryGone, quick=False),
    Mutant("leaked cluster", B, V.CORRUPTION, HIDDEN, 3, Leak),
    Mutant("hidden disk cut short", B, V.CORRUPTION, HIDDEN, 3, CutShort, quick=False),
    Mutant("tools disagree", B, V.CORRUPTION, "hidden disk (tools)", 3, tools=data_as_zeroes),
    # I/O
    Mutant("written around QEMU, read", B, V.ISOLATION, "guest read", 4, AroundQemu,
           of=without_checks),
    Mutant("written around QEMU", R, V.ALLOCATION, HIDDEN, 2, AroundQemu, of=without_reads,
           quick=False),
    Mutant("guest on primary's export", R, V.ALLOCATION, HIDDEN, 2, GuestOnPrimary,
           of=without_reads),
    Mutant("primary on guest's export", R, V.ALLOCATION, HIDDEN, 2, PrimaryOnGuest,
           of=without_reads, quick=False),
    Mutant("primary a sector too far", B, V.LOST_WRITE, "primary read", 2, WrongPlace,
           of=primary_io, quick=False),
    Mutant("guest's write dropped", R, V.LOST_WRITE, "guest read", 3, Dropped, of=without_checks),
    Mutant("primary's write torn", B, V.LOST_WRITE, SECONDARY, 1, Torn, of=writes_and_checks),
    Mutant("write of zeroes lost", R, V.LOST_WRITE, SECONDARY, 2, ZeroLost, of=writes_and_checks,
           quick=False),
    Mutant("stale read", R, V.LOST_WRITE, "guest read", 4, Stale, of=without_checks),
    Mutant("guest reads secondary", B, V.ISOLATION, "guest read", 4, ReadsSecondary),
    Mutant("I/O error swallowed", R, V.ERROR_CONTRACT, "guest write", 1, ErrorsSwallowed,
           of=writes_and_checks),
    # commands
    Mutant("job started late, read", B, V.ISOLATION, "guest read", 4, StartedLate,
           of=without_checks, quick=False),
    Mutant("job started late", B, V.ALLOCATION, HIDDEN, 2, StartedLate, of=without_reads),
    Mutant("checkpoint not sent", R, V.ALLOCATION, HIDDEN, 3, NoCheckpoint, of=primary_alone),
    Mutant("stop swallowed, disks", B, V.ALLOCATION, HIDDEN, 3, NoStop, of=without_reads,
           quick=False),
    Mutant("stop swallowed", R, V.ERROR_CONTRACT, "stop", 1, NoStop),
    Mutant("stop instead of failover", R, V.ERROR_CONTRACT, "status", 3, StopInsteadOfFailover,
           quick=False),
    Mutant("status wrong", R, V.ERROR_CONTRACT, "status", 1, WrongStatus),
    Mutant("QEMU dies at once", R, V.CRASH, "QEMU, building the chain", 0, DiesWhileBuilding),
    Mutant("QEMU dies on a command", R, V.CRASH, "QEMU", 2, DiesOnCheckpoint),
    Mutant("QEMU dies on I/O", B, V.CRASH, "QEMU", 1, DiesOnDiscard),
    Mutant("QEMU hangs on I/O", B, V.HANG, "QEMU", 1, HangsOnZero, of=kinds(Verb.ZERO), limit=2.0),
    Mutant("QEMU hangs on a command", R, V.HANG, "QEMU", 1, HangsOnStop, of=kinds(Verb.STOP),
           limit=2.0),
    # the model
    Mutant("wrong cluster size in the model", B, V.ALLOCATION, HIDDEN, 2, oracle=small_clusters,
           of=without_reads),
]  # fmt: skip
