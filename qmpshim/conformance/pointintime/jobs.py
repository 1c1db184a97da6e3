"""Backup jobs: started, watched and commanded; their targets are judged when they end.

A job moves on by itself: what it does is noted from its events before and after each command, and
an answer is right that is right in one of the two states.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qmpshim.conformance.compare.evidence import Answered, JobEnded, JobSilent
from qmpshim.conformance.pointintime.bitmaps import Bitmaps
from qmpshim.conformance.pointintime.commands import action_command
from qmpshim.conformance.pointintime.comparisons import BitmapPlace, Diverged, compare_mismarked
from qmpshim.conformance.pointintime.operations import Action, PointKind, PointOperation
from qmpshim.conformance.pointintime.sides import Sides
from qmpshim.conformance.pointintime.snapshots import Snapshots
from qmpshim.conformance.pointintime.targets import Target, compare_target
from qmpshim.conformance.workload.result import MetDefect
from qmpshim.errors import CommandFailed, MachineHung
from qmpshim.machine.chain.points import JobEvent, base_name, is_base
from qmpshim.machine.chain.record import JobReached
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.bitmap import ErrorClass
from qmpshim.model.pointintime.jobs import (
    BackupJob,
    BitmapMode,
    Ending,
    JobSpec,
    Stage,
    Sync,
)
from qmpshim.model.pointintime.points import JobVerb, PointDefect, uses_always
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors

_GLANCE = 0.003  # seconds
_ENDINGS = {one.name.lower(): one for one in Ending}
_BY_ID = frozenset((JobVerb.FINALIZE, JobVerb.DISMISS))


class Jobs:
    """The backup jobs of all disks.

    :ivar targets: of the jobs that have not ended, by their ids
    """

    def __init__(self, sides: Sides, bitmaps: Bitmaps, snapshots: Snapshots) -> None:
        self.sides, self.snapshots, self._bitmaps = sides, snapshots, bitmaps
        self._chain, self._model = sides.chain, sides.model
        self.targets: dict[str, Target] = {}
        self._images: list[list[str]] = [[] for _ in sides.model.disks]  # of targets, top first
        self._errors: set[str] = set()  # jobs that reported an error of their target
        self._made = 0

    def forget(self) -> None:
        """QEMU has ended: there are no jobs any more, and their targets are of no use."""
        for job_id, target in self.targets.items():
            assert job_id in self._model.jobs
            self._chain.image(target.image).unlink()
        self.targets.clear()
        self._errors.clear()

    async def transact(self, operation: PointOperation) -> None:
        """Do a command or a transaction, about jobs or about bitmaps.

        :raises Diverged: it is answered otherwise than predicted, or a job ended otherwise
        """
        await self.poll()
        actions = tuple(map(self._possible, operation.actions))
        jobs = [action for action in actions if isinstance(action, JobSpec)]
        if any(self._model.active(spec.disk) is not None for spec in jobs):
            return  # QEMU stacks filters then; one job a disk is modelled
        if operation.kind is PointKind.TRANSACTION:
            met = self._model.known_defects(actions)
            left_out = met & self.sides.setup.known
            self.sides.result.known.update(left_out)
            if left_out:
                return
            self.sides.result.met += [
                MetDefect(defect.value, where, operation.number)
                for defect in met
                for where in _shown_at(defect, actions)
            ]
        made = {spec.id: await self.open_target(spec, operation) for spec in jobs}
        commands = [
            action_command(action, made[action.id].name if isinstance(action, JobSpec) else "")
            for action in actions
        ]
        alone = operation.kind is not PointKind.TRANSACTION

        async def send() -> None:
            if alone:
                await self._chain.command(*commands[0])
            else:
                data = [{"type": name, "data": dict(more)} for name, more in commands]
                await self._chain.transaction(data, operation.grouped)

        def done() -> None:
            self._model.transact(actions, operation.grouped)
            self.targets.update(made)

        carried_out = await self._answer(
            operation.name, lambda: self._model.refusal(actions, operation.grouped), send, done
        )
        if not carried_out:
            self._model.mismark(actions)
            for spec in jobs:
                await self._close(spec, made[spec.id].image)
                self._chain.image(made[spec.id].image).unlink()
            return
        for spec in jobs:
            if spec.sync is Sync.NONE:
                await self.snapshots.export(spec.disk)
        await self._until_settled(jobs)

    def _possible(self, action: Action) -> Action:
        """An action as this build can do it."""
        action = self.sides.setup.possible(action)
        if isinstance(action, JobSpec) and "drive-backup" not in self._chain.commands:
            action = replace(action, drive=False)
        return action

    async def _close(self, spec: JobSpec, image: str) -> None:
        """Close a job's target, so that all of it is in its file."""
        if spec.drive:
            await self._chain.until_closed(image)
        else:
            await self._chain.close_target(spec.disk)

    async def open_target(self, spec: JobSpec, operation: PointOperation) -> Target:
        """Make a new target and open it below the node name of the disk's target.

        ``drive-backup`` opens it itself.
        """
        self._made += 1
        image = f"target{spec.disk}-{self._made}"
        backing: list[str] | str = []
        if spec.sync is Sync.TOP:
            backing = [base_name(spec.disk)]
        elif spec.sync is Sync.NONE:
            backing = f"disk{spec.disk}"
        elif spec.sync is not Sync.FULL:
            backing = list(self._images[spec.disk])
        below = () if isinstance(backing, str) else tuple(backing)
        if spec.drive and spec.fault is None:
            self._chain.new_image(image, below)
            return Target(str(self._chain.image(image)), image, below, False)
        self._chain.new_image(image)
        fault: dict[str, Any] | None = None
        if spec.fault is not None and (must := self._must(spec)):
            sector = must.first if operation.number % 2 else must.last
            fault = {"sector": sector, "errno": spec.errno, "once": not spec.fails}
        if spec.drive:
            name = f"json:{json.dumps(self._chain.target_options(image, backing, fault))}"
        else:
            name = f"target{spec.disk}"
            await self._chain.open_target(spec.disk, image, backing, fault)
        others = any(job.active for job in self._model.jobs.values()) or len(operation.actions) > 1
        return Target(name, image, below, fault is not None and not others)

    def _must(self, spec: JobSpec) -> Sectors:
        """The sectors that a job started now has to copy."""
        if spec.sync is Sync.FULL:
            return sectors(0, self._model.disks[spec.disk].size)
        bitmap = self._model.disks[spec.disk].bitmaps.get(spec.bitmap or "")
        if spec.sync in (Sync.INCREMENTAL, Sync.BITMAP) and bitmap is not None:
            return bitmap.must
        return NOTHING

    async def _until_settled(self, specs: Sequence[JobSpec]) -> None:
        """Wait for jobs that are not throttled, or pause at an error of their target."""

        def settled(spec: JobSpec) -> bool:
            job = self._model.jobs.get(spec.id)
            if job is None or job.stage is not Stage.RUNNING:
                return True
            return spec.sync is Sync.NONE or spec.throttled

        await self._until(lambda: all(settled(spec) for spec in specs), "a job")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._chain.qemu.limit
        while True:
            await self.poll()
            if condition():
                return
            if time.monotonic() > deadline:
                raise MachineHung(f"{what} did not end in {self._chain.qemu.limit:g} s")
            await asyncio.sleep(_GLANCE)

    async def command(self, operation: PointOperation) -> None:
        """Do a ``block-job-*`` command.

        :raises Diverged: as :meth:`transact`
        """
        verb, disk = operation.verb, operation.disk
        assert verb is not None
        job_id = f"job{disk}"
        if verb is JobVerb.CANCEL and disk in self.snapshots.exported:
            await self.snapshots.unexport(disk)
        arguments: dict[str, Any] = {"id" if verb in _BY_ID else "device": job_id}
        if verb is JobVerb.SET_SPEED:
            arguments["speed"] = 1
        if verb is JobVerb.CANCEL:
            arguments["force"] = operation.force

        await self.poll()
        # It may be done before its answer is here.
        finalized = self._model.finalizing(job_id) if verb is JobVerb.FINALIZE else []
        carried_out = await self._answer(
            operation.name,
            lambda: self._model.job_refusal(job_id, verb, operation.force),
            lambda: self._chain.command(f"block-job-{verb}", arguments),
            lambda: self._model.command(job_id, verb),
        )
        if not carried_out:
            for job in finalized:
                job.finalized = False
        if carried_out and verb in (JobVerb.CANCEL, JobVerb.FINALIZE):
            await self._until(lambda: self._model.active(disk) is None, f"job {verb}")

    async def finish(self, disk: int) -> None:
        """Let a job copy all there is to copy, and its partners.

        :raises Diverged: as :meth:`transact`
        """
        job = self._model.jobs.get(f"job{disk}")
        if job is None or job.spec.sync is Sync.NONE:
            return
        ids = [job.spec.id, *sorted(job.partners)]
        for one in ids:
            await self.poll()
            other = self._model.jobs.get(one)
            if other is None or other.stage not in (Stage.RUNNING, Stage.PAUSED):
                continue
            await self._speed_up(one, JobVerb.SET_SPEED, {"speed": 0})
            if other.stage is Stage.PAUSED:
                await self._speed_up(one, JobVerb.RESUME, {})

        def over() -> bool:
            jobs = [self._model.jobs.get(one) for one in ids]
            stages = [job.stage for job in jobs if job is not None]
            # One that paused at its target's error waits for a resume of its own.
            return Stage.PAUSED in stages or all(
                stage in (Stage.PENDING, Stage.CONCLUDED) for stage in stages
            )

        await self._until(over, "a job")

    async def _speed_up(self, job: str, verb: JobVerb, more: Mapping[str, int]) -> None:
        await self._answer(
            f"job {verb}",
            lambda: self._model.job_refusal(job, verb),
            lambda: self._chain.command(f"block-job-{verb}", {"device": job, **more}),
            lambda: self._model.command(job, verb),
        )

    async def poll(self, answered: bool = False) -> bool:
        """Note what jobs did. Whether something was noted.

        :param answered: up to the last answer to a command, which may have come just now; else up
            to now, by a round trip, if a job may have moved on by itself
        :raises Diverged: one ended otherwise than predicted, or its target is wrong
        """
        if not self._model.jobs:
            return False  # what still comes of one that is gone is the end of it, and is not noted
        # One that cannot end by now does nothing that is to be noted.
        still = not any(job.active and job.endings for job in self._model.jobs.values())
        noted = await self._chain.job_events(answered or still)
        events = [e for e in noted if e.job in self._model.jobs]
        for event in events:
            await self._note(event)
        return bool(events)

    async def _note(self, event: JobEvent) -> None:
        job = self._model.jobs.get(event.job)
        if job is None or not job.active:
            return
        if event.status == "error":
            self._errors.add(event.job)
            if event.action == "stop":
                job.stage = Stage.PAUSED
        elif event.status == "waiting" and job.stage is Stage.RUNNING:
            job.stage = Stage.WAITING
        elif event.status == "pending" and self._model.waits(event.job):
            job.stage = Stage.PENDING
        elif event.status in _ENDINGS:
            await self._ended(job, _ENDINGS[event.status])
            return
        else:
            return
        self._chain.steps.append(JobReached(event.job, event.status))

    async def _ended(self, job: BackupJob, ending: Ending) -> None:
        spec = job.spec
        allowed = self._model.endings(spec.id)
        if ending not in allowed:
            predicted = " or ".join(sorted(one.name.lower() for one in allowed)) or "it runs on"
            where = f"the end of a backup with sync={spec.sync}"
            names = tuple(sorted(one.name.lower() for one in allowed))
            evidence = JobEnded(spec.id, names, ending.name.lower())
            raise Diverged(Verdict.ERROR_CONTRACT, where, predicted, evidence.observed, evidence)
        self._chain.steps.append(JobReached(spec.id, ending.name.lower()))
        target = self.targets.pop(spec.id)
        silent = target.fails and spec.id not in self._errors
        if silent and ending is Ending.COMPLETED:
            where = f"a backup with on-target-error={spec.fault}"
            raise Diverged(
                Verdict.ERROR_CONTRACT,
                where,
                "an error is reported",
                "none was",
                JobSilent(spec.id),
            )
        self._errors.discard(spec.id)
        if spec.disk in self.snapshots.exported:
            await self.snapshots.unexport(spec.disk)
        disk = self._model.disks[spec.disk]
        bitmap = disk.bitmaps[spec.bitmap] if spec.bitmap is not None else None
        old = bitmap.must if bitmap is not None else NOTHING
        version = [link.version for link in self._model.chains[spec.disk]]
        self._model.end(spec.id, ending)
        self.sides.result.targets[ending.name.lower()] += 1
        await self._close(spec, target.image)
        compare_mismarked(job, lambda one: compare_target(self._chain, target, one, ending))
        if uses_always(job) and ending is not Ending.COMPLETED:
            assert bitmap is not None
            await self._bitmaps.read(spec.disk)
            compare_target(self._chain, target, job, ending, old - bitmap.must)
        shape = self.sides.setup.spec
        self.sides.result.clusters += -(-shape.size // shape.cluster)
        self._keep(spec.disk, target, version)

    def _keep(self, disk: int, target: Target, version: list[int]) -> None:
        """Keep a target as part of its disk's chain, or remove it."""
        now = [link.version for link in self._model.chains[disk]]
        if now == version and target.image not in self._images[disk]:
            self._chain.image(target.image).unlink()
            return
        new = [target.image, *target.backing]
        for image in self._images[disk]:
            if image not in new and not is_base(image):
                self._chain.image(image).unlink()
        self._images[disk] = new

    async def _answer(
        self,
        where: str,
        predict: Callable[[], ErrorClass | None],
        send: Callable[[], Awaitable[None]],
        done: Callable[[], None],
    ) -> bool:
        """Send a command and compare its answer.

        What jobs did has been noted just before.

        :param done: called where it was carried out, before what jobs did since is noted
        :returns: whether it was carried out
        """
        await self.poll(answered=True)
        before = predict()
        observed: str | None = None
        text = ""
        try:
            await send()
        except CommandFailed as error:
            observed, text = error.error_class, error.desc
        if observed != before:
            # A job may have ended between the two.
            after = predict() if await self.poll() else before
            if observed != after:
                raise Diverged(
                    Verdict.ERROR_CONTRACT,
                    where,
                    f"the error {before}" if before else "no error",
                    f"the error {observed}: {text}" if observed else "no error",
                    Answered(after, text if observed else None),
                )
        if observed is None:
            done()
        return observed is None


def _shown_at(defect: PointDefect, actions: Sequence[Action]) -> list[str]:
    """Where a transaction that meets a defect shows it."""
    if defect is PointDefect.ENABLE_UNDONE:
        return ["transaction"]
    if defect is PointDefect.ALWAYS_MARKS:
        return []  # wherever something differs by what it has marked: `compare_mismarked`
    return [
        str(BitmapPlace(job.disk, job.bitmap))
        for job in actions
        if isinstance(job, JobSpec) and job.bitmap and job.mode is BitmapMode.ALWAYS
    ]
