"""A pair is wired whatever its directory is called."""

from __future__ import annotations

import asyncio
from typing import Any

from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.variants import with_options
from qmpshim.machine.colo.pair import Pair, PairSpec
from qmpshim.machine.colo.topologies import COLO_PRIMARY, COLO_SECONDARY, recorded
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


def test_an_option_of_a_node_and_a_node_are_values(workspace: Workspace, qemu_build: Build) -> None:
    """Of either side, nested or not; and what the guest would write can be recorded."""
    primary = with_options(COLO_PRIMARY, {"primary-disk": {"detect-zeroes": "unmap"}})
    secondary = recorded(with_options(COLO_SECONDARY, {"hidden": {"detect-zeroes": "on"}}))
    spec = PairSpec(colo=False, primary=primary, secondary=secondary)

    async def build() -> list[dict[str, dict[str, Any]]]:
        pair = Pair(spec, (qemu_build,) * 2, workspace.path, lambda *_: None)
        try:
            await pair.build()
            await pair.start_replication()
            listed = [await m.qemu.execute("query-named-block-nodes") for m in pair.members]
            assert pair.secondary.image("logged").exists()
            return [{node["node-name"]: node for node in nodes} for nodes in listed]
        finally:
            await pair.close()

    first, second = asyncio.run(build())
    assert first["primary-disk"]["detect_zeroes"] == "unmap"
    assert (second["hidden"]["detect_zeroes"], second["active"]["detect_zeroes"]) == ("on", "off")
    assert second["logged"]["drv"] == "blklogwrites"
