"""A real QEMU under the watchdog: it answers, or there is an exception that says what it did."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import BuildError, CommandFailed, Exit, HostError, MachineDied, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import Qemu, died
from vmtests.support.waiting import wait_until


@asynccontextmanager
async def running(build: Build, directory: Path, limit: float = 20.0) -> AsyncIterator[Qemu]:
    """A QEMU of which nothing is left in the end."""
    qemu = Qemu(build.command(), directory, env=build.env, limit=limit)
    await qemu.start()
    try:
        yield qemu
    finally:
        await qemu.close()
    assert not qemu.alive()
    assert is_gone(qemu.pid)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def proc(pid: int, file: str) -> str:
    return Path(f"/proc/{pid}/{file}").read_text()


async def test_commands_are_answered_and_logged(tmp_path: Path, qemu_build: Build) -> None:
    async with running(qemu_build, tmp_path) as qemu:
        version = await qemu.execute("query-version")
        assert version["qemu"]["major"] >= 5
        await qemu.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1024})
        with pytest.raises(CommandFailed) as raised:
            await qemu.execute("blockdev-del", {"node-name": "missing"})
        assert raised.value.command == "blockdev-del"
        assert raised.value.error_class == "GenericError"
        assert "missing" in raised.value.desc
        assert qemu.alive()
        # The log is whole at any moment, for bundles are written while QEMU runs.
        lines = (tmp_path / "qmp.log").read_text().splitlines()
        messages = [(line[:2], json.loads(line[3:])) for line in lines]
        assert messages[0] == ("->", {"execute": "query-version"})
        assert messages[2][1]["arguments"]["driver"] == "null-co"
        assert messages[3] == ("<-", {"return": {}})
        assert messages[-1][1]["error"]["class"] == "GenericError"
    assert qemu.exit_status == 0


@pytest.mark.parametrize(("own", "there"), [(None, "165"), ("0", "0")])
async def test_its_memory_is_spoilt_unless_that_is_decided(
    tmp_path: Path,
    qemu_build: Build,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    there: str,
) -> None:
    """What was freed holds no data of ours; a variable that is set stays as it is."""
    monkeypatch.delenv("MALLOC_PERTURB_", raising=False)
    if own is not None:
        monkeypatch.setenv("MALLOC_PERTURB_", own)
    async with running(qemu_build, tmp_path) as qemu:
        assert f"MALLOC_PERTURB_={there}" in proc(qemu.pid, "environ").split("\0")


async def test_it_runs_as_little_as_possible(tmp_path: Path, qemu_build: Build) -> None:
    async with running(qemu_build, tmp_path) as qemu:
        words = proc(qemu.pid, "cmdline").split("\0")
        command = [*qemu_build.command(), "-machine", "none", "-nodefaults", "-display"]
        assert words[: len(command)] == command
        assert os.readlink(f"/proc/{qemu.pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{qemu.pid}/fd/2") == str(tmp_path / "stderr")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
async def test_a_qemu_that_dies(tmp_path: Path, number: signal.Signals, qemu_build: Build) -> None:
    async with running(qemu_build, tmp_path) as qemu:
        os.kill(qemu.pid, number)
        with pytest.raises(MachineDied, match=f"QEMU was killed by {number.name} during query"):
            await qemu.execute("query-version")
        assert not qemu.alive()
        with pytest.raises(MachineDied):  # and again, not something else
            await qemu.execute("query-version")
    assert qemu.exit_status == -number


@pytest.mark.parametrize(
    ("how", "explained"),
    [
        (Exit(1), True),
        (Exit(None), True),
        (Exit(-signal.SIGABRT), True),
        (Exit(-signal.SIGFPE), False),
        (Exit(-signal.SIGSEGV), False),
        (Exit(-signal.SIGKILL), False),
    ],
)
def test_what_it_wrote_last_is_a_reason_only_where_it_could_write_one(
    how: Exit, explained: bool
) -> None:
    words = "qcow2_free_clusters failed: Input/output error"
    error = died(how, f"{words}\n")
    assert (error.last_words, str(error)) == (
        (words, f"QEMU {how}: {words}") if explained else ("", f"QEMU {how}")
    )


async def test_a_qemu_that_leaves(tmp_path: Path, qemu_build: Build) -> None:
    async with running(qemu_build, tmp_path) as qemu:
        await qemu.execute("quit")
        assert not qemu.alive(patience=30.0)
        with pytest.raises(MachineDied, match="QEMU exited with status 0 during query-block"):
            await qemu.execute("query-block")
    assert qemu.exit_status == 0


async def test_a_qemu_that_hangs(tmp_path: Path, qemu_build: Build) -> None:
    async with running(qemu_build, tmp_path, limit=2.0) as qemu:
        os.kill(qemu.pid, signal.SIGSTOP)
        with pytest.raises(MachineHung, match="query-version: no answer in 2 s"):
            await qemu.execute("query-version")
        assert qemu.alive()
    assert qemu.exit_status == -signal.SIGKILL
    assert "no answer in 2" in (tmp_path / "qmp.log").read_text()


async def test_nothing_else_waits_while_a_qemu_does_not_end(
    tmp_path: Path, qemu_build: Build
) -> None:
    """One that has lost its connection and still runs is waited for, but not by the whole loop."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    qemu = Qemu(qemu_build.command(), tmp_path, env=qemu_build.env, limit=2.0)
    await qemu.start()
    os.kill(qemu.pid, signal.SIGSTOP)
    await qemu.client.disconnect()
    beside = asyncio.ensure_future(others())
    with pytest.raises(MachineDied, match="closed its connection but still runs"):
        await qemu.execute("query-version")
    assert turns > 10
    turns = 0
    assert await qemu.close() == -signal.SIGKILL
    assert turns > 10
    beside.cancel()


