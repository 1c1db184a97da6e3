"""Begins to model a chain: finds its disks, reads what they hold, and follows it from then on."""

from __future__ import annotations

import asyncio
import logging

from qmpshim.errors import QmpshimError
from qmpshim.shim.tracking.chains import UNDER_WAY, TrackedChains
from qmpshim.shim.tracking.command_effects import BackupStart
from qmpshim.shim.tracking.discovery import (
    ChainNodes,
    find_backup,
    find_replication,
    source_of_backup,
)
from qmpshim.shim.tracking.tracker import ModelTracker

log = logging.getLogger(__name__)

_NO_CHAIN = "the disks are no such chain: a raw or qcow2 disk under a qcow2 one"
REPLICATION = "xen-set-replication"


class TrackingStart:
    """Makes chains that are started known to *chains*."""

    def __init__(self, chains: TrackedChains) -> None:
        self.chains = chains

    async def backup(self, start: BackupStart) -> ModelTracker | None:
        """Begin to model the chain of a job, unless it is known already.

        QEMU runs the command in any case; why there is no model is in the reply to queries.
        """
        self.chains.unmodelled.pop(start.job, None)
        try:
            source = await source_of_backup(self.chains.shim.execute, start.device)
            await self.chains.logs.insert_above_devices(source)
            found = await find_backup(self.chains.shim.execute, source, start.target)
            if found is None:
                self._refuse(_NO_CHAIN)
            elif tracker := await self.tracker(found):
                return tracker
        except KeyError as error:
            self._refuse(f"QEMU does not tell of {error} how its disks hang together")
        except QmpshimError as error:
            self._refuse(str(error))
        why = f"job '{start.job}' is not modelled: {self.chains.why_not}"
        self.chains.unmodelled[start.job] = why
        return None

    async def replication(self) -> None:
        """Begin to model the chains under replication filters, but for those known already."""
        self.chains.unmodelled.pop(REPLICATION, None)
        known = {tracker.found.nodes.get("top") for tracker in self.chains.trackers}
        try:
            found = await find_replication(self.chains.shim.execute)
            for chain in found:
                if chain.nodes["top"] not in known:
                    await self.tracker(chain)
            if found or known > {None}:
                return
            self._refuse(_NO_CHAIN)
        except KeyError as error:
            self._refuse(f"QEMU does not tell of {error} how its disks hang together")
        except QmpshimError as error:
            self._refuse(str(error))
        self.chains.unmodelled[REPLICATION] = f"replication is not modelled: {self.chains.why_not}"

    def _refuse(self, why: str) -> None:
        self.chains.why_not = why
        log.warning("the chain is not modelled: %s", why)

    async def tracker(self, found: ChainNodes) -> ModelTracker | None:
        """The tracker of a chain; a new one has read what is on the secondary disk."""
        known = next((t for t in self.chains.trackers if t.found.nodes == found.nodes), None)
        if known is not None and not (known.doubts or known.unobserved):
            self.chains.why_not = ""
            return known
        if self.chains.controller is not None and self.chains.trackers:
            self._refuse("the chain that is gated is the only one that is modelled")
            return None
        chains = self.chains
        rest = (chains.behaviour, chains.payloads, chains.recorded, chains.controller)
        tracker = ModelTracker(found, *rest)
        tracker.deferred = []
        self.chains.starting.append(tracker)
        try:
            await self.chains.survey([tracker])
            await self._read_baseline(tracker)
        except BaseException:
            self.chains.starting.remove(tracker)
            raise
        self.chains.why_not = ""
        return tracker

    async def _read_baseline(self, tracker: ModelTracker) -> None:
        from qmpshim.shim.tracking.baseline import flush

        found = tracker.found
        with self.chains.aside():
            for role in found.geometry:
                await flush(self.chains.shim.execute, found.nodes[role])
            files = {role: tracker.files(role) for role in found.geometry}
            there = {role: file for role, file in files.items() if file is not None}
            async with self.chains.nbd_exports.view(found.nodes["secondary"]) as uri:
                take = tracker.applied.take_baseline
                doubts = await asyncio.to_thread(take, found, there, uri)
        for doubt in doubts:
            tracker.doubt(doubt)

    async def follow(self, tracker: ModelTracker) -> bool:
        """Follow a chain from now on, in the place of what was known of it.

        :returns: whether it was not followed so far
        """
        chains = self.chains
        if tracker not in chains.starting:
            return False
        if tracker.deferred:
            tracker.doubt(UNDER_WAY)
        tracker.apply_deferred()
        try:
            await chains.survey([tracker])
        except QmpshimError as error:
            tracker.doubt(f"who may write is not known: {error}")
        tracker.followed()
        chains.starting.remove(tracker)
        others = [known for known in chains.trackers if known.found.nodes != tracker.found.nodes]
        chains.trackers = [*others, tracker]
        return True
