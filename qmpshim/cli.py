"""The command line: the door to everything below."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from errno import ENOSPC

import qmpshim
from qmpshim.commands import builds, check, explore, guest, pair, shim, stress, verify
from qmpshim.commands.console import STDOUT, Console, Parser
from qmpshim.commands.streams import WRONG, cannot_write, stdout_failure
from qmpshim.errors import QmpshimError


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qmpshim",
        description="Makes QEMU's live block backup and block replication (COLO) checkable.",
    )
    parser.add_argument("--version", action="version", version=f"qmpshim {qmpshim.__version__}")
    parser.add_argument("--debug", action="store_true", help="log what is done to stderr")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (verify, explore, check, guest, pair, shim, stress, builds):
        command.add(commands)
    return parser


def _in_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hint = "; free some space, or set TMPDIR to another disk" if error.errno == ENOSPC else ""
    return f"{where}{error.strerror or error}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status (see the README)."""
    try:
        args = _parser().parse_args(argv)
    except OSError as error:  # what --help, --version and wrong words print cannot be written
        return cannot_write(sys.stdout, error)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.CRITICAL,
        format="%(relativeCreated)6d ms %(name)s: %(message)s",
    )
    run: Callable[[argparse.Namespace, Console], int] = args.run
    try:
        json_only = getattr(args, "json", None) == STDOUT  # then the words go elsewhere
        console = Console(sys.stderr if json_only else sys.stdout)
        return console.ending(run(args, console))
    except QmpshimError as error:
        print(f"qmpshim: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (lost := stdout_failure()) is not None:  # of what was written past the console
            return lost
        print(f"qmpshim: {_in_words(error)}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return 130
