"""What to do where nothing can be concluded of a use; which reasons are mild by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from qmpshim.conformance.assess.judgement import Answer, Judgement, Reason
from qmpshim.conformance.assess.trials import Seen
from qmpshim.conformance.bundles.again import on_build
from qmpshim.machine.builds.build import Build

_LEAST = 300.0  # seconds of a budget that is to be enough
_MORE = 4.0  # times what was not


#: What stands above the reasons that :func:`apart` sets apart.
MILD = (
    "not explained, so it counts against it; what was seen of it loses neither data nor service, "
    "what is behind it may"
)


class Remedy(StrEnum):
    """What would allow a conclusion."""

    TIME = "take more time for this use alone"
    OTHER_BUILD = "take a build that can do it (`qmpshim builds list`, `qmpshim builds fetch`)"
    AGAIN = "try this use again, alone and on a host that does nothing else"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    :ivar budget: seconds that the command should have
    """

    remedy: Remedy
    budget: float

    def words(self, judgement: Judgement, build: Build) -> list[str]:
        """The command that does it; none where this build cannot."""
        if self.remedy is Remedy.OTHER_BUILD:
            return []
        words = ["qmpshim", "assess", "--use", judgement.use.value]
        words += ["--budget", f"{math.ceil(self.budget / 60)}m"]
        return [*words, *on_build(build)]


def advice(judgement: Judgement, budget: float) -> Advice | None:
    """What to do for an answer; None: it is one already.

    :param budget: seconds that there were
    """
    if judgement.answer is not Answer.CANNOT_TELL:
        return None
    explored = judgement.explored
    possible = explored.scenarios - explored.skipped - explored.lacking
    if explored.scenarios and not possible:
        remedy = Remedy.OTHER_BUILD
    elif (
        explored.reached < possible
        or explored.cases_run < explored.cases
        or any(one.seen is Seen.NOT_TRIED for one in judgement.tried)
        or any(not one.tried for one in explored.seen)
    ):
        remedy = Remedy.TIME
    else:
        remedy = Remedy.AGAIN
    return Advice(remedy, max(_LEAST, _MORE * budget))


def apart(reasons: Sequence[Reason]) -> tuple[list[Reason], list[Reason]]:
    """The reasons that are serious by themselves, and those that are only not explained yet."""
    serious = [one for one in reasons if one.severity.serious]
    return serious, [one for one in reasons if not one.severity.serious]
