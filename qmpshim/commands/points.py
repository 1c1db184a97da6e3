"""What `qmpshim verify` and `replay` do for ``--workflow push``, ``bitmaps``, ``pull`` alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from qmpshim.commands.parser import in_words
from qmpshim.conformance.pointintime.sides import PointsResult
from qmpshim.conformance.pointintime.verify import PointsSubject, points_setup
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload.geometry import Given, points_by_seed
from qmpshim.machine.builds.build import Build

WORKFLOWS = tuple(workflow.value for workflow in PointsWorkflow)


def subject(args: argparse.Namespace, build: Build, given: Given) -> PointsSubject:
    """What `verify` runs on a build."""
    spec = points_by_seed(args.workflow, args.seed, given)
    setup = points_setup(build, spec, args.machine, args.strict, args.limit)
    return PointsSubject(PointsWorkflow(args.workflow), setup)


def workload(subject: PointsSubject, seed: int) -> PointsWorkload:
    """The random operations on it."""
    return PointsWorkload(subject.kind, subject.setup.spec, seed)


def heading(subject: PointsSubject, seed: int, result: PointsResult) -> Iterator[str]:
    """The first lines about a run."""
    spec = subject.setup.spec
    yield (
        f"{subject.workflow}: seed {seed}, {spec.disks} disks of {in_words(spec.size)}, "
        f"{in_words(spec.cluster)} clusters"
    )
    done = (f"{number} {kind}" for kind, number in sorted(result.operations.items()))
    yield f"  {', '.join(done)}"
    if result.targets:
        ends = (f"{number} {ending}" for ending, number in sorted(result.targets.items()))
        yield f"  targets judged, by how their job ended: {', '.join(ends)}"
