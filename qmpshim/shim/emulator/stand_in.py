"""``qmpshim-qemu``: stands where a QEMU binary is expected, the shim before its QMP monitors.

Test suites start QEMU by the hundred, so a start imports no more than it needs.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from qmpshim.errors import InputError
from qmpshim.machine.builds import build as builds

if TYPE_CHECKING:
    from qmpshim.shim.emulator.emulator import Emulator
    from qmpshim.shim.emulator.serve import Options, Served

log = logging.getLogger(__name__)

_MONITOR_OPTIONS = {"-qmp", "-qmp-pretty", "-mon"}
#: In the environment of what stands behind: the process that stands in for it.
_STANDS_IN = "QMPSHIM_STANDS_IN"
_INFORMATION = {"-version", "-help", "-h", "-daemonize", "-device=help"}


def stand_in(arguments: Sequence[str], name: str | None = None, *, log_writes: bool = False) -> int:
    """Be QEMU: run the real one with *arguments*, the shim before its QMP monitors.

    :param name: the build to run, see :func:`qmpshim.machine.builds.build.resolve`
    :param log_writes: see :class:`~qmpshim.shim.emulator.serve.Options`
    :raises QmpshimError: as :func:`endpoint`
    """
    build = builds.find(name)
    options = {"-" + word.lstrip("-") for word in arguments}
    if not _MONITOR_OPTIONS & options or _INFORMATION & options:
        _become(build, arguments)
    import asyncio

    from qmpshim.shim.emulator.monitors import extract
    from qmpshim.shim.emulator.serve import Options

    if not extract(arguments)[1]:
        _become(build, arguments)
    status = asyncio.run(
        _stand_in(
            Options(
                build=build,
                arguments=tuple(arguments),
                log_writes=log_writes,
                limit=3600.0,
                silent_end=True,
            ),
            build,
        )
    )
    if status < 0:  # die of what QEMU died of
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _become(build: builds.Build, arguments: Sequence[str]) -> NoReturn:
    argv = [*build.emulator_command(), *arguments]
    os.execvpe(argv[0], argv, build.environment())


async def _stand_in(options: Options, build: builds.Build) -> int:
    import asyncio

    from qmpshim.shim.emulator.emulator import EndedEarly
    from qmpshim.shim.emulator.serve import serve

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
        gc.freeze()  # what is imported stays
        gc.enable()
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
        builds.read_version(build)  # raises if it is no QEMU or does not start
        # QEMU has printed the error on stderr, or the requested output on stdout.
        return 1 if error.status is None else error.status


def stand_in_main() -> int:
    """The entry point of ``qmpshim-qemu``.

    ``$QMPSHIM_BUILD`` names the build; ``$QMPSHIM_LOG_WRITES``, if not empty, is ``--log-writes``.

    :raises InputError: the build is this program again, as a script of QEMU's name on PATH may be
    """
    environment = os.environ
    if environment.get(_STANDS_IN) in (str(os.getpid()), str(os.getppid())):
        raise InputError("the QEMU to run is this program again: name another in QMPSHIM_BUILD")
    environment[_STANDS_IN] = str(os.getpid())
    log_writes = bool(environment.get("QMPSHIM_LOG_WRITES"))
    return stand_in(sys.argv[1:], environment.get("QMPSHIM_BUILD"), log_writes=log_writes)
