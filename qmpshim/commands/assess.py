"""`qmpshim assess`: can I rely on this build?"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmpshim.commands.cancellation import run_interruptible
from qmpshim.commands.chosen_builds import chosen_builds
from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console
from qmpshim.commands.options import (
    build_options,
    cluster_at,
    dask_option,
    jobs_option,
    json_option,
    refuse_unused,
)
from qmpshim.commands.parser import seconds
from qmpshim.commands.results import BUNDLES, check_directory, check_writable, not_kept
from qmpshim.conformance.assess.advice import MILD, advice, apart
from qmpshim.conformance.assess.assess import INTERRUPTED, Assessment, assess
from qmpshim.conformance.assess.document import assessment_object
from qmpshim.conformance.assess.judgement import NOT_AGAINST_IT, UNTRIED, Answer, Judgement, Reason
from qmpshim.conformance.assess.page import page
from qmpshim.conformance.bundles.again import directed_command, on_build, replay_command
from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.directed.run import DirectedFinding
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.known.tracker import command_of
from qmpshim.conformance.uses import USE_NAMES, Use, uses_named
from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import slug, write_file

_EPILOG = """\
Nothing is concluded from a version string: each known finding that affects the use is tried on the
binary itself. Then random workloads are run, and directed cases: fixed sequences of commands and
I/O. Then pairs of operations and a covering array of strength 2 over the scenario space are
explored, each interleaving, as far as the budget goes. NOT RELIABLE: something was shown that loses
data or service in ordinary use or when a disk or link fails, and nothing warns of it in time.
CANNOT TELL: nothing was shown, and not all was tried.

Of backup, sync-none-backup and fleecing are snapshots that a tool reads over NBD (pull),
full-backup and incremental-backup are jobs that write to a target (push), and bitmaps are what
either needs to be incremental.

