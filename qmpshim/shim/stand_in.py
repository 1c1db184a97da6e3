"""``qmpshim-qemu``: stands where a QEMU binary is expected, the shim before its QMP monitors."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from qmpshim.machine import builds
from qmpshim.shim.emulator import Emulator, EndedEarly
from qmpshim.shim.monitors import extract
from qmpshim.shim.serve import Options, Served, serve

log = logging.getLogger(__name__)

_INFORMATION = {"-version", "-help", "-h", "-daemonize", "-device=help"}


def stand_in(arguments: Sequence[str], name: str | None = None) -> int:
    """Be QEMU: run the real one with *arguments*, the shim before its QMP monitors.

    :param name: the build to run, see :func:`qmpshim.machine.builds.resolve`
    :raises QmpshimError: as :func:`endpoint`
    """
    build = builds.resolve(name)
    _, monitors = extract(arguments)
    if not monitors or _INFORMATION & {"-" + word.lstrip("-") for word in arguments}:
        argv = [*build.command(), *arguments]
        os.execvpe(argv[0], argv, build.environment())
    options = Options(build=build, arguments=tuple(arguments), limit=3600.0)
    status = asyncio.run(_stand_in(options))
    if status < 0:  # die of what QEMU died of
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


async def _stand_in(options: Options) -> int:
    loop = asyncio.get_running_loop()
    emulator: list[Emulator] = []
    early: list[int] = []

    def pass_on(number: int) -> None:
        if emulator:
            emulator[0].send_signal(number)
        else:
            early.append(number)
            task.cancel()

    def ready(served: Served) -> None:
        assert served.emulator is not None
        emulator.append(served.emulator)

    task = asyncio.ensure_future(serve(options, ready))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, pass_on, number)
    try:
        return await task
    except asyncio.CancelledError:
        return -early[0] if early else 1
    except EndedEarly as error:
        log.info("%s", error)
        # QEMU has said on stderr what is wrong, or on stdout what it was asked.
        return 1 if error.status is None else error.status


def stand_in_main() -> int:
    """The entry point of ``qmpshim-qemu``; ``$QMPSHIM_BUILD`` names the build."""
    return stand_in(sys.argv[1:], os.environ.get("QMPSHIM_BUILD"))
