"""Runs a directed case on a machine to which something was done first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers.linearizability import RealViolation
from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict

CASES = {case.name: case for case in DIRECTED}
Sabotage = Callable[[GatedMachine], None]


def run_spoilt(name: str, sabotage: Sabotage, build: Build, **changes: Any) -> RealViolation | None:
    """What case *name* finds after *sabotage*; the test is skipped where the build lacks the case.

    :param changes: to the case itself
    """
    case = CASES[name]

    def run(machine: GatedMachine) -> object:
        machine.settle()
        sabotage(machine)
        return case.run(machine)

    try:
        return run_directed(replace(case, run=run, **changes), build)
    except BuildError as error:
        pytest.skip(str(error))


def expect_finding(
    name: str, sabotage: Sabotage, verdict: Verdict, cause: str, build: Build
) -> None:
    """Case *name* must find *sabotage*, with a cause that begins so."""
    found = run_spoilt(name, sabotage, build)
    assert found is not None
    assert (found.kind, str(found.cause)[: len(cause)]) == (verdict, cause), found.text
