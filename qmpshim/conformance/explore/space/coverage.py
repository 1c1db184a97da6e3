"""What an exploration covered of the scenario space, as figures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import point_if_named

#: By strength how many tuples some scenario of the space contains.  To count them takes longer than
#: most explorations: a test does it.
POSSIBLE = {2: 6_281, 3: 141_810}


@dataclass(frozen=True, slots=True)
class TupleCoverage:
    """How many tuples of values occurred in at least one schedule.

    :ivar strength: how many dimensions a tuple has
    :ivar possible: tuples that some scenario of the space contains
    """

    strength: int
    met: int
    possible: int


def tuples_met(names: Collection[str]) -> list[TupleCoverage]:
    """The coverage by scenarios of these names; empty: none of them is a point of the space.

    :param names: of scenarios of which a schedule was run to its end
    """
    points = [point for name in names if (point := point_if_named(name))]
    if not points:
        return []
    return [
        TupleCoverage(
            strength,
            len({pairs for point in points for pairs in SPACE.tuples_of(point, strength)}),
            possible,
        )
        for strength, possible in POSSIBLE.items()
    ]
