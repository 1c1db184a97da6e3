"""What all commands share: the console, sizes, choosing a build, being interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

from qmpshim.commands.streams import WRONG, Output
from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.document import Document
from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import check_file, write_file

OK, DIVERGED, UNTESTABLE = 0, 1, 125
STDOUT = Path("-")  # as a file to write to
_TAKEN_DOWN = "QEMU was ended and its files removed"
MACHINE, LIMIT = "none", 30.0  # the defaults of --machine and of --limit, which is in seconds
BUNDLES = Path("qmpshim-bundles")  # where replay bundles go without --keep
_MOST_CHOICES = 32  # characters of an option's choices that fit into the usage


#: SGR colours of a result, by the exit status that it stands for.
_COLOURS = {OK: 32, DIVERGED: 31, UNTESTABLE: 33}


class Console:
    """Progress on one rewritten line of a terminal, or as plain lines now and then.

    Results are in colour on a terminal, unless ``NO_COLOR`` is set (no-color.org) or the terminal
    is ``dumb``, which can rewrite no line either.
    """

    def __init__(self, out: TextIO, interval: float = 2.0) -> None:
        self._out = out
        self._output = Output(out)
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._interval = interval
        self._next = 0.0
        self._shown = False

    def progress(self, text: str) -> None:
        """What is being done right now."""
        now = time.monotonic()
        if self._terminal:
            self._output.write(f"\r\x1b[K{text[: self._width() - 1]}")
            self._shown = True
        elif now >= self._next:
            self._output.write(text + "\n")
            self._next = now + self._interval

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except OSError:
            return 80

    def line(self, text: str = "", status: int | None = None) -> None:
        """A line that stays.

        :param status: the exit status for which this line is the reason, if it is one
        """
        if self._coloured and status in _COLOURS:
            text = f"\x1b[{_COLOURS[status]}m{text}\x1b[0m"
        self._output.write(("\r\x1b[K" if self._shown else "") + text + "\n")
        self._shown = False

    def prose(self, text: str, status: int | None = None) -> None:
        """Words that stay: on a terminal a line is broken between two of them.

        A command is for :meth:`line`: it is pasted as a whole.

        :param status: as of :meth:`line`
        """
        if self._terminal and len(text) >= (width := self._width()):
            indent = len(text) - len(text.lstrip()) + 2
            lines = textwrap.wrap(
                text,
                width - 1,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            text = "\n".join(lines)
        self.line(text, status)

    def ending(self, status: int) -> int:
        """The exit status of a command that ended with *status*, had all been written."""
        return self._output.ending(status)


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str) -> int:
    """Bytes, with an optional suffix k, M, G or T."""
    found = re.fullmatch(r"(\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write e.g. 512, 64k or 1G")
    return int(found[1]) * _UNITS[found[2]]


def in_words(number: int) -> str:
    """The reverse of :func:`size`."""
    for suffix, unit in reversed(_UNITS.items()):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{suffix.upper() or ' byte'}"
    return str(number)


def count(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


class HelpFormatter(argparse.HelpFormatter):
    """Help that fits the terminal and breaks lines between words only.

    An option with a long list of choices shows its metavar instead, and the choices in its text.
    """

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        metavar = action.dest.upper() if _long_choices(action) else default_metavar
        if metavar is default_metavar:
            return super()._metavar_formatter(action, default_metavar)
        return lambda number: (metavar,) * number

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return text + _long_choices(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled; one that is indented is an example and stays as it is."""
        return "\n\n".join(
            part
            if part.startswith(" ")
            else textwrap.fill(
                " ".join(part.split()),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
            for part in text.rstrip().split("\n\n")
        )


def _long_choices(action: argparse.Action) -> str:
    """What an option's help adds about its choices if there are too many for the usage, or ''."""
    choices = [str(choice) for choice in action.choices or ()]
    if action.metavar is not None or sum(map(len, choices)) <= _MOST_CHOICES:
        return ""
    return f"; one of {', '.join(choices)}"


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, without the usage."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **more})

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As the base class; the namespace also names the parser with the command's defaults."""
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "parser"):  # a command's own parser comes before those it is below
            found.parser = self
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")


