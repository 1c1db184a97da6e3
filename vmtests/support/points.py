"""Mutants of a real QEMU that breaks the promise of point-in-time backups, one each."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.pointintime.operations import Action, PointKind, PointOperation
from qmpshim.machine.chain.points import JobEvent, PointsChain
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.jobs import BitmapMode, JobSpec, OnError, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb, JobVerb

_BACKUPS = ("blockdev-backup", "drive-backup")
_BITMAPS = 0x23852875  # the header extension of qcow2's bitmaps
_IN_USE = 1  # a flag of one
KiB = 128 // 64  # sectors
CLUSTER = 64 * KiB


class GranuleNotMarked(PointsChain):
    """The first granules that are dirty are in no bitmap."""

    def read_bitmaps(self, export: str, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        found = super().read_bitmaps(export, names)
        return {name: extents[1:] for name, extents in found.items()}


class UntouchedMarked(PointsChain):
    """A bitmap names a granule that nothing touched."""

    def read_bitmaps(self, export: str, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        found = super().read_bitmaps(export, names)
        return {name: [*extents, (1 << 20, 65536)] for name, extents in found.items()}


def _jobs(actions: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [arguments for name, arguments in actions if name in _BACKUPS]


class _AtStart(PointsChain):
    """Does something before or after jobs start."""

    async def before(self, jobs: list[Mapping[str, Any]]) -> None:
        """What it does before."""

    async def after(self, jobs: list[Mapping[str, Any]]) -> None:
        """What it does after."""

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        jobs = _jobs([(name, arguments)])
        if jobs:
            await self.before(jobs)
        await super().command(name, arguments)
        if jobs:
            await self.after(jobs)

    async def transaction(self, actions: Sequence[Mapping[str, Any]], grouped: bool) -> None:
        jobs = _jobs([(action["type"], action["data"]) for action in actions])
        if jobs:
            await self.before(jobs)
        await super().transaction(actions, grouped)
        if jobs:
            await self.after(jobs)

    def overwrite(self, disk: int, data: bytes) -> bytes:
        """Write to the beginning of a disk, below the model; what was there before."""
        with closing(self.connect(f"disk{disk}")) as client:
            before = bytes(client.read(len(data), 0))
            client.write(data, 0)
        return before


class CopiesAfterT0(_AtStart):
    """A job copies what was written to its disk after it began."""

    disks: tuple[int, ...] = (0, 1)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._old: dict[int, bytes] = {}

    async def before(self, jobs: list[Mapping[str, Any]]) -> None:
        for job in jobs:
            if (disk := int(job["device"][-1])) in self.disks:
                self._old[disk] = self.overwrite(disk, b"new!" * 128)

    async def after(self, jobs: list[Mapping[str, Any]]) -> None:
        for disk, old in self._old.items():
            self.overwrite(disk, old)
        self._old.clear()


class TwoT0s(CopiesAfterT0):
    """The second disk of a transaction has a T0 of its own."""

    disks = (1,)


class ClusterLeftOut(PointsChain):
    """A full backup copies no cluster that the disk itself does not hold."""

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        if arguments.get("sync") == "full":
            arguments = {**arguments, "sync": "top"}
        await super().command(name, arguments)


class ClearedTooEarly(_AtStart):
    """A job's bitmap is cleared when the job begins: its cancellation gives nothing back."""

    async def before(self, jobs: list[Mapping[str, Any]]) -> None:
        self._cleared = [(job["device"], job["bitmap"]) for job in jobs if "bitmap" in job]

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        await super().command(name, arguments)
        if name == "block-job-cancel":
            for node, bitmap in self._cleared:
                await self._forget(node, bitmap)

    async def _forget(self, node: str, bitmap: str) -> None:
        names = {"node": node, "name": bitmap}
        while await self.qemu.execute("query-jobs"):
            pass
        await self.qemu.execute("block-dirty-bitmap-clear", names)


class SuccessorLost(ClearedTooEarly):
    """What is written while a job runs is in no bitmap once the job was cancelled."""

    async def before(self, jobs: list[Mapping[str, Any]]) -> None:
        await super().before(jobs)
        for node, bitmap in self._cleared:
            copy = {"node": node, "name": "copy", "disabled": True}
            await self.qemu.execute("block-dirty-bitmap-add", copy)
            await self._merge(node, "copy", bitmap)

    async def _merge(self, node: str, target: str, source: str) -> None:
        merge = {"node": node, "target": target, "bitmaps": [source]}
        await self.qemu.execute("block-dirty-bitmap-merge", merge)

    async def _forget(self, node: str, bitmap: str) -> None:
        await super()._forget(node, bitmap)
        await self._merge(node, bitmap, "copy")
        await self.qemu.execute("block-dirty-bitmap-remove", {"node": node, "name": "copy"})


