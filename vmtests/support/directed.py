"""Runs a directed case on a machine that a mutant has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed, run_directed
from qmpshim.conformance.explore.directed.machine import Broken, CaseMachine
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict

CASES = {case.name: case for case in DIRECTED}
Mutant = Callable[[GatedMachine], None]


def made_case(
    run: Callable[[CaseMachine], RealViolation | None], name: str = "made", contract: bool = True
) -> Directed:
    """A case that finds what *run* returns."""

    def raising(machine: CaseMachine) -> None:
        """Something is promised."""
        if (found := run(machine)) is not None:
            broken = Broken(found.kind, found.text, "")
            broken.violation = found
            raise broken

    return Directed(name, raising, contract)


def run_mutant(name: str, mutant: Mutant, build: Build, **changes: Any) -> RealViolation | None:
    """What case *name* finds with *mutant*; the test is skipped where the build lacks the case.

    :param changes: to the case itself
    """
    case = CASES[name]

    def run(machine: CaseMachine) -> None:
        machine.settle()
        mutant(machine)
        case.run(machine)

    try:
        return run_directed(replace(case, run=run, **changes), build)
    except BuildError as error:
        pytest.skip(str(error))


def expect_finding(
    name: str, mutant: Mutant, verdict: Verdict, cause: str, build: Build, **changes: Any
) -> None:
    """Case *name* must find *mutant*, with a cause that begins so.

    :param changes: to the case itself
    """
    found = run_mutant(name, mutant, build, **changes)
    assert found is not None
    assert (found.kind, str(found.cause)[: len(cause)]) == (verdict, cause), found.text


def sees(*rows: tuple[str, Mutant, Verdict, str]) -> Callable[..., None]:
    """A test that each of these mutants of a case is found, as by :func:`expect_finding`.

    :param rows: case, mutant, verdict, and how the cause begins
    """

    @pytest.mark.parametrize(("name", "mutant", "verdict", "cause"), rows)
    def test(name: str, mutant: Mutant, verdict: Verdict, cause: str, qemu_build: Build) -> None:
        expect_finding(name, mutant, verdict, cause, qemu_build)

    return test


def since(version: tuple[int, int], mutant: Mutant) -> Mutant:
    """A mutant that changes something from this version on.

    :raises BuildError: by the mutant, on an older QEMU
    """

    def only(machine: GatedMachine) -> None:
        if machine.version < version:
            raise BuildError("this QEMU has nothing that the mutant changes")
        mutant(machine)

    return only