def seconds(text: str) -> float:
    """A time in seconds, with an optional suffix s or m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write e.g. 30s or 5m")
    return float(found[1]) * (60 if found[2] == "m" else 1)


def image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the formats of a chain's images."""
    parser.add_argument(
        "--cluster",
        type=size,
        default=64 << 10,
        help="qcow2 cluster size in bytes, or with k, M (default: 64k)",
    )
    parser.add_argument(
        "--secondary",
        choices=["raw", "qcow2"],
        default="raw",
        help="format of the secondary disk (default: raw)",
    )


def build_options(
    parser: argparse.ArgumentParser, machine: bool = True, several: bool = False
) -> None:
    """Add the options that choose a build, or with *several* more than one."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--build",
        metavar="NAME",
        action="append" if several else "store",
        help="a build by its name in `qmpshim builds list`"
        + ("; may be given several times" if several else ""),
    )
    where.add_argument("--qemu", metavar="PATH", help="a QEMU binary (default: the system's)")
    if not machine:
        return
    parser.add_argument("--machine", default=MACHINE, help="QEMU's -machine (default: none)")
    parser.add_argument(
        "--limit",
        type=seconds,
        default=LIMIT,
        metavar="SECONDS",
        help="seconds without an answer after which QEMU counts as hung, or 5m for minutes "
        "(default: 30; more where a checkpoint goes through millions of clusters)",
    )


def refuse_unused(args: argparse.Namespace, because: str, *options: str) -> None:
    """Refuse options that would be ignored.

    :param because: in which combination they have no effect, e.g. ``with --no-colo``
    :param options: e.g. ``--machine``
    :raises InputError: one of them was given, with another value than its default
    """
    for option in options:
        name = option.lstrip("-").replace("-", "_")
        if hasattr(args, name) and getattr(args, name) != args.parser.get_default(name):
            raise InputError(f"{option} has no effect {because}: leave it out")


def jobs_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--jobs``; *what* there are so many of at a time."""
    parser.add_argument(
        "--jobs",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help=f"{what} (default: one a CPU)",
    )


def json_option(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add ``--json``; :func:`qmpshim.cli.main` writes the document there."""
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the result as JSON, also after a failure (-: to stdout)",
        **more,
    )


def dask_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--dask``, for :func:`cluster_at`."""
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="work on a dask.distributed cluster, e.g. tcp://host:8786"
    )


@contextlib.contextmanager
def cluster_at(address: str | None) -> Iterator[Cluster | None]:
    """The cluster that ``--dask`` names, if it was given.

    :raises HostError: nothing answers there
    :raises InputError: that is no address
    """
    if not address:
        yield None
        return
    with contextlib.closing(Cluster(address)) as cluster:
        yield cluster


def list_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--list``, which lists *what* and runs nothing."""
    parser.add_argument(
        "--list",
        action="store_true",
        help=f"list {what}, one a line with a description (with --json as data); run nothing",
    )


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list: one thing that there is.

    :ivar about: what it is, one line
    :ivar more: what else a program may want to know
    """

    name: str
    about: str
    more: Mapping[str, Any] = field(default_factory=dict)


def show_list(items: Sequence[Listed], document: Document, console: Console) -> int:
    """Show what there is: one a line, the name first; the same as data."""
    width = max((len(item.name) for item in items), default=0)
    for item in items:
        console.line(f"{item.name:{width}}  {item.about}")
    document.judges = False
    document.result = {
        "items": [{"name": item.name, "about": item.about, **item.more} for item in items]
    }
    return OK


def output_options(parser: argparse.ArgumentParser, kept: str) -> None:
    """Add ``--json``, ``--keep`` (*kept*: what it keeps) and ``--strict``."""
    json_option(parser)
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help=f"keep {kept} in DIR (default: keep bundles only, in ./{BUNDLES})",
    )
    parser.add_argument(
        "--strict", action="store_true", help="report known QEMU defects as divergences, too"
    )


def chosen_build(args: argparse.Namespace) -> Build:
    return builds.resolve(args.qemu or args.build)


