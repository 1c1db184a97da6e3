"""Steps made of a run on disks with bitmaps and jobs: its script sees what is predicted wrongly.

The runs are real ones, of a QEMU that does what is predicted. A divergence made with that
prediction is not seen; one with another prediction is.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from errno import EIO
from pathlib import Path

import pytest

from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.conformance.compare.evidence import (
    Answered,
    BitmapBits,
    BitmapNames,
    BitmapState,
    Evidence,
    InFiles,
    JobEnded,
    JobSilent,
    NotInFile,
    Returned,
)
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.pointintime import bundle
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.pointintime.operations import PointKind, PointOperation
from qmpshim.conformance.pointintime.session import BASE_OWNER, PointsRun, run_points
from qmpshim.conformance.pointintime.sides import PointsResult
from qmpshim.conformance.pointintime.verify import SIZE, points_setup
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.errors import Exit, InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.points import PointsChain, PointsSpec
from qmpshim.machine.chain.record import JobReached, RecordedStep, RequestSent
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.client import AT_ONCE
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.jobs import BitmapMode, Copying, JobSpec, OnError, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb
from qmpshim.model.units import SECTOR
from vmtests.support.bundles import loaded, steps_draft
from vmtests.support.points import (
    CANCEL,
    CHECK,
    CLUSTER,
    FINISH,
    MUTANTS,
    ClearedTooEarly,
    ClusterLeftOut,
    GranuleNotMarked,
    PointMutant,
    SnapshotShowsNew,
    TwoT0s,
    add,
    case,
    write,
)
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer

SPEC = PointsSpec(SIZE)
FULL = JobSpec(0, Sync.FULL)
SLOW = JobSpec(0, Sync.FULL, "a", BitmapMode.ON_SUCCESS, slow=True)
INCREMENTAL = JobSpec(0, Sync.INCREMENTAL, "a", BitmapMode.ON_SUCCESS)
INCREMENT = ("target0-2.qcow2", "target0-1.qcow2")
RESTART, KILL = PointOperation(1, PointKind.RESTART), PointOperation(1, PointKind.KILL)
READ = PointOperation(1, PointKind.READ, 0, 0, 8)


def bundle_of(
    build: Build,
    workspace: Workspace,
    operations: Sequence[PointOperation],
    chain: type[PointsChain] = PointsChain,
    other: Divergence | None = None,
) -> tuple[Path, Divergence]:
    """The bundle of a run, and the divergence in it.

    :param other: what it is to show, where the run shows nothing
    """
    setup = replace(points_setup(build, SPEC, strict=True), chain=chain)
    place = workspace.path / "bundle"
    seen: list[Divergence] = []

    def keep(run: PointsRun | None, result: PointsResult) -> None:
        assert (result.divergence is None) is (other is not None), result.divergence
        found = result.divergence or other
        assert found is not None
        seen.append(found)
        kept = PointsCase(PointsWorkflow.PUSH, SPEC, frozenset(), tuple(operations), found, 1, {})
        assert run is not None
        if other is not None:
            del run.chain.steps[before_the_end(run.chain.steps, other.evidence) :]
        bundle.save(place, kept, run)

    asyncio.run(run_points(setup, operations, workspace.subdirectory("run"), at_end=keep))
    return place, seen[0]


def before_the_end(steps: Sequence[RecordedStep], evidence: Evidence | None) -> int:
    """Where a run would have stopped that had seen this: before it compares everything.

    Of a job's end it would not have noted more.
    """
    if isinstance(evidence, JobEnded):
        return max(at for at, step in enumerate(steps) if isinstance(step, JobReached))
    first = RequestSent("disk0", Verb.READ, 0, AT_ONCE // SECTOR)
    return max(at for at, step in enumerate(steps) if step == first)


def script_of(place: Path) -> str:
    steps = steps_draft(place)
    assert TO_WRITE not in steps
    return steps_script("A title", steps)


OTHERS = [
    one
    for one in MUTANTS
    if one.chain in (GranuleNotMarked, ClearedTooEarly, TwoT0s, ClusterLeftOut, SnapshotShowsNew)
    and not str(one).endswith("by drive")
]
#: Operations, what is predicted of them rightly, and what wrongly.
CASES: dict[str, tuple[tuple[PointOperation, ...], Evidence, Evidence]] = {
    "an answer": (case(add()), Answered(None, "no"), Answered("GenericError", None)),
    "an error": (
        case(add(), add()),
        Answered("GenericError", None),
        Answered(None, "Bitmap already exists: a"),
    ),
    "data of a disk": (
        case(write(0), READ),
        Returned("disk0", 0, ((1, 8),)),
        Returned("disk0", 0, ((2, 8),)),
    ),
    "zeroes after a restart": (
        case(write(0), PointOperation(1, PointKind.ZERO, 0, 0, 4), RESTART, READ),
        Returned("disk0", 0, ((0, 4), (1, 4))),
        Returned("disk0", 0, ((1, 8),)),
    ),
    "a snapshot": (
        case(
            (add("b"), JobSpec(0, Sync.NONE)),
            write(CLUSTER),
            PointOperation(1, PointKind.SNAPSHOT_READ, 0, CLUSTER, 8),
        ),
        Returned("snapshot0", CLUSTER, ((BASE_OWNER, 8),)),
        Returned("snapshot0", CLUSTER, ((2, 8),)),
    ),
    "the end of a job": (
        case(FULL),
        JobEnded("job0", ("completed",), "failed"),
        JobEnded("job0", ("failed",), "completed"),
    ),
    "a job that is cancelled": (
        case(add(), SLOW, CANCEL),
        JobEnded("job0", ("cancelled",), "failed"),
        JobEnded("job0", ("completed", "failed"), "cancelled"),
    ),
    "an error of a target": (
        case(replace(FULL, fault=OnError.REPORT)),
        JobSilent("job0"),
        JobSilent("job1"),
    ),
    "an error of a target that is opened by its options": (
        case(replace(FULL, fault=OnError.REPORT, errno=EIO, drive=True)),
        JobSilent("job0"),
        JobSilent("job1"),
    ),
    "a target that failed once, opened by its options": (
        case(add(), FULL, write(0), replace(INCREMENTAL, fault=OnError.IGNORE, drive=True)),
        InFiles(INCREMENT, 0, ((3, 8),)),
        InFiles(INCREMENT, 0, ((4, 8),)),
    ),
    "bitmaps": (
        case(add(), add("b")),
        BitmapNames("disk0", ("a", "b")),
        BitmapNames("disk0", ("a",)),
    ),
    "a bitmap's state": (
        case(add(), write(0), CHECK),
        BitmapState("disk0", "a", {"recording": True, "busy": False}, 65536, 65536),
        BitmapState("disk0", "a", {"recording": False, "busy": False}, 65536, 65536),
    ),
    "a bitmap's count after a kill": (
        case(add(persistent=True), write(0), RESTART, write(CLUSTER), CHECK),
        BitmapState("disk0", "a", {"recording": True}, 131072, 131072),
        BitmapState("disk0", "a", {"recording": True}, 0, 65536),
    ),
    "what a bitmap lost with a kill": (
        case(add(), write(0), KILL),
        BitmapNames("disk0", ()),
        BitmapNames("disk0", ("a",)),
    ),
    "an increment": (
        case(
            add(),
            FULL,
            write(CLUSTER),
            INCREMENTAL,
            FINISH,
        ),
        InFiles(INCREMENT, CLUSTER, ((3, 8), (BASE_OWNER, 8))),
        InFiles(INCREMENT, CLUSTER, ((3, 16),)),
    ),
    "a compressed target": (
        case(replace(FULL, copying=Copying(compress=True))),
        InFiles(("target0-1.qcow2",), CLUSTER, ((BASE_OWNER, 8),)),
        InFiles(("target0-1.qcow2",), CLUSTER, ((0, 8),)),
    ),
    "what a target must not have": (
        case(write(0), JobSpec(0, Sync.TOP, drive=True)),
        NotInFile("target0-1.qcow2", ((2 * CLUSTER, 8),)),
        NotInFile("target0-1.qcow2", ((0, 8),)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_script_sees_a_wrong_prediction_alone(
    name: str, qemu_build: Build, workspace: Workspace, reproducer: Reproducer
) -> None:
    operations, right, wrong = CASES[name]
    place, _ = bundle_of(qemu_build, workspace, operations, other=shows(operations, right))
    status, lines = reproducer(script_of(place))
    assert status == NOT_SEEN, lines
    value = json.loads((place / "case.json").read_text())
    value["divergence"] = shows(operations, wrong).to_json()
    (place / "case.json").write_text(json.dumps(value))
    status, lines = reproducer(script_of(place))
    assert status == SEEN, lines


def shows(operations: Sequence[PointOperation], evidence: Evidence) -> Divergence:
    return Divergence(
        Verdict.CONTENT, "somewhere", operations[-1].number, "this", "that", evidence=evidence
    )


def test_the_bits_of_a_bitmap(
    qemu_build: Build, workspace: Workspace, reproducer: Reproducer
) -> None:
    """They are read by an export that the run has at this moment."""
    snapshot = ((BitmapAction(BitmapVerb.DISABLE, 0, "a"), JobSpec(0, Sync.NONE)),)
    operations = case(add(), write(0), *snapshot, write(CLUSTER))
    of = CLUSTER // 128 * 128
    for must, may, wanted in (
        (((0, 128),), ((0, 128),), NOT_SEEN),
        ((), ((0, SIZE // SECTOR),), NOT_SEEN),
        (((0, 8), (of, 8)), ((0, SIZE // SECTOR),), SEEN),
        ((), ((of, 8),), SEEN),
    ):
        found = shows(operations, BitmapBits("snapshot0", "a", must, may))
        place, _ = bundle_of(qemu_build, workspace, operations, other=found)
        status, lines = reproducer(script_of(place))
        assert status == wanted, lines
        shutil.rmtree(place)


@pytest.mark.parametrize("mutant", OTHERS, ids=str)
def test_what_another_qemu_does_is_not_seen_on_this_one(
    mutant: PointMutant, qemu_build: Build, workspace: Workspace, reproducer: Reproducer
) -> None:
    """Of a run that diverged: the mutant is in the run's QEMU, and in none of the script's.

    One of them gives another command than the workload has, which its script gives, too.
    """
    place, found = bundle_of(qemu_build, workspace, mutant.operations, mutant.chain)
    assert found.evidence is not None
    status, lines = reproducer(script_of(place))
    own = mutant.chain is ClusterLeftOut
    assert status == (SEEN if own else NOT_SEEN), lines


def test_a_defect_that_was_found_is_seen(
    qemu_build: Build, workspace: Workspace, reproducer: Reproducer
) -> None:
    """A null pointer in all versions: the operations are those of its write-up."""
    known = loaded(write_up("verify/transaction-undoes-enable-that-was-refused").path, PointsCase)
    assert isinstance(known, PointsCase)
    place, found = bundle_of(qemu_build, workspace, known.operations)
    assert found.ending is not None
    status, lines = reproducer(script_of(place))
    assert status == SEEN, lines


def test_a_qemu_that_ends_or_hangs(
    qemu_build: Build, workspace: Workspace, reproducer: Reproducer
) -> None:
    """Looked for in the last operation alone: one that goes on shows nothing."""
    operations = case(add(), write(0))
    crash = replace(
        shows(operations, Answered(None, None)), ending=Ending(Exit(-signal.SIGABRT), "")
    )
    place, _ = bundle_of(qemu_build, workspace, operations, other=crash)
    script = script_of(place)
    status, lines = reproducer(script)
    assert status == NOT_SEEN, lines
    last = '\nio("disk0", "write"'
    before, named, after = script.partition('\ntext, data = io("disk0", "write"')
    assert named
    for number, wanted in ((6, SEEN), (11, UNTESTED)):
        killed = f"{before}\nqemu.send_signal({number}), qemu.wait(){last}{after}"
        assert reproducer(killed)[0] == wanted
    early = script.replace("\nanswer(", "\nqemu.send_signal(6), qemu.wait()\nanswer(", 1)
    assert reproducer(early)[0] == UNTESTED

    shutil.rmtree(place)
    hang = replace(shows(operations, Answered(None, None)), verdict=Verdict.HANG)
    place, _ = bundle_of(qemu_build, workspace, operations, other=hang)
    script = script_of(place).replace("PATIENCE = 10", "PATIENCE = 1")
    status, lines = reproducer(script)
    assert status == NOT_SEEN, lines
    before, named, after = script.partition('\ntext, data = io("disk0", "write"')
    stopped = f"{before}\nqemu.send_signal(19){last}{after}"
    status, lines = reproducer(stopped)
    assert status == SEEN, lines


def test_without_the_steps_of_the_run_the_author_has_to_write_them(
    qemu_build: Build, workspace: Workspace
) -> None:
    """As of a bundle of before, or of a QEMU that did not come up."""
    operations = case(add())
    place, _ = bundle_of(
        qemu_build, workspace, operations, other=shows(operations, Answered(None, "no"))
    )
    (place / bundle.STEPS).write_text('[{"type": "nonsense"}]')
    with pytest.raises(InputError, match="nonsense"):
        steps_draft(place)
    (place / bundle.STEPS).unlink()
    steps = steps_draft(place)
    assert TO_WRITE in steps and "bitmap-add disk0/a" in steps
