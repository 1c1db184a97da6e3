"""Options that several commands have."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qmpshim.commands.parser import count, seconds, size, takes_name
from qmpshim.commands.results import BUNDLES
from qmpshim.conformance.cluster import Cluster
from qmpshim.errors import InputError
from qmpshim.machine.builds import build as builds

MACHINE, LIMIT = "none", 30.0  # the defaults of --machine and of --limit, which is in seconds


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
    choosing = where.add_argument(
        "--build",
        metavar="NAME",
        action="append" if several else "store",
        help="a build by its name in `qmpshim builds list`"
        + ("; may be given several times" if several else ""),
    )
    takes_name(choosing, builds.names)
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


def output_options(parser: argparse.ArgumentParser, kept: str) -> None:
    """Add ``--json``, ``--keep`` (*kept*: what it keeps) and ``--strict``."""
    json_option(parser)
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help=f"keep {kept} in DIR (default: keep bundles only, in ./{BUNDLES})",
    )
    strict_option(parser)


def strict_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add ``--strict``; *more* is what it does beside."""
    parser.add_argument(
        "--strict",
        "--fail-known",
        action="store_true",
        help="known findings fail the run, too; they are shown with the name of their write-up, "
        f"as `qmpshim findings list` has it{more}",
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
