"""The primary's checkers kill mutants: what they look at is spoilt, in the model or in QEMU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from errno import EIO, ENOSPC
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers import quorum, sequential
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.choices import Cut, io_id
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.qmp.nonblocking import NonBlockingQmp
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.chain.primary import PrimaryChain
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Owners
from qmpshim.model.operations import Operation, Verb, operation
from qmpshim.model.runtime.coroutines import Co, ModelIOError
from vmtests.support.failing import Misbehaving, Swallowing, causes, explored, one, seeing
from vmtests.support.gate import drop_new, drop_primary, drop_primary_flush, stale_primary_read

MASKED = "guest_write says success after a refused primary write"
OWN, FORWARDED = "primary write 0+128", "secondary write 0+128"


def causes_by_verdict(system: RealSystem) -> dict[Verdict, set[str]]:
    found: dict[Verdict, set[str]] = {}
    for kind, cause in system.found:
        found.setdefault(kind, set()).add(str(cause))
    return found


def single(*ops: Operation) -> RealScenario:
    return RealScenario("made", ops, form="primary")


WRITE, READ, FLUSH = (
    operation("guest_write", 0, 128),
    operation("guest_read", 0, 256, 0),
    operation("guest_flush"),
)
STATUS, STOP = operation("status", after=0), operation("stop")


# A write first: up to 5.2 a quorum with nothing to flush leaves it to its children.
FLUSHED = single(WRITE, replace(FLUSH, after=0))


# -- QEMU as it is ---------------------------------------------------------------------------------


def test_what_qemu_does_is_described_in_its_own_words(pool: QemuPool) -> None:
    """Case 1 is masked, and what comes of that; case 2 is as the document has it."""
    assert not explored(pool, single(WRITE)).found
    assert causes_by_verdict(explored(pool, single(WRITE), fails=OWN)) == {
        Verdict.ERROR_CONTRACT: {MASKED}
    }
    assert causes_by_verdict(explored(pool, single(WRITE, READ), fails=OWN)) == {
        Verdict.LOST_WRITE: {f"{MASKED}, and is not read back"}
    }
    assert not explored(pool, single(WRITE, STATUS), fails=FORWARDED).found
    assert not explored(pool, single(WRITE, STATUS), fails=FORWARDED, errno=Cut.FOR_GOOD).found
    stopped = single(STOP, replace(WRITE, after=0))
    for fails, found in ((None, {}), (OWN, {})):
        assert causes_by_verdict(explored_second(pool, stopped, fails)) == found


def explored_first(pool: QemuPool, scenario: RealScenario, fails: str) -> RealSystem:
    """As :func:`explored`."""
    return explored(pool, scenario, fails=fails)


def explored_second(
    pool: QemuPool,
    scenario: RealScenario,
    fails: str | None,
    kind: type[RealSystem] = RealSystem,
) -> RealSystem:
    """As :func:`explored`, but it is the second operation's I/O that fails."""
    system = kind(pool, scenario, injection=Injection(plan={io_id(1, fails): 5} if fails else {}))
    system.reset()
    while left := system.enabled():
        system.take(left[0])
    system.finish()
    return system


def with_failures(pool: QemuPool, scenario: RealScenario, **errnos: int) -> RealSystem:
    """One execution, in which the flushes of some disks fail, by disk."""
    plan = {io_id(len(scenario.ops) - 1, f"{disk} flush"): errno for disk, errno in errnos.items()}
    system = RealSystem(pool, scenario, injection=Injection(plan=plan))
    system.reset()
    while left := system.enabled():
        system.take(left[0])
    system.finish()
    return system


# -- the model -------------------------------------------------------------------------------------


class ForwardsNothing(PrimaryChain):
    def write_both(self, own: Co[None], forwarded: Co[None]) -> Co[None]:
        yield from own


class HidesItsError(PrimaryChain):
    def forward(self, write: Co[None]) -> Co[int]:
        answer = yield from super().forward(write)
        self.error = False
        return answer


class ReadsTheOther(PrimaryChain):
    def guest_read(self, start: int, count: int) -> Co[Owners]:
        return (yield from self.secondary.read(start, count))


class ForgetsAtACheckpoint(PrimaryChain):
    def checkpoint(self) -> Co[None]:
        self.error = False
        return
        yield


class KeepsForwarding(PrimaryChain):
    def begin_failover(self) -> None:
        self.error = False


