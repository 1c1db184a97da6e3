"""Where a finding was seen, in a line that can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmtests.support.reproducer import known

LONG = ["+".join(["primary_write", *[f"option={n}"] * 12]) for n in range(9)]


@pytest.mark.parametrize(
    ("scenarios", "where"),
    [
        (["WV"], "WV"),
        (["WV", "WD"], "WV, WD"),
        (["A", "B", "C", "D", "E", "F", "G"], "A, B, C, D, E, F and 1 more"),
        (LONG, f"{LONG[0]} and 8 more"),
        ([*LONG[:1], "WV"], f"{LONG[0]}, WV"),
    ],
)
def test_the_scenarios_that_are_named(scenarios: list[str], where: str) -> None:
    finding = known("snapshot-read-returns-new-data")
    assert replace(finding, scenarios=tuple(scenarios)).where == where
