"""The correct protocols keep the promise in every interleaving; the mutants do not."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.search.model_run import replay_model
from qmpshim.model.chain.protocols import (
    REFERENCE_PROTOCOLS,
    CopyBeforeWriteProtocol,
    SerializationProtocol,
)
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.block_copy import CopyBeforeWriteJob
from qmpshim.model.disks.image import Alloc, Qcow2Image, RawImage, owned
from qmpshim.model.disks.serialising import TrackedRequests
from qmpshim.model.explore.explorer import Mode, explore, shortest
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.mutants import MUTANTS
from qmpshim.model.runtime.coroutines import ModelIOError, run_sequentially
from qmpshim.model.scenario import Scenario
from qmpshim.model.scenarios import ROBUSTNESS, SCENARIOS

#: Too big for each test.
LONG = [SCENARIOS["seed"], SCENARIOS["crossing"]]
QUICK = [scenario for scenario in SCENARIOS.values() if scenario not in LONG]


def keeps_the_promise(
    scenario: Scenario, correct: type[SerializationProtocol], late: bool = False
) -> None:
    if scenario.protocols and correct.name not in scenario.protocols:
        return
    result = explore(ModelSystem(scenario, correct, correct, late_wakes=late))
    assert not result.violations
    assert result.exhaustive


@pytest.mark.parametrize("correct", REFERENCE_PROTOCOLS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_promise(scenario: Scenario, correct: type[SerializationProtocol]) -> None:
    keeps_the_promise(scenario, correct)
    keeps_the_promise(scenario, correct, late=True)


@pytest.mark.parametrize("correct", REFERENCE_PROTOCOLS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scenario", LONG, ids=lambda scenario: scenario.name)
def test_promise_in_the_bigger_scenarios(
    scenario: Scenario, correct: type[SerializationProtocol]
) -> None:
    keeps_the_promise(scenario, correct)


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_break_snapshot(scenario: Scenario) -> None:
    """on-cbw-error=break-snapshot: no write fails for the copy's sake, no reader sees new data.

    The guest's side has no way to hear that the snapshot is broken, so this is for backup alone.
    """

    def broken() -> SerializationProtocol:
        return CopyBeforeWriteProtocol(break_snapshot=True)

    if scenario.workflow.value != "backup":
        return
    result = explore(ModelSystem(scenario, broken, broken))
    assert result.exhaustive and not result.violations


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 25
    assert {mutant.reference for mutant in MUTANTS.values()} == set(REFERENCE_PROTOCOLS)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str) -> None:
    mutant = MUTANTS[name]
    found = []
    for scenario in mutant.scenarios:
        for mode in (Mode.STATEFUL, Mode.DPOR):
            result = explore(mutant.system(SCENARIOS[scenario]), mode)
            assert result.violations, (scenario, mode)
        schedule = shortest(mutant.system(SCENARIOS[scenario]), 12)
        assert schedule is not None
        assert replay_model(mutant.system(SCENARIOS[scenario]), schedule)
        found.append(schedule)
    assert min(map(len, found)) <= 12


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_beyond_the_contract_the_promise_breaks(name: str) -> None:
    scenario = ROBUSTNESS[name]
    for correct in REFERENCE_PROTOCOLS:
        if not scenario.protocols or correct.name in scenario.protocols:
            assert explore(ModelSystem(scenario, correct, correct)).violations


def test_counterexample_of_the_fill_that_2_8_does_not_protect() -> None:
    """The guest writes 8 sectors, and the primary's new data fills up the rest of the cluster."""
    mutant = MUTANTS["cow-request-2.8-fill"]
    result = explore(mutant.system(SCENARIOS["write-fill"]))
    ((violation, _),) = result.violations
    assert violation.kind is Verdict.ISOLATION


# -- the parts of the newer protocols --------------------------------------------------------------


def test_no_request_waits_for_one_that_waits() -> None:
    tracked = TrackedRequests()
    reader = tracked.begin(0, 8)
    writer = tracked.begin(0, 8)
    tracked.set_serialising(writer, 8)
    waiting = tracked.wait_serialising(writer)
    next(waiting)
    assert writer.waiting_for is reader
    late = tracked.begin(4, 8)
    assert tracked.conflicting(late) is None


def test_serialising_rounds_outwards() -> None:
    tracked = TrackedRequests()
    req = tracked.begin(130, 140)
    tracked.set_serialising(req, 128)
    assert (req.start, req.end) == (128, 256)


def cbw_job() -> CopyBeforeWriteJob:
    source = RawImage("secondary", 512)
    run_sequentially(source.write(0, owned(1, 512)))
    return CopyBeforeWriteJob(source, Qcow2Image("hidden", 512, 128, True))


def test_task_clears_bits_at_once_and_sets_them_again_when_it_fails() -> None:
    job = cbw_job()
    co = job.block_copy(0, 2)
    next(co)
    assert job.copy_bitmap == {2, 3} and len(job.reqs) == 1
    with pytest.raises(ModelIOError):
        co.throw(ModelIOError(5))
    assert job.copy_bitmap == {0, 1, 2, 3} and not job.reqs


def test_a_task_ends_where_one_block_status_does() -> None:
    """A zero cluster beside one that is not allocated: zeroes are copied of each by itself."""
    source = Qcow2Image("secondary", 512, 128, backed=False)
    run_sequentially(source.zero(128, 128, -2, unmap=False))
    target = Qcow2Image("hidden", 512, 128, True)
    run_sequentially(CopyBeforeWriteJob(source, target).block_copy(0, 2))
    assert target.alloc == dict.fromkeys(range(2), Alloc.ZERO)


def test_copied_ranges_are_read_from_the_target() -> None:
    job = cbw_job()
    run_sequentially(job.copy_before_write(0, 10))
    assert job.done_bitmap == {0} and job.copy_bitmap == {1, 2, 3}
    assert job.is_copied(0) and not job.is_copied(1)
    job.forget()
    assert not job.is_copied(0)
