"""A pair is wired whatever its directory is called."""

from __future__ import annotations

import asyncio

from qmpshim.machine.builds.build import Build
from qmpshim.machine.colo.pair import Pair, PairSpec
from qmpshim.machine.host.workspace import Workspace


def test_a_directory_with_a_name_that_means_something(
    workspace: Workspace, qemu_build: Build
) -> None:
    """To QemuOpts a comma does, to the human monitor blanks, quotes and backslashes do."""
    directory = workspace.path / 'a, "\\b'
    directory.mkdir()

    async def build() -> str:
        pair = Pair(PairSpec(colo=False), (qemu_build,) * 2, directory, lambda *_: None)
        try:
            await pair.build()
            return str(await pair.primary.qemu.execute("query-named-block-nodes"))
        finally:
            await pair.close()

    assert "replication0" in asyncio.run(build())
