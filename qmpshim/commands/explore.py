"""`qmpshim explore`: every interleaving of small scenarios, on a real QEMU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmpshim.commands.chosen_builds import chosen_builds
from qmpshim.commands.console import Console, show_list
from qmpshim.commands.explore_builds import Known, OnProgress, Show, explore_builds
from qmpshim.commands.explore_model import HOW, LIST, explore_model_scenarios
from qmpshim.commands.explore_scenarios import (
    chosen_cases,
    chosen_scenarios,
    listed_case,
    listed_scenario,
    real_scenarios,
)
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
from qmpshim.commands.results import check_writable
from qmpshim.conformance.explore.checkers.crash_points import CrashPoints
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.directed.run import ALL
from qmpshim.conformance.explore.report.report import SOAK, ExploreReport
from qmpshim.conformance.explore.scenario_sets import SETS
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.model_run import (
    REFERENCE_NAMES,
)
from qmpshim.conformance.explore.search.settings import FAULTS, Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.search.soak import soak_real, soak_state
from qmpshim.conformance.known.folder import known_directed
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.model.explore.explorer import MODES

_BUDGET = 60.0  # seconds, for what is explored by default


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exploring = commands.add_parser(
        "explore",
        help="take every interleaving of small scenarios, on a real QEMU or in the model",
        description="Holds each request of QEMU's to its disks and takes the orders in which "
        "they can end: all that a scenario has, or within a budget those first that find the "
        "most. Each result has to be one that the model allows. What is not is made small, seen "
        "again on fresh QEMUs and kept as a bundle.",
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
        f"default the {ALL} ones, then `alone` and --strength 2, with faults and all I/O in "
        "samples, for 60s; with --model all",
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
    jobs_option(
        exploring,
        "processes at most, each of which explores a scenario; from 2 on one more directed case "
        "at a time",
    )
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
        cases = list(DIRECTED) if every else chosen_cases(args)
        shown = real_scenarios("all") if every else chosen_scenarios(args)
        listed = [listed_scenario(one) for one in shown] + [listed_case(one) for one in cases]
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
    scenarios, cases = chosen_scenarios(args), chosen_cases(args)
    if not scenarios:
        refuse_unused(args, f"with --scenario {args.scenario}", "--faults", "--all-io",
                      "--crash-points", "--mode", "--dask")  # fmt: skip
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
            written_up = WrittenUp(known, known_directed())
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
        return explore_builds(args, console, work, scenarios if own else ())


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

    return explore_builds(args, console, work)
