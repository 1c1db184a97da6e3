"""`qmpshim explore`: every interleaving of small scenarios, on a real QEMU."""

from __future__ import annotations

import argparse
import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qmpshim.commands.chosen_builds import chosen_builds, on_each
from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console, Listed, show_list
from qmpshim.commands.explore_model import HOW, LIST, explore_model_scenarios
from qmpshim.commands.interruption import run_interruptible
from qmpshim.commands.options import (
    build_options,
    cluster_at,
    dask_option,
    jobs_option,
    list_option,
    output_options,
    refuse_unused,
)
from qmpshim.commands.parser import count, seconds
from qmpshim.commands.results import BUNDLES, check_directory, check_writable, not_kept
from qmpshim.conformance.bundles.again import directed_command, replay_command
from qmpshim.conformance.document import BUDGET, scenario_object
from qmpshim.conformance.explore.checkers.crash_points import CrashPoints
from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed
from qmpshim.conformance.explore.directed.run import ALL, DirectedFinding, cases_named
from qmpshim.conformance.explore.harness.real_system import CUT, RECONNECT
from qmpshim.conformance.explore.harness.setup_state import depends_on_version
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.report.report import SOAK, why_none
from qmpshim.conformance.explore.scenario_sets import SETS, named
from qmpshim.conformance.explore.scenarios import (
    RealScenario,
    described,
    scenario_from_json,
    scenario_objects,
)
from qmpshim.conformance.explore.search.exploration import (
    ExploreReport,
    Progress,
    explore_real,
    render,
)
from qmpshim.conformance.explore.search.model_run import (
    REFERENCE_NAMES,
)
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.search.soak import soak_real, soak_state
from qmpshim.conformance.explore.space.grammar import DIMENSIONS
from qmpshim.conformance.explore.space.naming import array, is_name, point_named, scenario_of
from qmpshim.conformance.known.folder import known_directed, known_findings
from qmpshim.conformance.known.matching import ExplorerWriteUp, recogniser
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import slug
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import MODES

