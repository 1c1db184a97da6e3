"""One run: operations done on real disks and in the model, answers compared one by one.

A job moves on by itself: what it does is noted from its events before and after each command, and
an answer is right that is right in one of the two states.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.divergence import BROKEN, Divergence
from qmpshim.conformance.pointintime.commands import action_command
from qmpshim.conformance.pointintime.comparisons import (
    Diverged,
    compare_bits,
    compare_data,
    compare_state,
)
from qmpshim.conformance.pointintime.operations import Action, PointKind, PointOperation
from qmpshim.conformance.pointintime.targets import Target, compare_target
from qmpshim.conformance.workload import pattern
from qmpshim.conformance.workload.result import WorkloadResult
from qmpshim.conformance.workload.setup import RunSetup
from qmpshim.errors import BuildError, CommandFailed, IOFailed, MachineError, MachineHung
from qmpshim.machine.chain.points import JobEvent, PointsChain, PointsSpec, base_name, is_base
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Owners
from qmpshim.model.pointintime.bitmap import ErrorClass
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.jobs import (
    BackupJob,
    Copying,
    Ending,
    JobSpec,
    OnError,
    Stage,
    Sync,
)
from qmpshim.model.pointintime.masks import span
from qmpshim.model.pointintime.points import JobVerb, PointDefect, PointInTime, uses_always
from qmpshim.model.units import SECTOR

#: The owner of the base of disk 0; that of the next is one less.
BASE_OWNER = pattern.MAX_OPERATIONS - 1
_GLANCE = 0.003  # seconds
_TICK = 0.2  # seconds between two progress reports
_ENDINGS = {
    "completed": Ending.COMPLETED,
    "failed": Ending.FAILED,
    "cancelled": Ending.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class PointsSetup(RunSetup):
    """What to run on, and how.

    :ivar known: defects of this version: a transaction that meets one is left out
    :ivar manual: a job that has concluded lets go of its target before it is dismissed (since 6.1:
        ``backup_clean`` in block/backup.c); where not, all jobs dismiss themselves
    :ivar perf: there is ``x-perf`` (since 6.0); where not, jobs copy as QEMU chooses
    :ivar chain: the class of the real disks; mutants come in here
    :ivar model: the class that predicts; and here
    """

    spec: PointsSpec
    chain: type[PointsChain] = PointsChain
    model: type[PointInTime] = PointInTime
    known: frozenset[PointDefect] = frozenset()
    manual: bool = True
    perf: bool = True

    def possible(self, action: Action) -> Action:
        """An action without what this version does not have."""
        if not isinstance(action, JobSpec):
            return action
        copying = action.copying if self.perf else Copying(action.copying.compress)
        return replace(action, manual=action.manual and self.manual, copying=copying)


@dataclass(slots=True)
class PointsResult(WorkloadResult[PointDefect]):
    """How a run ended; of the known defects, how many transactions were left out.

    :ivar targets: how many targets were judged, by how their job ended
    """

    targets: Counter[str] = field(default_factory=Counter)


def base_of(spec: PointsSpec, disk: int) -> Owners:
    """The owners of a disk's base: data in the first half, except each third cluster."""
    sectors, cluster = spec.size // SECTOR, max(1, spec.cluster // SECTOR)
    owner = BASE_OWNER - disk
    half = sectors // 2
    return array("q", (owner if at < half and at // cluster % 3 else 0 for at in range(sectors)))


def _bitmap_name(disk: int, name: str) -> str:
    return f"bitmap disk{disk}/{name}"


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
        self.result = PointsResult()
        self._progress = progress
        spec = setup.spec
        sectors = spec.size // SECTOR
        bases = [base_of(spec, disk) for disk in range(spec.disks)]
        cluster = max(1, spec.cluster // SECTOR)
        self.model = setup.model([Disk(sectors, cluster, base) for base in bases])
        data = [pattern.expected(base, 0).tobytes() for base in bases]
        self.qemu = setup.qemu(directory)
        self.chain = setup.chain(self.qemu, spec, directory, setup.qemu_img, data)
        self._targets: dict[str, Target] = {}
        self._images: list[list[str]] = [[] for _ in bases]  # of the chains of targets, top first
        self._snapshots: dict[int, tuple[str, ...]] = {}
        self._errors: set[str] = set()  # jobs that reported an error of their target
        self._made = 0

    async def open(self) -> None:
        """Start QEMU and open the disks.

        :raises BuildError: this QEMU cannot open them
        """
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
                await self._do(operation)
                if (now := time.monotonic()) > tick:
                    tick = now + _TICK
                    self.result.seconds = now - began
                    if self._progress is not None:
                        self._progress(self.result, str(operation))
                    await asyncio.sleep(0)
            await self._check()
        except Diverged as found:
            self.result.divergence = found.at(last.number if last else 0)
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
                self._read_disk(operation.disk, operation.start, operation.count)
            case PointKind.BITMAP | PointKind.BACKUP | PointKind.TRANSACTION:
                await self._transact(operation)
            case PointKind.JOB:
                await self._job(operation)
            case PointKind.RACE:
                await self._race(operation)
            case PointKind.FINISH:
                await self._finish(operation.disk)
            case PointKind.SNAPSHOT_READ:
                self._read_snapshot(operation.disk, operation.start, operation.count)
            case PointKind.SNAPSHOT_MAP:
                self._read_snapshot_bitmaps(operation.disk)
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
                self._read_disk(operation.disk, start, count)

    def _as_before(self, operation: PointOperation) -> bool:
        disk = self.model.disks[operation.disk]
        first, count = disk.discarded(operation.start, operation.count)
        if not count:
            return True
        found = self.chain.clients[operation.disk].read(count * SECTOR, first * SECTOR)
        return not pattern.mismatches(found, disk.now[first : first + count], first)

    def _compare(
        self, verdict: Verdict, where: str, found: pattern.Bytes, owners: Owners, start: int
    ) -> None:
        self.result.clusters += -(-len(owners) * SECTOR // self.setup.spec.cluster)
        compare_data(verdict, where, found, owners, start)

    def _read_disk(self, disk: int, start: int, count: int) -> None:
        found = self.chain.clients[disk].read(count * SECTOR, start * SECTOR)
        owners = self.model.disks[disk].now[start : start + count]
        self._compare(Verdict.CONTENT, f"disk{disk}", found, owners, start)

    # -- commands ----------------------------------------------------------------------------

    async def _answer(
        self,
        where: str,
        predict: Callable[[], ErrorClass | None],
        send: Callable[[], Awaitable[None]],
        done: Callable[[], None],
    ) -> bool:
        """Send a command and compare its answer.

        :param done: called where it was carried out, before what jobs did since is noted
        :returns: whether it was carried out
        """
        await self._poll()
        before = predict()
        observed: str | None = None
        text = ""
        try:
            await send()
        except CommandFailed as error:
            observed, text = error.error_class, error.desc
        if observed != before:
            # A job may have ended between the two.
            after = predict() if await self._poll() else before
            if observed != after:
                raise Diverged(
                    Verdict.ERROR_CONTRACT,
                    where,
                    f"the error {before}" if before else "no error",
                    f"the error {observed}: {text}" if observed else "no error",
                )
        if observed is None:
            done()
        return observed is None

    async def _transact(self, operation: PointOperation) -> None:
        await self._poll()
        actions = tuple(map(self.setup.possible, operation.actions))
        jobs = [action for action in actions if isinstance(action, JobSpec)]
        if any(self.model.active(spec.disk) is not None for spec in jobs):
            return  # QEMU stacks filters then; one job a disk is modelled
        if operation.kind is PointKind.TRANSACTION:
            met = self.model.known_defects(actions) & self.setup.known
            self.result.known.update(met)
            if met:
                return
        made = {spec.id: await self._open_target(spec, operation) for spec in jobs}
        commands = [action_command(action, f"target{action.disk}") for action in actions]
        alone = operation.kind is not PointKind.TRANSACTION

        async def send() -> None:
            if alone:
                await self.chain.command(*commands[0])
            else:
                data = [{"type": name, "data": dict(more)} for name, more in commands]
                await self.chain.transaction(data, operation.grouped)

        def done() -> None:
            self.model.transact(actions, operation.grouped)
            self._targets.update(made)

        carried_out = await self._answer(
            operation.name, lambda: self.model.refusal(actions, operation.grouped), send, done
        )
        if not carried_out:
            for spec in jobs:
                await self.chain.close_target(spec.disk)
                self.chain.image(made[spec.id].image).unlink()
            return
        for spec in jobs:
            if spec.sync is Sync.NONE:
                await self._export_snapshot(spec.disk)
        await self._until_settled(jobs)

    async def _open_target(self, spec: JobSpec, operation: PointOperation) -> Target:
        """Make a new target and open it below the node name of the disk's target."""
        self._made += 1
        image = f"target{spec.disk}-{self._made}"
        self.chain.new_image(image)
        backing: list[str] | str = []
        if spec.sync is Sync.TOP:
            backing = [base_name(spec.disk)]
        elif spec.sync is Sync.NONE:
            backing = f"disk{spec.disk}"
        elif spec.sync is not Sync.FULL:
            backing = list(self._images[spec.disk])
        fault: dict[str, Any] | None = None
        if spec.fault is not None and (must := self._must(spec)):
            low, high = (must & -must).bit_length() - 1, must.bit_length() - 1
            sector = low if operation.number % 2 else high
            once = spec.fault is not OnError.REPORT
            fault = {"sector": sector, "errno": 28, "once": once}
        await self.chain.open_target(spec.disk, image, backing, fault)
        others = any(job.active for job in self.model.jobs.values()) or len(operation.actions) > 1
        below = () if isinstance(backing, str) else tuple(backing)
        return Target(image, below, fault is not None and not others)

    def _must(self, spec: JobSpec) -> int:
        """The sectors that a job started now has to copy."""
        if spec.sync is Sync.FULL:
            return span(0, self.model.disks[spec.disk].size)
        bitmap = self.model.disks[spec.disk].bitmaps.get(spec.bitmap or "")
        if spec.sync in (Sync.INCREMENTAL, Sync.BITMAP) and bitmap is not None:
            return bitmap.must
        return 0

    async def _until_settled(self, specs: Sequence[JobSpec]) -> None:
        """Wait for jobs that are not throttled, or pause at an error of their target."""

        def settled(spec: JobSpec) -> bool:
            job = self.model.jobs.get(spec.id)
            if job is None or job.stage is not Stage.RUNNING:
                return True
            return spec.sync is Sync.NONE or spec.throttled

        await self._until(lambda: all(settled(spec) for spec in specs), "a job")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.qemu.limit
        while True:
            await self._poll()
            if condition():
                return
            if time.monotonic() > deadline:
                raise MachineHung(f"{what} did not end in {self.qemu.limit:g} s")
            await asyncio.sleep(_GLANCE)

    async def _job(self, operation: PointOperation) -> None:
        verb, disk = operation.verb, operation.disk
        assert verb is not None
        job_id = f"job{disk}"
        if verb is JobVerb.CANCEL and disk in self._snapshots:
            await self._unexport_snapshot(disk)
        arguments: dict[str, Any] = {"id" if verb in _BY_ID else "device": job_id}
        if verb is JobVerb.SET_SPEED:
            arguments["speed"] = 1
        if verb is JobVerb.CANCEL:
            arguments["force"] = operation.force

        carried_out = await self._answer(
            operation.name,
            lambda: self.model.job_refusal(job_id, verb, operation.force),
            lambda: self.chain.command(f"block-job-{verb}", arguments),
            lambda: self.model.command(job_id, verb),
        )
        if carried_out and verb in (JobVerb.CANCEL, JobVerb.FINALIZE):
            await self._until(lambda: self.model.active(disk) is None, f"job {verb}")

    async def _finish(self, disk: int) -> None:
        """Let a job copy all there is to copy, and its partners."""
        job = self.model.jobs.get(f"job{disk}")
        if job is None or job.spec.sync is Sync.NONE:
            return
        ids = [job.spec.id, *sorted(job.partners)]
        for one in ids:
            await self._poll()
            other = self.model.jobs.get(one)
            if other is None or other.stage not in (Stage.RUNNING, Stage.PAUSED):
                continue
            await self._speed_up(one, JobVerb.SET_SPEED, {"speed": 0})
            if other.stage is Stage.PAUSED:
                await self._speed_up(one, JobVerb.RESUME, {})

        def over() -> bool:
            jobs = [self.model.jobs.get(one) for one in ids]
            stages = [job.stage for job in jobs if job is not None]
            # One that paused at its target's error waits for a resume of its own.
            return Stage.PAUSED in stages or all(
                stage in (Stage.PENDING, Stage.CONCLUDED) for stage in stages
            )

        await self._until(over, "a job")

    async def _speed_up(self, job: str, verb: JobVerb, more: Mapping[str, int]) -> None:
        await self._answer(
            f"job {verb}",
            lambda: self.model.job_refusal(job, verb),
            lambda: self.chain.command(f"block-job-{verb}", {"device": job, **more}),
            lambda: self.model.command(job, verb),
        )

    async def _poll(self) -> bool:
        """Note what jobs did. Whether something was noted."""
        events = [e for e in await self.chain.job_events() if e.job in self.model.jobs]
        for event in events:
            await self._note(event)
        return bool(events)

    async def _note(self, event: JobEvent) -> None:
        job = self.model.jobs.get(event.job)
        if job is None or not job.active:
            return
        if event.status == "error":
            self._errors.add(event.job)
            if event.action == "stop":
                job.stage = Stage.PAUSED
        elif event.status == "waiting" and job.stage is Stage.RUNNING:
            job.stage = Stage.WAITING
        elif event.status == "pending" and job.spec.manual:
            job.stage = Stage.PENDING
        elif event.status in _ENDINGS:
            await self._ended(job, _ENDINGS[event.status])

    async def _ended(self, job: BackupJob, ending: Ending) -> None:
        spec = job.spec
        allowed = self.model.endings(spec.id)
        if ending not in allowed:
            predicted = " or ".join(sorted(one.name.lower() for one in allowed)) or "it runs on"
            where = f"the end of a backup with sync={spec.sync}"
            raise Diverged(Verdict.ERROR_CONTRACT, where, predicted, ending.name.lower())
        target = self._targets.pop(spec.id)
        silent = target.fails and spec.id not in self._errors
        if silent and ending is Ending.COMPLETED:
            where = f"a backup with on-target-error={spec.fault}"
            raise Diverged(Verdict.ERROR_CONTRACT, where, "an error is reported", "none was")
        self._errors.discard(spec.id)
        if spec.disk in self._snapshots:
            await self._unexport_snapshot(spec.disk)
        disk = self.model.disks[spec.disk]
        bitmap = disk.bitmaps[spec.bitmap] if spec.bitmap is not None else None
        old = bitmap.must if bitmap is not None else 0
        version = [link.version for link in self.model.chains[spec.disk]]
        self.model.end(spec.id, ending)
        self.result.targets[ending.name.lower()] += 1
        await self.chain.close_target(spec.disk)
        compare_target(self.chain, target, job, ending)
        if uses_always(job) and ending is not Ending.COMPLETED:
            assert bitmap is not None
            await self._read_bitmaps(spec.disk)
            compare_target(self.chain, target, job, ending, old & ~bitmap.must)
        self.result.clusters += -(-self.setup.spec.size // self.setup.spec.cluster)
        self._keep(spec.disk, target, version)

    def _keep(self, disk: int, target: Target, version: list[int]) -> None:
        """Keep a target as part of its disk's chain, or remove it."""
        now = [link.version for link in self.model.chains[disk]]
        if now == version and target.image not in self._images[disk]:
            self.chain.image(target.image).unlink()
            return
        new = [target.image, *target.backing]
        for image in self._images[disk]:
            if image not in new and not is_base(image):
                self.chain.image(image).unlink()
        self._images[disk] = new

    # -- snapshots that are pulled -----------------------------------------------------------

    async def _export_snapshot(self, disk: int) -> None:
        """Export the scratch overlay, with the disk's disabled bitmaps."""
        bitmaps = self.model.disks[disk].bitmaps
        usable = [
            name
            for name, b in sorted(bitmaps.items())
            if not b.enabled and b.user is None and not b.inconsistent
        ]
        await self.chain.export(f"snapshot{disk}", f"target{disk}", False, usable)
        for name in usable:
            bitmaps[name].user = f"snapshot{disk}"
        self._snapshots[disk] = tuple(usable)

    async def _unexport_snapshot(self, disk: int) -> None:
        await self.chain.unexport(f"snapshot{disk}")
        for name in self._snapshots.pop(disk):
            self.model.disks[disk].bitmaps[name].user = None

    async def _race(self, operation: PointOperation) -> None:
        """Start snapshots of all disks in one transaction while the disks are written to.

        Writes of one sector go to one disk after the other, each after the answer to the one
        before. What the snapshots hold of them shows T0, which has to be one: a write is in them
        only if all before it are.
        """
        await self._poll()
        model, disks = self.model, range(self.setup.spec.disks)
        if model.jobs:
            return
        jobs = [JobSpec(disk, Sync.NONE) for disk in disks]
        made = {spec.id: await self._open_target(spec, operation) for spec in jobs}
        commands = [action_command(spec, f"target{spec.disk}") for spec in jobs]
        data = [{"type": name, "data": dict(more)} for name, more in commands]
        before = [array("q", disk.now) for disk in model.disks]
        started = asyncio.create_task(self.chain.transaction(data, False))
        written: list[tuple[int, int]] = []
        after = 0
        for index in range(operation.count):
            disk, sector = index % len(disks), operation.start + index
            sent = pattern.data_of(operation.number, sector, 1)
            self.chain.clients[disk].write(sent, sector * SECTOR)
            model.disks[disk].write(sector, 1, operation.number)
            written.append((disk, sector))
            after += started.done()
            if after > 2 * len(disks):
                break
            await asyncio.sleep(0)
        await started
        model.transact(jobs)
        self._targets.update(made)
        for disk in disks:
            await self._export_snapshot(disk)
        held = 0
        for disk, sector in written:
            found = self.chain.read(f"snapshot{disk}", SECTOR, sector * SECTOR)
            if bytes(found) != bytes(pattern.data_of(operation.number, sector, 1)):
                break
            held += 1
        # The model's T0 was taken after all of them.
        for disk, sector in written[held:]:
            model.jobs[f"job{disk}"].t0[sector] = before[disk][sector]
        for disk in disks:
            t0 = model.jobs[f"job{disk}"].t0[operation.start : operation.start + len(written)]
            found = self.chain.read(f"snapshot{disk}", len(t0) * SECTOR, operation.start * SECTOR)
            self._compare(
                Verdict.ISOLATION, "snapshots of one transaction", found, t0, operation.start
            )

    def _read_snapshot(self, disk: int, start: int, count: int) -> None:
        if disk not in self._snapshots:
            return
        found = self.chain.read(f"snapshot{disk}", count * SECTOR, start * SECTOR)
        t0 = self.model.jobs[f"job{disk}"].t0[start : start + count]
        self._compare(Verdict.ISOLATION, f"snapshot of disk{disk}", found, t0, start)

    def _read_snapshot_bitmaps(self, disk: int) -> None:
        if names := self._snapshots.get(disk):
            self._compare_bitmaps(disk, f"snapshot{disk}", names)

    # -- bitmaps -----------------------------------------------------------------------------

    async def _read_bitmaps(self, disk: int) -> None:
        """Compare the bits of every bitmap that can be exported."""
        if self.model.active(disk) is not None:
            return
        bitmaps = self.model.disks[disk].bitmaps
        names = sorted(n for n, b in bitmaps.items() if b.user is None and not b.inconsistent)
        if not names:
            return
        await self.chain.export("bits", f"disk{disk}", True, names)
        self._compare_bitmaps(disk, "bits", names)
        await self.chain.unexport("bits")

    def _compare_bitmaps(self, disk: int, export: str, names: Sequence[str]) -> None:
        found = self.chain.read_bitmaps(export, names)
        for name in names:
            marked = 0
            for offset, length in found[name]:
                marked |= span(offset // SECTOR, length // SECTOR)
            bitmap = self.model.disks[disk].bitmaps[name]
            compare_bits(_bitmap_name(disk, name), bitmap, marked)

    async def _check_states(self, disk: int) -> None:
        """Compare what ``query-named-block-nodes`` has of the bitmaps."""
        listed = await self.chain.bitmaps(disk)
        await self._poll()
        active = self.model.active(disk) is not None
        named = {one["name"]: one for one in listed if "name" in one}
        bitmaps = self.model.disks[disk].bitmaps
        where = f"bitmaps of disk{disk}"
        if named.keys() != bitmaps.keys():
            wanted, seen = ", ".join(sorted(bitmaps)), ", ".join(sorted(named))
            raise Diverged(Verdict.PROTOCOL, where, wanted or "none", seen or "none")
        if len(named) < len(listed) and not active:
            raise Diverged(Verdict.PROTOCOL, where, "named ones only", "one without a name")
        for name, bitmap in bitmaps.items():
            compare_state(_bitmap_name(disk, name), bitmap, named[name])

    # -- everything --------------------------------------------------------------------------

    async def _check(self) -> None:
        self.result.checks += 1
        await self._poll()
        for number, disk in enumerate(self.model.disks):
            self._read_disk(number, 0, disk.size)
            await self._check_states(number)
            await self._read_bitmaps(number)
            self._read_snapshot_bitmaps(number)
            self._read_snapshot(number, 0, disk.size)

    async def _restart(self, kill: bool) -> None:
        """End QEMU and start another on the same images."""
        await self._poll()
        if kill:
            for client in self.chain.clients:
                client.flush()
            self.qemu.kill()
        self.chain.disconnect()
        await self.qemu.close()
        for job_id, target in self._targets.items():
            assert job_id in self.model.jobs
            self.chain.image(target.image).unlink()
        self._targets.clear()
        self._snapshots.clear()
        self._errors.clear()
        if kill:
            self.model.kill()
        else:
            self.model.restart()
        self.qemu = self.chain.qemu = self.setup.qemu(self.directory)
        await self.qemu.start()
        await self.chain.open()


_BY_ID = frozenset((JobVerb.FINALIZE, JobVerb.DISMISS))


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
