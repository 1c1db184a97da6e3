"""The shell: QMP for people on a terminal, and for scripts and pipes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from qmpshim.conformance.bundles.again import replay_command
from qmpshim.errors import CommandFailed, InputError, MachineDied, QmpshimError
from qmpshim.machine.builds.build import Build
from qmpshim.shim.emulator.serve import Options, Served, endpoint
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.shell.client import ShellClient
from qmpshim.shim.shell.colours import Colours
from qmpshim.shim.shell.completion import CommandSchema, LiveNames, candidates
from qmpshim.shim.shell.io import Flights, in_thread
from qmpshim.shim.shell.language import Local, QmpRequest, complete, in_transaction, parse
from qmpshim.shim.shell.words import Words
from qmpshim.shim.tracking.replays import record

OK, FAILED = 0, 1
_LEAVE = (":quit", "exit")  # end the shell, or a script
_MOST_SOURCES = 16
_BUNDLES = Path("qmpshim-bundles")


@dataclass(frozen=True, slots=True)
class ShellOptions:
    """What the shell talks to, and what it is to do.

    :ivar address: a shim or a QEMU; None: start one with the options *serve*
    :ivar commands: run these and leave
    :ivar script: run its lines and leave
    :ivar verbose: show all QMP messages
    """

    address: Address | None = None
    serve: Options = field(default_factory=Options)
    commands: tuple[str, ...] = ()
    script: Path | None = None
    verbose: bool = False


class _Completer(Completer):
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        shell = self._shell
        for found in candidates(document.text_before_cursor, shell.schema, shell.live):
            yield Completion(found.text, -found.back, display_meta=found.meta)


class Shell:
    """One shell.

    :param out: where results go
    :param err: where complaints go, and events when *out* is no terminal
    """

    def __init__(self, options: ShellOptions, out: TextIO, err: TextIO) -> None:
        self._options = options
        self._out = out
        self._err = err
        self._terminal = out.isatty()
        self._events = True
        self._verbose = options.verbose
        self._log: TextIO | None = None
        self._prompt: PromptSession[str] | None = None
        self._busy: asyncio.Task[bool] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.how_ended = "QEMU is gone"
        self.schema = CommandSchema([])
        self.live = LiveNames()
        self.client = ShellClient(self._event, self._show_message, self._ended)
        self._sourcing = 0  # files, one within another
        self._flights = Flights(self.client, self._write_line)
        self._words: Words

    # -- callbacks ---------------------------------------------------------------

    def _write_line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _complain(self, text: str) -> None:
        self._err.write(text + "\n")
        self._err.flush()

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
        (self._write_line if self._terminal else self._complain)(f"[{clock}] {text}")

    def _show_message(self, direction: str, line: str) -> None:
        if self._verbose:
            self._complain(f"{direction} {line}")

    def _ended(self) -> None:
        if self._prompt is not None and self._prompt.app.is_running:
            self._prompt.app.exit(exception=MachineDied(self.how_ended))

    def _still_there(self) -> None:
        """QEMU may have ended while no prompt was shown."""
        if self.client.ended:
            self._ended()

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
                try:
                    self._log = open(value, "w")  # noqa: SIM115 (until :log off)
                except OSError as error:
                    raise InputError(f"cannot write {value}: {error.strerror}") from error

    # -- what is done ------------------------------------------------------------

    async def connect(self, address: Address, build: Build | None = None) -> None:
        """Connect, and learn what this QEMU can do.

        :param build: what runs, if this shell started it
        """
        await self.client.connect(address)
        self.schema = CommandSchema(await self.client.execute("query-qmp-schema"))
        self._words = Words(
            *(self.client, self.schema, self._write_line, self._run_file, self._switch, _width),
            *(self._flights, address, build),
        )
        with suppress(CommandFailed):  # a plain QEMU, or a shim without a gate
            await self.client.execute("x-shim-held")
            self._flights.gated = True
        await self._refresh()

    async def _refresh(self) -> None:
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
            self._complain(str(error))
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
                self._complain(f"{name}: {error['desc']}{kind}")
                return ""
            return json.dumps(reply["return"], indent=2 if self._terminal else None)

        await self._flights.wait(name, job())
        return not failed

    async def _run_file(self, path: str) -> bool:
        if self._sourcing == _MOST_SOURCES:
            raise InputError(f"{path}: {_MOST_SOURCES} files source each other: is that a circle?")
        self._sourcing += 1
        try:
            return await self.run_lines(_each(_script(Path(path))))
        finally:
            self._sourcing -= 1

    async def run_lines(self, lines: AsyncIterable[str]) -> bool:
        """Do lines up to the first that fails; a request may take several."""
        pending = ""
        async for line in lines:
            pending = f"{pending}\n{line}" if pending else line
            if not complete(pending):
                continue
            if pending.strip() in _LEAVE:
                return True
            if not await self.run_line(pending):
                return False
            pending = ""
        if pending:
            self._complain("the last request does not end")
        return not pending

    async def run_script(self, lines: AsyncIterable[str]) -> bool:
        """As :meth:`run_lines`; at the end nothing may be under way."""
        done = await self.run_lines(lines)
        await self._flights.land(5.0)
        if left := self._flights.there:
            self._complain(f"still in flight: {', '.join(left)}; end with :let or :release all")
        return done and not left

    # -- a person ------------------------------------------------------------

    async def interact(self) -> int:
        """Read lines from the terminal until the person leaves.

        :raises MachineDied: QEMU went away
        """
        out, err = self._out, self._err
        try:
            return await self._read_lines()
        finally:
            self._out, self._err = out, err

    async def _read_lines(self) -> int:
        session: PromptSession[str] = PromptSession(
            completer=_Completer(self),
            lexer=Colours(),
            history=_history(),
            multiline=True,
            key_bindings=self._keys(),
            complete_while_typing=True,
            prompt_continuation=lambda *_: (
                "TRANS> " if in_transaction(session.default_buffer.text) else "... "
            ),
        )
        self._prompt = session
        with patch_stdout(raw=True):
            self._out, self._err = sys.stdout, sys.stdout
            version = self.client.greeting["QMP"]["version"]["qemu"]
            number = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
            self._write_line(f"QEMU {number}. :help lists the shell's own words; Tab completes.")
            serve = self._options.serve
            begins = serve.chain.topology.begins if serve.chain is not None else None
            if begins is not None and not serve.gated:
                self._write_line(f"The model follows the disks from: {begins.to_words()}")
            while True:
                try:
                    line = await session.prompt_async("qmp> ", pre_run=self._still_there)
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return OK
                if self._leaves(line.strip()):
                    return OK
                await self._interruptible(line)
                self._refreshing = asyncio.ensure_future(self._refresh())

    def _leaves(self, line: str) -> bool:
        """Whether a line that a person typed ends the shell.

        ``quit`` is meant for what the person began: a QEMU that runs already is not ended by
        habit. In scripts it is QEMU's command, as in qmp-shell.
        """
        address = self._options.address
        if line != "quit" or address is None:
            return line in _LEAVE
        command = f"qmpshim shell {quote(str(address))} -c quit"
        self._write_line(
            f'QEMU lives on. To end it: {command} (or {{"execute": "quit"}} in the shell)'
        )
        return True

    async def _interruptible(self, line: str) -> None:
        """Run a line; Ctrl-C stops waiting for it (QEMU goes on with it)."""
        task = asyncio.ensure_future(self.run_line(line))
        loop = asyncio.get_running_loop()
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            task.cancel()

        before = signal.getsignal(signal.SIGINT)
        loop.add_signal_handler(signal.SIGINT, stop)
        try:
            await asyncio.wait((task,))  # a cancellation of the shell itself is not ours to take
            if not task.cancelled():
                task.result()
            elif stopped:
                self._complain("not waited for; QEMU may still be at it")
        finally:
            task.cancel()
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)

    @staticmethod
    def _keys() -> KeyBindings:
        keys = KeyBindings()

        @Condition
        def whole() -> bool:
            return complete(get_app().current_buffer.text)

        @keys.add("enter", filter=whole)
        def accept(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        return keys

    async def until_ended(self) -> None:
        """Wait until the connection has ended."""
        while not self.client.ended:  # noqa: ASYNC110 (it does, at once)
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Hang up."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        if self._log is not None:
            self._log.close()
        self._flights.close()
        self._words.close()
        await self.client.close()


def _width() -> int:
    return shutil.get_terminal_size().columns


def _history() -> History:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    directory = Path(state) / "qmpshim"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "history").touch(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(directory / "history"))


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
                done = await shell.run_script(_each(options.commands))
            elif options.script is not None:
                done = await shell.run_script(_each(_script(options.script)))
            elif source.isatty() and out.isatty():
                return await shell.interact()
            else:
                done = await shell.run_script(_as_they_come(source))
            return OK if done else FAILED
        except MachineDied as error:
            err.write(f"{await _post_mortem(served, shell) or error}\n")
            return FAILED


async def _each(lines: Iterable[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


async def _as_they_come(source: TextIO) -> AsyncIterator[str]:
    """The lines of a pipe: its writer may wait for the answers in between."""

    def line() -> str:
        try:
            return source.readline()
        except UnicodeDecodeError as error:
            raise InputError("standard input is not UTF-8 text") from error

    while text := await in_thread(line):
        yield text.rstrip("\n")


def _script(path: Path) -> list[str]:
    """The lines of a file.

    :raises InputError: it cannot be read
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error


async def _post_mortem(served: Served | None, shell: Shell) -> str:
    """How QEMU ended, and if it crashed on a chain of ours, what led to it as a bundle."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await shell.until_ended()
    if served is None or served.emulator is None:
        return shell.how_ended
    await served.emulator.wait_for_exit(5.0)
    died = str(served.emulator.exit_error("this session", 0.0))
    if served.emulator.exited_well or not served.watch.trackers:
        return died
    try:
        reply = await record(served.watch, served.build)
        for number in count(1):
            path = _BUNDLES / f"by-hand-{number}.json"
            if not path.exists():
                break
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(reply["case"], indent=1) + "\n")
    except (QmpshimError, OSError) as error:
        return f"{died}\nno bundle of it: {error}"
    return f"{died}\nwrote {path}; `{replay_command(path, served.build)}` shows: {reply['shows']}"
