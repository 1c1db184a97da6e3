"""Work that a guest does on its own, held against the model afterwards.

A program that chooses its operations by a seed is predicted by making the same choice here; what
nobody chose (``mkfs``, a file system under load) is observed: a ``blklogwrites`` node above the
filter tells what the guest wrote, and the model is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qmpshim.conformance import pattern
from qmpshim.conformance.crosscheck import CrossCheck
from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.guest_disk import PROGRAM, random_operations, read_lines
from qmpshim.conformance.guest_rig import GuestRig
from qmpshim.conformance.workload import Kind, Operation, Side
from qmpshim.errors import CommandFailed, IOFailed
from qmpshim.machine.blklog import BlkLog, Entry, Flag
from qmpshim.machine.files import map_file
from qmpshim.machine.guest import RUN_LIMIT
from qmpshim.machine.guest_chain import Attachment, GuestChain
from qmpshim.machine.secondary import SECTOR
from qmpshim.model.verdict import Verdict


class GuestWork:
    """What goes on at a rig beside a session, with every operation numbered and predicted.

    Methods give the first divergence, or None.
    """

    def __init__(self, rig: GuestRig, qemu_img: Sequence[str] = ("qemu-img",)) -> None:
        self.rig = rig
        self.number = 0  # of the last operation
        self.recorded = pattern.Recorded()
        self._writers: dict[int, str] = {}
        self._check = CrossCheck(rig.chain, rig.oracle, self._writers, qemu_img, self.recorded)
        self._seen: dict[Path, Entry] = {}  # the last entry, by write log
        self._source = Path()
        self._begun: list[Operation] = []
        self._others: list[GuestWork] = []
        self._qemu_img = qemu_img

    @property
    def chain(self) -> GuestChain:
        """The chain under the guest."""
        assert isinstance(self.rig.chain, GuestChain)
        return self.rig.chain

    async def check(self) -> Divergence | None:
        """Cross-check everything; the guest must be at rest."""
        found = await self._check.run(self.number)
        for other in self._others:
            found = found or await other._check.run(other.number)
        return found[0] if found else None

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

    def primary(self, kind: Kind, start: int, data: bytes | int) -> Divergence | None:
        """The primary writes, zeroes, discards or reads.

        :param data: bytes that are written, or a number of sectors (of the pattern, if written)
        """
        count = data if isinstance(data, int) else len(data) // SECTOR
        operation = self._next(Side.PRIMARY, kind, start, count)
        client, offset = self.rig.chain.primary, start * SECTOR
        buffer = bytearray(count * SECTOR)
        if kind is Kind.WRITE:
            if isinstance(data, int):
                payload: bytes | memoryview = pattern.data_of(operation.number, start, count)
            else:
                payload = data
                self.recorded.add(operation.number, start, data)
            cookie = client.submit_write(payload, offset)
        elif kind is Kind.ZERO:
            cookie = client.submit_zero(len(buffer), offset)
        elif kind is Kind.DISCARD:
            cookie = client.submit_discard(len(buffer), offset)
        else:
            cookie = client.submit_read(buffer, offset)
        errno = 0
        try:
            client.wait(cookie)
        except IOFailed as error:
            errno = error.errno
        return self._judge(operation, errno, bytes(buffer))

    def random(
        self,
        seed: int,
        times: int,
        start: int,
        length: int,
        beside: Iterable[tuple[Kind, int, int]] = (),
    ) -> Divergence | None:
        """The guest's program does *times* operations within *length* sectors from *start* on.

        :param beside: what the primary does meanwhile: kind, start, sectors. The promise makes the
            order between the two sides immaterial, so the model may take one after the other
        """
        self.begin(seed, times, start, length)
        found = None
        for kind, place, count in beside:
            found = found or self.primary(kind, place, count)
        return self.end() or found

    def begin(self, seed: int, times: int, start: int, length: int) -> None:
        """Have the guest's program begin; see :meth:`random`. :meth:`end` waits for it."""
        self.rig.machine.send(self.plan(seed, times, start, length))

    def end(self) -> Divergence | None:
        """Wait for what :meth:`begin` began, and judge it."""
        return self.judge(self.rig.machine.finish(RUN_LIMIT, check=False).output)

    def plan(self, seed: int, times: int, start: int, length: int) -> str:
        """The command by which the guest does random operations; :meth:`judge` what it says."""
        first, self.number = self.number + 1, self.number + times
        self._begun = list(random_operations(seed, times, first, start, length))
        command = f"random {seed} {times} {first} {start} {length}"
        return f"{PROGRAM} {self.chain.disk} {command}"

    def judge(self, output: str) -> Divergence | None:
        """Hold what the guest's program said of what was planned against the model."""
        begun, self._begun = self._begun, []
        told = list(read_lines(output))
        for index, operation in enumerate(begun):
            self._writers[operation.number] = operation.side
            if index >= len(told) or told[index].operation != operation:
                said = str(told[index].operation) if index < len(told) else "nothing"
                return self._told(Verdict.PROTOCOL, operation, str(operation), said)
            if found := self._judge(operation, told[index].errno, told[index].data):
                return found
        return None

    async def command(self, kind: Kind) -> Divergence | None:
        """A command of the chain, which means all of the guest's disks."""
        operation = self._next(Side.CHAIN, kind, 0, 0)
        prediction = self.rig.oracle.predict(operation)
        for other in self._others:
            other.rig.oracle.predict(operation)
        doing = {
            Kind.START: self.chain.start,
            Kind.CHECKPOINT: self.chain.checkpoint,
            Kind.FAILOVER: self.chain.failover,
        }
        observed = None
        try:
            await doing[kind]()
            if kind is Kind.FAILOVER:
                for other in self._others:
                    await other.chain.until_failed_over()
        except CommandFailed as error:
            observed = error.desc
        if observed == prediction.error:
            return None
        predicted, observed = (
            repr(said) if said else "no error" for said in (prediction.error, observed)
        )
        return self._told(Verdict.ERROR_CONTRACT, operation, predicted, observed)

    def _next(self, side: Side, kind: Kind, start: int, count: int) -> Operation:
        self.number += 1
        self._writers[self.number] = side
        return Operation(self.number, side, kind, start, count)

    def _judge(self, operation: Operation, errno: int, data: bytes) -> Divergence | None:
        prediction = self.rig.oracle.predict(operation)
        if errno != prediction.errno:
            predicted, observed = (f"errno {number}" for number in (prediction.errno, errno))
            return self._told(Verdict.ERROR_CONTRACT, operation, predicted, observed)
        if prediction.owners is None:
            return None
        wrong = pattern.mismatches(data, prediction.owners, operation.start, self.recorded)
        if not wrong:
            return None
        at = (wrong[0].start - operation.start) * SECTOR
        verdict = self._check.read_verdict(operation.side, wrong[0], data[at : at + SECTOR])
        predicted = pattern.describe_owner(wrong[0].predicted)
        return self._told(verdict, operation, predicted, wrong[0].found)

    def _told(
        self, verdict: Verdict, operation: Operation, predicted: str, observed: str
    ) -> Divergence:
        where = f"{operation.side} {operation.kind}"
        return Divergence(verdict, where, operation.number, predicted, observed)

    # -- observation ---------------------------------------------------------------------------

    def observe(self) -> int:
        """Tell the model what the guest wrote since the last time; the VM must be held.

        :returns: how many writes there were
        """
        count = 0
        for entry in self._new_entries(self.chain.write_log):
            start, sectors = entry.offset // SECTOR, entry.length // SECTOR
            kind = Kind.DISCARD if entry.flags & Flag.DISCARD else Kind.WRITE
            operation = self._next(Side.GUEST, kind, start, sectors)
            if kind is Kind.WRITE:
                self.recorded.add(operation.number, start, entry.data)
                count += 1
            self.rig.oracle.predict(operation)
        return count

    async def add_source(self, size: int) -> str:
        """A disk of the guest's own, to be sent by :meth:`send_source`; its name in the guest."""
        disk, self._source = await self.chain.add_source(size)
        return disk

    async def send_source(self) -> Divergence | None:
        """Do as the primary, in the same order, what the guest did to its own disk since then."""
        await self.rig.qemu.execute("stop")
        entries = list(self._new_entries(self._source))
        await self.rig.qemu.execute("cont")
        found = None
        for entry in entries:
            start = entry.offset // SECTOR
            if entry.flags & Flag.DISCARD:
                done = self.primary(Kind.DISCARD, start, entry.length // SECTOR)
            else:
                done = self.primary(Kind.WRITE, start, bytes(entry.data))
            found = found or done
        return found

    def _new_entries(self, log: Path) -> Iterator[Entry]:
        """The writes and discards that were logged since the last time."""
        for entry in BlkLog(map_file(log)).entries(self._seen.get(log), live=True):
            self._seen[log] = entry
            if entry.is_write or entry.flags & Flag.DISCARD:
                yield entry