async def test_an_interruption_of_the_wait_for_the_end_leaves_nothing_running(
    tmp_path: Path, qemu_build: Build
) -> None:
    qemu = Qemu(qemu_build.command(), tmp_path, env=qemu_build.env)
    await qemu.start()
    os.kill(qemu.pid, signal.SIGSTOP)
    sent, inner = asyncio.Event(), qemu.client.execute

    async def unanswered(command: str, *more: Any, **named: Any) -> Any:
        sent.set()
        return await inner(command, *more, **named)

    qemu.client.execute = unanswered  # type: ignore[method-assign, assignment]
    closing = asyncio.ensure_future(qemu.close())
    await sent.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert qemu.exit_status == -signal.SIGKILL


async def test_an_interruption_in_the_moment_of_the_answer_is_not_lost(
    tmp_path: Path, qemu_build: Build
) -> None:
    """asyncio.wait_for() of Python 3.11 gives the answer instead, and nothing is interrupted."""
    async with running(qemu_build, tmp_path) as qemu:
        asking = asyncio.ensure_future(qemu.execute("query-version"))
        inner = qemu.client.execute

        async def answered(command: str, *more: Any, **named: Any) -> Any:
            answer = await inner(command, *more, **named)
            asking.cancel()
            return answer

        qemu.client.execute = answered  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(asyncio.CancelledError):
                await asking
        finally:
            del qemu.client.execute
    assert qemu.exit_status == 0


@pytest.mark.parametrize("rounds", [0, 1, 5])
async def test_a_start_that_is_interrupted_leaves_nothing_running(
    tmp_path: Path, rounds: int, qemu_build: Build
) -> None:
    qemu = Qemu(qemu_build.command(), tmp_path, env=qemu_build.env)
    starting = asyncio.ensure_future(qemu.start())
    for _ in range(1 + rounds):  # the first step runs it
        await asyncio.sleep(0)
    assert qemu.alive()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert qemu.exit_status == -signal.SIGKILL


def test_what_it_says_is_reported(tmp_path: Path, qemu_build: Build) -> None:
    async def run(*args: str) -> None:
        await Qemu(qemu_build.command(), tmp_path, args, env=qemu_build.env, limit=20.0).start()

    with pytest.raises(BuildError, match=r"did not answer QMP \(exit status 1\): .*no-such-device"):
        asyncio.run(run("-device", "no-such-device"))
    with pytest.raises(BuildError, match="exit status 1"):
        asyncio.run(run("-no-such-option"))


def test_what_is_no_qemu(tmp_path: Path) -> None:
    async def run(command: list[str]) -> None:
        qemu = Qemu(command, tmp_path, limit=1.0, start_limit=2.0)
        try:
            await qemu.start()
        finally:
            await qemu.close()
        raise AssertionError("it started")

    with pytest.raises(BuildError, match=r"/bin/true did not answer QMP \(exit status 0\)"):
        asyncio.run(run(["/bin/true"]))
    # It runs and says nothing: after the limit that is enough.
    with pytest.raises(BuildError, match=r"sh did not answer QMP within [0-9.]+ s"):
        asyncio.run(run(["/bin/sh", "-c", "exec sleep 60"]))
    with pytest.raises((BuildError, HostError), match=r"no/such/binary.*(No such file|status 127)"):
        asyncio.run(run(["/no/such/binary"]))


def test_qemu_dies_with_its_owner(tmp_path: Path, qemu_build: Build) -> None:
    """The kernel sees to it, whatever happens to the janitor."""
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:  # pragma: no cover (another process)

        async def die() -> None:
            async with running(qemu_build, tmp_path) as qemu:
                os.write(writing, f"{qemu.pid}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            asyncio.run(die())
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        pid = int(pipe.readline())
    os.waitpid(owner, 0)
    wait_until(lambda: _ended(pid))


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
