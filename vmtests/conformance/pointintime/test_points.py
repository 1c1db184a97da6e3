"""A real QEMU keeps the promise of point-in-time backups; one that breaks it is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from errno import EIO, ENOSPC
from itertools import product
from typing import Any

import pytest

from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.pointintime.comparisons import Diverged
from qmpshim.conformance.pointintime.operations import PointKind, PointOperation
from qmpshim.conformance.pointintime.session import PointsRun, run_points
from qmpshim.conformance.pointintime.sides import PointsResult
from qmpshim.conformance.pointintime.targets import compare_image
from qmpshim.conformance.pointintime.verify import SIZE, PointsSubject, points_setup, replay_points
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload.pattern import Comparer
from qmpshim.conformance.workload.verification import VerifyOutcome, verify
from qmpshim.errors import CommandFailed, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import JobEvent, PointsChain, PointsSpec
from qmpshim.machine.host.files import map_file
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.jobs import BitmapMode, Copying, JobSpec, OnError, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb, JobVerb, PointDefect
from vmtests.support.bundles import loaded
from vmtests.support.points import (
    CANCEL,
    CHECK,
    FINISH,
    KILL,
    MUTANTS,
    RESTART,
    TOGETHER,
    CopiesAfterT0,
    GranuleNotMarked,
    PointMutant,
    SnapshotShowsNew,
    TransactionInTwo,
    add,
    by_drive,
    case,
    write,
)

SPEC = PointsSpec(SIZE)
SHAPES = {
    "usual": SPEC,
    "small clusters": PointsSpec((1 << 20) + 512, 4096),
    "large clusters, cut": PointsSpec((5 << 20) + 512, 2 << 20),
    "less than a cluster": PointsSpec(1536),
}


def run(
    build: Build,
    workspace: Workspace,
    operations: Sequence[PointOperation],
    chain: type[PointsChain] = PointsChain,
    strict: bool = False,
    spec: PointsSpec = SPEC,
) -> PointsResult:
    setup = replace(points_setup(build, spec, strict=strict), chain=chain)
    return asyncio.run(run_points(setup, operations, workspace.subdirectory("run")))


def verified(
    build: Build, workspace: Workspace, workflow: PointsWorkflow, count: int, seed: int
) -> VerifyOutcome[PointOperation, PointsResult, PointsRun]:
    setup = points_setup(build, SPEC)
    bundles = workspace.path / "bundles"
    return asyncio.run(
        verify(
            PointsSubject(workflow, setup),
            list(PointsWorkload(workflow, SPEC, seed).take(count)),
            build.name,
            seed,
            workspace,
            bundles,
            _ignored,
        )
    )


def _ignored(text: str) -> None:
    assert text


@pytest.mark.parametrize("workflow", PointsWorkflow)
def test_qemu_does_what_is_predicted(
    workflow: PointsWorkflow, qemu_build: Build, workspace: Workspace
) -> None:
    outcome = verified(qemu_build, workspace, workflow, 150, 1)
    assert outcome.result.divergence is None, outcome.to_json()
    assert outcome.result.done == 150
    assert outcome.result.clusters > 0


@pytest.mark.full
@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("workflow", PointsWorkflow)
def test_long_workloads(
    workflow: PointsWorkflow, seed: int, qemu_build: Build, workspace: Workspace
) -> None:
    outcome = verified(qemu_build, workspace, workflow, 2000, seed)
    assert outcome.result.divergence is None, outcome.to_json()
    if workflow is PointsWorkflow.PUSH:
        assert set(outcome.result.targets) == {"completed", "failed", "cancelled"}


@pytest.mark.full
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workflow", PointsWorkflow)
def test_shapes(
    workflow: PointsWorkflow, shape: str, qemu_build: Build, workspace: Workspace
) -> None:
    operations = list(PointsWorkload(workflow, SHAPES[shape], 1).take(300))
    found = run(qemu_build, workspace, operations, spec=SHAPES[shape]).divergence
    assert found is None, str(found)


class ReadsWrong(PointsChain):
    """After the first check a read of an export returns a wrong byte in one place."""

    export_name, byte = "disk1", 0
    checks = 0

    async def bitmaps(self) -> list[list[dict[str, Any]]]:
        self.checks += 1
        return await super().bitmaps()

    def read_ahead(
        self, export: str, ranges: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, memoryview]]:
        # A check reads snapshots after it has listed bitmaps, and disks before.
        wrong = export == self.export_name and self.checks > export.startswith("snapshot")
        for offset, data in super().read_ahead(export, ranges):
            if wrong and 0 <= self.byte - offset < len(data):
                data[self.byte - offset] ^= 1
            yield offset, data


def wrong_at(export: str, byte: int) -> type[PointsChain]:
    return type("WrongAt", (ReadsWrong,), {"export_name": export, "byte": byte})


PART = 9 * 65536  # bytes: an eighth of such a disk in whole pages
SNAPSHOTS = (JobSpec(0, Sync.NONE), JobSpec(1, Sync.NONE))


@pytest.mark.parametrize(("part", "check"), [(0, 9), (1, 2), (2, 3), (4, 5), (7, 8)])
@pytest.mark.parametrize("export", ["disk1", "snapshot1"])
def test_what_nothing_touched_is_read_by_one_check_of_eight(
    export: str, part: int, check: int, qemu_build: Build, workspace: Workspace
) -> None:
    """The first one reads all, so that it is the ninth that reads the first part again."""
    operations = case(SNAPSHOTS, *(10 * [CHECK]))
    chain = wrong_at(export, part * PART)
    found = run(qemu_build, workspace, operations, chain).divergence
    assert found is not None and found.operation == 1 + check, str(found)
    verdict = Verdict.CONTENT if export == "disk1" else Verdict.ISOLATION
    assert found.verdict is verdict, str(found)


@pytest.mark.parametrize("part", [0, 1, 4, 7])
@pytest.mark.parametrize("export", ["disk1", "snapshot1"])
def test_the_end_reads_all(export: str, part: int, qemu_build: Build, workspace: Workspace) -> None:
    chain = wrong_at(export, part * PART)
    found = run(qemu_build, workspace, case(SNAPSHOTS, CHECK), chain).divergence
    assert found is not None and found.operation == 2, str(found)


@pytest.mark.parametrize("kind", [PointKind.WRITE, PointKind.ZERO, PointKind.DISCARD])
@pytest.mark.parametrize("export", ["disk1", "snapshot1"])
def test_the_clusters_that_were_touched_are_read(
    export: str, kind: PointKind, qemu_build: Build, workspace: Workspace
) -> None:
    sector = 3 * SIZE // 4 // 512
    request = PointOperation(1, kind, 1, sector, 8)
    operations = case(SNAPSHOTS, CHECK, request, CHECK, CHECK)
    found = run(qemu_build, workspace, operations, wrong_at(export, (sector + 20) * 512)).divergence
    assert found is not None and found.operation == 4, str(found)


def test_another_snapshot_is_read_as_a_whole(qemu_build: Build, workspace: Workspace) -> None:
    snapshot = JobSpec(0, Sync.NONE)
    operations = case(snapshot, CHECK, replace(CANCEL, force=True), snapshot, CHECK, CHECK)
    chain = wrong_at("snapshot0", 3 * SIZE // 4)
    found = run(qemu_build, workspace, operations, chain).divergence
    assert found is not None and found.operation == 5, str(found)


def test_a_job_that_cannot_end_is_not_looked_after(qemu_build: Build, workspace: Workspace) -> None:
    """What a snapshot's job does comes with the answers of commands; of another one it does not."""
    trips: list[bool] = []

    class Counting(PointsChain):
        async def job_events(self, answered: bool = False) -> list[JobEvent]:
            trips.append(not answered)
            return await super().job_events(answered)

    for job, wanted in ((JobSpec(0, Sync.NONE), False), (JobSpec(0, Sync.FULL, slow=True), True)):
        trips.clear()
        result = run(qemu_build, workspace, case(job, add("b"), add("c"), CHECK), Counting)
        assert result.divergence is None, str(result.divergence)
        assert any(trips) is wanted


