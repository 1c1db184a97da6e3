"""The results of a run as one JSON document, and back; its schema is ``results.schema.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.codec import decode, encode, read_json
from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.conformance.check.run.journal import Journal, Key, Plan, plan_from_json
from qmpshim.errors import InputError, decoding

VERSION = 1


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found so far.

    :ivar outcomes: of what is done
    """

    plan: Plan
    outcomes: dict[Key, CaseOutcome]

    @classmethod
    def of(cls, journal: Journal) -> Results:
        """What is in a journal."""
        return cls(journal.plan, dict(journal.outcomes))

    @property
    def builds(self) -> tuple[Identity, ...]:
        """The builds, as they were named."""
        return self.plan.builds

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases, as the suite has them."""
        return self.plan.cases

    @property
    def complete(self) -> bool:
        """Whether everything that was planned is done."""
        return len(self.outcomes) == len(self.plan.keys)

    def ran(self, build: str, case: str) -> bool:
        """Whether a case was done on a build to the end."""
        outcome = self.outcomes.get((build, case))
        return outcome is not None and outcome.status in (Status.OK, Status.DIVERGED)

    def to_json(self) -> dict[str, Any]:
        """As :func:`results_from_json` reads it."""
        return {
            "version": VERSION,
            "complete": self.complete,
            "plan": self.plan.to_json(),
            "results": [
                {"build": key[0], "case": key[1], **encode(self.outcomes[key])}
                for key in self.plan.keys
                if key in self.outcomes
            ],
        }


def results_from_json(value: Any) -> Results:
    """The reverse of :meth:`Results.to_json`.

    :raises InputError: it is no result, or of another version
    """
    with decoding("the document"):
        if value["version"] != VERSION:
            raise InputError(f"results of version {value['version']}; this reads {VERSION}")
        outcomes = {
            (str(one["build"]), str(one["case"])): decode(CaseOutcome, one, "an outcome of a case")
            for one in value["results"]
        }
        return Results(plan_from_json(value["plan"]), outcomes)


def load_results(path: Path) -> Results:
    """Read a run's ``results.json``; a run's directory will do.

    :raises InputError: it cannot be read
    """
    if not path.exists():
        raise InputError(f"no {path}: `qmpshim check --out {path}` would have left results there")
    file = path / "results.json" if path.is_dir() else path
    value = read_json(file)
    try:
        return results_from_json(value)
    except InputError as error:
        raise InputError(f"{file} holds no results of `qmpshim check`: {error}") from error
