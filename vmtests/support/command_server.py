"""Runs commands in processes that need not import them first, which takes half a second each.

What differs from a start by hand: all commands of a session have one hash seed, and modules that
they import were imported elsewhere.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from qmpshim import commands
from qmpshim.machine.host.fork_server import ForkServer

_MODULES = (
    "qmpshim.cli",
    *(module.name for module in pkgutil.iter_modules(commands.__path__, "qmpshim.commands.")),
)


@cache
def _server() -> ForkServer:
    return ForkServer()


def run_command(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float
) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run` of ``qmpshim`` with stdin empty and the output captured.

    :param limit: seconds
    """
    with (
        open(os.devnull, "rb") as nothing,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        process = _server().start("qmpshim.__main__:main", words, streams, env, cwd, _MODULES)
        status = process.wait(limit)
        if status is None:
            process.kill()
            raise subprocess.TimeoutExpired(["qmpshim", *words], limit)
        return subprocess.CompletedProcess(
            ["qmpshim", *words], status, _written(out), _written(err)
        )


def _written(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()