class WrittenAtItsEnd(PointsChain):
    """A sector is written as a QEMU ends that nothing else was written near to."""

    def disconnect(self) -> None:
        if self.clients:
            self.clients[1].write(b"x" * 512, SIZE // 2)
        super().disconnect()


def test_what_a_qemu_leaves_is_compared(qemu_build: Build, workspace: Workspace) -> None:
    operations = case(write(0), write(0, disk=1), CHECK, RESTART, CHECK)
    found = run(qemu_build, workspace, operations, WrittenAtItsEnd).divergence
    assert found is not None and found.operation == 4, str(found)
    assert (found.verdict, found.where) == (Verdict.CONTENT, "disk1 (file)")


@pytest.mark.parametrize("owner", [7, -7])
def test_a_disk_whose_image_lacks_what_was_written_is_found_out(
    owner: int, workspace: Workspace
) -> None:
    """Below it there is something else: data, where zeroes were written, too."""
    run = PointsRun(points_setup(Build.system(), SPEC), workspace.subdirectory("run"))
    run.chain.create()
    disk = run.model.disks[0]
    compare_image(run.chain, 0, disk, Comparer())
    disk.zero(256, 8, owner)
    with pytest.raises(Diverged) as found:
        compare_image(run.chain, 0, disk, Comparer())
    assert found.value.at(0).where == "disk0 (file)"


LARGE = PointsSpec(1 << 40)


@pytest.mark.parametrize("workflow", PointsWorkflow)
def test_a_large_disk(workflow: PointsWorkflow, qemu_build: Build, workspace: Workspace) -> None:
    operations = list(PointsWorkload(workflow, LARGE, 1).take(60))
    result = run(qemu_build, workspace, operations, spec=LARGE)
    assert result.divergence is None, result.divergence


class WrittenElsewhere(PointsChain):
    """A sector of a disk is written that nothing else was written near to."""

    async def bitmaps(self) -> list[list[dict[str, Any]]]:
        with closing(self.connect("disk1")) as client:
            client.write(b"x" * 512, 700 << 30)
        return await super().bitmaps()


@pytest.mark.parametrize(
    ("chain", "operations", "verdict", "where"),
    [
        (WrittenElsewhere, case(CHECK), Verdict.CONTENT, "disk1"),
        (GranuleNotMarked, case(add(), write(1 << 30)), Verdict.LOST_WRITE, "bitmap disk0/a"),
        (
            SnapshotShowsNew,
            case((JobSpec(0, Sync.NONE),), write(1 << 30)),
            Verdict.ISOLATION,
            "snapshot of disk0",
        ),
        (
            CopiesAfterT0,
            case(add(), write(0), JobSpec(0, Sync.INCREMENTAL, "a")),
            Verdict.CONTENT,
            "target of a backup",
        ),
    ],
)
def test_what_is_wrong_on_a_large_disk_is_seen(
    chain: type[PointsChain],
    operations: tuple[PointOperation, ...],
    verdict: Verdict,
    where: str,
    qemu_build: Build,
    workspace: Workspace,
) -> None:
    found = run(qemu_build, workspace, operations, chain, spec=LARGE).divergence
    assert found is not None
    assert (found.verdict, found.where[: len(where)]) == (verdict, where)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_killed(mutant: PointMutant, qemu_build: Build, workspace: Workspace) -> None:
    found = run(qemu_build, workspace, mutant.operations, mutant.chain).divergence
    assert found is not None, "it was not noticed"
    assert found.verdict is mutant.verdict and found.where.startswith(mutant.where), str(found)
    assert run(qemu_build, workspace, mutant.operations).divergence is None


def test_a_divergence_is_minimized_and_replayed(qemu_build: Build, workspace: Workspace) -> None:
    mutant = MUTANTS[0]
    setup = replace(points_setup(qemu_build, SPEC), chain=mutant.chain)
    outcome = asyncio.run(
        verify(
            PointsSubject(PointsWorkflow.BITMAPS, setup),
            list(PointsWorkload(PointsWorkflow.BITMAPS, SPEC, 1).take(60)),
            qemu_build.name,
            1,
            workspace,
            workspace.path / "bundles",
            _ignored,
            shrinking=15.0,
        )
    )
    assert outcome.bundle is not None
    assert len(outcome.operations) <= 4, list(map(str, outcome.operations))
    kept = loaded(outcome.bundle, PointsCase)
    again = asyncio.run(replay_points(kept, setup, workspace, _ignored)).divergence
    assert again is not None and kept.shown_by(again)
    reference = points_setup(qemu_build, SPEC)
    assert asyncio.run(replay_points(kept, reference, workspace, _ignored)).divergence is None


@pytest.mark.parametrize("drive", [False, True], ids=["blockdev-backup", "drive-backup"])
def test_an_increment_completes_its_chain(
    drive: bool, qemu_build: Build, workspace: Workspace
) -> None:
    full = JobSpec(0, Sync.FULL, "a", BitmapMode.ON_SUCCESS)
    increment = JobSpec(0, Sync.INCREMENTAL, "a", slow=True)
    operations = case(
        add(),
        write(0, 300),
        full,
        write(130, 200),
        increment,
        write(140),
        FINISH,
        increment,
        FINISH,
    )
    if drive:
        operations = tuple(map(by_drive, operations))
    result = run(qemu_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"completed": 3}


class Started(PointsChain):
    """Notes how jobs are started, and what their targets are put on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.started: list[tuple[str, str, object]] = []

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        await super().command(name, arguments)
        if name in ("blockdev-backup", "drive-backup"):
            nodes = await self.qemu.execute("query-named-block-nodes", {"flat": True})
            target = arguments["target"]
            (node,) = [one for one in nodes if target in (one["node-name"], one["file"])
                       and one["drv"] == "qcow2"]  # fmt: skip
            below = node.get("backing_file", "").rpartition("/")[2]
            self.started.append((name, below, arguments.get("mode")))


class Removed(Started):
    """A QEMU that has no ``drive-backup``."""

    async def open(self) -> None:
        await super().open()
        self.commands.remove("drive-backup")


def test_drive_backup_opens_its_target_where_there_is_such_a_command(
    each_build: Build, workspace: Workspace
) -> None:
    for kind, name, mode in (
        (Started, "drive-backup", "existing"),
        (Removed, "blockdev-backup", None),
    ):
        chains = []

        class Kept(kind):  # type: ignore[misc, valid-type]
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                chains.append(self)  # noqa: B023

        job = JobSpec(0, Sync.TOP, slow=True, drive=True)
        result = run(each_build, workspace, case(write(0, 300), write(1000, 300), job), Kept)
        assert result.divergence is None, str(result.divergence)
        assert chains[0].started == [(name, "base0.raw", mode)]


def test_some_jobs_of_a_workload_are_of_drive_backup() -> None:
    """Some of them with a target that fails; and the rest of a workload is as without them."""
    found = [
        job
        for operation in PointsWorkload(PointsWorkflow.PUSH, SPEC, 1).take(2000)
        for job in operation.actions
        if isinstance(job, JobSpec)
    ]
    drives = [job for job in found if job.drive]
    assert len(found) / 5 < len(drives) < len(found) / 2
    assert {job.sync for job in drives} > {Sync.TOP}
    assert {(job.fault, job.errno) for job in drives} == {
        (None, ENOSPC), *product(OnError, (ENOSPC, EIO)),
    }  # fmt: skip
    smaller = PointOperation(1, PointKind.BACKUP, actions=(drives[0],)).smaller()
    assert [one.actions for one in smaller] == [(replace(drives[0], drive=False),)]
    pulls = PointsWorkload(PointsWorkflow.PULL, SPEC, 1).take(500)
    jobs = [one for pull in pulls for one in pull.actions if isinstance(one, JobSpec)]
    assert jobs and not any(one.drive for one in jobs)


@pytest.mark.parametrize(
    ("copying", "sent"),
    [
        (Copying(), {}),
        (Copying(compress=True), {"compress": True}),
        (Copying(copy_range=True), {"x-perf": {"use-copy-range": True}}),
        (Copying(True, False, 2, 131072),
         {"compress": True, "x-perf": {"max-workers": 2, "max-chunk": 131072}}),
        (Copying(True, granule=262144),
         {"compress": True, "x-perf": {"min-cluster-size": 262144}}),
    ],
)  # fmt: skip
def test_a_job_copies_as_it_is_asked_to(
    copying: Copying, sent: dict[str, object], each_build: Build, workspace: Workspace
) -> None:
    """Whatever it is, the target is the disk at T0; it is in compressed clusters or it is not."""
    how, packed = ("compress", "x-perf"), []
    asked: dict[str, object] = {}

    class Watching(PointsChain):
        async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
            asked.update((key, arguments[key]) for key in how if key in arguments)
            await super().command(name, arguments)

        async def close_target(self, disk: int) -> None:
            await super().close_target(disk)
            packed.append(Qcow2Reader.parse(map_file(self.image("target0-1"))).has_compressed())

    if read_version(each_build)[0] < (6, 0):
        sent = {key: value for key, value in sent.items() if key == "compress"}
    if copying.granule and read_version(each_build)[0] < (9, 2):
        sent = {"compress": True}
    job = JobSpec(0, Sync.FULL, copying=copying)
    result = run(each_build, workspace, case(write(0, 300), write(1000, 300), job), Watching)
    assert result.divergence is None, str(result.divergence)
    assert (asked, packed, result.targets) == (sent, [copying.compress], {"completed": 1})


class SmallGranules(PointsChain):
    """How much a job has to copy at once is not heeded."""

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        own = {key: value for key, value in arguments.items() if key != "x-perf"}
        await super().command(name, own)


def test_a_job_copies_whole_granules(each_build: Build, workspace: Workspace) -> None:
    """Of what its bitmap does not name, too, where they are larger than a cluster."""
    job = JobSpec(0, Sync.BITMAP, "a", BitmapMode.NEVER, copying=Copying(granule=262144))
    operations = case(add(), write(1000), job)
    result = run(each_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"completed": 1}
    found = run(each_build, workspace, operations, SmallGranules).divergence
    if read_version(each_build)[0] < (9, 2):
        assert found is None
        return
    assert found is not None and found.where.startswith("target of a backup"), str(found)


def test_what_is_wrong_in_a_compressed_target_is_found_out(
    qemu_build: Build, workspace: Workspace
) -> None:
    job = JobSpec(0, Sync.FULL, copying=Copying(compress=True))
    found = run(qemu_build, workspace, case(write(0, 300), job), CopiesAfterT0).divergence
    assert found is not None and found.verdict is Verdict.CONTENT, str(found)


@pytest.mark.parametrize("mode", BitmapMode)
def test_a_job_that_fails_gives_its_bitmap_back(
    mode: BitmapMode, qemu_build: Build, workspace: Workspace
) -> None:
    job = JobSpec(0, Sync.BITMAP, "a", mode, fault=OnError.REPORT)
    operations = case(add(), write(0, 300), write(1000, 300), job, CHECK)
    result = run(qemu_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"failed": 1}


def test_a_grouped_job_is_cancelled_with_one_that_fails(
    qemu_build: Build, workspace: Workspace
) -> None:
    jobs = (JobSpec(0, Sync.FULL, fault=OnError.REPORT), JobSpec(1, Sync.FULL, slow=True))
    both = PointOperation(1, PointKind.TRANSACTION, actions=jobs, grouped=True)
    result = run(qemu_build, workspace, case(both, write(0, disk=1), CHECK))
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"failed": 1, "cancelled": 1}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("drive", [False, True], ids=["blockdev-backup", "drive-backup"])
@pytest.mark.parametrize(
    ("policy", "errno", "ends"),
    [
        (OnError.REPORT, ENOSPC, {"failed": 1, "cancelled": 1}),
        (OnError.REPORT, EIO, {"failed": 1, "cancelled": 1}),
        (OnError.IGNORE, EIO, {"completed": 2}),
        (OnError.STOP, EIO, {"completed": 2}),
        (OnError.ENOSPC, ENOSPC, {"completed": 2}),
        (OnError.ENOSPC, EIO, {"failed": 1, "cancelled": 1}),
    ],
)
def test_one_target_of_two_disks_fails(
    policy: OnError,
    errno: int,
    ends: dict[str, int],
    drive: bool,
    failing: int,
    each_build: Build,
    workspace: Workspace,
) -> None:
    """Where the job stops it waits for a resume, and its partner for it (``finish`` resumes)."""
    jobs = [JobSpec(disk, Sync.FULL, drive=drive) for disk in range(2)]
    jobs[failing] = replace(jobs[failing], fault=policy, errno=errno)
    finish = replace(FINISH, disk=failing)
    operations = case(replace(TOGETHER, actions=tuple(jobs)), finish, CHECK)
    result = run(each_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == ends


def test_a_killed_qemu_leaves_inconsistent_bitmaps(qemu_build: Build, workspace: Workspace) -> None:
    operations = case(
        add("a", persistent=True), write(0), RESTART, CHECK, add("b", persistent=True), KILL, CHECK
    )
    result = run(qemu_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)


@pytest.mark.parametrize("sync", [Sync.FULL, Sync.INCREMENTAL, Sync.NONE])
def test_a_qemu_is_killed_with_its_jobs(
    sync: Sync, each_build: Build, workspace: Workspace
) -> None:
    """The disk holds what was written, its bitmap is of no use until it was made anew."""
    with_bitmap = "a" if sync is not Sync.NONE else None
    mode = BitmapMode.ON_SUCCESS if sync is Sync.FULL else None
    job = JobSpec(0, sync, with_bitmap, mode, slow=True)
    remove = BitmapAction(BitmapVerb.REMOVE, 0, "a")
    full = JobSpec(0, Sync.FULL, "a", BitmapMode.ON_SUCCESS)
    operations = case(
        *(add(persistent=True), RESTART, write(0, 300), write(3000), job, write(130, 200)),
        *(KILL, CHECK),
        *(JobSpec(0, Sync.INCREMENTAL, "a"), remove, add(), full, write(7), CHECK),
    )
    result = run(each_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"completed": 1}


@pytest.mark.parametrize("workflow", [PointsWorkflow.PUSH, PointsWorkflow.PULL])
def test_some_restarts_are_kills(workflow: PointsWorkflow) -> None:
    operations = list(PointsWorkload(workflow, SPEC, 1).take(3000))
    ends = [op for op in operations if op.kind in (PointKind.RESTART, PointKind.KILL)]
    assert {op.kind for op in ends} == {PointKind.RESTART, PointKind.KILL}


@pytest.mark.parametrize("defect", PointDefect)
def test_a_known_defect_is_left_out_and_shown_by_its_write_up(
    defect: PointDefect, qemu_build: Build, workspace: Workspace
) -> None:
    if not write_up(defect).concerns(read_version(qemu_build)[0]):
        pytest.skip("another version's")
    written_up = loaded(write_up(defect).path, PointsCase)
    result = run(qemu_build, workspace, written_up.operations)
    assert result.divergence is None and result.known == {defect: 1}
    found = run(qemu_build, workspace, written_up.operations, strict=True).divergence
    assert found is not None and written_up.shown_by(found)


def test_a_refused_enable_in_a_transaction_stops_an_exported_bitmap(
    qemu_build: Build, workspace: Workspace
) -> None:
    """No crash, as where there is no such bitmap: the bitmap records no more."""

    async def recording() -> list[bool]:
        run = PointsRun(points_setup(qemu_build, SPEC), workspace.subdirectory("run"))
        try:
            await run.open()
            name = {"node": "disk0", "name": "a"}
            await run.chain.command("block-dirty-bitmap-add", name)
            await run.chain.export("bits", "disk0", True, ["a"])
            seen = [(await run.chain.bitmaps())[0][0]["recording"]]
            with pytest.raises(CommandFailed):
                enable = {"type": "block-dirty-bitmap-enable", "data": name}
                await run.chain.transaction([enable], False)
            return [*seen, (await run.chain.bitmaps())[0][0]["recording"]]
        finally:
            await run.close()

    written_up = write_up("directed/refused-enable-stops-bitmap")
    assert "stops recording" in written_up.meaning.consequence
    assert asyncio.run(recording()) == [True, False]


def test_a_paused_job_is_cancelled_by_force_only(qemu_build: Build, workspace: Workspace) -> None:
    pause = PointOperation(1, PointKind.JOB, verb=JobVerb.PAUSE)
    force = replace(CANCEL, force=True)
    operations = case(JobSpec(0, Sync.FULL, slow=True), pause, pause, CANCEL, write(0), force)
    result = run(qemu_build, workspace, operations)
    assert result.divergence is None, str(result.divergence)
    assert result.targets == {"cancelled": 1}


@pytest.mark.parametrize("workflow", PointsWorkflow)
def test_operations_are_stored_and_read(workflow: PointsWorkflow) -> None:
    for operation in PointsWorkload(workflow, SPEC, 1).take(400):
        assert PointOperation.from_json(operation.to_json()) == operation
        assert str(operation).startswith(f"{operation.number}: ")
    with pytest.raises(InputError):
        PointOperation.from_json({"number": 1, "do": "write", "disk": 0})


def test_a_transaction_with_two_t0s_is_seen_by_writes_beside_it(
    qemu_build: Build, workspace: Workspace
) -> None:
    """Jobs that start one after the other have in their snapshots what came between."""
    operations = case(PointOperation(1, PointKind.RACE, 0, 0, 4096))
    found = run(qemu_build, workspace, operations, TransactionInTwo).divergence
    assert found is not None and found.verdict is Verdict.ISOLATION, str(found)
    assert found.where == "snapshots of one transaction"
    assert run(qemu_build, workspace, operations).divergence is None
