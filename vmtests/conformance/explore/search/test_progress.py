"""Progress counts scenarios that were reached, in whichever turn."""

from __future__ import annotations

from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.search.progress import Board, Progress


def _result(name: str, schedules: int) -> ScenarioResult:
    result = ScenarioResult(name, contract=True, cut_short=True)
    result.schedules = schedules
    return result


def test_a_scenario_counts_when_a_schedule_has_ended_and_still_when_it_is_explored_again() -> None:
    seen: list[Progress] = []
    board = Board(3, seen.append)
    board.finish(_result("WR", 3))
    board.finish(_result("WV", 0))  # no time was left for it
    board.tell(force=True)
    board.again({"WR", "WV"})
    board.tell(force=True)
    board.finish(_result("WV", 2))
    board.tell(force=True)
    assert [(one.scenarios, one.of, one.schedules) for one in seen] == [
        (1, 3, 3),
        (1, 3, 3),
        (2, 3, 5),
    ]
