"""`qmpshim check`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.commands.cancellation import interruptible
from qmpshim.commands.check_text import announce, progress, show, show_found
from qmpshim.commands.console import Console, Listed, show_list
from qmpshim.commands.interrupted import Interrupted
from qmpshim.commands.options import (
    cluster_at,
    dask_option,
    jobs_option,
    json_option,
    list_option,
    refuse_unused,
    strict_option,
)
from qmpshim.commands.parser import takes_name
from qmpshim.conformance.check.case import Case
from qmpshim.conformance.check.report.compare import compare
from qmpshim.conformance.check.report.reports import fill, write_reports
from qmpshim.conformance.check.report.results import Results, load_results
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.bisect import ABORT, SKIP, answer, in_haste, named_cases
from qmpshim.conformance.check.run.executors import DaskExecutor, Executor, LocalExecutor
from qmpshim.conformance.check.run.journal import Journal
from qmpshim.conformance.check.runners import kinds
from qmpshim.conformance.check.suites import Suite, suite_named
from qmpshim.conformance.document import Document
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED
from qmpshim.conformance.known.bundle_kinds import FILES, load_bundle
from qmpshim.conformance.known.folder import by_id, summary
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.errors import (
    BuildError,
    ExecutorLost,
    HostError,
    InputError,
    NoSuchBuild,
    QmpshimError,
    name_errnos,
)
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import slug
from qmpshim.machine.host.workspace import Workspace
from qmpshim.shim import differential

_EPILOG = """\
Exit status: 0 all as predicted, 1 something new was found (with --strict: anything that is not in
the baseline), also where it
did not show itself again every time, 2 the command or the environment is wrong, or a case could not
be carried out, 125 no build can do any of it. With --bisect: 0 good, 1 bad, 125 cannot be tested
(nothing usable at the build's path, or what is new did not show itself every time), 128 the
question is wrong (a name that no build has, no such bundle); never 2, which git takes for bad.

  qmpshim check --build system --build debian:sid
  qmpshim check --build debian:sid --baseline last-week/ --out this-week/
  git bisect run sh -c 'ninja -C build qemu-system-x86_64 || exit 125
      qmpshim check --bisect --build build/ --case BUNDLE'

BUNDLE is a directory that explore, verify, pair or check kept; or a case, as directed/NAME.
"""


SHIM = Case("shim", "protocol/shim")
# The shim is a layer above the checks, so its check is registered here.
kinds.register("shim", differential.run, SHIM)


_KNOWN = "known/"  # before the name of a finding, of whichever kind, it is a case
_RUNNING = ("--jobs", "--out", "--dask", "--strict")  # how and where a run is done


def add(commands: Any) -> None:
    """Add the command to the parser."""
    checking = commands.add_parser(
        "check",
        help="run a suite of checks on several builds, and compare",
        description="Runs the cases of a suite on each build, known defects among them, and "
        "compares the builds with each other and with a baseline.",
        epilog=_EPILOG,
    )
    choosing = checking.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="NAME",
        help="a build `qmpshim builds list` shows, a binary or a build tree; may be given several "
        "times, the others are compared with the first (default: the system's)",
    )
    takes_name(choosing, builds.names)
    checking.add_argument(
        "--suite",
        default=None,
        metavar="S",
        help="quick, guest, pair, full or a file (default: quick)",
    )
    checking.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="C",
        help="only this case of the suite (a * may end it), known/ and the name of a finding, as "
        "`qmpshim findings list` shows it, or a bundle that verify, explore or pair kept; may be "
        "given several times",
    )
    list_option(checking, "the suite's cases")
    json_option(checking)
    checking.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="results.json of an earlier run: only what is not there fails this one",
    )
    jobs_option(checking, "cases at a time")
    checking.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory of the journal, reports and bundles (default: ./qmpshim-check)",
    )
    checking.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    checking.add_argument(
        "--force", action="store_true", help="replace a run that is already in the directory"
    )
    strict_option(
        checking,
        "; what is in the --baseline does not. In JUnit they are failures then, whose type is that "
        "name, else properties",
    )
    dask_option(checking)
    checking.add_argument(
        "--bisect", action="store_true", help="answer `git bisect run`: one build, good or bad"
    )
    checking.set_defaults(run=_check)


def _check(args: argparse.Namespace, console: Console) -> int:
    if args.bisect:
        return _bisect(args, console)
    if args.list:
        refuse_unused(args, "with --list", *_RUNNING, "--build", "--resume", "--baseline")
    if args.dask:
        refuse_unused(args, "with --dask, whose workers it is done by", "--jobs")
    if args.resume and (args.out or args.build or args.suite or args.case or args.force):
        raise InputError(
            "--resume goes on with what was begun: no --build, --suite, --case, --out, --force"
        )
    baseline = load_results(args.baseline) if args.baseline else None
    if args.list:
        return show_list([_listed(case) for case in _suite(args).cases], args.document, console)
    with contextlib.ExitStack() as stack:
        if args.resume:
            executor = stack.enter_context(_executor(args))
            journal, chosen = campaign.resume(args.resume)
        else:
            suite, chosen = _suite(args), _builds(args.build)
            executor = stack.enter_context(_executor(args))
            out = args.out or Path("qmpshim-check")
            journal = campaign.begin(out, chosen, suite, args.force)
        stack.callback(journal.close)
        announce(journal, console)
        document: Document = args.document
        try:
            _run(executor, journal, list(chosen.values()), console)
        except Interrupted as interrupted:
            document.exit_status = 128 + interrupted.number
            document.interrupted = signal.Signals(interrupted.number).name
        except ExecutorLost as error:
            document.exit_status, document.error = error.exit_code, str(error)
        except HostError as error:
            again = _resume_command(journal, args)
            raise HostError(f"{error}; when that is mended go on with: {again}") from error
        comparison = compare(Results.of(journal), baseline, args.strict)
        fill(document, comparison)
        write_reports(comparison, journal.directory, document)
        if journal.missing:
            if journal.outcomes:
                show_found(comparison, journal.directory, console)
            console.line(
                f"{document.error or 'interrupted'}: "
                f"{len(journal.outcomes)} of {len(journal.plan.keys)} done and kept; "
                f"go on with: {_resume_command(journal, args)}"
            )
        else:
            show(comparison, journal.directory, console)
        return document.exit_status


def _listed(case: Case) -> Listed:
    """A case's description: what its write-up gives, else its arguments."""
    arguments = {name: value for name, value in case.arguments.items() if name != "content"}
    words = ", ".join(f"{name} {_plain(value)}" for name, value in arguments.items())
    what = summary(case.name.removeprefix("known/")).get("title", words)
    about = textwrap.shorten(f"{case.kind}: {what}" if what else case.kind, 100, placeholder=" ...")
    return Listed(case.name, about, {"kind": case.kind, "budget_seconds": case.budget})


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _resume_command(journal: Journal, args: argparse.Namespace) -> str:
    """The command that goes on with a run as it was begun, to be pasted into a shell."""
    words = ["qmpshim", "check", "--resume", str(journal.directory)]
    for option in ("baseline", "dask"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option}", str(value)]
    return shlex.join([*words, *(["--strict"] if args.strict else [])])


def _builds(names: list[str]) -> dict[str, Build]:
    """By what they are called; a path in a form that holds wherever the run is resumed."""
    found = {}
    for name in names or ["system"]:
        build = builds.resolve(name)
        called = os.path.abspath(name) if os.sep in build.name else name
        if called in found:
            raise InputError(f"--build {name} is there twice")
        found[called] = build
    return found


def _suite(args: argparse.Namespace) -> Suite:
    """The chosen cases: of a suite, and bundles."""
    given: list[str] = []
    names: list[str] = []
    of_known: list[Case] = []
    for what in args.case:
        written = by_id(what.removeprefix(_KNOWN)) if what.startswith(_KNOWN) else None
        if written is not None and not isinstance(written, ExplorerWriteUp):  # those a suite has
            of_known.append(Case("known", what, {"id": written.name}, 300.0))
            continue
        path = Path(what)
        (given if path.exists() else names).append(what)
        if not path.exists() and os.sep in what and what.split(os.sep)[0] in ("", ".", ".."):
            raise InputError(f"--case {what}: no such bundle")
    cases = (*of_known, *(_bundle_case(Path(what)) for what in given))
    if cases and not names and args.suite is None:
        return Suite("bundles" if given else "known", cases)
    suite = suite_named(args.suite or "quick")
    if names:
        suite = suite.only(names)
    return replace(suite, cases=(*suite.cases, *cases)) if cases else suite


def _bundle_case(path: Path) -> Case:
    content = load_bundle(path).to_json()
    named = path if path.name not in FILES else path.absolute().parent
    return Case("bundle", f"bundle/{slug(named.absolute().stem)}", {"content": content}, 300.0)


# -- the run -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Executor]:
    """The executor that runs the cases; found before anything is begun."""
    with cluster_at(args.dask) as cluster:
        yield LocalExecutor(args.jobs) if cluster is None else DaskExecutor(cluster)


def _run(executor: Executor, journal: Journal, chosen: list[Build], console: Console) -> None:
    """Do what is missing.

    :raises Interrupted: a signal came
    :raises ExecutorLost: the executor is gone
    """
    with interruptible():
        campaign.carry_on(journal, chosen, executor, lambda standing: progress(standing, console))


# -- bisect ------------------------------------------------------------------------------------


def _bisect(args: argparse.Namespace, console: Console) -> int:
    """Never 2, which ``git bisect run`` takes for bad."""
    try:
        if len(args.build) != 1:
            raise InputError("--bisect needs exactly one --build")
        if args.resume or args.baseline or args.list:
            raise InputError(
                "--bisect goes with --build, --case, --suite, --jobs, --strict, --out, --force"
            )
        suite = in_haste(_suite(args))
        suite = named_cases(suite) if args.case else suite
    except QmpshimError as error:
        return _abort(args, error)
    try:
        chosen = _builds(args.build)
        with contextlib.ExitStack() as stack:
            directory = args.out or stack.enter_context(Workspace()).path / "check"
            journal = stack.enter_context(
                contextlib.closing(campaign.begin(directory, chosen, suite, args.force))
            )
            console.line(f"{args.build[0]}: QEMU {journal.plan.builds[0].version}")
            executor = stack.enter_context(_executor(args))
            _run(executor, journal, list(chosen.values()), console)
            comparison = compare(Results.of(journal), None, args.strict)
            ruling = answer(comparison, bool(args.case))
            fill(args.document, comparison)
            args.document.exit_status = ruling.status
            text = name_errnos(ruling.text)
            args.document.error = text if ruling.status == SKIP else None
            if args.out:
                write_reports(comparison, directory, args.document)
            console.line(text)
            return ruling.status
    except Interrupted as interrupted:
        return 128 + interrupted.number  # 128 and above: the bisection ends
    except NoSuchBuild as error:  # no commit can mend that
        return _abort(args, error)
    except (InputError, BuildError) as error:  # of the build: not there, not made, does not start
        args.document.error = f"{CANNOT_BE_TESTED}: {error}"
        console.line(args.document.error)
        return SKIP
    except (HostError, OSError) as error:
        return _abort(args, error)


def _abort(args: argparse.Namespace, error: Exception) -> int:
    args.document.error = str(error)
    print(f"qmpshim: {error}", file=sys.stderr)
    return ABORT
