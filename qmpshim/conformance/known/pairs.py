"""What is known to go wrong with pairs: write-ups, replayable as bundles are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.known.write_ups import Version, WriteUp, common, load
from qmpshim.conformance.pair.plan import GUESTS, PairFinding, PairPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWriteUp(WriteUp):
    """A finding that is written up.

    :ivar side: whose version counts: ``primary`` or ``secondary``
    :ivar accel: the accelerator it needs, or ``""``
    :ivar guests: with these it was seen, and can be; what others show is another finding
    :ivar plan: what shows it
    """

    side: str
    accel: str
    guests: tuple[str, ...]
    plan: PairPlan

    def may_come(self, plan: PairPlan, versions: tuple[Version, Version]) -> bool:
        """Whether a run may show it.

        :param versions: of the primary and of the secondary
        """
        version = versions[0] if self.side == "primary" else versions[1]
        return self.concerns(version) and self._fits(plan)

    def _fits(self, plan: PairPlan) -> bool:
        return (
            plan.colo == self.plan.colo
            and plan.guest in self.guests
            and self.accel in ("", plan.accel)
        )

    def covers(
        self, finding: PairFinding, plan: PairPlan, versions: tuple[Version, Version]
    ) -> bool:
        """Whether *finding* is this one; *versions* as for :meth:`may_come`."""
        return self.may_come(plan, versions) and self.shown_by(finding, plan)

    def shown_by(self, finding: PairFinding, plan: PairPlan) -> bool:
        """As :meth:`covers`, whatever the versions are."""
        return self._fits(plan) and self.explains(
            finding.divergence.verdict, finding.cause, finding.contract
        )


def load_known(directory: Path) -> tuple[PairWriteUp, ...]:
    """The write-ups in *directory*.

    :raises InputError: one of the files is damaged
    """
    return load(directory, _known)


def _known(name: str, value: dict[str, Any]) -> PairWriteUp:
    plan = PairPlan.from_json(value["case"]["plan"])
    side, guests = str(value["side"]), tuple(value.get("guests", [plan.guest]))
    if side not in ("primary", "secondary") or not set(guests) <= set(GUESTS):
        raise ValueError(f"side {side!r}, guests {', '.join(guests)}")
    accel = str(value.get("accel", ""))
    return PairWriteUp(**common(name, value), side=side, accel=accel, guests=guests, plan=plan)
