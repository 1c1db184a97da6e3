"""The prompt itself, in this process: keys come through a pipe."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from prompt_toolkit.application import AppSession, create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.shell.prompt import Prompt
from qmpshim.shim.shell.shell import Shell, ShellOptions
from vmtests.support.stand_in import qemu_at
from vmtests.support.waiting import until


def _typed(session: AppSession) -> str:
    """The line as it is shown, or nothing while no prompt is."""
    return "" if session.app is None else session.app.current_buffer.text


def test_what_is_typed_before_the_names_are_known_is_completed_with_them(
    tmp_path: Path, qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are learned after each line while the next one is typed."""

    async def run(address: Address) -> list[str]:
        shell = Shell(ShellOptions(), io.StringIO(), io.StringIO())
        await shell.connect(address)
        refresh, typed = shell.refresh, asyncio.Event()

        async def slowly() -> None:
            await typed.wait()
            await refresh()

        monkeypatch.setattr(shell, "refresh", slowly)
        with create_pipe_input() as keys, create_app_session(keys, DummyOutput()) as session:
            prompt = asyncio.ensure_future(Prompt(shell, ShellOptions()).interact())
            keys.send_text("blockdev-add driver=null-co node-name=spare read-zeroes=true\r")
            keys.send_text("blockdev-del node-name=sp")
            await until(lambda: _typed(session).endswith("=sp"))
            assert session.app is not None
            buffer = session.app.current_buffer
            assert buffer.complete_state is None
            typed.set()
            await until(lambda: buffer.complete_state is not None)
            assert buffer.complete_state is not None
            found = [one.text for one in buffer.complete_state.completions]
            keys.send_text("\x03\x04")  # Ctrl-C drops the line, Ctrl-D leaves
            await prompt
        await shell.close()
        return found

    with qemu_at(qemu_build, tmp_path):
        assert asyncio.run(run(Address.parse(str(tmp_path / "qmp.sock")))) == ["spare"]
