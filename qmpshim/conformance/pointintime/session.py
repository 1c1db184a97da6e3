"""One run: operations done on real disks and in the model, answers compared one by one."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qmpshim.conformance.compare.divergence import BROKEN, Divergence
from qmpshim.conformance.pointintime.bitmaps import Bitmaps
from qmpshim.conformance.pointintime.comparisons import Diverged
from qmpshim.conformance.pointintime.jobs import Jobs
from qmpshim.conformance.pointintime.operations import PointKind, PointOperation
from qmpshim.conformance.pointintime.race import race
from qmpshim.conformance.pointintime.sides import PointsResult, PointsSetup, Sides
from qmpshim.conformance.pointintime.snapshots import Snapshots
from qmpshim.conformance.pointintime.targets import compare_image
from qmpshim.conformance.workload import pattern
from qmpshim.conformance.workload.result import MetDefect
from qmpshim.errors import BuildError, CommandFailed, IOFailed, MachineError
from qmpshim.machine.chain.points import MOST_COPIED, PointsSpec, base_name
from qmpshim.machine.chain.record import BaseImage, Began, RequestSent, Restarted
from qmpshim.model.disks.image import Contents, owned
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.sectors import Sectors, sectors
from qmpshim.model.units import SECTOR

#: The owner of the base of disk 0; that of the next is one less.
BASE_OWNER = pattern.MAX_OPERATIONS - 1
_BASE_OF_LARGE = (16 << 20) // SECTOR
_TICK = 0.2  # seconds between two progress reports


def base_of(spec: PointsSpec, disk: int) -> Contents:
    """The contents of a disk's base: data in the first half, except each third cluster.

    Of a large disk it is the first 16 MiB.
    """
    half = spec.size // SECTOR // 2 if spec.size <= MOST_COPIED else _BASE_OF_LARGE
    cluster = max(1, spec.cluster // SECTOR)
    base = Contents()
    for index in range(-(-half // cluster)):
        if index % 3:
            start = index * cluster
            base.write(start, owned(BASE_OWNER - disk, min(cluster, half - start)))
    return base


def bytes_of(contents: Contents, size: int) -> Iterator[tuple[int, memoryview]]:
    """The bytes of a disk of *size* sectors where it was written to, as (offset, bytes)."""
    for start, count in contents.stored(0, size):
        data = pattern.expected(contents.read(start, count), start).data.cast("B")
        yield start * SECTOR, data


class PointsRun:
    """Does operations on real disks and compares every answer with the model's.

    :param progress: called now and then with the result so far and what is being done
    """

    def __init__(
        self,
        setup: PointsSetup,
        directory: Path,
        progress: Callable[[PointsResult, str], None] | None = None,
    ) -> None:
        self.setup, self.directory = setup, directory
        self._progress = progress
        spec = setup.spec
        sectors = spec.size // SECTOR
        bases = [base_of(spec, disk) for disk in range(spec.disks)]
        cluster = max(1, spec.cluster // SECTOR)
        self.model = setup.model([Disk(sectors, cluster, base) for base in bases])
        data = [bytes_of(base, sectors) for base in bases]
        self.qemu = setup.qemu(directory)
        self.chain = setup.chain(self.qemu, spec, directory, setup.qemu_img, data)
        self._sides = sides = Sides(setup, self.chain, self.model)
        self.result = sides.result
        self._bitmaps = Bitmaps(sides)
        self._snapshots = Snapshots(sides, self._bitmaps)
        self._jobs = Jobs(sides, self._bitmaps, self._snapshots)

    async def open(self) -> None:
        """Start QEMU and open the disks.

        :raises BuildError: this QEMU cannot open them
        """
        for disk in range(self.setup.spec.disks):
            file = self.chain.image(base_name(disk)).name
            self.chain.steps.append(BaseImage(file, BASE_OWNER - disk))
        self.chain.create()
        await self.qemu.start()
        try:
            await self.chain.open()
        except CommandFailed as error:
            raise BuildError(f"{self.setup.command[0]} cannot open the disks: {error}") from error

    async def close(self) -> None:
        """Disconnect, end QEMU, remove the images."""
        self.chain.disconnect()
        await self.qemu.close()

    async def run(self, operations: Iterable[PointOperation]) -> PointsResult:
        """Do *operations* until the first divergence or the end."""
        began = time.monotonic()
        tick = began + _TICK
        last: PointOperation | None = None
        try:
            for operation in operations:
                last = operation
                self.result.operations[operation.name] += 1
                self.chain.steps.append(Began(operation.number))
                await self._do(operation)
                if (now := time.monotonic()) > tick:
                    tick = now + _TICK
                    self.result.seconds = now - began
                    if self._progress is not None:
                        self._progress(self.result, str(operation))
                    await asyncio.sleep(0)
            await self._check(whole=True)
        except Diverged as found:
            number = last.number if last else 0
            self.result.divergence = divergence = found.at(number)
            if found.defect is not None:
                self.result.met.append(MetDefect(found.defect, divergence.where, number))
        except (*BROKEN, CommandFailed, IOFailed) as error:
            self.result.divergence = await self._broken(last, error)
        self.result.seconds = time.monotonic() - began
        return self.result

    async def _broken(self, operation: PointOperation | None, error: MachineError) -> Divergence:
        number, where = (operation.number, operation.name) if operation else (0, "the end")
        error = await self.qemu.root_error(error, where)
        return Divergence.of_error(error, where, number, "success")

    async def _do(self, operation: PointOperation) -> None:
        match operation.kind:
            case PointKind.WRITE | PointKind.ZERO | PointKind.DISCARD | PointKind.FLUSH:
                await self._change(operation)
            case PointKind.READ:
                self._sides.read_disk(operation.disk, sectors(operation.start, operation.count))
            case PointKind.BITMAP | PointKind.BACKUP | PointKind.TRANSACTION:
                await self._jobs.transact(operation)
            case PointKind.JOB:
                await self._jobs.command(operation)
            case PointKind.RACE:
                await race(self._jobs, operation)
            case PointKind.FINISH:
                await self._jobs.finish(operation.disk)
            case PointKind.SNAPSHOT_READ:
                self._snapshots.read(operation.disk, sectors(operation.start, operation.count))
            case PointKind.SNAPSHOT_MAP:
                self._snapshots.read_bitmaps(operation.disk)
            case PointKind.CHECK:
                await self._check()
            case PointKind.RESTART:
                await self._restart(kill=False)
            case PointKind.KILL:
                await self._restart(kill=True)

    # -- requests ----------------------------------------------------------------------------

    async def _change(self, operation: PointOperation) -> None:
        disk, client = self.model.disks[operation.disk], self.chain.clients[operation.disk]
        start, count, number = operation.start, operation.count, operation.number
        offset, length = start * SECTOR, count * SECTOR
        self._sides.rotation.touch(operation.disk, start, count)
        verb = Verb(operation.kind.value)
        self.chain.steps.append(RequestSent(f"disk{operation.disk}", verb, start, count, number))
        match operation.kind:
            case PointKind.WRITE:
                client.write(pattern.data_of(number, start, count), offset)
                disk.write(start, count, number)
            case PointKind.ZERO:
                client.zero(length, offset)
                disk.zero(start, count, -number)
            case PointKind.FLUSH:
                client.flush()
            case _:
                client.discard(length, offset)
                # A job's filter swallows it; whether the filter was there is seen by a read.
                done = self.model.active(operation.disk) is None or not self._as_before(operation)
                disk.discard(start, count, -number, done)
                self._sides.read_disk(operation.disk, sectors(start, count))

    def _as_before(self, operation: PointOperation) -> bool:
        disk = self.model.disks[operation.disk]
        first, count = disk.discarded(operation.start, operation.count)
        if not count:
            return True
        found = self.chain.clients[operation.disk].read(count * SECTOR, first * SECTOR)
        return not pattern.mismatches(found, disk.now.read(first, count), first)

    # -- everything --------------------------------------------------------------------------

    async def _check(self, whole: bool = False) -> None:
        """Compare states and bits, and of disks and snapshots what is due, or all of it."""
        self.result.checks += 1
        rotation, disks = self._sides.rotation, range(len(self.model.disks))

        def part(export: str, disk: int) -> Sectors:
            return rotation.whole if whole else rotation.due(export, disk)

        for number in disks:
            self._sides.read_disk(number, part(f"disk{number}", number))
        listed = await self.chain.bitmaps()
        await self._jobs.poll(answered=True)
        for number in range(len(listed)):
            self._bitmaps.compare_states(number, listed[number])
        for number in disks:
            await self._bitmaps.read(number)
            self._snapshots.read_bitmaps(number)
            self._snapshots.read(number, part(f"snapshot{number}", number))
        rotation.checked()

    async def _restart(self, kill: bool) -> None:
        """End QEMU and start another on the same images, which are compared in between."""
        await self._jobs.poll()
        if kill:
            for number, client in enumerate(self.chain.clients):
                self.chain.steps.append(RequestSent(f"disk{number}", Verb.FLUSH))
                client.flush()
            self.qemu.kill()
        self.chain.steps.append(Restarted(kill))
        self.chain.disconnect()
        await self.qemu.close()
        self._jobs.forget()
        self._snapshots.exported.clear()
        for number, disk in enumerate(self.model.disks):
            compare_image(self.chain, number, disk, self._sides.comparers[f"disk{number}"])
        if kill:
            self.model.kill()
        else:
            self.model.restart()
        self.qemu = self.chain.qemu = self.setup.qemu(self.directory)
        await self.qemu.start()
        await self.chain.open()


async def run_points(
    setup: PointsSetup,
    operations: Iterable[PointOperation],
    directory: Path,
    progress: Callable[[PointsResult, str], None] | None = None,
    at_end: Callable[[PointsRun | None, PointsResult], None] | None = None,
) -> PointsResult:
    """Run *operations* on fresh disks in *directory* and finish with a full comparison.

    :param at_end: called before the disks are removed
    """
    run = PointsRun(setup, directory, progress)
    try:
        await run.open()
        result = await run.run(operations)
        if at_end is not None:
            at_end(run, result)
        return result
    finally:
        await run.close()
        shutil.rmtree(directory, ignore_errors=True)