class ErrorKeptSilent(PointsChain):
    """An error of a target is not reported."""

    async def job_events(self, answered: bool = False) -> list[JobEvent]:
        events = await super().job_events(answered)
        return [event for event in events if event.status != "error"]


class NotMarkedInUse(PointsChain):
    """What an image has of bitmaps does not show that a QEMU has them in memory, and was killed."""

    async def open(self) -> None:
        for disk in range(self.spec.disks):
            _mark_unused(self.image(f"disk{disk}"))
        await super().open()


def _mark_unused(image: Path) -> None:
    """Clear the flag ``in_use`` of all bitmaps of a qcow2 image (docs/interop/qcow2.txt)."""
    with image.open("r+b") as file:
        at = int.from_bytes(os.pread(file.fileno(), 4, 100), "big")  # behind the header
        while True:
            kind, length = struct.unpack(">II", os.pread(file.fileno(), 8, at))
            if kind == _BITMAPS:
                break
            if kind == 0:
                return
            at += 8 + -(-length // 8) * 8
        count, _, _, entry = struct.unpack(">IIQQ", os.pread(file.fileno(), 24, at + 8))
        for _ in range(count):
            found = os.pread(file.fileno(), 24, entry)
            _, _, flags, _, _, name, extra = struct.unpack(">QIIBBHI", found)
            os.pwrite(file.fileno(), struct.pack(">I", flags & ~_IN_USE), entry + 12)
            entry += -(-(24 + extra + name) // 8) * 8


class GroupedApart(PointsChain):
    """Jobs of a transaction with ``completion-mode=grouped`` end each by itself."""

    async def transaction(self, actions: Sequence[Mapping[str, Any]], grouped: bool) -> None:
        await super().transaction(actions, False)


class FinalizedByItself(PointsChain):
    """Jobs do not wait for ``job-finalize``."""

    async def transaction(self, actions: Sequence[Mapping[str, Any]], grouped: bool) -> None:
        await super().transaction(
            [{**one, "data": _finalized(one["data"])} for one in actions], grouped
        )

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        await super().command(name, _finalized(arguments))


def _finalized(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "auto-finalize"}


class SnapshotShowsNew(PointsChain):
    """A pulled snapshot is read from the disk itself."""

    def read_ahead(
        self, export: str, ranges: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, memoryview]]:
        return super().read_ahead(export.replace("snapshot", "disk"), ranges)


class TransactionInTwo(PointsChain):
    """The jobs of a transaction start one after the other, with time for a write in between."""

    async def transaction(self, actions: Sequence[Mapping[str, Any]], grouped: bool) -> None:
        for action in actions:
            await super().transaction([action], grouped)
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class PointMutant:
    """A mutant, the shortest case that shows it, and what it is called.

    :ivar where: how the place of the divergence begins
    """

    chain: type[PointsChain]
    operations: tuple[PointOperation, ...]
    verdict: Verdict
    where: str

    def __str__(self) -> str:
        return f"{self.chain.__name__}{' by drive' if self._drives else ''}"

    @property
    def _drives(self) -> bool:
        jobs = (one for operation in self.operations for one in operation.actions)
        return any(isinstance(one, JobSpec) and one.drive for one in jobs)

    @property
    def by_drive(self) -> PointMutant:
        """The same with jobs that are started by ``drive-backup``."""
        return replace(self, operations=tuple(map(by_drive, self.operations)))


def by_drive(operation: PointOperation) -> PointOperation:
    """An operation with ``drive-backup`` in place of ``blockdev-backup``."""
    actions = (
        replace(one, drive=one.sync is not Sync.NONE) if isinstance(one, JobSpec) else one
        for one in operation.actions
    )
    return replace(operation, actions=tuple(actions))


def case(*operations: PointOperation | Action | tuple[Action, ...]) -> tuple[PointOperation, ...]:
    """Operations numbered from 1; an action is a command, a tuple of them a transaction."""
    made = []
    for number, one in enumerate(operations, start=1):
        if isinstance(one, PointOperation):
            kind, actions, values = one.kind, one.actions, one
            made.append(
                PointOperation(
                    number,
                    kind,
                    values.disk,
                    values.start,
                    values.count,
                    actions,
                    values.grouped,
                    values.verb,
                    values.force,
                )
            )
        elif isinstance(one, tuple):
            made.append(PointOperation(number, PointKind.TRANSACTION, actions=one))
        else:
            kind = PointKind.BITMAP if isinstance(one, BitmapAction) else PointKind.BACKUP
            made.append(PointOperation(number, kind, one.disk, actions=(one,)))
    return tuple(made)


def write(start: int, count: int = 8, disk: int = 0) -> PointOperation:
    """A write, positions in sectors."""
    return PointOperation(1, PointKind.WRITE, disk, start, count)


def add(name: str = "a", disk: int = 0, **more: Any) -> BitmapAction:
    """A bitmap is added."""
    return BitmapAction(BitmapVerb.ADD, disk, name, **more)


CANCEL = PointOperation(1, PointKind.JOB, verb=JobVerb.CANCEL)
FINISH = PointOperation(1, PointKind.FINISH)
CHECK = PointOperation(1, PointKind.CHECK)
RESTART = PointOperation(1, PointKind.RESTART)
KILL = PointOperation(1, PointKind.KILL)
TOGETHER = PointOperation(1, PointKind.TRANSACTION, grouped=True)
_FINALIZE = PointOperation(1, PointKind.JOB, verb=JobVerb.FINALIZE)
_BACKUP = JobSpec(0, Sync.FULL, "a", BitmapMode.ON_SUCCESS, slow=True)

_MUTANTS = (
    PointMutant(GranuleNotMarked, case(add(), write(CLUSTER)), Verdict.LOST_WRITE,
                "bitmap disk0/a"),
    PointMutant(UntouchedMarked, case(add(), write(0)), Verdict.ALLOCATION, "bitmap disk0/a"),
    PointMutant(ClearedTooEarly, case(add(), write(0), _BACKUP, CANCEL), Verdict.LOST_WRITE,
                "bitmap disk0/a"),
    PointMutant(SuccessorLost, case(add(), _BACKUP, write(0), CANCEL), Verdict.LOST_WRITE,
                "bitmap disk0/a"),
    PointMutant(CopiesAfterT0, case(JobSpec(0, Sync.FULL)), Verdict.CONTENT, "target of a backup"),
    PointMutant(TwoT0s, case((JobSpec(0, Sync.FULL), JobSpec(1, Sync.FULL))), Verdict.CONTENT,
                "target of a backup"),
    PointMutant(ClusterLeftOut, case(JobSpec(0, Sync.FULL)), Verdict.CONTENT, "target of a backup"),
    PointMutant(ErrorKeptSilent, case(JobSpec(0, Sync.FULL, fault=OnError.IGNORE)),
                Verdict.ERROR_CONTRACT, "a backup with on-target-error=ignore"),
    *(
        PointMutant(
            NotMarkedInUse,
            case(add(persistent=True), RESTART, job, write(0), KILL, CHECK),
            Verdict.PROTOCOL,
            "bitmap disk0/a",
        )
        for job in (_BACKUP, (JobSpec(0, Sync.NONE),))
    ),
    *(
        PointMutant(
            GroupedApart,
            case(
                replace(
                    TOGETHER,
                    actions=(
                        JobSpec(failing, Sync.FULL, fault=OnError.REPORT),
                        JobSpec(1 - failing, Sync.FULL),
                    ),
                )
            ),
            Verdict.ERROR_CONTRACT,
            "the end of a backup",
        )
        for failing in (0, 1)
    ),
    PointMutant(FinalizedByItself, case(JobSpec(0, Sync.FULL, manual=True), FINISH),
                Verdict.ERROR_CONTRACT, "the end of a backup"),
    PointMutant(FinalizedByItself,
                case(JobSpec(0, Sync.FULL, slow=True, manual=True), _FINALIZE, FINISH),
                Verdict.ERROR_CONTRACT, "the end of a backup"),
    PointMutant(
        FinalizedByItself,
        case(
            replace(
                TOGETHER, actions=(JobSpec(0, Sync.FULL, manual=True), JobSpec(1, Sync.FULL))
            ),
            FINISH,
        ),
        Verdict.ERROR_CONTRACT,
        "the end of a backup",
    ),
    PointMutant(
        SnapshotShowsNew,
        case(
            (JobSpec(0, Sync.NONE),),
            write(0),
            PointOperation(1, PointKind.SNAPSHOT_READ, 0, 0, 8),
        ),
        Verdict.ISOLATION,
        "snapshot of disk0",
    ),
)  # fmt: skip
MUTANTS = tuple(dict.fromkeys((*_MUTANTS, *(one.by_drive for one in _MUTANTS))))
