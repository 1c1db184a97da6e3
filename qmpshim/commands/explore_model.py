"""`qmpshim explore --model`: the reference model in the place of a QEMU."""

from __future__ import annotations

import argparse

from qmpshim.commands.console import DIVERGED, OK, Console, Listed, show_list
from qmpshim.commands.options import refuse_unused
from qmpshim.conformance.document import BUDGET
from qmpshim.conformance.explore.report.report import SOAK
from qmpshim.conformance.explore.scenarios import scenario_object
from qmpshim.conformance.explore.search.model_run import (
    REFERENCE_NAMES,
    ModelReport,
    ModelRun,
    diagram,
    explore_model,
    protocol_list,
    scenarios_for,
    summary,
)
from qmpshim.errors import InputError
from qmpshim.model.explore.explorer import MODES
from qmpshim.model.scenario import Scenario

#: Options that set how scenarios are explored.
HOW = ("--mode", "--faults", "--crash-points", "--all-io", "--budget", "--seed", "--keep",
              "--strict", "--build", "--qemu", "--dask")  # fmt: skip
LIST = "list"  # as a scenario or protocol: an older spelling of --list


def explore_model_scenarios(args: argparse.Namespace, console: Console) -> int:
    """Explore the model with the options of `explore`.

    :raises InputError: an option goes with a real QEMU only
    """
    of_qemu = {
        "--build": args.build,
        "--qemu": args.qemu,
        "--faults": args.faults,
        "--crash-points": args.crash_points != "none",
        "--all-io": args.all_io,
        "--keep": args.keep,
        "--strict": args.strict,
        "--strength": args.strength is not None,
        "--mode soak": args.mode == SOAK,
        "--resume": args.resume is not None,
        "--dask": args.dask,
    }
    if unfit := [option for option, given in of_qemu.items() if given]:
        raise InputError(f"{unfit[0]} goes with a real QEMU, not with --model")
    refuse_unused(args, "with --model", "--jobs")
    if args.list or LIST in (args.scenario, *(args.discipline or [])):
        refuse_unused(args, "with --list", *HOW, "--schedule")
    elif args.schedule is not None:
        refuse_unused(args, "with --schedule", *HOW)
    elif not MODES[args.mode].by_chance:
        refuse_unused(args, f"with --mode {args.mode}, which leaves nothing to chance", "--seed")
    if LIST in (args.discipline or []):
        protocols = [Listed(name, about) for name, about in protocol_list().items()]
        return show_list(protocols, args.document, console)
    if args.list or args.scenario == LIST:
        shown = scenarios_for("all" if args.scenario in (None, LIST) else args.scenario)
        items = [Listed(one.name, one.about, scenario_object(one)) for one in shown]
        return show_list(items, args.document, console)
    chosen = args.discipline or list(REFERENCE_NAMES)
    scenarios = scenarios_for(args.scenario or "all")
    if args.schedule is not None:
        args.document.judges = False
        return _replay(args, chosen, scenarios, console)

    def on_progress(run: ModelRun) -> None:
        console.progress(
            f"{run.scenario.name} under {run.discipline}: {run.statistics.schedules} schedules"
        )

    report = explore_model(
        chosen,
        scenarios,
        args.budget,
        MODES[args.mode],
        seed=args.seed,
        progress=on_progress,
    )
    console.line(summary(report))
    console.line()
    console.line(_verdict(report))
    args.document.result = report.to_json()
    if not report.exhaustive and args.budget is not None:
        args.document.interrupted = BUDGET
    return OK if report.clean else DIVERGED


def _replay(
    args: argparse.Namespace, protocols: list[str], scenarios: list[Scenario], console: Console
) -> int:
    if len(protocols) != 1 or len(scenarios) != 1:
        raise InputError("--schedule replays one scenario: name it, and one --discipline")
    drawn = diagram(protocols[0], scenarios[0], args.schedule)
    args.document.result = {"schedule": args.schedule, "diagram": drawn.splitlines()}
    console.line(drawn)
    return OK


def _verdict(report: ModelReport) -> str:
    schedules = sum(run.statistics.schedules for run in report.runs)
    found = sum(bool(run.findings) for run in report.runs)
    how = "exhausted" if report.exhaustive else "NOT exhausted"
    return (
        f"{len(report.runs)} run(s), {schedules} schedules, {how}; "
        f"{f'{found} with a violation' if found else 'no violation'}"
    )