_STRENGTH = 2  # of the scenarios that are explored by default
_BUDGET = 60.0  # seconds, for them
# Explores a build: with what is called at progress, what is known, and what shows a report.
OnProgress = Callable[[Progress], None]
Known = Sequence[ExplorerWriteUp]
Show = Callable[[ExploreReport], None]
Work = Callable[[Build, OnProgress, Known, Show], ExploreReport]
FAULTS = (errno.EIO, errno.ENOSPC, CUT, RECONNECT)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exploring = commands.add_parser(
        "explore", help="take every interleaving of small scenarios, on a real QEMU or in the model"
    )
    build_options(exploring, machine=False, several=True)
    exploring.add_argument(
        "--scenario",
        default=None,
        metavar="S",
        help=f"a set ({', '.join(SETS)}; replication, backup, fleecing and primary are the pairs "
        "of that form), one by name, or a JSON file; qcow2- in front, as in qcow2-pairs, takes a "
        f"secondary disk in qcow2; `{ALL}`: fixed sequences of commands and I/O, {ALL}/NAME one of "
        "them; --list shows all, those outside of what QEMU's documents allow as `robustness`. By "
        f"default the {ALL} ones, then those of --strength 2, with faults and all I/O in samples, "
        "for 60s; with --model all",
    )
    exploring.add_argument(
        "--strength",
        type=count,
        metavar="N",
        help="scenarios that are generated: every possible combination of the values of any N "
        "dimensions (operations, geometry, cluster size, history, node options ...) occurs in one "
        "of them; --seed makes other ones. Their names are taken by --scenario, too",
    )
    exploring.add_argument(
        "--mode",
        choices=[*MODES, SOAK],
        default="exhaustive",
        help="default exhaustive, which is auto: the best that a system can do; pct, which bounds "
        "preemptions (preemption is the same), and random go by chance and need a --budget; soak "
        "takes random scenarios until --budget or Ctrl-C, each briefly, with faults and all I/O by "
        "share",
    )
    exploring.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="with --mode soak: where it keeps how far it is; what the file holds is gone on with",
    )
    exploring.add_argument(
        "--faults",
        action="store_true",
        help="every held I/O fails once, in all schedules: with EIO, with ENOSPC where it writes, "
        "its connection cut for good, its connection cut and made again",
    )
    exploring.add_argument(
        "--crash-points",
        nargs="?",
        const="full",
        default="none",
        metavar="HOW[:STEPS]",
        help="after every step of the schedules it takes look at the images as a crash would leave "
        "them now: `quick` by our own reader, `full` (the default of this option) also by qemu-img "
        "check and a fresh QEMU that opens the chain; slow, best with one --scenario; "
        "`power-loss` by our own reader, with any part lost of what is not flushed. After some "
        "steps only: `full:3,5-8` by their numbers, `full:checkpoint,hidden write` by words of "
        "their lines. With --all-io also between the writes of qcow2's own tables",
    )
    exploring.add_argument(
        "--all-io",
        action="store_true",
        help="hold (and with --faults fail) every request to the images: qcow2's tables, flushes "
        "and questions for block status, too, which else pass at once; many more schedules, best "
        "with one --scenario or a --budget",
    )
    exploring.add_argument(
        "--budget",
        type=seconds,
        metavar="TIME",
        help="e.g. 30s or 5m: end after that long, confirming included. First each scenario is "
        "sampled, then they are exhausted, those first that gave the most (default 60s without "
        "--scenario and --strength; else none)",
    )
    jobs_option(exploring, "processes at most; each scenario is explored by one")
    dask_option(exploring)
    exploring.add_argument(
        "--seed", type=int, default=0, help="of generated scenarios and of modes that go by chance"
    )
    output_options(exploring, "the bundles of new findings")
    list_option(exploring, "the scenarios (with --model those of the model)")
    exploring.add_argument(
        "--model", action="store_true", help="explore the reference model, without a QEMU"
    )
    exploring.add_argument(
        "--discipline",
        action="append",
        metavar="D",
        help="with --model: the serialization protocol (default: the references: "
        f"{', '.join(REFERENCE_NAMES)}); `list` shows all, mutants included",
    )
    exploring.add_argument(
        "--schedule", metavar="STEPS", help="with --model: replay the steps a violation printed"
    )
    exploring.set_defaults(run=_explore)
    exploring.epilog = (
        "Exit status: 0 all as predicted or known, 1 something new was found (with --strict: "
        "anything), also where it did not show itself again on each of the fresh QEMUs it is "
        "confirmed with, 2 the command or the environment is wrong, 125 the build cannot do it, or "
        "a scenario file showed nothing whose setup leaves other states in other versions."
    )


def _explore(args: argparse.Namespace, console: Console) -> int:
    if args.model:
        return explore_model_scenarios(args, console)
    if args.discipline or args.schedule:
        raise InputError("--discipline and --schedule go with --model")
    if args.mode == SOAK:
        return _soak(args, console)
    refuse_unused(args, f"with --mode {args.mode}", "--resume")
    mode = MODES[args.mode]
    if args.strength is not None and args.scenario is not None:
        raise InputError("--strength generates the scenarios that --scenario would name")
    if args.list or args.scenario == LIST:
        refuse_unused(args, "with --list", *HOW, "--jobs")
        every = args.scenario in (None, LIST) and args.strength is None
        cases = list(DIRECTED) if every else _cases(args)
        shown = real_scenarios("all") if every else _chosen(args)
        listed = [_listed(one) for one in shown] + [_listed_case(one) for one in cases]
        return show_list(listed, args.document, console)
    by_default = args.scenario is None and args.strength is None
    if by_default and args.budget is None and not mode.by_chance:
        args.budget = _BUDGET
    if not mode.by_chance and args.scenario is not None:
        refuse_unused(args, f"with --mode {args.mode}, which leaves nothing to chance", "--seed")
    if mode.by_chance and args.budget is None:
        raise InputError(f"--mode {args.mode} never ends by itself: add a --budget, e.g. 60s")
    if args.dask:
        refuse_unused(args, "with --dask, whose workers it is done by", "--jobs")
    crash_points = CrashPoints.parse(args.crash_points)
    scenarios, cases = _chosen(args), _cases(args)
    if not scenarios:
        refuse_unused(args, f"with --scenario {args.scenario}", "--faults", "--all-io",
                      "--crash-points", "--mode", "--dask", "--jobs")  # fmt: skip
    mixed = args.scenario is None and not args.faults and args.budget is not None
    settings = Settings(
        mode=mode,
        faults=FAULTS if args.faults or mixed else (),
        all_io=args.all_io,
        mixed=mixed,
        crash_points=crash_points,
        seed=args.seed,
    )

    with cluster_at(args.dask) as cluster:
        bounds = Bounds(budget=args.budget, jobs=args.jobs, cluster=cluster)

        def work(build: Build, on_progress: OnProgress, known: Known, show: Show) -> ExploreReport:
            written_up = WrittenUp(known, {} if args.strict else known_directed())
            return explore_real(
                build,
                scenarios,
                cases,
                settings=settings,
                bounds=bounds,
                known=written_up,
                progress=on_progress,
                interrupted=show,
            )

        own = args.scenario is not None and args.scenario.endswith(".json")
        return _explore_builds(args, console, work, scenarios if own else ())


