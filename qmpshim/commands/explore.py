"""`qmpshim explore`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmpshim.commands.console import (
    DIVERGED,
    OK,
    Console,
    check_writable,
    seconds,
    write_json,
)
from qmpshim.conformance.model_run import (
    HONEST_NAMES,
    ModelReport,
    ModelRun,
    diagram,
    discipline_names,
    explore_model,
    scenarios_for,
    summary,
)
from qmpshim.errors import InputError
from qmpshim.model.explorer import Mode
from qmpshim.model.scenario import Scenario


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exploring = commands.add_parser("explore", help="check every interleaving of small scenarios")
    exploring.add_argument(
        "--model", action="store_true", required=True, help="explore the reference model itself"
    )
    exploring.add_argument(
        "--discipline",
        action="append",
        metavar="D",
        help="who waits for whom (default: the honest ones: "
        f"{', '.join(HONEST_NAMES)}); `list` shows all, sabotaged ones included",
    )
    exploring.add_argument(
        "--scenario",
        default="all",
        metavar="S",
        help="a shipped scenario, a JSON file, or all (default); `list` shows them",
    )
    exploring.add_argument("--budget", type=seconds, metavar="TIME", help="e.g. 30s or 5m")
    exploring.add_argument(
        "--mode",
        choices=[mode.value for mode in Mode],
        default=Mode.AUTO.value,
        help="default auto",
    )
    exploring.add_argument("--seed", type=int, default=0, help="for the modes that go by chance")
    exploring.add_argument(
        "--schedule", metavar="STEPS", help="replay these steps, as a violation printed them"
    )
    exploring.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    exploring.set_defaults(run=_explore)


def _explore(args: argparse.Namespace, console: Console) -> int:
    if "list" in (args.discipline or []):
        for name in discipline_names():
            console.line(name)
        return OK
    if args.scenario == "list":
        for scenario in scenarios_for("all"):
            console.line(f"{scenario.name:26} {scenario.about}")
        return OK
    disciplines = args.discipline or list(HONEST_NAMES)
    scenarios = scenarios_for(args.scenario)
    check_writable(args.json)
    if args.schedule is not None:
        return _replay(args.schedule, disciplines, scenarios, console)

    def tell(run: ModelRun) -> None:
        console.progress(
            f"{run.scenario.name} under {run.discipline}: {run.statistics.schedules} schedules"
        )

    report = explore_model(
        disciplines, scenarios, args.budget, Mode(args.mode), seed=args.seed, progress=tell
    )
    console.line(summary(report))
    console.line()
    console.line(_verdict(report))
    write_json(args.json, report.to_json())
    return OK if report.clean else DIVERGED


def _replay(
    schedule: str, disciplines: list[str], scenarios: list[Scenario], console: Console
) -> int:
    if len(disciplines) != 1 or len(scenarios) != 1:
        raise InputError("--schedule replays one scenario: name it, and one --discipline")
    console.line(diagram(disciplines[0], scenarios[0], schedule))
    return OK


def _verdict(report: ModelReport) -> str:
    schedules = sum(run.statistics.schedules for run in report.runs)
    found = sum(bool(run.findings) for run in report.runs)
    how = "exhausted" if report.exhaustive else "NOT exhausted"
    return (
        f"{len(report.runs)} run(s), {schedules} schedules, {how}; "
        f"{f'{found} with a violation' if found else 'no violation'}"
    )
