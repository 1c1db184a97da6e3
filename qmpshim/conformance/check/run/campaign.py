"""A check of several builds: each case on each build, by an executor, into a journal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import Delivery, Order
from qmpshim.conformance.check.run.executors import Executor
from qmpshim.conformance.check.run.identity import identify
from qmpshim.conformance.check.run.journal import Journal, Key, Plan
from qmpshim.conformance.check.runners import kinds
from qmpshim.conformance.check.suites import Suite
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build, resolve


@dataclass(slots=True)
class RunStatus:
    """How far a run is.

    :ivar running: since when what is being done
    :ivar statuses: how many cases ended how, those of earlier sittings among them
    """

    of: int
    statuses: Counter[Status] = field(default_factory=Counter)
    running: dict[Key, float] = field(default_factory=dict)
    began: float = 0.0
    weight_here: float = 0.0  # of what was done in this sitting
    weight_left: float = 0.0

    @property
    def done(self) -> int:
        """How many cases ended."""
        return self.statuses.total()

    def left(self) -> float | None:
        """Seconds that the rest may take, going by what was done so far."""
        seconds = time.monotonic() - self.began
        if seconds < 5.0 or not self.weight_here:
            return None
        return seconds / self.weight_here * self.weight_left


#: How long a case of a kind takes, beside the others; for :meth:`RunStatus.left` only.
_WEIGHTS = {"explore": 5.0, "guest": 6.0, "pair": 6.0, "verify": 2.0}

_SAME = 8  # cases that break first and in the same way, until the run is given up

_STARTING = 240.0  # seconds for finding out whether a QEMU starts; half of them to greet

OnStatus = Callable[[RunStatus], None]


def plan(builds: Mapping[str, Build], suite: Suite) -> Plan:
    """What is to be done.

    :param builds: by what they were called
    :raises InputError: two builds have the same name
    """
    identities = tuple(identify(build) for build in builds.values())
    names = [one.name for one in identities]
    if len(set(names)) < len(names):
        raise InputError(f"a build is there twice: {', '.join(names)}")
    places = {build.name: called for called, build in builds.items()}
    return Plan(suite.name, identities, suite.cases, places, suite.called)


def begin(
    directory: Path, builds: Mapping[str, Build], suite: Suite, replace: bool = False
) -> Journal:
    """Begin a run; with *replace* in the place of the one that is in *directory*."""
    return Journal.begin(directory, plan(builds, suite), replace)


def resume(directory: Path) -> tuple[Journal, dict[str, Build]]:
    """Go on with a run, on the very builds it was begun with.

    :raises InputError: there is no run, or a build is another one by now
    """
    journal = Journal.resume(directory)
    builds: dict[str, Build] = {}
    for was in journal.plan.builds:
        called = journal.plan.places[was.name]
        builds[called] = build = resolve(called)
        now = identify(build)
        if (now.version, now.sha256) != (was.version, was.sha256):
            journal.close()
            raise InputError(
                f"build {was.name} is another one by now ({now.version}, it was {was.version}): "
                "begin a new run"
            )
    return journal, builds


def carry_on(
    journal: Journal, builds: Sequence[Build], executor: Executor, on_status: OnStatus
) -> RunStatus:
    """Do what is missing of a run; on a build that does not even start that is done at once.

    :param on_status: called, from several threads, when a case begins or ends
    :raises HostError: the first cases all broke in the same way; the journal does not have them
    """
    by_name = {build.name: build for build in builds}
    identities = {one.name: one for one in journal.plan.builds}
    cases = {case.name: case for case in journal.plan.cases}
    orders = [
        Order(by_name[build], identities[build], cases[case], kinds.name_of(cases[case].kind))
        for build, case in journal.missing
    ]
    run = RunStatus(len(journal.plan.keys), began=time.monotonic())
    weights = {order.key: _WEIGHTS.get(order.case.kind, 1.0) for order in orders}
    run.weight_left = sum(weights.values())
    lock = threading.Lock()

    def started(order: Order) -> None:
        with lock:
            run.running[order.key] = time.monotonic()
            on_status(run)

    def ended(key: Key, status: Status) -> None:
        with lock:
            run.running.pop(key, None)
            run.weight_here += weights[key]
            run.weight_left -= weights[key]
            run.statuses[status] += 1
            on_status(run)

    run.statuses.update(outcome.status for outcome in journal.outcomes.values())
    dead: dict[str, CaseOutcome] = {}
    for delivery in _starts(orders, executor, started):
        with lock:
            run.running.pop(delivery.key, None)
            on_status(run)
        if delivery.outcome.status is Status.SKIPPED:
            dead[delivery.key[0]] = delivery.outcome
    run.began = time.monotonic()
    for order in [order for order in orders if order.build.name in dead]:
        orders.remove(order)
        journal.record(Delivery(order.key, dead[order.build.name]))
        ended(order.key, Status.SKIPPED)
    with contextlib.closing(executor.run(orders, started)) as deliveries:
        for delivery in _unless_all_break(deliveries, len(orders)):
            journal.record(delivery)
            ended(delivery.key, delivery.outcome.status)
    return run


def _unless_all_break(deliveries: Iterator[Delivery], total: int) -> Iterator[Delivery]:
    """The deliveries; those that break first are held back until something else comes.

    :raises HostError: :data:`_SAME` of more came, each broken for the same reason
    """
    held: list[Delivery] = []
    for delivery in deliveries:
        held.append(delivery)
        texts = {one.outcome.text for one in held}
        if {one.outcome.status for one in held} != {Status.BROKEN} or len(texts) > 1:
            break
        if len(held) == _SAME < total:
            raise HostError(
                f"the first {_SAME} cases all broke in the same way, so the other "
                f"{total - _SAME} were not tried: {texts.pop()}"
            )
    yield from held
    yield from deliveries


def _starts(
    orders: Sequence[Order], executor: Executor, started: Callable[[Order], None]
) -> Iterator[Delivery]:
    """Whether each build starts at all; skipped, if not."""
    first = Case("start", "start", budget=_STARTING)
    builds = {order.build.name: order for order in orders}.values()
    starts = [replace(order, case=first, runner=kinds.name_of(first.kind)) for order in builds]
    with contextlib.closing(executor.run(starts, started)) as deliveries:
        yield from deliveries
