"""Chains are followed from the first command on that may concern one, and not before."""

from __future__ import annotations

import asyncio

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.shim.emulator.deferred_tracking import CONCERNING
from qmpshim.shim.emulator.serve import Options, endpoint
from qmpshim.shim.shell.client import ShellClient

#: They end or change what one of :data:`CONCERNING` began: before it there is nothing to note.
AFTERWARDS = {"block-job-cancel", "blockdev-del"}


async def _started_by(build: Build, command: str) -> bool:
    async with endpoint(Options(build=build)) as served:
        client = ShellClient(lambda _: None, lambda *_: None, lambda: None)
        await client.connect(served.addresses[0], 30.0)
        try:
            await client.execute("query-name")
            assert not served.tracking.started
            await client.execute(command)
            return served.tracking.started
        finally:
            await client.close()


@pytest.mark.parametrize("command", ["x-shim-status", "query-commands"])
def test_what_may_concern_a_chain(qemu_build: Build, command: str) -> None:
    assert asyncio.run(_started_by(qemu_build, command))


@pytest.mark.parametrize("command", ["query-block", "stop"])
def test_what_does_not(qemu_build: Build, command: str) -> None:
    assert not asyncio.run(_started_by(qemu_build, command))


def test_all_that_is_noted_is_concerning(qemu_build: Build) -> None:
    """Whatever is intercepted, watched or patched must be noticed first."""

    async def noted() -> set[str]:
        async with endpoint(Options(build=qemu_build)) as served:
            shim = served.shim
            assert served.chains and served.tracking.started
            own = {name for name in shim.handlers if name.startswith("x-shim-")}
            assert own == set(shim.handlers)
            return {*shim.intercepts, *shim.watchers, *shim.patches}

    assert asyncio.run(noted()) - AFTERWARDS == CONCERNING