Exit status: 0 reliable for every use that was asked for, 1 not reliable for one of them, 2 the
command or the environment is wrong, 125 nothing was found, and for one of them nothing can be
concluded, 128 and more: interrupted; what there was until then is given, and nothing follows from
what was not come to.
"""

#: The exit status for each answer.
_STATUS = {
    Answer.RELIABLE: OK,
    Answer.NOT_RELIABLE: DIVERGED,
    Answer.CANNOT_TELL: UNTESTABLE,
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "assess",
        help="can I rely on this build? by use, with reasons",
        description="Answers for each use of QEMU's block layer: RELIABLE, NOT RELIABLE or CANNOT "
        "TELL, with the reasons, what follows from them and how to avoid them. It takes some two "
        "minutes a build.",
        epilog=_EPILOG,
    )
    build_options(parser, machine=False, several=True)
    parser.add_argument(
        "--use",
        action="append",
        choices=USE_NAMES,
        help="what QEMU is used for, colo for both sides; may be given several times (default: "
        "all)",
    )
    parser.add_argument(
        "--budget",
        type=seconds,
        default=60.0,
        metavar="TIME",
        help="for the fresh exploration of a build (default 60s); all else takes about 55 s more, "
        "and what it does not take of them goes to the exploration, up to a third of its budget",
    )
    jobs_option(parser, "processes at most")
    dask_option(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page, to hand on")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help=f"bundles of what is new (default ./{BUNDLES})"
    )
    json_option(parser)
    parser.set_defaults(run=_assess)


def _assess(args: argparse.Namespace, console: Console) -> int:
    check_writable(args.html)
    if args.html and args.json and args.html.resolve() == args.json.resolve():
        raise InputError(f"--html and --json name the same file, {args.html}")
    chosen = chosen_builds(args)
    if args.keep is not None:
        check_directory(args.keep)
    args.document.about(*chosen)
    wanted = {use for word in args.use or USE_NAMES for use in uses_named(word)}
    uses = [use for use in Use if use in wanted]
    done: list[Assessment] = []
    again: dict[Reason, str] = {}

    def keep(one: Assessment) -> None:
        done.append(one)
        for judgement in one.judgements:
            for reason in (*judgement.reasons, *judgement.remarks):
                again[reason] = _again(reason, one.build, args.keep or BUNDLES, console)
        _show(one, again, args.budget, console)

    def work(cluster: Cluster | None) -> int:
        untestable = False
        for build in chosen:
            progress = console.progress
            try:
                keep(assess(build, uses, args.budget, args.jobs, progress, cluster, keep))
            except BuildError as error:  # the others can be assessed all the same
                if len(chosen) == 1:
                    raise
                console.line(f"{build.name}: cannot be tested: {error}")
                untestable = True
        status = _status(done)
        return UNTESTABLE if untestable and status == OK else status

    if args.dask:
        refuse_unused(args, "with --dask, whose workers it is done by", "--jobs")
    try:
        with cluster_at(args.dask) as cluster:
            status = run_interruptible(lambda: work(cluster))
    finally:  # also what there is of one that was interrupted
        args.document.result = {"assessments": [assessment_object(one, again) for one in done]}
        if done:
            args.document.diverged = _status(done) == DIVERGED
            if args.html is not None:
                write_file(args.html, page(done, again, args.budget))
                console.line(f"page: {args.html}")
            _table(done, console)
    if status == UNTESTABLE:
        args.document.error = "nothing can be concluded for one of the uses"
    return status


def _status(done: Sequence[Assessment]) -> int:
    found = {_STATUS[judgement.answer] for one in done for judgement in one.judgements}
    return next((status for status in (DIVERGED, UNTESTABLE) if status in found), OK)


def _again(reason: Reason, build: Build, keep: Path, console: Console) -> str:
    """The command that shows it; what is new is kept as a bundle for that."""
    if reason.entry is not None:
        return shlex.join([*shlex.split(command_of(reason.entry)), *on_build(build)])
    if reason.workload is not None:
        return reason.workload.command(build)
    if reason.trial is not None:
        words = shlex.split(command_of(reason.trial.entry))
        return shlex.join([*words, *on_build(build)])
    assert reason.finding is not None
    if isinstance(reason.finding, DirectedFinding):
        return directed_command(reason.finding.case.id, build)
    name = slug(f"assess-{reason.finding.verdict}-{reason.finding.scenario.name}")
    try:
        return replay_command(save_finding(keep / name, reason.finding), build)
    except HostError as error:
        console.line(not_kept(str(error)))
        return ""


def _show(one: Assessment, again: dict[Reason, str], budget: float, console: Console) -> None:
    console.line(f"{one.build.name}: QEMU {one.version}")
    for judgement in one.judgements:
        console.line()
        console.line(f"{judgement.use.words}: {judgement.answer}", _STATUS[judgement.answer])
        console.prose(f"  {judgement.figures}")
        serious, mild = apart(judgement.reasons)
        for reason in serious:
            _show_reason(reason, again[reason], console)
        if mild:
            console.prose(f"  {MILD}:")
        for reason in mild:
            _show_reason(reason, again[reason], console)
        for doubt in judgement.doubts:
            console.prose(f"  cannot tell: {doubt}")
        if (todo := advice(judgement, budget)) is not None:
            command = shlex.join(todo.words(judgement, one.build))
            console.line(f"  to tell: {todo.remedy}" + (f": {command}" if command else ""))
        if judgement.remarks:
            console.prose(f"  {NOT_AGAINST_IT}:")
        for remark in judgement.remarks:
            name = f" ({remark.entry.name})" if remark.entry else ""
            condition = f", {remark.condition}" if remark.condition else ""
            console.prose(f"    {remark.severity.words}{condition}: {remark.text}{name}")
        if judgement.untried:
            names = ", ".join(one.name for one in judgement.untried)
            console.prose(f"  {UNTRIED}: {names}")
    console.line()
    console.line(
        f"assessed in {one.seconds:.0f} s" + (f", {INTERRUPTED}" if one.interrupted else "")
    )


def _show_reason(reason: Reason, command: str, console: Console) -> None:
    console.prose(f"  {reason.severity.words}: {reason.text}")
    for name, text in (
        ("promised", reason.promised),
        ("when", reason.when),
        ("then", reason.then),
        ("avoid it", reason.avoid),
        ("fixed in", reason.fixed),
    ):
        if text:
            console.prose(f"    {name + ':':9} {text}")
    if command:
        console.line(f"    see it:   {command}")


def _table(done: Sequence[Assessment], console: Console) -> None:
    """The answers, several builds side by side: the last that is seen of a long text."""
    console.line()
    rows: list[list[str]] = [["", *(one.build.name for one in done)]]
    for at, judgement in enumerate(done[0].judgements):
        cells: list[Judgement] = [one.judgements[at] for one in done]
        rows.append([judgement.use.words, *(cell.answer.value for cell in cells)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        console.line(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