def _soak(args: argparse.Namespace, console: Console) -> int:
    refuse_unused(args, "with --mode soak", "--scenario", "--strength", "--all-io", "--faults",
                  "--list", "--dask")  # fmt: skip
    crash_points = CrashPoints.parse(args.crash_points)
    if args.resume is not None:
        check_writable(args.resume)
        if len(chosen_builds(args)) > 1:
            raise InputError("--resume goes with one build")

    def work(build: Build, on_progress: OnProgress, known: Known, show: Show) -> ExploreReport:
        return soak_real(
            build,
            faults=FAULTS,
            crash_points=crash_points,
            seed=args.seed,
            budget=args.budget,
            jobs=args.jobs,
            known=known,
            state=soak_state(args.resume, build, args.seed) if args.resume is not None else None,
            keep=lambda state: state.save(args.resume) if args.resume is not None else None,
            progress=on_progress,
            interrupted=show,
        )

    return _explore_builds(args, console, work)


def _explore_builds(
    args: argparse.Namespace, console: Console, work: Work, own: Sequence[RealScenario] = ()
) -> int:
    """Explore each build that is chosen, and report on it.

    :param own: scenarios of the user's
    """
    chosen = chosen_builds(args)
    if args.keep is not None:
        check_directory(args.keep)
    reports: list[ExploreReport] = []
    untestable: list[str] = []

    def on(build: Build) -> int:
        def explore() -> int:
            _explore_build(args, build, work, console, reports)
            if reports[-1].diverged:
                return DIVERGED
            if why := why_none(reports[-1].scenarios) or _incomparable(own, build):
                console.line(why, UNTESTABLE)
                untestable.append(why)
                return UNTESTABLE
            return OK

        return run_interruptible(explore)

    status = on_each(chosen, args.document, console, on)
    documents = [report.to_json() for report in reports]  # also those of an interrupted run
    if len(chosen) > 1:
        args.document.result = {"reports": documents}
    elif documents:
        args.document.result = documents[0]
    if status == UNTESTABLE and untestable:
        args.document.error = untestable[0]
    args.document.diverged = any(report.diverged for report in reports)
    if any(report.cut_short for report in reports):
        args.document.interrupted = BUDGET
    if status == OK and (nothing := next(filter(None, (r.chose_nothing for r in reports)), "")):
        raise InputError(nothing)
    return status


def _incomparable(own: Sequence[RealScenario], build: Build) -> str:
    """Why a scenario of the user's that shows nothing is another scenario on another version.

    `git bisect` would blame the commit that changed what its setup leaves.

    :returns: one line, or ``""``: it is the same
    """
    version = read_version(build)[0]
    for scenario in own:
        if other := depends_on_version(scenario, version):
            return (
                f"cannot judge by what was not found: {other}; zeroes that keep their place "
                "everywhere are primary_zero_no_hole's"
            )
    return ""


def _cases(args: argparse.Namespace) -> list[Directed]:
    """The directed cases that the options mean."""
    if args.scenario is not None:
        return cases_named(args.scenario)
    return list(DIRECTED) if args.strength is None else []


def _chosen(args: argparse.Namespace) -> list[RealScenario]:
    """The scenarios that the options mean."""
    if args.scenario is not None:
        return [] if cases_named(args.scenario) else real_scenarios(args.scenario)
    strength = args.strength or _STRENGTH
    if strength > len(DIMENSIONS):
        raise InputError(f"--strength is 1 to {len(DIMENSIONS)}, the dimensions that there are")
    return list(array(strength, args.seed))


