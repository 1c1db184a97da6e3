"""Work that a guest does on its own, held against the model afterwards.

A program that chooses its operations by a seed is predicted by making the same choice here; what
is not (``mkfs``, a file system under load) is observed: a ``blklogwrites`` node above the filter
records what the guest wrote, for the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qmpshim.conformance.compare.crosscheck import CrossCheck
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.exchange import (
    answer,
    command,
    submit,
    wrong_data,
    wrong_errno,
    wrong_error,
)
from qmpshim.conformance.guest.program import PROGRAM, random_operations, read_lines
from qmpshim.conformance.guest.rig import GuestRig
from qmpshim.conformance.workload import pattern
from qmpshim.machine.guest.chain import Attachment, GuestChain
from qmpshim.machine.guest.console import RUN_LIMIT
from qmpshim.machine.host.files import Bytes, map_file
from qmpshim.machine.images.write_log import Flag, LogEntry, WriteLog
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR


class GuestDiverged(Exception):
    """The first divergence ends what a guest is at.

    :ivar divergence: what it is
    """

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(str(divergence))
        self.divergence = divergence


class GuestWork:
    """What goes on at a rig beside a session, with every operation numbered and predicted.

    Each method raises :class:`GuestDiverged` when the model predicts otherwise, and HostError
    when that is because the disk under the images is full.
    """

    def __init__(self, rig: GuestRig, qemu_img: Sequence[str] = ("qemu-img",)) -> None:
        self.rig = rig
        self.number = 0  # of the last operation
        self.recorded = pattern.Recorded()
        self._writers: dict[int, str] = {}
        self._check = CrossCheck(rig.chain, rig.oracle, self._writers, qemu_img, self.recorded)
        self._seen: dict[Path, LogEntry] = {}  # the last entry, by write log
        self._source = Path()
        self._begun: list[Operation] = []
        self._others: list[GuestWork] = []
        self._qemu_img = qemu_img

    @property
    def chain(self) -> GuestChain:
        """The chain under the guest."""
        assert isinstance(self.rig.chain, GuestChain)
        return self.rig.chain

    async def check(self) -> None:
        """Cross-check everything; the guest must be at rest."""
        for each in (self, *self._others):
            for found in await each._check.run(each.number):
                raise GuestDiverged(found)

    @property
    def clusters(self) -> int:
        """Clusters' worth of bytes compared so far."""
        return self._check.clusters + sum(other.clusters for other in self._others)

    async def add_disk(self, attachment: Attachment) -> GuestWork:
        """Another disk for the guest, on a chain of its own; commands mean all of them."""
        rig, chain = self.rig, self.chain
        directory = rig.directory / "next"
        directory.mkdir()
        other = type(chain)(
            rig.machine, chain.spec, directory, self._qemu_img, attachment, beside=chain
        )
        await other.build()
        oracle = type(rig.oracle)(chain.spec, rig.oracle.chain.behaviour)
        work = GuestWork(GuestRig(rig.qemu, other, oracle, directory, rig.machine), self._qemu_img)
        self._others.append(work)
        return work

    async def close(self) -> None:
        """Leave nothing running but what the rig closes."""
        await self._check.close()
        for other in self._others:
            await other.close()
            other.chain.close()

    # -- operations ----------------------------------------------------------------------------

    def primary(self, kind: Verb, start: int, data: bytes | int) -> None:
        """The primary writes, zeroes, discards or reads.

        :param start: first sector
        :param data: bytes that are written, or a number of sectors (of the pattern, if written)
        """
        count = data if isinstance(data, int) else len(data) // SECTOR
        operation = self._next(Side.PRIMARY, kind, start, count)
        payload: Bytes = bytearray(count * SECTOR)
        if isinstance(data, bytes):
            payload = data
            self.recorded.add(operation.number, start, data)
        elif kind is Verb.WRITE:
            payload = pattern.data_of(operation.number, start, count)
        client = self.rig.chain.primary
        errno = answer(client, submit(client, operation, payload))
        self._compare(operation, errno, payload)

    def random(
        self,
        seed: int,
        times: int,
        length: int,
        beside: Iterable[tuple[Verb, int, int]] = (),
    ) -> None:
        """The guest's program does *times* operations within the disk's first *length* sectors.

        :param beside: what the primary does meanwhile: kind, first sector, sectors. The promise
            makes the order between the two sides immaterial, so the model may take one after the
            other
        """
        self.begin(seed, times, length)
        for kind, place, count in beside:
            self.primary(kind, place, count)
        self.end()

    def read(self, start: int, count: int) -> None:
        """The guest's program reads *count* sectors from sector *start* on."""
        operation = self._next(Side.GUEST, Verb.READ, start, count)
        command = f"read {operation.number} {start} {count}"
        output = self.rig.machine.run(f"{PROGRAM} {self.chain.disk} {command}", check=False).output
        self._begun = [operation]
        self.check_output(output)

    def begin(self, seed: int, times: int, length: int) -> None:
        """Have the guest's program begin; see :meth:`random`. :meth:`end` waits for it."""
        self.rig.machine.send(self.plan(seed, times, length))

    def end(self) -> None:
        """Wait for what :meth:`begin` began, and judge it."""
        self.check_output(self.rig.machine.finish(RUN_LIMIT, check=False).output)

    def plan(self, seed: int, times: int, length: int) -> str:
        """The command by which the guest does random operations.

        :meth:`check_output` takes what it prints.

        :param length: sectors that it uses, from the disk's first on
        """
        first, self.number = self.number + 1, self.number + times
        self._begun = list(random_operations(seed, times, first, length))
        command = f"random {seed} {times} {first} 0 {length}"
        return f"{PROGRAM} {self.chain.disk} {command}"

    def check_output(self, output: str) -> None:
        """Compare what the guest's program reported of what was planned with the model."""
        begun, self._begun = self._begun, []
        reports = list(read_lines(output))
        for index, operation in enumerate(begun):
            self._writers[operation.number] = operation.side
            if index >= len(reports) or reports[index].operation != operation:
                reported = str(reports[index].operation) if index < len(reports) else "nothing"
                raise self._misreported(str(operation), reported)
            self._compare(operation, reports[index].errno, reports[index].data)
        if len(reports) > len(begun):
            raise self._misreported("nothing more", str(reports[len(begun)].operation))

    def _misreported(self, predicted: str, observed: str) -> GuestDiverged:
        where = "the guest's program"
        return GuestDiverged(Divergence(Verdict.PROTOCOL, where, self.number, predicted, observed))

    async def command(self, kind: Verb) -> None:
        """A command of the chain, which means all of the guest's disks."""
        operation = self._next(Side.CHAIN, kind, 0, 0)
        prediction = self.rig.oracle.predict(operation)
        for other in self._others:
            other.rig.oracle.predict(operation)
        observed = await command(self.chain, kind)
        if kind is Verb.FAILOVER and observed is None:
            for other in self._others:
                await other.chain.until_failed_over()
        if found := wrong_error(operation, prediction, observed):
            raise GuestDiverged(found)

    def _next(self, side: Side, kind: Verb, start: int, count: int) -> Operation:
        self.number += 1
        self._writers[self.number] = side
        return Operation(side, kind, start, count, number=self.number)

    def _compare(self, operation: Operation, errno: int, data: Bytes) -> None:
        prediction = self.rig.oracle.predict(operation)
        if found := wrong_errno(operation, prediction, errno, self.rig.directory):
            raise GuestDiverged(found)
        if operation.verb is not Verb.READ or prediction.owners is None:
            return
        if wrong := pattern.mismatches(data, prediction.owners, operation.start, self.recorded):
            raise GuestDiverged(wrong_data(operation, data, prediction.owners, wrong, self._check))

    # -- observation ---------------------------------------------------------------------------

    def observe(self) -> int:
        """Feed the model with what the guest wrote since the last time; the VM must be held.

        :returns: how many writes there were
        """
        count = 0
        for entry in self._new_entries(self.chain.write_log):
            start, sectors = entry.offset // SECTOR, entry.length // SECTOR
            kind = Verb.DISCARD if entry.flags & Flag.DISCARD else Verb.WRITE
            operation = self._next(Side.GUEST, kind, start, sectors)
            if kind is Verb.WRITE:
                self.recorded.add(operation.number, start, entry.data)
                count += 1
            self.rig.oracle.predict(operation)
        return count

    async def add_source(self, size: int) -> str:
        """A disk of the guest's own, to be sent by :meth:`send_source`; its name in the guest."""
        disk, self._source = await self.chain.add_source(size)
        return disk

    async def send_source(self) -> None:
        """Do as the primary, in the same order, what the guest did to its own disk since then."""
        await self.rig.qemu.execute("stop")
        entries = list(self._new_entries(self._source))
        await self.rig.qemu.execute("cont")
        for entry in entries:
            start = entry.offset // SECTOR
            if entry.flags & Flag.DISCARD:
                self.primary(Verb.DISCARD, start, entry.length // SECTOR)
            else:
                self.primary(Verb.WRITE, start, bytes(entry.data))

    def _new_entries(self, log: Path) -> Iterator[LogEntry]:
        """The writes and discards that were logged since the last time."""
        for entry in WriteLog(map_file(log)).entries(self._seen.get(log), live=True):
            self._seen[log] = entry
            if entry.is_write or entry.flags & Flag.DISCARD:
                yield entry
