"""What is known to go wrong with pairs: write-ups, one JSON file each, replayable."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.pair.plan import GUESTS, PairFinding, PairPlan
from qmpshim.errors import InputError
from qmpshim.model.verdict import Verdict

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A finding that is written up.

    :ivar id: the file's name without its suffix
    :ivar cause: a regular expression for :attr:`PairFinding.cause`
    :ivar since: first version that has it, :ivar until: first version that has it no more
    :ivar side: whose version that is: ``primary`` or ``secondary``
    :ivar accel: the accelerator it needs, or ``""``
    :ivar guests: with these it was seen, and can be; what others show is another finding
    :ivar contract: also within the contract
    :ivar plan: what shows it
    """

    id: str
    title: str
    verdicts: tuple[Verdict, ...]
    cause: str
    since: Version
    until: Version
    side: str
    accel: str
    guests: tuple[str, ...]
    contract: bool
    plan: PairPlan

    def concerns(self, plan: PairPlan, versions: tuple[Version, Version]) -> bool:
        """Whether a run may show it.

        :param versions: of the primary and of the secondary
        """
        version = versions[0] if self.side == "primary" else versions[1]
        return (
            self.since <= version < self.until
            and plan.colo == self.plan.colo
            and plan.guest in self.guests
            and self.accel in ("", plan.accel)
        )

    def covers(
        self, finding: PairFinding, plan: PairPlan, versions: tuple[Version, Version]
    ) -> bool:
        """Whether *finding* is this one; *versions* as for :meth:`concerns`."""
        return (
            finding.divergence.verdict in self.verdicts
            and self.concerns(plan, versions)
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
            found.append(_from_json(path.stem, json.loads(path.read_text())))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return found


def _from_json(name: str, value: dict[str, Any]) -> KnownPair:
    plan = PairPlan.from_json(value["case"]["plan"])
    side, guests = str(value["side"]), tuple(value.get("guests", [plan.guest]))
    if side not in ("primary", "secondary") or not set(guests) <= set(GUESTS):
        raise ValueError(f"side {side!r}, guests {', '.join(guests)}")
    return KnownPair(
        name,
        str(value["title"]),
        tuple(Verdict(word) for word in value["verdicts"]),
        str(value["cause"]),
        _version(value["versions"].get("since", "0")),
        _version(value["versions"].get("fixed", "999")),
        side,
        str(value.get("accel", "")),
        guests,
        bool(value["contract"]),
        plan,
    )


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
