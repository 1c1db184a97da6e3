"""The shell: does lines of its language one after another, over one connection.

On a terminal :mod:`.prompt` gives it the lines, else :mod:`.lines`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from qmpshim.errors import CommandFailed, InputError, MachineDied, QmpshimError, os_errors
from qmpshim.machine.builds.build import Build
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.shell.client import ShellClient
from qmpshim.shim.shell.completion import CommandSchema, LiveNames
from qmpshim.shim.shell.io import Flights
from qmpshim.shim.shell.language import Local, QmpRequest, complete, parse
from qmpshim.shim.shell.lines import each, script
from qmpshim.shim.shell.words import Words

LEAVE = (":quit", "exit")  # end the shell, or a script
_MOST_SOURCES = 16


@dataclass(frozen=True, slots=True)
class ShellOptions:
    """What the shell talks to, and what it is to do.

    :ivar address: a shim or a QEMU; None: start one with the options *serve*
    :ivar commands: run these and leave
    :ivar script: run its lines and leave
    :ivar keep_going: after a line of a script that fails, which the exit status shows all the same
    :ivar verbose: show all QMP messages
    """

    address: Address | None = None
    serve: Options = field(default_factory=Options)
    commands: tuple[str, ...] = ()
    script: Path | None = None
    keep_going: bool = False
    verbose: bool = False


class Shell:
    """One shell.

    :param out: where results go
    :param err: where complaints go, and events when *out* is no terminal
    :ivar on_end: called when the connection ends
    """

    def __init__(self, options: ShellOptions, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._terminal = out.isatty()
        self._events = True
        self._verbose = options.verbose
        self._keep_going = options.keep_going
        self._log: TextIO | None = None
        self.how_ended = "QEMU is gone"
        self.on_end: Callable[[], None] | None = None
        self.schema = CommandSchema([])
        self.live = LiveNames()
        self.client = ShellClient(self._event, self._show_message, self._ended)
        self._sourcing = 0  # files, one within another
        self._flights = Flights(self.client, self.write_line)
        self._words: Words

    # -- what is written ---------------------------------------------------------

    def write_line(self, text: str) -> None:
        """Write a result."""
        self._out.write(text + "\n")
        self._out.flush()

    @contextmanager
    def writing_to(self, stream: TextIO) -> Iterator[None]:
        """Write results and complaints there, as long as the context lasts."""
        out, err = self._out, self._err
        self._out = self._err = stream
        try:
            yield
        finally:
            self._out, self._err = out, err

    def complain(self, text: str) -> None:
        """Write what went wrong."""
        self._err.write(text + "\n")
        self._err.flush()

    # -- callbacks ---------------------------------------------------------------

    def _event(self, message: dict[str, Any]) -> None:
        if message["event"] == "X_SHIM_QEMU_GONE":
            self.how_ended = str(message["data"].get("reason", self.how_ended))
        if not self._events:
            return
        stamp = message.get("timestamp", {}).get("seconds", 0)
        clock = datetime.fromtimestamp(stamp).strftime("%H:%M:%S")
        data = message.get("data", {})
        text = f"{message['event']} {json.dumps(data)}" if data else message["event"]
        if message["event"] == "X_SHIM_HELD":
            text = f"held {data['number']}: {data['step']}"
        (self.write_line if self._terminal else self.complain)(f"[{clock}] {text}")

    def _show_message(self, direction: str, line: str) -> None:
        if self._verbose:
            self.complain(f"{direction} {line}")

    def _ended(self) -> None:
        if self.on_end is not None:
            self.on_end()

    def _switch(self, name: str, value: str) -> None:
        if name == "verbose":
            self._verbose = value == "on"
        elif name == "events":
            self._events = value == "on"
        else:
            if self._log is not None:
                self._log.close()
                self._log = None
            if value != "off":
                with os_errors(InputError, f"cannot write {value}"):
                    self._log = open(value, "w")  # noqa: SIM115 (until :log off)

    # -- what is done ------------------------------------------------------------

    async def connect(self, address: Address, build: Build | None = None) -> None:
        """Connect, and learn what this QEMU can do.

        :param build: what runs, if this shell started it
        """
        await self.client.connect(address)
        self.schema = CommandSchema(await self.client.execute("query-qmp-schema"))
        self._words = Words(
            *(self.client, self.schema, self.write_line, self._run_file, self._switch, _width),
            *(self._flights, address, build),
        )
        with suppress(CommandFailed):  # a plain QEMU, or a shim without a gate
            await self.client.execute("x-shim-held")
            self._flights.gated = True
        await self.refresh()

    async def refresh(self) -> None:
        """Learn the names that exist now, for completion."""
        if self._flights.there:
            return  # QEMU may not answer before what is held is let go
        with suppress(QmpshimError):
            nodes = await self.client.execute("query-named-block-nodes", {"flat": True})
            self.live.nodes = sorted(node["node-name"] for node in nodes)
            self.live.jobs = sorted(job["id"] for job in await self.client.execute("query-jobs"))
            exports = await self.client.execute("query-block-exports")
            self.live.exports = sorted(export["id"] for export in exports)
            self.live.disks = sorted(e["id"] for e in exports if e["type"] == "nbd")

    async def run_line(self, line: str) -> bool:
        """Do one line; gives whether it succeeded.

        :raises MachineDied: QEMU went away
        """
        try:
            item = parse(line)
            if item is None:
                return True
            if self._log is not None and line.split()[0] != ":log":
                self._log.write(line + "\n")
                self._log.flush()
            if isinstance(item, Local):
                return await self._words.run(item.name, item.words)
            return await self._request(item)
        except MachineDied:
            raise
        except QmpshimError as error:
            self.complain(str(error))
            return False

    async def _request(self, request: QmpRequest) -> bool:
        message = request.message
        name = str(message.get("execute") or message.get("exec-oob"))
        failed = False

        async def job() -> str:
            nonlocal failed
            reply = await self.client.send(message)
            failed = "error" in reply
            if failed:
                error = reply["error"]
                kind = f" ({error['class']})" if error["class"] != "GenericError" else ""
                self.complain(f"{name}: {error['desc']}{kind}")
                return ""
            return json.dumps(reply["return"], indent=2 if self._terminal else None)

        await self._flights.wait(name, job())
        return not failed

    async def _run_file(self, path: str) -> bool:
        if self._sourcing == _MOST_SOURCES:
            raise InputError(f"{path}: {_MOST_SOURCES} files source each other: is that a circle?")
        self._sourcing += 1
        try:
            return await self.run_lines(each(script(Path(path))))
        finally:
            self._sourcing -= 1

    async def run_lines(self, lines: AsyncIterable[str]) -> bool:
        """Do lines, up to the first that fails unless all are to be done.

        A request may take several lines.

        :returns: whether none failed
        """
        pending, well = "", True
        async for line in lines:
            pending = f"{pending}\n{line}" if pending else line
            if not complete(pending):
                continue
            if pending.strip() in LEAVE:
                return well
            if not await self.run_line(pending):
                well = False
                if not self._keep_going:
                    return False
            pending = ""
        if pending:
            self.complain("the last request does not end")
        return well and not pending

    async def run_script(self, lines: AsyncIterable[str]) -> bool:
        """As :meth:`run_lines`; at the end nothing may be under way."""
        done = await self.run_lines(lines)
        await self._flights.land(5.0)
        if left := self._flights.there:
            self.complain(f"still in flight: {', '.join(left)}; end with :let or :release all")
        return done and not left

    async def until_ended(self) -> None:
        """Wait until the connection has ended."""
        while not self.client.ended:  # noqa: ASYNC110 (it does, at once)
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Hang up."""
        if self._log is not None:
            self._log.close()
        self._flights.close()
        self._words.close()
        await self.client.close()


def _width() -> int:
    return shutil.get_terminal_size().columns
