"""The kinds of check: by name, the function that carries one out.

Kept as ``module:function``, so that a worker process loads only what it needs, and an order names
it also of kinds that a floor above brought in.
"""

from __future__ import annotations

import pkgutil
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

from qmpshim.conformance.check.case import Case, CaseOutcome, Runner
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build

KINDS: dict[str, str] = {
    "start": "qmpshim.conformance.check.runners.start:start",
    "verify": "qmpshim.conformance.check.runners.verify:verify",
    "points": "qmpshim.conformance.check.runners.verify:points",
    "explore": "qmpshim.conformance.check.runners.explore:explore",
    "directed": "qmpshim.conformance.check.runners.known:directed",
    "known": "qmpshim.conformance.check.runners.known:known",
    "bundle": "qmpshim.conformance.check.runners.bundle:bundle",
    "guest": "qmpshim.conformance.check.runners.guest:guest",
    "pair": "qmpshim.conformance.check.runners.pair:pair",
    "protocol": "qmpshim.conformance.check.runners.protocol:run",
}
#: Cases of the shipped quick suite that floors above this one bring in.
MORE_QUICK: dict[str, Case] = {}


def register(kind: str, runner: Runner, *quick: Case) -> None:
    """A kind of check from a floor above this one.

    :param quick: its cases in the shipped quick suite
    """
    KINDS[kind] = f"{runner.__module__}:{runner.__qualname__}"
    MORE_QUICK.update({case.name: case for case in quick})


def name_of(kind: str) -> str:
    """The ``module:function`` of a kind.

    :raises InputError: there is no such kind
    """
    if kind not in KINDS:
        raise InputError(f"no kind of check {kind!r}; there are {', '.join(sorted(KINDS))}")
    return KINDS[kind]


def load(name: str) -> Runner:
    """The function of that ``module:function``."""
    return cast(Runner, pkgutil.resolve_name(name))


def timed(runner: Runner, build: Build, case: Case, directory: Path) -> CaseOutcome:
    """Carry out a case and note how long it took."""
    began = time.monotonic()
    outcome = runner(build, case, directory)
    return replace(outcome, seconds=round(time.monotonic() - began, 3))
