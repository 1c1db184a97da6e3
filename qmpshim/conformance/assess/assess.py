"""Assesses a build: tries what is known, runs workloads, explores, and judges each use."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from qmpshim.conformance.assess.exploration import Explored, explore_uses, not_run
from qmpshim.conformance.assess.judgement import Answer, Judgement, judge
from qmpshim.conformance.assess.trials import Seen, Trial, try_findings
from qmpshim.conformance.assess.workloads import WorkloadTrial, run_workloads
from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.known.folder import by_severity, write_ups
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.gated_process import GatedProcess

#: Seconds, at most, for trying what can make a build unreliable.
TRYING = 45.0
#: Seconds, at least, for trying the rest of what is known, at the end.
LATER = 15.0
_BESIDE = 58.0  # seconds for all that is not exploring, on a host that does nothing else
#: What stands at one that was interrupted.
INTERRUPTED = "interrupted: nothing follows from what was not come to"
_ENDED = "interrupted before it was tried"


def left_to_explore(budget: float, seconds: float) -> float:
    """Seconds for the exploration, after so many *seconds* for what came before it.

    What took longer than planned is taken from it, but a quarter of the budget is left; what took
    less is given to it, up to a third of the budget. With the default budget a build takes two
    minutes, unless what came before took more than 85 seconds; the ten that confirming may need
    are included, and :data:`LATER`.
    """
    return min(budget * 4 / 3, max(budget / 4, _BESIDE + budget - seconds - LATER))


@dataclass(frozen=True, slots=True)
class Assessment:
    """The answers for a build."""

    build: Build
    version: str
    judgements: tuple[Judgement, ...]
    trials: tuple[Trial, ...]
    seconds: float
    interrupted: bool = False  # before all was tried


def _start(build: Build) -> None:
    """Start it once: nothing follows for a use from a QEMU that does not.

    :raises BuildError: it does not start
    """
    process = GatedProcess(build)
    try:
        process.spawn()
    finally:
        process.close()


def how_many(tried: Container[str], wanted: Iterable[WriteUp]) -> int:
    """Of the findings that are to be tried; others may have shown themselves with them."""
    return sum(one.name in tried for one in wanted)


def assess(
    build: Build,
    uses: Sequence[Use],
    budget: float,
    jobs: int,
    progress: Callable[[str], None] = lambda text: None,
    cluster: Cluster | None = None,
    interrupted: Callable[[Assessment], None] = lambda one: None,
) -> Assessment:
    """Assess *build* for *uses*.

    :param budget: seconds for the exploration (see :func:`left_to_explore`)
    :param jobs: processes at a time
    :param cluster: do it there, with all its workers
    :param interrupted: given what there is when a KeyboardInterrupt or an error ends it, which is
        passed on
    :raises BuildError: the build does not start
    :raises InputError: it is gone, or another program
    :raises HostError: a disk is full, or the cluster went away (ExecutorLost)
    """
    began = time.monotonic()
    _start(build)
    version = read_version(build)[1]
    wanted = [one for one in by_severity(write_ups()) if set(one.meaning.affects) & set(uses)]
    tried: dict[str, Trial] = {}
    workloads: list[WorkloadTrial] = []
    explored: dict[Use, Explored] = {}

    def exploring(at: Progress) -> None:
        progress(f"exploring: {at.scenarios}/{at.of} scenarios, {at.schedules} schedules")

    def trying() -> None:
        progress(f"trying what is known: {how_many(tried, wanted)}/{len(wanted)}")

    def so_far(ended: bool) -> Assessment:
        trials = [tried.get(one.name, Trial(one, Seen.NOT_TRIED, _ENDED)) for one in wanted]
        return Assessment(
            build,
            version,
            tuple(judge(use, trials, explored.get(use) or not_run(use), workloads) for use in uses),
            tuple(trials),
            time.monotonic() - began,
            ended,
        )

    try:
        decisive = [one for one in wanted if one.meaning.disqualifies]
        try_findings(build, decisive, jobs, TRYING, trying, cluster, tried)
        progress("running random workloads")
        workloads += run_workloads(build, uses, jobs, cluster)
        decided = [
            use
            for use in uses
            if judge(use, [*tried.values()], Explored(), workloads).answer is Answer.NOT_RELIABLE
        ]
        left = left_to_explore(budget, time.monotonic() - began)
        explored |= explore_uses(
            build, uses, left, jobs, exploring, cluster, decided, interrupted=explored.update
        )
        rest = [one for one in wanted if one.name not in tried]
        left = max(LATER, _BESIDE + budget - (time.monotonic() - began))
        try_findings(build, rest, jobs, left, trying, cluster, tried)
    except (KeyboardInterrupt, QmpshimError):
        interrupted(so_far(True))
        raise
    return so_far(False)
