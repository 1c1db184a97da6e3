"""Dimensions of the space that change what the model predicts: each kills a mutant of the model.

Where a model that leaves a rule of QEMU's out predicts the same, the dimension shows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOTSUP
from typing import Any

import pytest

from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks import backup_job
from qmpshim.model.disks.backup_job import BACKUP_CLUSTER_SIZE_DEFAULT, BackupJob
from qmpshim.model.disks.block_copy import CopyBeforeWriteJob
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.runtime.coroutines import Co, ModelIOError
from vmtests.support import misbehaving_gate
from vmtests.support.failing import explored

_SMALL = "relation=during,place=small"


def misreads(pool: QemuPool) -> bool:
    """Whether the build has ``snapshot-read-returns-new-data``, which comes before all else."""
    return (7, 0) <= read_version(pool.build)[0] < (8, 0)


def found(
    pool: QemuPool, name: str, release: Callable[[GatedMachine, NamedIo], None] = faithfully
) -> set[tuple[Verdict, Cause]]:
    """What is wrong in the first schedules of a point of the space."""
    scenario = scenario_of(point_named(name))
    if scenario.has("snapshot-access") and scenario.accessible is None and misreads(pool):
        pytest.skip("its snapshot-read-returns-new-data comes first, whatever is read")
    return found_in(pool, scenario, release)


def found_in(
    pool: QemuPool,
    scenario: RealScenario,
    release: Callable[[GatedMachine, NamedIo], None] = faithfully,
) -> set[tuple[Verdict, Cause]]:
    """What is wrong in the first schedules of a scenario, known or not."""
    try:
        system = explored(pool, scenario, release=release, mode=Mode.DPOR, most=40, online=True)
    except BuildError as error:
        pytest.skip(str(error))
    return set(system.found)


def verdicts_of(found: set[tuple[Verdict, Cause]]) -> set[Verdict]:
    return {verdict for verdict, _ in found}


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        (f"primary_write+guest_read,form=fleecing,{_SMALL},target=large", Verdict.CONTENT),
        (f"primary_write+guest_read,form=fleecing,{_SMALL},target=large-alone", Verdict.CONTENT),
        (f"primary_write+guest_read,form=fleecing,{_SMALL},target=min-cluster",
         Verdict.ALLOCATION),
        (f"primary_write+guest_read,form=backup,{_SMALL},cluster=4k,target=large",
         Verdict.LOST_WRITE),
        (f"primary_write+guest_read,form=backup,{_SMALL},target=min-cluster", Verdict.ALLOCATION),
        (f"primary_write+guest_write,{_SMALL},cluster=4k,target=large", Verdict.LOST_WRITE),
    ],
)  # fmt: skip
def test_a_copy_is_as_large_as_the_target_or_an_option_wants_it(
    pool: QemuPool, name: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pool, name) == set()
    monkeypatch.setattr(
        backup_job, "backup_calculate_cluster_size", lambda *_: BACKUP_CLUSTER_SIZE_DEFAULT
    )
    assert verdicts_of(found(pool, name)) == {verdict}


def _copies_all(job: CopyBeforeWriteJob) -> None:
    job.copy_bitmap.update(job.clusters)


def _shows_all(job: CopyBeforeWriteJob) -> None:
    job.access_bitmap.update(job.clusters)


def _shows_nothing(job: CopyBeforeWriteJob) -> None:
    job.access_bitmap.clear()


def _forgets_the_last(job: CopyBeforeWriteJob) -> None:
    """As if the bitmap's granules were rounded inwards."""
    job.copy_bitmap.discard(max(job.copy_bitmap, default=0))


