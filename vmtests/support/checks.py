"""The kinds of check, carried out in the test's own process."""

from __future__ import annotations

from qmpshim.conformance.check.case import Runner
from qmpshim.conformance.check.runners.kinds import load, name_of


def runner_of(kind: str) -> Runner:
    """The function that carries out a kind of check."""
    return load(name_of(kind))
