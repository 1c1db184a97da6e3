"""Explored executions, I/Os that fail in them, and what may falsify what the checkers see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EIO
from typing import Any

import pytest

from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.harness.choices import IoId, io_id
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.builds.build import read_version
from qmpshim.model.answers import OK, Answer, IoError, io_error
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import Operation, operation
from vmtests.support.followed import followed

C = scenarios.C
MOST = 60  # schedules of one test; those that have fewer are explored as a whole
# Two clusters that are not neighbours: the commit writes each on its own.
FAILOVER = scenarios.RealScenario(
    "O",
    (operation("failover"),),
    (operation("guest_write", 16, 8), operation("guest_write", 2 * C + 16, 8)),
    size=3 * C,
)


def one(name: str) -> scenarios.RealScenario:
    (scenario,) = scenario_sets.named(name)
    return scenario


def explored(
    pool: QemuPool,
    scenario: scenarios.RealScenario,
    kind: type[RealSystem] = RealSystem,
    fails: str | None = None,
    errno: int = EIO,
    release: Release = faithfully,
    all_io: bool = False,
    nth: int = 0,
    *,
    model: scenarios.RealScenario | None = None,
    mode: Mode = Mode.STATEFUL,
    most: int = MOST,
    online: bool = False,
    whole: bool = False,
) -> RealSystem:
    """All schedules of *scenario* (or the first of many) in which the *nth* I/O *fails* does so.

    :param model: what is predicted is that of this scenario
    :param most: schedules
    :param online: check requests as they arrive, too
    :param whole: there must be no other schedules
    """
    checker = None
    if model is not None:
        checker = LinearizabilityChecker(model, behaviour_of(read_version(pool.build)[0]))
    plan = {io_id(0, fails, nth): errno} if fails else {}

    def made() -> RealSystem:
        return kind(
            pool,
            scenario,
            injection=Injection(plan=plan),
            checks=Checks(linearizability=checker, online=online),
            release=release,
            all_io=all_io,
        )

    system, done = followed(made, mode, Budget(schedules=most))
    assert done.exhaustive or not whole
    assert not plan or plan.keys() <= system.ios, system.ios
    return system


def found(pool: QemuPool, name: str, release: Release, most: int = 60) -> dict[Verdict, set[str]]:
    """By verdict, the causes of what is found in a scenario's first schedules."""
    system, _ = followed(
        lambda: RealSystem(pool, one(name), release=release), Mode.DPOR, Budget(schedules=most)
    )
    causes: dict[Verdict, set[str]] = {}
    for kind, cause in system.found:
        causes.setdefault(kind, set()).add(str(cause))
    return causes


def causes(system: RealSystem) -> set[str]:
    return {str(cause) for _, cause in system.found}


def verdicts(system: RealSystem) -> set[Verdict]:
    return {verdict for verdict, _ in system.found}


class Swallowing(RealSystem):
    """A filter that ignores its job's errors: the write says success."""

    def take_answer(self, index: int) -> None:
        super().take_answer(index)
        if isinstance(self.now.answers[index], IoError):
            self.now.answers[index] = OK


class Misbehaving(RealSystem):
    """A disk that does what it says has failed."""

    def fail_io(self, name: IoId, errno: int) -> None:
        self.machine.gate.apply(self.now.held[name].io)
        super().fail_io(name, errno)


def answering(
    change: Callable[[Operation, Answer], Answer | None], data: tuple[int, ...] | None = None
) -> type[RealSystem]:
    """A QEMU that answers otherwise.

    :param change: gives the answer of an operation that had one; None: it stays
    :param data: what is read where the answer is another one
    """

    class Answering(RealSystem):
        def take_answer(self, index: int) -> None:
            super().take_answer(index)
            answer = change(self.scenario.ops[index], self.now.answers[index])
            if answer is not None:
                self.now.answers[index] = answer
                self.now.data[index] = self.now.data[index] if data is None else data

    return Answering


def seeing(change: Callable[[Outcome], Outcome | None]) -> type[RealSystem]:
    """A QEMU whose end is seen as something else.

    :param change: gives that; None: it is seen as it is
    """

    class Seeing(RealSystem):
        def judge_outcome(self, seen: Outcome) -> RealViolation | None:
            return super().judge_outcome(change(seen) or seen)

    return Seeing


def spoilt(image: str, sector: int) -> type[RealSystem]:
    """A QEMU that leaves in a sector of a disk data that nothing wrote."""

    def change(seen: Outcome) -> Outcome:
        owners = list(getattr(seen, image))
        owners[sector] = 99
        changed: dict[str, Any] = {image: tuple(owners)}
        return replace(seen, **changed)

    return seeing(change)


#: A QEMU that reports what it should ignore.
Refusing = answering(lambda op, answer: io_error(EIO))


def unmapping(pool: QemuPool) -> None:
    """Skip the test where a write of zeroes does not unmap while a backup runs."""
    if not behaviour_of(read_version(pool.build)[0]).unmap_passes_job:
        pytest.skip("a write of zeroes frees no clusters under a backup")


def filtering(pool: QemuPool) -> None:
    """Skip the test where copy-before-write is missing, or its bitmap or on-cbw-error."""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("copy-before-write has no bitmap and no on-cbw-error, if it is there")


def meta_write(pool: QemuPool, scenario: scenarios.RealScenario) -> str:
    """The first write of the hidden disk's tables in a scenario."""
    system = RealSystem(pool, scenario, all_io=True)
    system.reset()
    while left := system.enabled():
        system.take(left[-1])
    names = sorted(
        io.name for io in system.ios if io.op == 0 and io.kind == "hidden write" and io.meta
    )
    assert names
    return names[0]
