"""What checking disks with bitmaps, jobs and snapshots costs, against the same done alone.

Run it: ``python -m vmtests.bench.bench_points [OPERATIONS]``.  A verified run records what it does
to QEMU; the bare one does that again, without the reads that only compare. Both in turns in one
process, and the median of the ratios is printed; that of processor time, QEMU's included, is the
one to look at where others use the machine. Then, each in a process of its own, disks of 1 TiB with
64 MiB in them: what it takes to compare them. Nothing is asserted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from qmpshim.conformance.pointintime.operations import PointKind, PointOperation
from qmpshim.conformance.pointintime.session import (
    BASE_OWNER,
    PointsRun,
    base_of,
    bytes_of,
    run_points,
)
from qmpshim.conformance.pointintime.sides import PointsResult, PointsSetup
from qmpshim.conformance.pointintime.verify import SIZE, points_setup
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, IOFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.points import PointsChain, PointsSpec
from qmpshim.machine.chain.record import (
    Began,
    CommandSent,
    ExportGone,
    FileClosed,
    JobReached,
    NewImage,
    NodeClosed,
    RecordedStep,
    RequestSent,
    Restarted,
)
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.jobs import BitmapMode, JobSpec, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb
from qmpshim.model.units import SECTOR
from vmtests.support.processes import peak_memory

MiB, TiB = 1 << 20, 1 << 40
OPERATIONS = 2000
TURNS = 5
_READS = (PointKind.READ, PointKind.SNAPSHOT_READ)
#: What a job's status may be, in order (``JobStatus``, qapi/job.json of 10.0).
_COURSE = [
    "undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending",
    "aborting", "concluded", "null",
]  # fmt: skip


async def verified(
    setup: PointsSetup, operations: Sequence[PointOperation], directory: Path
) -> tuple[float, list[RecordedStep]]:
    """Seconds for all operations with all comparisons, and what was done."""
    steps: list[RecordedStep] = []

    def keep(run: PointsRun | None, result: PointsResult) -> None:
        if run is not None:
            steps.extend(run.chain.steps)

    result = await run_points(setup, operations, directory, at_end=keep)
    assert result.divergence is None, result.divergence
    return result.seconds, steps


class Bare:
    """Does steps again on disks of its own."""

    def __init__(self, setup: PointsSetup, chain: PointsChain) -> None:
        self._setup, self._chain = setup, chain
        self._events: list[tuple[str, str]] = []
        self._opening = False  # the steps that open the disks of a new QEMU are done as one

    async def do(self, step: RecordedStep) -> None:
        """One step."""
        chain = self._chain
        if isinstance(step, Began):
            self._opening = False
        if self._opening:
            return
        match step:
            case NewImage(file, backing):
                chain.new_image(Path(file).stem, [Path(backing).stem] if backing else ())
            case CommandSent(name, arguments):
                with suppress(CommandFailed):
                    await chain.qemu.execute(name, _in_directory(arguments, chain.directory))
            case RequestSent():
                with suppress(IOFailed):
                    self._request(step)
            case JobReached(job, status):
                await self._reaches(job, status)
            case ExportGone(name):
                await chain.qemu.until(lambda: self._is_gone(name), f"{name} stays")
            case NodeClosed(name):
                await chain.close_target(int(name.removeprefix("target")))
            case FileClosed(name):
                await chain.until_closed(Path(name).stem)
            case Restarted(killed):
                await self._restart(killed)

    async def _reaches(self, job: str, status: str) -> None:
        """Wait for what was seen of a job, or until it is past that: what it does beside requests
        takes another course each time.
        """
        wanted = _COURSE.index(status) if status in _COURSE else _COURSE.index("concluded")

        async def has_come() -> bool:
            events = await self._chain.job_events()
            self._events += [(one.job, one.status) for one in events]
            if (job, status) in self._events:
                self._events.remove((job, status))
                return True
            jobs = await self._chain.qemu.execute("query-jobs")
            there = {one["id"]: one["status"] for one in jobs}.get(job, "null")
            return not events and _COURSE.index(there) > wanted

        await self._chain.qemu.until(has_come, f"{job} does not become {status}")

    async def _is_gone(self, export: str) -> bool:
        exports = await self._chain.qemu.execute("query-block-exports")
        return all(one["id"] != export for one in exports)

    def _request(self, step: RequestSent) -> None:
        chain, offset, length = self._chain, step.start * SECTOR, step.count * SECTOR
        disk = step.export.removeprefix("disk")
        if not disk.isdecimal():
            chain.read(step.export, length, offset)
            return
        client = chain.clients[int(disk)]
        match step.verb:
            case Verb.READ:
                client.read(length, offset)
            case Verb.WRITE:
                client.write(pattern.data_of(step.owner, step.start, step.count), offset)
            case Verb.ZERO:
                client.zero(length, offset)
            case Verb.DISCARD:
                client.discard(length, offset)
            case _:
                client.flush()

    async def _restart(self, killed: bool) -> None:
        chain = self._chain
        if killed:
            chain.qemu.kill()
        chain.disconnect()
        await chain.qemu.close()
        self._events.clear()
        chain.qemu = self._setup.qemu(chain.directory)
        await chain.qemu.start()
        await chain.open()
        self._opening = True


def _in_directory(value: Any, directory: Path) -> Any:
    """A command's arguments with the files' whole names: the reverse of what records them."""
    match value:
        case dict():
            return {key: _in_directory(one, directory) for key, one in value.items()}
        case list():
            return [_in_directory(one, directory) for one in value]
        case str() if value.startswith("json:"):
            options = _in_directory(json.loads(value.removeprefix("json:")), directory)
            return f"json:{json.dumps(options)}"
        case str() if value.endswith((".qcow2", ".raw", ".sock")):
            return str(directory / value)
    return value


@asynccontextmanager
async def _disks(setup: PointsSetup, directory: Path) -> AsyncIterator[PointsChain]:
    spec = setup.spec
    bases = [bytes_of(base_of(spec, disk), spec.size // SECTOR) for disk in range(spec.disks)]
    qemu = setup.qemu(directory)
    chain = PointsChain(qemu, spec, directory, setup.qemu_img, bases)
    chain.create()
    await qemu.start()
    try:
        await chain.open()
        yield chain
    finally:
        chain.disconnect()
        await chain.qemu.close()


async def bare(
    setup: PointsSetup,
    operations: Sequence[PointOperation],
    steps: Sequence[RecordedStep],
    directory: Path,
) -> float:
    """Seconds for the same with nothing looked at."""
    reads = {one.number for one in operations if one.kind in _READS}
    number, own = 0, []
    for step in dropwhile(lambda step: not isinstance(step, Began), steps):
        if isinstance(step, Began):
            number = step.number
        compares = isinstance(step, RequestSent) and step.verb is Verb.READ and number not in reads
        if not compares:
            own.append(step)
    async with _disks(setup, directory) as chain:
        player = Bare(setup, chain)
        began = time.perf_counter()
        for step in own:
            await player.do(step)
        return time.perf_counter() - began


async def ratio(workflow: PointsWorkflow, count: int) -> None:
    """Both in turns."""
    setup = points_setup(Build.system(), PointsSpec(SIZE))
    operations = list(PointsWorkload(workflow, setup.spec, 1).take(count))
    took: list[tuple[float, float]] = []
    worked: list[float] = []
    for _ in range(TURNS):
        gc.collect()
        with Workspace() as place:
            begun = processor_time()
            seconds, steps = await verified(setup, operations, place.subdirectory("verified"))
            gc.collect()
            between = processor_time()
            alone = await bare(setup, operations, steps, place.subdirectory("bare"))
        took.append((seconds, alone))
        worked.append((processor_time() - between) / (between - begun))
    ratios = [alone / seconds for seconds, alone in took]
    seconds, alone = (statistics.median(column) for column in zip(*took, strict=True))
    print(
        f"{workflow:8} verified {count / seconds:6,.0f} operations/s, bare {count / alone:6,.0f}; "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; "
        f"wanted: 0.75), of processor time {statistics.median(worked):.2f}"
    )


def processor_time() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


_BITMAP = BitmapAction(BitmapVerb.ADD, 0, "a", persistent=True)
_FIRST = JobSpec(0, Sync.TOP, "a", BitmapMode.ON_SUCCESS)
_SNAPSHOTS = (JobSpec(0, Sync.NONE), JobSpec(1, Sync.NONE))
#: What comes before 64 MiB are written, and what is timed, with a comparison of everything.
_LARGE: dict[PointsWorkflow, tuple[list[PointOperation], list[PointOperation]]] = {
    PointsWorkflow.PUSH: (
        [
            PointOperation(1, PointKind.BITMAP, actions=(_BITMAP,)),
            PointOperation(2, PointKind.BACKUP, actions=(_FIRST,)),
        ],
        [PointOperation(100, PointKind.BACKUP, actions=(JobSpec(0, Sync.INCREMENTAL, "a"),))],
    ),
    PointsWorkflow.BITMAPS: ([PointOperation(1, PointKind.BITMAP, actions=(_BITMAP,))], []),
    PointsWorkflow.PULL: (
        [
            PointOperation(1, PointKind.BITMAP, actions=(replace(_BITMAP, disabled=True),)),
            PointOperation(2, PointKind.TRANSACTION, actions=_SNAPSHOTS),
        ],
        [],
    ),
}


async def large(workflow: PointsWorkflow, place: Workspace) -> None:
    """One workflow on disks of 1 TiB."""
    spec = PointsSpec(TiB)
    run = PointsRun(points_setup(Build.system(), spec), place.subdirectory("large"))
    before, timed = _LARGE[workflow]
    apart, count = spec.size // SECTOR // 64, MiB // SECTOR
    writes = [
        PointOperation(100 + n, PointKind.WRITE, 0, apart * n + 8 * n, count) for n in range(64)
    ]
    await run.open()
    try:
        await run.run([*before, *writes])
        assert run.result.divergence is None, run.result.divergence
        began = time.perf_counter()
        await run.run(timed)
        took = time.perf_counter() - began
        assert run.result.divergence is None, run.result.divergence
        print(json.dumps({"seconds": took, "MiB": peak_memory()}))
    finally:
        await run.close()


def large_alone(workflow: PointsWorkflow) -> None:
    """The same in a process of its own, whose peak memory it is."""
    done = subprocess.run(
        [sys.executable, "-m", "vmtests.bench.bench_points", "large", workflow],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(
        f"{workflow:8} 1 TiB with 64 MiB in it: {found['seconds']:.2f} s (wanted: 2), "
        f"peak memory {found['MiB']:.0f} MiB (wanted: 300)"
    )


def main() -> None:
    if sys.argv[1:2] == ["large"]:
        with Workspace() as place:
            asyncio.run(large(PointsWorkflow(sys.argv[2]), place))
        return
    count = int(sys.argv[1]) if sys.argv[1:] else OPERATIONS
    assert count < BASE_OWNER
    for workflow in PointsWorkflow:
        asyncio.run(ratio(workflow, count))
        large_alone(workflow)


if __name__ == "__main__":
    main()
