"""A shell from beginning to end: its QEMU, where its lines come from, and the exit status."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from qmpshim.conformance.bundles.again import replay_command
from qmpshim.errors import MachineDied, QmpshimError
from qmpshim.shim.emulator.serve import Served, endpoint
from qmpshim.shim.shell.lines import as_they_come, each, script
from qmpshim.shim.shell.prompt import Prompt
from qmpshim.shim.shell.shell import Shell, ShellOptions
from qmpshim.shim.tracking.replays import record

OK, FAILED = 0, 1
_BUNDLES = Path("qmpshim-bundles")


async def run_shell(options: ShellOptions, source: TextIO, out: TextIO, err: TextIO) -> int:
    """Run a shell; gives the exit status: 1 when a command failed or QEMU died.

    :param source: where lines come from when no commands and no script are given; a terminal is
        talked to
    :raises InputError: the address or script is wrong
    :raises HostError: QEMU cannot be started
    :raises BuildError: QEMU does not start
    :raises MachineError: QEMU does not answer
    """
    async with AsyncExitStack() as stack:
        address, served = options.address, None
        if address is None:
            served = await stack.enter_async_context(endpoint(options.serve))
            address = served.addresses[0]
        shell = Shell(options, out, err)
        await shell.connect(address, None if served is None else served.build)
        stack.push_async_callback(shell.close)
        try:
            if options.commands:
                done = await shell.run_script(each(options.commands))
            elif options.script is not None:
                done = await shell.run_script(each(script(options.script)))
            elif source.isatty() and out.isatty():
                await Prompt(shell, options).interact()
                return OK
            else:
                done = await shell.run_script(as_they_come(source))
            return OK if done else FAILED
        except MachineDied as error:
            err.write(f"{await _post_mortem(served, shell) or error}\n")
            return FAILED


async def _post_mortem(served: Served | None, shell: Shell) -> str:
    """How QEMU ended, and if it crashed on a chain of ours, what led to it as a bundle."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await shell.until_ended()
    if served is None or served.emulator is None:
        return shell.how_ended
    await served.emulator.wait_for_exit(5.0)
    died = str(served.emulator.exit_error("this session", 0.0))
    if served.emulator.exited_well or not served.chains.trackers:
        return died
    try:
        reply = await record(served.chains, served.build)
        for number in count(1):
            path = _BUNDLES / f"by-hand-{number}.json"
            if not path.exists():
                break
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(reply["case"], indent=1) + "\n")
    except (QmpshimError, OSError) as error:
        return f"{died}\nno bundle of it: {error}"
    return f"{died}\nwrote {path}; `{replay_command(path, served.build)}` shows: {reply['shows']}"
