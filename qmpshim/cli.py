"""The command line: parses the arguments and runs one of the commands."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

import qmpshim
from qmpshim.commands.console import Console
from qmpshim.commands.parser import Parser
from qmpshim.commands.results import STDOUT, check_writable, write_json
from qmpshim.commands.streams import BROKEN_PIPE, WRONG, cannot_write, stdout_failure
from qmpshim.conformance.document import Document
from qmpshim.errors import QmpshimError
from qmpshim.machine.host.programs import find_program, run_program

#: The module of each command, in the order of the help.  Only the one that is called is imported:
#: all together they take half a second.
COMMANDS = {
    "assess": "qmpshim.commands.assess",
    "verify": "qmpshim.commands.verify",
    "replay": "qmpshim.commands.replay",
    "explore": "qmpshim.commands.explore",
    "export": "qmpshim.commands.export",
    "check": "qmpshim.commands.check",
    "findings": "qmpshim.commands.findings",
    "guest": "qmpshim.commands.guest",
    "pair": "qmpshim.commands.pair",
    "serve": "qmpshim.commands.shim",
    "shell": "qmpshim.commands.shim",
    "stress": "qmpshim.commands.stress",
    "builds": "qmpshim.commands.builds",
}
_UNREAD = "the output is not read"
_INTERRUPTED = {128 + number: number.name for number in (signal.SIGINT, signal.SIGTERM)}


class _Version(argparse.Action):
    """``--version``: of a checkout with its git revision, which no other command waits for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        revision = git_revision(Path(qmpshim.__file__).parents[1])
        print(f"qmpshim {qmpshim.__version__}{revision}", flush=True)
        parser.exit()


class _HelpAll(argparse.Action):
    """``--help-all``: the help of every command, one after another."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("\n\n".join(one.format_help().strip() for one in all_parsers(parser)), flush=True)
        parser.exit()


class _Completion(argparse.Action):
    """``--print-completion``: a script for a shell, made from the parsers."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> None:
        try:
            shtab = importlib.import_module("shtab")
        except ImportError:
            parser.error("--print-completion needs shtab: pip install shtab")
        for one in all_parsers(parser):
            for argument in one._actions:  # argparse has no public way to them
                if names := getattr(argument, "names", None):  # see takes_name()
                    files = argument.files  # type: ignore[attr-defined]
                    argument.choices = [*names(), *([shtab.Choice("file")] if files else [])]
        print(shtab.complete(parser, shell), flush=True)
        parser.exit()


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of all commands below it, in the order of its help."""
    yield parser
    for action in parser._actions:  # argparse has no public way to its sub-parsers
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from all_parsers(below)


def git_revision(root: Path) -> str:
    """The revision of a checkout, ``" (git 1234abcd)"``; ``""`` where *root* is none."""
    git = find_program("git")
    if git is None or not (root / ".git").exists():
        return ""
    words = ["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    done = run_program([git, "-C", str(root), *words], None)
    return f" (git {done.stdout.strip()})" if done.returncode == 0 else ""


def _modules(words: Sequence[str]) -> Iterable[str]:
    """The modules that a command line needs: its command's, or all where it names none.

    Only ``--debug`` may precede a command: other options end before it is looked at.
    """
    for word in words:
        if word in COMMANDS:
            return [COMMANDS[word]]
        if word == "--version":
            return []
        if word != "--debug":
            break
    return dict.fromkeys(COMMANDS.values())


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a command line *words*; of all commands where it names none."""
    parser = Parser(
        prog="qmpshim",
        description="Makes QEMU's live block backup and block replication (COLO) checkable.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, help="show the help of every command and exit"
    )
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh"),
        help="print a script that completes this command line, and exit",
    )
    parser.add_argument("--debug", action="store_true", help="log what is done to stderr")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _modules(words):
        importlib.import_module(module).add(commands)
    return parser


def _in_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hint = "; free some space, or set TMPDIR to another disk" if error.errno == ENOSPC else ""
    return f"{where}{error.strerror or error}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status (see the README)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser(words).parse_args(words)
    except OSError as error:  # what --help, --version and wrong words print cannot be written
        return cannot_write(sys.stdout, error)
    if not gc.isenabled():  # the entry point's
        gc.freeze()
        gc.enable()
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.CRITICAL,
        format="%(relativeCreated)6d ms %(name)s: %(message)s",
    )
    called = " ".join(filter(None, (args.command, getattr(args, "action", None))))
    args.document = document = Document(called, tuple(words))
    path: Path | None = getattr(args, "json", None)
    try:
        check_writable(path)
        document.exit_status = _run(args, document)
        document.interrupted = _INTERRUPTED.get(document.exit_status, document.interrupted)
        write_json(path, document.to_json() if path else None)
        return document.exit_status
    except QmpshimError as error:
        print(f"qmpshim: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace, document: Document) -> int:
    """Run the chosen command; an exception is recorded in the JSON document."""
    run: Callable[[argparse.Namespace, Console], int] = args.run
    try:
        json_only = getattr(args, "json", None) == STDOUT  # then the words go elsewhere
        console = Console(sys.stderr if json_only else sys.stdout)
        status = console.ending(run(args, console))
        if status == BROKEN_PIPE:
            document.error = _UNREAD
        return status
    except QmpshimError as error:
        document.error = str(error)
        status = error.exit_code
    except OSError as error:
        if (lost := stdout_failure()) is not None:  # of what was written past the console
            document.error = _UNREAD if lost == BROKEN_PIPE else _in_words(error)
            return lost
        document.error = _in_words(error)
        status = WRONG
    except KeyboardInterrupt:  # of a command that had begun nothing
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"qmpshim: {document.error}", file=sys.stderr)
    return status
