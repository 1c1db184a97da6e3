"""The shell's prompt: lines that a person types on a terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from qmpshim.errors import MachineDied
from qmpshim.shim.shell.colours import Colours
from qmpshim.shim.shell.completion import candidates
from qmpshim.shim.shell.language import complete, in_transaction
from qmpshim.shim.shell.shell import LEAVE, Shell, ShellOptions


class _Completer(Completer):
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        shell = self._shell
        for found in candidates(document.text_before_cursor, shell.schema, shell.live):
            yield Completion(found.text, -found.back, display_meta=found.meta)


class Prompt:
    """Reads lines and has a shell do them.

    :param options: those of the shell
    """

    def __init__(self, shell: Shell, options: ShellOptions) -> None:
        self._shell = shell
        self._options = options
        self._session: PromptSession[str] = PromptSession(
            completer=_Completer(shell),
            lexer=Colours(),
            history=_history(),
            multiline=True,
            key_bindings=_keys(),
            complete_while_typing=True,
            prompt_continuation=lambda *_: (
                "TRANS> " if in_transaction(self._session.default_buffer.text) else "... "
            ),
        )
        self._refreshing: asyncio.Task[None] | None = None

    async def interact(self) -> None:
        """Do lines until the person leaves.

        :raises MachineDied: QEMU went away
        """
        self._shell.on_end = self._qemu_ended
        try:
            with patch_stdout(raw=True), self._shell.writing_to(sys.stdout):
                self._greet()
                await self._read_lines()
        finally:
            self._shell.on_end = None
            if self._refreshing is not None:
                self._refreshing.cancel()
                await asyncio.gather(self._refreshing, return_exceptions=True)

    def _greet(self) -> None:
        shell = self._shell
        version = shell.client.greeting["QMP"]["version"]["qemu"]
        number = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
        shell.write_line(f"QEMU {number}. :help lists the shell's own words; Tab completes.")
        serve = self._options.serve
        begins = serve.chain.topology.begins if serve.chain is not None else None
        if begins is not None and not serve.gated:
            shell.write_line(f"The model follows the disks from: {begins.to_words()}")

    async def _read_lines(self) -> None:
        while True:
            try:
                line = await self._session.prompt_async("qmp> ", pre_run=self._still_there)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if self._leaves(line.strip()):
                return
            await run_stoppable(self._shell, line)
            self._refreshing = asyncio.ensure_future(self._refresh())

    async def _refresh(self) -> None:
        """Learn the names that exist now; what was typed meanwhile is completed with them."""
        before = replace(self._shell.live)
        await self._shell.refresh()
        buffer = self._session.default_buffer
        chosen = buffer.complete_state is not None and buffer.complete_state.current_completion
        shown = self._session.app.is_running and buffer.text
        if shown and self._shell.live != before and not chosen:
            buffer.cancel_completion()
            buffer.start_completion()

    def _qemu_ended(self) -> None:
        if self._session.app.is_running:
            self._session.app.exit(exception=MachineDied(self._shell.how_ended))

    def _still_there(self) -> None:
        """QEMU may have ended while no prompt was shown."""
        if self._shell.client.ended:
            self._qemu_ended()

    def _leaves(self, line: str) -> bool:
        """Whether a line that a person typed ends the shell.

        ``quit`` is meant for what the person began: a QEMU that runs already is not ended by
        habit. In scripts it is QEMU's command, as in qmp-shell.
        """
        address = self._options.address
        if line != "quit" or address is None:
            return line in LEAVE
        command = f"qmpshim shell {quote(str(address))} -c quit"
        self._shell.write_line(
            f'QEMU lives on. To end it: {command} (or {{"execute": "quit"}} in the shell)'
        )
        return True


async def run_stoppable(shell: Shell, line: str) -> None:
    """Run a line; Ctrl-C stops waiting for it (QEMU goes on with it)."""
    task = asyncio.ensure_future(shell.run_line(line))
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
            shell.complain("not waited for; QEMU may still be at it")
    finally:
        task.cancel()
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @Condition
    def whole() -> bool:
        return complete(get_app().current_buffer.text)

    @keys.add("enter", filter=whole)
    def accept(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return keys


def _history() -> History:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    directory = Path(state) / "qmpshim"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "history").touch(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(directory / "history"))
