"""Follows chains from the first command on that may concern one: most QEMUs never get any.

What follows them takes longer to import than QEMU takes to start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qmpshim.shim.endpoint.server import Shim

if TYPE_CHECKING:
    from qmpshim.machine.builds.build import Build
    from qmpshim.shim.tracking.chains import TrackedChains

#: What the names of the shim's own commands begin with.
_OWN = "x-shim-"
#: QEMU's commands with which a chain, or an endpoint, may begin, and those whose reply names the
#: shim's own. All else is watched only for what began with one of these.
CONCERNING = frozenset(
    {
        *("query-commands", "query-qmp-schema"),
        *("blockdev-backup", "drive-backup", "transaction"),
        *("block-dirty-bitmap-add", "block-dirty-bitmap-remove", "block-dirty-bitmap-clear"),
        *("block-dirty-bitmap-enable", "block-dirty-bitmap-disable", "block-dirty-bitmap-merge"),
        *("xen-set-replication", "xen-colo-do-checkpoint"),
        *("nbd-server-start", "nbd-server-add", "nbd-server-remove", "nbd-server-stop"),
        *("block-export-add", "block-export-del"),
    }
)


class DeferredTracking:
    """The :class:`TrackedChains` of a shim, made when they are needed.

    :param directory: private
    :param build: what runs; None when the shim attached to one
    :param guarding: see :class:`~qmpshim.shim.tracking.nbd_exports.NbdExports`
    """

    def __init__(self, shim: Shim, directory: Path, build: Build | None, guarding: bool) -> None:
        self._shim = shim
        self._directory = directory
        self._build = build
        self._guarding = guarding
        self._chains: TrackedChains | None = None
        shim.before = self._before

    @property
    def started(self) -> bool:
        """Whether chains are followed."""
        return self._chains is not None

    @property
    def chains(self) -> TrackedChains:
        """The chains, followed from now on at the latest; from the shim's own thread only."""
        if self._chains is None:
            from qmpshim.model.chain.behaviour import behaviour_of
            from qmpshim.shim.tracking.chain_commands import ChainCommands
            from qmpshim.shim.tracking.chains import TrackedChains
            from qmpshim.shim.tracking.shim_commands import Commands

            self._shim.before = None
            version = self._shim.upstream.greeting["QMP"]["version"]["qemu"]
            number = (version["major"], version["minor"], version["micro"])
            chains = TrackedChains(self._shim, self._directory, behaviour_of(number))
            chains.nbd_exports.guarding = self._guarding
            ChainCommands(chains)
            Commands(self._shim, chains, self._build)
            self._chains = chains
        return self._chains

    def _before(self, name: str) -> None:
        if name.startswith(_OWN) or name in CONCERNING:
            _ = self.chains

    async def close(self) -> None:
        """Take the endpoints down."""
        if self._chains is not None:
            await self._chains.close()