@pytest.mark.parametrize(
    ("second", "bitmap", "mutant", "verdict"),
    [
        ("guest_read", "empty", _copies_all, Verdict.ALLOCATION),
        ("guest_read", "empty", _shows_all, Verdict.ERROR_CONTRACT),
        ("guest_read", "ends", _copies_all, Verdict.ALLOCATION),
        ("guest_read", "ends", _shows_all, Verdict.ERROR_CONTRACT),
        ("guest_read", "middle", _shows_nothing, Verdict.ERROR_CONTRACT),
        ("guest_read", "middle", _forgets_the_last, Verdict.LOST_WRITE),
        ("guest_block_status", "empty", _shows_all, Verdict.ERROR_CONTRACT),
        ("guest_block_status", "middle", _shows_nothing, Verdict.ERROR_CONTRACT),
    ],
)
def test_a_snapshot_has_what_its_bitmap_names(
    pool: QemuPool,
    second: str,
    bitmap: str,
    mutant: Callable[[CopyBeforeWriteJob], None],
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"primary_write+{second},form=fleecing,bitmap={bitmap}"
    assert found(pool, name) == set()
    made = CopyBeforeWriteJob.__init__

    def init(job: CopyBeforeWriteJob, *args: Any, **named: Any) -> None:
        made(job, *args, **named)
        mutant(job)

    monkeypatch.setattr(CopyBeforeWriteJob, "__init__", init)
    assert verdicts_of(found(pool, name)) == {verdict}


def _paused_copies_nothing(chain: Chain, job: BackupJob, start: int, count: int) -> Co[None]:
    if not chain.paused:
        yield from chain.protocol.before_write(job, start, count)


def _pause_is_forgotten(chain: Chain) -> Co[None]:
    return
    yield


@pytest.mark.parametrize(
    ("name", "method", "mutant", "verdict"),
    [
        ("primary_write+job_pause", "before_write", _paused_copies_nothing, Verdict.LOST_WRITE),
        ("primary_write+primary_read,history=paused", "before_write", _paused_copies_nothing,
         Verdict.LOST_WRITE),
        ("primary_write+stop,history=paused", "job_pause", _pause_is_forgotten,
         Verdict.ERROR_CONTRACT),
        ("primary_write+job_resume,history=paused", "job_pause", _pause_is_forgotten,
         Verdict.ERROR_CONTRACT),
    ],
)  # fmt: skip
def test_a_job_that_is_paused_copies_and_is_not_cancelled(
    pool: QemuPool,
    name: str,
    method: str,
    mutant: Callable[..., Co[None]],
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operations, _, more = name.partition(",")
    name = ",".join(filter(None, (operations, "form=backup", more)))
    assert found(pool, name) == set()
    monkeypatch.setattr(Chain, method, mutant)
    assert verdicts_of(found(pool, name)) == {verdict}


def test_a_slow_job_holds_up_no_write(pool: QemuPool) -> None:
    """A mutant of QEMU 10.0's block-copy.c (804, the limit not ignored) hangs here."""
    name = "primary_write+job_speed,form=backup,third=then_primary_write"
    assert found(pool, name) == set()

    def throttled(machine: GatedMachine, named: NamedIo) -> None:
        """The later write waits, as it does for a copy that the limit delays."""
        if named.op == 2:
            misbehaving_gate.lose_reply(machine.gate, named.io)
        else:
            faithfully(machine, named)

    hangs = Cause(CauseKind.HANGS, "primary_write")
    assert found(pool, name, throttled) == {(Verdict.HANG, hangs)}


def test_a_block_status_never_has_zeroes_where_the_snapshot_has_none(pool: QemuPool) -> None:
    """7.2 reports the source's, which has new zeroes by then.

    Mutants of 10.0's ``cbw_co_snapshot_block_status`` (306, 310, 321) are killed by this.
    """
    scenario = scenario_of(
        point_named("primary_zero+guest_block_status,form=fleecing,relation=starts")
    )
    wrong = {cause.subject for _, cause in found_in(pool, scenario)}
    assert wrong == ({"guest_block_status", "view"} if misreads(pool) else set())


def test_zeroes_that_must_be_fast_are_written_where_they_are(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where backup's filter lost the flag it would have to refuse them (BDRV_REQ_NO_FALLBACK)."""
    name = "primary_zero_fast+guest_read,form=backup"
    assert found(pool, name) == set()

    def refused(chain: Chain, *place: int) -> Co[None]:
        raise ModelIOError(ENOTSUP)
        yield

    monkeypatch.setattr(Chain, "primary_zero_fast", refused)
    assert verdicts_of(found(pool, name)) == {Verdict.ERROR_CONTRACT}