def chosen_builds(args: argparse.Namespace) -> list[Build]:
    """All that were named, each once."""
    return [
        builds.resolve(name)
        for name in dict.fromkeys([args.qemu] if args.qemu else args.build or [None])
    ]


def on_each(
    chosen: Sequence[Build], document: Document, console: Console, run: Callable[[Build], int]
) -> int:
    """Run the same on several builds, one after another; return the worst exit status.

    A build that cannot do it does not keep the others from it; an interruption does.

    :param document: records the builds, and which of them cannot be tested
    """
    document.about(*chosen)
    if len(chosen) == 1:
        return run(chosen[0])
    statuses = {}
    for build, described in zip(chosen, document.builds, strict=True):
        console.line(f"== {build.name}")
        try:
            statuses[build.name] = run(build)
        except BuildError as error:
            console.line(f"cannot be tested: {error}")
            statuses[build.name] = UNTESTABLE
            described["cannot_be_tested"] = str(error)
        if statuses[build.name] not in (OK, DIVERGED, UNTESTABLE):
            return statuses[build.name]
        console.line()
    results = {OK: "all as predicted", DIVERGED: "DIVERGED", UNTESTABLE: "cannot be tested"}
    for name, status in statuses.items():
        console.line(f"{name:18} {results[status]}", status)
    found = set(statuses.values())
    if found == {UNTESTABLE}:
        document.error = "cannot be tested on any of these builds"
    return DIVERGED if DIVERGED in found else OK if OK in found else UNTESTABLE


def run_cancellable(main: Coroutine[Any, Any, int], then: str = _TAKEN_DOWN) -> int:
    """Run to the end; SIGINT and SIGTERM cancel it, so that everything is taken down.

    :param then: the consequence, for the message
    """

    async def guarded() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        caught: list[int] = []
        torn = False

        def cancel(number: int, _frame: object) -> None:
            if not caught:
                caught.append(number)
                loop.call_soon_threadsafe(at_the_next_await)
                signal.setitimer(signal.ITIMER_REAL, 1.0)

        def at_the_next_await() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if not torn:
                task.cancel()

        def now(_number: int, _frame: object) -> None:
            # The loop does not come round: a hung QEMU is waited for. That is where we are now.
            nonlocal torn
            torn = True
            raise asyncio.CancelledError

        signal.signal(signal.SIGALRM, now)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, cancel)
        try:
            return await task
        except asyncio.CancelledError:
            print(f"interrupted; {then}", file=sys.stderr)
            return 128 + caught[0] if caught else WRONG

    return asyncio.run(guarded())


class Interrupted(KeyboardInterrupt):
    """A signal came. Of KeyboardInterrupt's kind, which alone gets through an asyncio loop.

    :param number: the signal's
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise :exc:`Interrupted` at SIGINT and SIGTERM: for work that knows no event loop."""

    def raise_once(number: int, _frame: object) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)  # what is taken down now must not be torn
        raise Interrupted(number)

    before = {one: signal.signal(one, raise_once) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def run_interruptible(work: Callable[[], int], then: str = _TAKEN_DOWN) -> int:
    """:func:`run_cancellable` for what knows no event loop."""
    try:
        with interruptible():
            return work()
    except Interrupted as interrupted:
        print(f"interrupted; {then}", file=sys.stderr)
        return 128 + interrupted.number


def check_writable(path: Path | None) -> None:
    """Find out now, not after the work, that a result cannot be written.

    :raises InputError: it cannot
    """
    if path is None or path == STDOUT:
        return
    try:
        check_file(path)
    except HostError as error:
        raise InputError(str(error)) from error


def check_directory(path: Path) -> None:
    """Make a directory for results before the work.

    :raises InputError: it cannot be made
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def not_kept(why: str) -> str:
    """The message for a bundle that could not be written."""
    return f"no bundle: {why}; give a directory that can be written to with --keep DIR"


def write_json(path: Path | None, value: Any) -> None:
    """Write a result, if it is wanted.

    :raises HostError: it cannot be written
    """
    if path is None:
        return
    text = json.dumps(value, indent=1) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        return
    write_file(path, text.encode())
