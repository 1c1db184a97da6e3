"""Events: one line each, by which old bundles are read, and a codec."""

from __future__ import annotations

from collections import Counter

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness.choices import Complete, Cut, Fail, Start, io_id
from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Failed,
    Note,
    Started,
    What,
    event_from_json,
    event_from_line,
    event_to_json,
)
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.report.findings import group
from qmpshim.conformance.explore.report.schedule_diagram import diagram
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation


def executed(pool: QemuPool, errno: int | None) -> RealSystem:
    """One execution; its first I/O ends with this error."""
    (scenario,) = scenario_sets.named("WP")
    system = RealSystem(
        pool, scenario, injection=Injection(errnos=() if errno is None else (errno,))
    )
    system.reset()
    for index in range(2):
        system.take(Start(index))
    while left := system.enabled():
        failing = [choice for choice in left if isinstance(choice, Fail)]
        system.take(failing[0] if failing and not system.now.faults else left[0])
    system.finish()
    pool.discard()
    return system


@pytest.mark.parametrize(
    ("errno", "what", "text"),
    [
        (None, What.COMPLETE, ""),
        (5, What.FAIL, "with errno 5"),
        (28, What.FAIL, "with errno 28"),
        (Cut.FOR_GOOD, What.CUT, "for good"),
        (Cut.RECONNECT, What.CUT, "it may be made again"),
    ],
)
def test_each_event_of_an_execution_is_read_again(
    pool: QemuPool, errno: int | None, what: What, text: str
) -> None:
    system = executed(pool, errno)
    ops = system.scenario.ops
    reported = [event for event in system.now.events if not event.text.startswith("afterwards")]
    for event in system.now.events:
        assert event_from_line(str(event), ops) == event
        assert event_from_json(event_to_json(event), ops) == event
    count = Counter(one.what for one in reported)
    assert not count[What.NOTE]
    assert count[What.START] == 2 == count[What.ENDS]
    assert sum(one.what.is_step for one in reported) == len(system.now.steps)
    assert (what, text) in {(one.what, one.text) for one in reported}
    for step, line in zip(
        system.now.steps, [one for one in reported if one.what.is_step], strict=True
    ):
        assert step.op == line.op
        if isinstance(line, Completed | Failed):
            assert isinstance(step, Complete | Fail)
            assert step.io == line.io
    violation = RealViolation(Verdict.HANG, "wrong", cause=Cause(CauseKind.HANGS, "wrong"))
    sighting = Sighting(system.scenario, violation, (), tuple(system.now.events), 1)
    drawn = diagram(group([sighting])[0])
    assert drawn.count("* starts") == 2
    assert drawn.count("* CUT: ") == (what is What.CUT)
    assert drawn.count("* FAILS: ") == (what is What.FAIL)


def test_what_is_no_line_is_a_note() -> None:
    assert event_from_line("crash: QEMU (of 3) died", ()) == Note("crash: QEMU (of 3) died")
    line = "    hidden write 0+128 #2 (of 1)"
    assert event_from_line(line, ()) == Arrived(io_id(1, "hidden write 0+128", 1))
    assert event_from_line("start 0: status", (operation("status"),)) == Started(
        0, operation("status")
    )
