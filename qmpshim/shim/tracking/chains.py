"""The models of the chains behind a shim, kept in step with what is read and written."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.errors import HostError, InputError, MachineError, NothingToReport
from qmpshim.machine.chain.block_graph import BlockGraph
from qmpshim.machine.images.write_log import LogError
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.operations import Side, Verb
from qmpshim.shim.endpoint.server import Shim
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.tracking.applied_changes import Change
from qmpshim.shim.tracking.dirty_bitmaps import DirtyBitmaps
from qmpshim.shim.tracking.nbd_exports import NbdExports
from qmpshim.shim.tracking.payload_store import PayloadStore
from qmpshim.shim.tracking.request_observer import ExportObserver
from qmpshim.shim.tracking.tracker import ModelTracker
from qmpshim.shim.tracking.write_logs import WriteLogs

if TYPE_CHECKING:  # a start of QEMU need not wait for them
    from qmpshim.shim.gated.io_controller import IoController
    from qmpshim.shim.gated.schedule import Schedule


_SETTLE = 2.0  # seconds a command waits for I/O under way before it passes anyhow
_JOB_ENDS = ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR")
#: States (``RunState``) in which no guest, and no migration, writes.
STOPPED_STATES = frozenset(
    {
        *("paused", "prelaunch", "shutdown", "io-error", "internal-error", "watchdog"),
        "guest-panicked",
    }
)
_NONE_YET = (
    "no chain is modelled yet: start replication (xen-set-replication) or a backup job with "
    "sync=none"
)
UNDER_WAY = "a command passed while I/O was under way"


class TrackedChains:
    """The models of the chains behind a shim.

    :param directory: private; sockets and what was written go there
    :param behaviour: how this QEMU version behaves, for the models
    :ivar trackers: the chains, in the order in which they were started
    :ivar divergences: of all chains, those that are gone included
    :ivar controller: holds the I/O, where the chain is gated; there is one chain then
    :ivar starting: chains whose job or replication is being started: not followed yet
    :ivar why_not: why the chain that was started last is not modelled, or ``""``
    :ivar unmodelled: what runs on a chain that is not modelled, with why: jobs by id, replication
    :ivar ended_jobs: since the last was started
    """

    def __init__(self, shim: Shim, directory: Path, behaviour: Behaviour) -> None:
        self.shim = shim
        self.behaviour = behaviour
        self.trackers: list[ModelTracker] = []
        self.controller: IoController | None = None
        self.payloads = PayloadStore(directory)
        self.logs = WriteLogs(shim, directory)
        self.nbd_exports = NbdExports(
            shim, directory, lambda export: ExportObserver(self, export), self._exports_bypassed
        )
        self.bitmaps = DirtyBitmaps()
        self.divergences: list[Divergence] = []
        self.why_not = ""
        self.unmodelled: dict[str, str] = {}
        self.starting: list[ModelTracker] = []
        self._resumed = 0  # how often the guest began to run
        self.ended_jobs: set[str] = set()  # jobs, since the last was started
        #: What was relayed and is in no log, unordered with them: node, first byte, end.
        self._beside_logs: list[tuple[str, int, int]] = []
        shim.watchers["blockdev-del"] = self._node_gone
        shim.on_event(self._event)
        shim.watchdog.noticed = self._hung

    @property
    def schedule(self) -> Schedule | None:
        """Where a gated chain's steps are taken down."""
        return None if self.controller is None else self.controller.schedule

    @property
    def doubts(self) -> list[str]:
        """Why the models' predictions may no longer hold."""
        return list(dict.fromkeys(why for tracker in self.trackers for why in tracker.doubts))

    @property
    def all(self) -> list[ModelTracker]:
        """The chains, those that are not followed yet among them."""
        return [*self.trackers, *self.starting]

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Relayed I/O has ended, and none begins, while the context lasts; if it ends soon."""
        if self.controller is not None and self.controller.held:
            self.doubt_all("a command passed while I/O was held")
            yield
            return
        self.nbd_exports.pause()
        try:
            try:
                async with asyncio.timeout(_SETTLE):
                    await self.nbd_exports.settled()
            except TimeoutError:
                self.doubt_all(UNDER_WAY)
            self.catch_up()
            self._beside_logs.clear()
            yield
        finally:
            self.nbd_exports.resume()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No relayed I/O and no client's command, while the context lasts.

        :raises MachineError: I/O does not end
        """
        if self.controller is not None and self.controller.held:
            raise MachineError("I/O is held: release it first")
        async with self.paused():
            if self.nbd_exports.in_flight:
                raise MachineError("I/O through the shim's endpoints does not end: try again later")
            with self.aside():
                yield
            if self.catch_up():
                raise MachineError(
                    "I/O came past the shim's endpoints meanwhile: try again when it rests"
                )

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """I/O is held by no controller while the context lasts: it is of the shim's own."""
        return contextlib.nullcontext() if self.controller is None else self.controller.aside()

    def doubt_all(self, why: str) -> None:
        """Record why no model's predictions may hold any more."""
        for tracker in self.all:
            tracker.doubt(why)

    def _hung(self, commands: Sequence[str]) -> None:
        """What QEMU does with what it does not answer is not known; a query changes nothing."""
        for name in commands:
            if not name.startswith("query-"):
                self.doubt_all(f"QEMU did not answer {name}")

    def _event(self, line: bytes) -> None:
        if b'"event": "RESUME"' in line:
            self._resumed += 1
            for tracker in self.all:
                tracker.guest_runs()
        if b"JOB" not in line:
            return
        event = json.loads(line)
        data = event.get("data", {})
        over = data.get("device") if event["event"] in _JOB_ENDS else None
        if over is not None:
            self.ended_jobs.add(over)
            self.unmodelled.pop(over, None)
        for tracker in self.trackers:
            if tracker.job and tracker.job == over:
                self.catch_up()
                tracker.job_ended()
            elif tracker.job and tracker.job == data.get("id"):
                tracker.ending |= data.get("status") == "aborting"

    def _exports_bypassed(self, exports: set[str]) -> None:
        for tracker in self.all:
            tracker.exports_bypassed(exports)

    def recorded(self, divergence: Divergence) -> None:
        """A chain has diverged: report it to all clients."""
        self.divergences.append(divergence)
        self.shim.emit("X_SHIM_DIVERGENCE", divergence.to_json())

    def _node_gone(self, command: Command, reply: Reply) -> None:
        """A node was taken away: a chain without it is none."""
        name = str((command.arguments or {}).get("node-name"))
        if not reply.failed:
            self.bitmaps.forget_node(name)
            self.trackers = [t for t in self.trackers if name not in t.found.nodes.values()]

    async def survey(self, trackers: Sequence[ModelTracker] | None = None) -> BlockGraph:
        """Record the writers of the chains' disks now; return the graph.

        :param trackers: of these chains alone
        :raises MachineError: QEMU cannot be queried
        """
        resumed = self._resumed
        exports = await self.nbd_exports.writable()
        graph = BlockGraph(await self.shim.execute("x-debug-query-block-graph"))
        runs = (await self.shim.execute("query-status"))["status"] not in STOPPED_STATES
        ran = runs or self._resumed != resumed
        jobs = {tracker.job for tracker in self.all}
        for tracker in self.trackers if trackers is None else trackers:
            tracker.survey(graph, exports, jobs, ran, runs)
        return graph

    # -- I/O ------------------------------------------------------------

    def side(self, export: str) -> Side | None:
        """Whose side an export is; None when it is no disk that may be written to."""
        node = self.nbd_exports.node(export)
        sides = (tracker.side(node) for tracker in self.trackers)
        return next((side for side in sides if side is not None), None)

    def changed(self, export: str, change: Change, error: int) -> None:
        """A request through an endpoint was answered: do it in the models."""
        node = self.nbd_exports.node(export)
        if change.kind not in (Verb.READ, Verb.FLUSH):
            on_log = bool(self.logs.logs) and self.nbd_exports.exported(export) in self.logs.logs
            if not (error or on_log):
                self.bitmaps.record(node, change)
            if self.logs.logs:
                # In the logs is by now what came before, and it itself where the export is on one.
                if not on_log:
                    self._beside_logs.append((node, change.offset, change.offset + change.length))
                self.catch_up()
            if on_log:
                return
        for tracker in self.trackers:
            tracker.changed(node, change, error)

    def catch_up(self) -> int:
        """Apply the changes in the write logs to the models; return their number."""
        changes = 0
        for log_ in self.logs.logs.values():
            try:
                for kind, offset, length, data in log_.new():
                    changes += 1
                    change = Change(Side.PRIMARY, kind, offset, length, data)
                    self._logged(log_.node, change)
            except (LogError, HostError) as error:
                self.doubt_all(str(error))
        return changes

    def _logged(self, node: str, change: Change) -> None:
        self.bitmaps.record(node, change)
        end = change.offset + change.length
        unordered = any(
            (node, True) == (other, low < end and change.offset < high)
            for other, low, high in self._beside_logs
        )
        for tracker in self.all:
            if unordered and tracker.found.role(node):
                tracker.doubt("what came first, through an endpoint or past it, is not known")
            tracker.logged(node, change)

    def lost(self, export: str, change: Change) -> None:
        """A request will not be answered: QEMU, or its NBD server, went away."""
        for tracker in self.trackers:
            tracker.lost(self.nbd_exports.node(export), change)

    def doubt(self, export: str, why: str) -> None:
        """What goes through an export can no longer be followed."""
        for tracker in self.trackers:
            if tracker.side(self.nbd_exports.node(export)) is not None:
                tracker.doubt(why)

    # -- questions ------------------------------------------------------------

    @property
    def why_none(self) -> str:
        """Why no chain is modelled."""
        return f"the chain is not modelled: {self.why_not}" if self.why_not else _NONE_YET

    @property
    def not_modelled(self) -> str:
        """Why something that runs, or was started last, is not modelled; or ``""``."""
        if self.trackers and self.unmodelled:
            return "; ".join(self.unmodelled.values())
        return self.why_not

    def chosen(self, name: str | None = None) -> list[ModelTracker]:
        """The chains that *name* means, brought up to date; all without a name.

        :param name: a job's id, or a node's name
        :raises InputError: there is none of that name
        """
        self.catch_up()
        if name is None:
            return list(self.trackers)
        chosen = [tracker for tracker in self.trackers if tracker.has_name(name)]
        if not chosen:
            known = ", ".join(tracker.name for tracker in self.trackers) or "none"
            raise InputError(f"no chain goes by the name '{name}'; chains: {known}")
        return chosen

    def one(self, name: str | None = None) -> ModelTracker:
        """The one chain that *name* means.

        :raises InputError: there is none, or more than one
        """
        chosen = self.chosen(name)
        if not chosen:
            raise NothingToReport(self.why_none)
        if len(chosen) > 1:
            names = ", ".join(tracker.name for tracker in chosen)
            raise InputError(f"several chains are modelled, say which: {names}")
        return chosen[0]

    async def close(self) -> None:
        """Take the endpoints down."""
        await self.logs.close()
        await self.nbd_exports.close()
        self.payloads.close()
