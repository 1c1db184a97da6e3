"""What is known to go wrong with pairs: write-ups, one JSON file each, replayable."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.pair.plan import PairFinding, PairPlan
from qmpshim.errors import InputError
from qmpshim.model.verdict import Verdict

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A finding that is written up.

    :ivar id: the file's name without its suffix
    :ivar cause: a regular expression for :attr:`PairFinding.cause`
    :ivar since: first version that has it, :ivar until: first version that has it no more
    :ivar accel: the accelerator it needs, or ``""``
    :ivar contract: also within the contract
    """

    id: str
    title: str
    verdicts: tuple[Verdict, ...]
    cause: str
    since: Version
    until: Version
    accel: str
    contract: bool
    plan: PairPlan

    def covers(self, finding: PairFinding, plan: PairPlan, versions: tuple[Version, ...]) -> bool:
        """Whether *finding* is this one; *versions* are those of the two sides."""
        return (
            finding.divergence.verdict in self.verdicts
            and any(self.since <= version < self.until for version in versions)
            and self.accel in ("", plan.accel)
            and (self.contract or not finding.contract)
            and re.fullmatch(self.cause, finding.cause) is not None
        )


def load_known(directory: Path) -> list[KnownPair]:
    """The write-ups in *directory*; none where there is no such directory.

    :raises InputError: one of the files is damaged
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            value: dict[str, Any] = json.loads(path.read_text())
            found.append(
                KnownPair(
                    path.stem,
                    str(value["title"]),
                    tuple(Verdict(word) for word in value["verdicts"]),
                    str(value["cause"]),
                    _version(value["versions"].get("since", "0")),
                    _version(value["versions"].get("fixed", "999")),
                    str(value.get("accel", "")),
                    bool(value["contract"]),
                    PairPlan.from_json(value["case"]["plan"]),
                )
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return found


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