SPOILT: dict[type[PrimaryChain], tuple[RealScenario, str | None, Verdict, str]] = {
    ForwardsNothing: (single(WRITE), None, Verdict.LOST_WRITE,
                      "secondary: the guest's data instead of the old data"),
    HidesItsError: (single(WRITE), FORWARDED, Verdict.ERROR_CONTRACT,
                    "final status I/O error occurred, after a failed secondary write"),
    ReadsTheOther: (single(WRITE, READ), FORWARDED, Verdict.LOST_WRITE,
                    "guest_read: the guest's data instead of the old data, "
                    "after a failed secondary write"),
    ForgetsAtACheckpoint: (single(WRITE, operation("checkpoint", after=0)), FORWARDED,
                           Verdict.ERROR_CONTRACT,
                           "final status I/O error occurred, after a failed secondary write"),
    KeepsForwarding: (single(STOP, replace(WRITE, after=0)), None, Verdict.LOST_WRITE,
                      "secondary: the old data instead of the guest's data"),
}  # fmt: skip


@pytest.mark.parametrize("chain", SPOILT, ids=lambda chain: chain.__name__)
def test_a_model_that_is_wrong_is_not_agreed_with(
    pool: QemuPool, chain: type[PrimaryChain], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, fails, verdict, cause = SPOILT[chain]
    assert not explored(pool, scenario, fails=fails).found
    monkeypatch.setattr(sequential, "PrimaryChain", chain)
    assert causes_by_verdict(explored(pool, scenario, fails=fails)) == {verdict: {cause}}


class Masks(PrimaryChain):
    """Case 1 as QEMU has it."""

    def side_by_side(self, own: Co[None], other: Co[int], masks: KnownDefect) -> Co[None]:
        try:
            yield from super().side_by_side(own, other, masks)
        except ModelIOError:
            return


def test_a_model_that_masks_errors_finds_no_fault_with_qemu(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its answer: that the data were refused is known without a model."""
    monkeypatch.setattr(sequential, "PrimaryChain", Masks)
    assert not explored_second(pool, FLUSHED, "primary flush").found
    silent = "guest_write says success after a refused primary write"
    assert causes(explored(pool, single(WRITE), fails=OWN)) == {silent}


class TakesAllErrorsForEio(PrimaryChain):
    def side_by_side(self, own: Co[None], other: Co[int], masks: KnownDefect) -> Co[None]:
        def taken() -> Co[int]:
            return EIO if (yield from other) else 0

        yield from super().side_by_side(own, taken(), masks)


@pytest.mark.parametrize(("primary", "secondary"), [(EIO, ENOSPC), (ENOSPC, EIO)])
def test_of_two_flushes_that_fail_the_last_disks_error_is_answered(
    primary: int, secondary: int, pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many votes for each (``quorum_get_vote_winner``)."""
    errnos = {"primary": primary, "secondary": secondary}
    assert not with_failures(pool, FLUSHED, **errnos).found
    monkeypatch.setattr(sequential, "PrimaryChain", TakesAllErrorsForEio)
    found = causes(with_failures(pool, FLUSHED, **errnos))
    wrong = "guest_flush answers errno 28, after a failed primary flush"
    assert found == ({wrong} if secondary == ENOSPC else set())


# -- the disks under QEMU --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misbehaviour", "ops", "verdict", "cause"),
    [
        (drop_new, (WRITE,), Verdict.LOST_WRITE,
         "secondary: the old data instead of the guest's data"),
        (drop_primary, (WRITE,), Verdict.LOST_WRITE,
         "primary: the old data instead of the guest's data"),
        (drop_primary, (WRITE, READ), Verdict.LOST_WRITE,
         "guest_read: the old data instead of the guest's data"),
        (stale_primary_read, (WRITE, READ), Verdict.LOST_WRITE,
         "guest_read: the old data instead of the guest's data"),
        (drop_primary, (WRITE, replace(FLUSH, after=0)), Verdict.LOST_WRITE,
         "guest_write not on disk after guest_flush"),
        (drop_primary_flush, (WRITE, replace(FLUSH, after=0)), Verdict.LOST_WRITE,
         "guest_flush does not flush the primary disk"),
    ],
)  # fmt: skip
def test_a_misbehaving_disk_is_found_out(
    pool: QemuPool, misbehaviour: Release, ops: tuple[Operation, ...], verdict: Verdict, cause: str
) -> None:
    assert not explored(pool, single(*ops)).found
    assert causes_by_verdict(explored(pool, single(*ops), release=misbehaviour)) == {
        verdict: {cause}
    }


@pytest.mark.parametrize("write", [WRITE, operation("guest_zero", 0, 128)])
def test_a_flush_that_is_dropped_is_found_out_after_a_failure_too(
    pool: QemuPool, write: Operation
) -> None:
    """Where the forwarded write failed, or zeroes were written: the own disk is owed it still."""
    scenario = single(write, replace(FLUSH, after=0))
    fails = FORWARDED if write is WRITE else None
    cause = "guest_flush does not flush the primary disk"
    assert cause not in causes(explored(pool, scenario, fails=fails))
    assert cause in causes(explored(pool, scenario, fails=fails, release=drop_primary_flush))


def test_a_primary_that_was_stopped_before_forwards_nothing(pool: QemuPool) -> None:
    scenario = replace(single(WRITE), setup=(STOP,))
    assert not explored(pool, scenario).found


@pytest.mark.parametrize("fails", [OWN, FORWARDED])
def test_a_refused_write_that_happened_nevertheless_is_found_out(
    pool: QemuPool, fails: str
) -> None:
    misbehaving = explored(pool, single(WRITE), Misbehaving, fails)
    disk = fails.split()[0]
    assert causes_by_verdict(misbehaving) == {
        Verdict.LOST_WRITE: {
            f"{disk}: the guest's data instead of the old data, after a failed {disk} write"
        }
    }


# -- QEMU ------------------------------------------------------------------------------------------


@pytest.mark.kills("quorum")
def test_a_swallowed_error_is_found_out_where_qemu_reports_it(pool: QemuPool) -> None:
    """Once replication is over nothing masks it."""
    stopped = single(STOP, replace(WRITE, after=0))
    found = causes(explored_second(pool, stopped, OWN, Swallowing))
    assert found == {"guest_write answers ok, after a failed primary write"}


def test_a_write_that_was_not_forwarded_and_not_reported(pool: QemuPool) -> None:
    silent = seeing(lambda seen: replace(seen, status=None))
    assert causes(explored(pool, single(WRITE), silent, FORWARDED)) == {str(quorum.NOT_IN_STATUS)}


def test_a_status_that_cries_without_a_reason(pool: QemuPool) -> None:
    crying = seeing(lambda seen: replace(seen, status="I/O error occurred"))
    found = causes(explored(pool, single(WRITE), crying))
    assert found == {"final status I/O error occurred"}


@pytest.mark.kills("quorum")
def test_an_error_that_no_event_reports(pool: QemuPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an error nor QUORUM_REPORT_BAD."""
    take_in = NonBlockingQmp.take_message

    def deaf(qmp: NonBlockingQmp, line: bytes) -> str:
        return "" if b"QUORUM_REPORT_BAD" in line else take_in(qmp, line)

    pool.discard()
    monkeypatch.setattr(quorum, "EVENT_LIMIT", 0.3)
    for scenario, fails, run, do in (
        (single(WRITE), OWN, explored_first, "guest_write"),
        (FLUSHED, "primary flush", explored_second, "guest_flush"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(NonBlockingQmp, "take_message", deaf)
            found = causes_by_verdict(run(pool, scenario, fails))
            cause = f"{do}: neither an error nor QUORUM_REPORT_BAD"
            assert found == {Verdict.ERROR_CONTRACT: {cause}}
        pool.discard()
        masks = f"{do} says success after a refused primary {do.split('_')[1]}"
        assert causes(run(pool, scenario, fails)) == {masks}


@pytest.mark.kills("probe")
@pytest.mark.parametrize(
    ("do", "scenario", "cause"),
    [
        ("stop", "primary-SG-SR", "secondary: the guest's data instead of the old data"),
        ("status", "primary-GQ", "the next guest write is not on the secondary disk"),
    ],
)
def test_replication_that_runs_or_not_as_it_should_not(
    pool: QemuPool, do: str, scenario: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that does nothing, and a query that stops it."""
    command = real_ops.command
    instead: Callable[[GatedMachine], tuple[str, Mapping[str, Any]]] = {
        "stop": lambda machine: ("query-iothreads", {}),
        "status": lambda machine: command(machine, Verb.FAILOVER),
    }[do]

    def other(machine: GatedMachine, what: Verb) -> tuple[str, Mapping[str, Any]]:
        return instead(machine) if what == do else command(machine, what)

    assert not explored(pool, one(scenario)).found
    monkeypatch.setattr(real_ops, "command", other)
    found = causes(explored(pool, one(scenario)))
    pool.discard()
    assert cause in found, found


def test_both_refused_is_explored_and_reported(pool: QemuPool) -> None:
    plan = quorum.both_refused([io_id(0, OWN), io_id(0, FORWARDED)], [Cut.FOR_GOOD, 5])
    assert plan == [{io_id(0, OWN): 5, io_id(0, FORWARDED): 5}]
    system = RealSystem(pool, single(WRITE), injection=Injection(plan=plan[0]))
    system.reset()
    while left := system.enabled():
        system.take(left[0])
    system.finish()
    assert causes_by_verdict(system) == {
        Verdict.LOST_WRITE: {f"{MASKED} and a refused secondary one"}
    }


def test_reference_disks_yield_no_finding(pool: QemuPool) -> None:
    for name in ("primary-RP", "primary-GF", "primary-EQ", "primary-SQ", "primary-OG"):
        assert not explored(pool, one(name), release=faithfully).found, name