def _listed(scenario: RealScenario) -> Listed:
    return Listed(scenario.name, described(scenario), scenario_object(scenario))


def _listed_case(case: Directed) -> Listed:
    side = "" if case.contract else "robustness: "
    return Listed(case.id, side + case.about, {"name": case.id, "contract": case.contract})


def _explore_build(
    args: argparse.Namespace,
    build: Build,
    work: Work,
    console: Console,
    into: list[ExploreReport],
) -> None:
    began = time.monotonic()
    known = () if args.strict else known_findings()
    recognise = recogniser(known, read_version(build)[0])
    shown: set[tuple[Verdict | None, Cause]] = set()
    cases_shown: set[str] = set()
    looked_at = 0

    def on_progress(progress: Progress) -> None:
        nonlocal looked_at
        fresh = len(progress.sightings) != looked_at
        looked_at = len(progress.sightings)
        for finding in group(progress.sightings, recognise) if fresh else ():
            key = finding.verdict, finding.cause
            if not finding.known and key not in shown:
                shown.add(key)
                where = finding.scenario.name
                console.prose(f"seen in {where}, not confirmed yet: {finding.described}")
        for case in progress.directed:
            if not case.known and case.case.id not in cases_shown:
                cases_shown.add(case.case.id)
                console.prose(f"seen in {case.case.id}, not confirmed yet: {case.described}")
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(progress.verdicts.items()))
        if not progress.of:  # directed cases alone
            console.progress(progress.doing)
            return
        console.progress(
            f"{progress.scenarios}/{progress.of} scenarios, {progress.schedules} schedules "
            f"({progress.distinct} distinct), {progress.rate:.0f}/s, {verdicts or 'all allowed'}, "
            f"{progress.doing}"
        )

    def show(report: ExploreReport) -> None:
        into.append(report)
        for line in render(report).splitlines():
            console.prose(line)
        late = args.budget is not None and time.monotonic() - began > args.budget
        # What else can be seen of a finding takes another run of it.
        evidence = None if report.interrupted or late else build
        for finding in (*report.new, *report.unexplained):
            try:
                kept = _kept(finding, args.keep or BUNDLES, evidence)
                report.bundles.append((finding, kept))
            except HostError as error:  # what was found is printed above
                console.line(not_kept(str(error)))
            else:
                console.line(f"replay it: {replay_command(kept, build)}")
        for case in report.directed.new:
            console.line(f"replay it: {directed_command(case.case.id, build)}")
        console.line()
        console.prose(_summary(report), DIVERGED if report.diverged else OK)

    show(work(build, on_progress, known, show))


def _summary(report: ExploreReport) -> str:
    cases = report.directed
    seen: list[Finding | DirectedFinding] = [*report.findings, *report.unconfirmed, *cases.findings]
    confirmed = [one for one in seen if one.confirmed]
    others = [one for one in seen if not one.confirmed]
    untried = sum(not one.tried for one in others)
    new = sum(not one.known for one in confirmed)
    done = [f"{len(cases.run)} of {len(cases.cases)} directed cases"] if cases.cases else []
    done += [f"{report.schedules} schedules"] if report.scenarios else []
    return (
        f"{new} new finding(s), {len(confirmed) - new} known, "
        f"{len(others) - untried} that did not replay every time"
        + (f", {untried} seen and not confirmed" if untried else "")
        + (" (they fail the run, too)" if any(not one.known for one in others) else "")
        + f"; {', '.join([*done, _how_far(report)])}"
    )


def _how_far(report: ExploreReport) -> str:
    if report.interrupted:
        return "interrupted"
    return "exhausted" if report.exhaustive else "NOT exhausted"


def real_scenarios(what: str) -> list[RealScenario]:
    """The scenarios that a word on the command line means: a name, or a JSON file.

    :raises InputError: it means nothing
    """
    if not what.endswith(".json"):
        return [scenario_of(point_named(what))] if is_name(what) else named(what)
    return [scenario_from_json(one) for one in scenario_objects(what)]


def _kept(finding: Finding, directory: Path, build: Build | None) -> Path:
    name = slug(f"explore-{finding.verdict}-{finding.scenario.name}")
    return save_finding(directory / name, finding, build)
