"""`qmpshim serve` and `qmpshim shell`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from qmpshim.commands.cancellation import run_cancellable
from qmpshim.commands.chosen_builds import chosen_build
from qmpshim.commands.console import DIVERGED, OK, Console
from qmpshim.commands.options import MACHINE, build_options, image_options, refuse_unused
from qmpshim.commands.parser import size
from qmpshim.errors import InputError
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator import serve as serving
from qmpshim.shim.emulator.emulator import EndedEarly
from qmpshim.shim.emulator.serve import Options, Served
from qmpshim.shim.endpoint.listener import Address


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    server = commands.add_parser(
        "serve",
        help="a QMP endpoint in front of a real QEMU that also answers for the model",
        description="Passes commands, answers and events on between QMP clients and a QEMU. "
        "Where that has a chain of disks that the model knows, it follows them, and answers "
        "commands of its own (x-shim-status, x-shim-verify and more) about what it sees.",
    )
    server.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="unix:PATH or HOST:PORT; may be given several times (default: a socket in a private "
        "directory)",
    )
    server.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen on other than local addresses (needs --tls)",
    )
    server.add_argument(
        "--tls", type=Path, metavar="DIR", help="directory of certificates, named as QEMU's"
    )
    server.add_argument("--qmp", metavar="ADDRESS", help="attach to a running QEMU")
    _chain_options(server)
    server.add_argument(
        "arguments", nargs="*", metavar="-- QEMU-ARGS", help="start QEMU with these arguments"
    )
    server.set_defaults(run=_serve)

    shell = commands.add_parser(
        "shell",
        help="an interactive QMP client with completion and commands for the chain",
        description="Completes commands and arguments by the QEMU's own schema, shows events as "
        "they come, and has commands of its own for the chain of disks.",
    )
    shell.add_argument(
        "address",
        nargs="?",
        help="unix:PATH, a socket's path or HOST:PORT of a shim or a QEMU; none: start a QEMU",
    )
    _chain_options(shell)
    shell.add_argument(
        "-c",
        dest="commands",
        action="append",
        default=[],
        metavar="COMMAND",
        help="run COMMAND and exit",
    )
    shell.add_argument("--script", type=Path, metavar="FILE", help="run the lines of FILE and exit")
    shell.add_argument(
        "--keep-going",
        action="store_true",
        help="go on after a command that fails, where they come from --script, -c or stdin "
        "(default: end there); the exit status is 1 all the same",
    )
    shell.add_argument("--verbose", action="store_true", help="show all QMP messages")
    shell.set_defaults(run=_shell)


def _chain_options(parser: argparse.ArgumentParser) -> None:
    build_options(parser)
    parser.add_argument(
        "--workflow",
        choices=[workflow.value for workflow in Workflow],
        help="build this chain of disks first",
    )
    parser.add_argument(
        "--gated",
        action="store_true",
        help="with --workflow: hold its disks' I/O with x-shim-hold or :hold; the "
        "secondary disk is full of data, and the backup or replication runs",
    )
    parser.add_argument(
        "--log-writes",
        action="store_true",
        help="put writable exports on blklogwrites nodes, so that I/O that bypasses the shim's "
        "endpoints is observed, too",
    )
    parser.add_argument(
        "--size",
        type=size,
        help="virtual size of the disks in bytes, or with k, M, G (default: 64M, with --gated two "
        "clusters)",
    )
    image_options(parser)


def _options(args: argparse.Namespace) -> Options:
    attached = getattr(args, "qmp", None)
    if attached:
        _refuse_start(args, "--qmp")
    if not args.workflow:
        refuse_unused(args, "without a chain (--workflow)", "--cluster", "--secondary")
    if getattr(args, "listen", None) == []:
        refuse_unused(args, "without --listen", "--allow-remote", "--tls")
    if getattr(args, "arguments", ()) and args.machine != "none":
        raise InputError("--machine is for a QEMU without arguments of its own: write -machine")
    if args.size and not args.workflow:
        raise InputError("--size is that of a chain's disks: say which chain with --workflow")
    return Options(
        listen=tuple(Address.parse(text) for text in getattr(args, "listen", ())),
        qmp=Address.parse(attached) if attached else None,
        build=None if attached else chosen_build(args),
        arguments=tuple(getattr(args, "arguments", ())) or None,
        chain=_chain(args) if args.workflow else None,
        gated=args.gated,
        log_writes=args.log_writes,
        machine=args.machine,
        allow_remote=getattr(args, "allow_remote", False),
        tls=getattr(args, "tls", None),
        limit=args.limit,
        hold_stderr=True,
    )


def _refuse_start(args: argparse.Namespace, because: str) -> None:
    """Refuse the options for starting a QEMU when one is attached."""
    for option in ("build", "qemu", "workflow", "gated", "arguments"):
        if getattr(args, option, None):
            word = "QEMU-ARGS" if option == "arguments" else f"--{option}"
            raise InputError(
                f"{word} is for a QEMU that the shim starts: leave it or {because} out"
            )
    chain = ("--machine", "--size", "--cluster", "--secondary")
    refuse_unused(args, f"on a QEMU that runs already ({because})", *chain)


def _chain(args: argparse.Namespace) -> ChainSpec:
    usual = 2 * args.cluster if args.gated else 64 << 20
    return ChainSpec(Workflow(args.workflow), args.size or usual, args.cluster, args.secondary)


def _serve(args: argparse.Namespace, console: Console) -> int:
    def ready(served: Served) -> None:
        for address in served.addresses:
            console.line(f"listening on {address}")

    options = _options(args)
    if options.qmp is not None:
        status = run_cancellable(serving.serve(options, ready), "QEMU lives on")
        if status == OK:
            console.line(f"the QEMU at {options.qmp} is gone")
        return status
    try:
        status = run_cancellable(serving.serve(options, ready))
    except EndedEarly as error:
        given = options.arguments is not None or options.machine != MACHINE
        if given and error.status is not None and error.status >= 0:
            words = error.last_words or "it said nothing"
            raise InputError(
                f"QEMU ended with status {error.status} instead of answering QMP: {words}"
            ) from error
        raise
    if status < 0:
        print(f"qmpshim: QEMU was killed by {signal.Signals(-status).name}", file=sys.stderr)
        return DIVERGED
    return status


def _shell(args: argparse.Namespace, console: Console) -> int:
    from qmpshim.shim.shell.run import run_shell  # a terminal's: serve needs none
    from qmpshim.shim.shell.shell import ShellOptions

    address = Address.parse(args.address) if args.address else None
    if address is not None:
        _refuse_start(args, "the address")
        refuse_unused(args, "on a QEMU that runs already", "--log-writes", "--limit")
    if args.commands:
        refuse_unused(args, "with -c", "--script")
    options = ShellOptions(
        address=address,
        serve=Options() if address else _options(args),
        commands=tuple(args.commands),
        script=args.script,
        keep_going=args.keep_going,
        verbose=args.verbose,
    )
    return run_cancellable(
        run_shell(options, sys.stdin, sys.stdout, sys.stderr),
        *(["QEMU lives on"] if address is not None else []),
    )
