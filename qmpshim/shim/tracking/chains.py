"""Keeps the reference models in step with what passes: commands, and I/O through the endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.errors import (
    CommandFailed,
    HostError,
    InputError,
    MachineDied,
    MachineError,
    NothingToTell,
    QmpshimError,
)
from qmpshim.machine.chain.block_graph import BlockGraph
from qmpshim.machine.images.qcow2 import ImageError
from qmpshim.machine.images.write_log import LogError
from qmpshim.model.answers import DISCONNECTED, OK, ReportedError
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Side, Verb
from qmpshim.shim.endpoint.server import Shim
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.tracking.command_effects import (
    BITMAP_COMMANDS,
    NOTED,
    BackupStart,
    backup_starts,
    effects,
    ends_bitmaps,
    moves,
    parts,
    used_bitmaps,
)
from qmpshim.shim.tracking.dirty_bitmaps import DirtyBitmaps, Key, actions_of
from qmpshim.shim.tracking.discovery import (
    ChainNodes,
    find_backup,
    find_replication,
    source_of_backup,
)
from qmpshim.shim.tracking.follow import Change
from qmpshim.shim.tracking.nbd_exports import Endpoints
from qmpshim.shim.tracking.payload_store import PayloadStore
from qmpshim.shim.tracking.request_observer import ExportObserver
from qmpshim.shim.tracking.tracker import ModelTracker, Step
from qmpshim.shim.tracking.write_logs import WriteLogs
from qmpshim.shim.tracking.writers import Territory, Writer, WriterKind

if TYPE_CHECKING:  # a start of QEMU need not wait for them
    from qmpshim.shim.gated.io_controller import IoController
    from qmpshim.shim.gated.schedule import Schedule

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # to read an overlay that QEMU writes to
_SETTLE = 2.0  # seconds a command waits for I/O under way before it passes anyhow
_JOB_ENDS = ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR")
#: States (``RunState``) in which no guest, and no migration, writes.
_STOPPED = frozenset(
    {
        *("paused", "prelaunch", "shutdown", "io-error", "internal-error", "watchdog"),
        "guest-panicked",
    }
)
_NO_CHAIN = "the disks are no such chain: a raw or qcow2 disk under a qcow2 one"
_NONE_YET = (
    "no chain is modelled yet: start replication (xen-set-replication) or a backup job with "
    "sync=none"
)
_REPLICATION = "xen-set-replication"
_UNDER_WAY = "a command passed while I/O was under way"
_CHECKPOINT = Command("xen-colo-do-checkpoint", None, None, False)
_START = Command("xen-set-replication", {"enable": True, "primary": False}, None, False)
_BACKUP = Command(
    "blockdev-backup",
    {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"},
    None,
    False,
)


class TrackedChains:
    """The models of the chains behind a shim.

    :param directory: private; sockets and what was written go there
    :param behaviour: how this QEMU version behaves, for the models
    :ivar trackers: the chains, in the order in which they were met
    :ivar divergences: of all chains, those that are gone included
    :ivar controller: holds the I/O, where the chain is gated; there is one chain then
    :ivar unmet: why the chain that was started last is not modelled, or ``""``
    :ivar passed_over: what runs on a chain that is not modelled, with why: jobs by id, replication
    """

    def __init__(self, shim: Shim, directory: Path, behaviour: Behaviour) -> None:
        self.shim = shim
        self.behaviour = behaviour
        self.trackers: list[ModelTracker] = []
        self.controller: IoController | None = None
        self.payloads = PayloadStore(directory)
        self.logs = WriteLogs(shim, directory)
        self.endpoints = Endpoints(
            shim, directory, lambda export: ExportObserver(self, export), self._exports_bypassed
        )
        self.bitmaps = DirtyBitmaps()
        self.divergences: list[Divergence] = []
        self.unmet = ""
        self.passed_over: dict[str, str] = {}
        self._met_now: list[ModelTracker] = []  # being met: not followed yet
        self._resumed = 0  # how often the guest began to run
        self._meeting = asyncio.Lock()
        self._changing_bitmaps = asyncio.Lock()
        self._ended: set[str] = set()  # jobs, since the last was started
        #: What was relayed past the logs, unordered with them: node, first byte, end.
        self._beside_logs: list[tuple[str, int, int]] = []
        for name in ("blockdev-backup", "drive-backup", "transaction", *BITMAP_COMMANDS):
            shim.intercepts[name] = self._noted
        shim.intercepts["block-job-cancel"] = self._cancel
        shim.intercepts["xen-set-replication"] = self._set_replication
        shim.intercepts["xen-colo-do-checkpoint"] = self._checkpoint
        shim.watchers["blockdev-del"] = self._node_gone
        shim.on_event(self._event)
        shim.watchdog.noticed = self._hung

    @property
    def schedule(self) -> Schedule | None:
        """Where a gated chain's steps are taken down."""
        return None if self.controller is None else self.controller.schedule

    @property
    def doubts(self) -> list[str]:
        """Record why the models' predictions may no longer hold."""
        return list(dict.fromkeys(why for tracker in self.trackers for why in tracker.doubts))

    # -- commands ------------------------------------------------------------

    @asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """Relayed I/O has ended, and none begins, while the context lasts."""
        if self.controller is not None and self.controller.held:
            self._doubt_all("a command passed while I/O was held")
            yield
            return
        self.endpoints.pause()
        try:
            try:
                async with asyncio.timeout(_SETTLE):
                    await self.endpoints.settled()
            except TimeoutError:
                self._doubt_all(_UNDER_WAY)
            self.catch_up()
            self._beside_logs.clear()
            yield
        finally:
            self.endpoints.resume()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No relayed I/O and no client's command, while the context lasts.

        :raises MachineError: I/O does not end
        """
        if self.controller is not None and self.controller.held:
            raise MachineError("I/O is held: release it first")
        async with self._still():
            if self.endpoints.in_flight:
                raise MachineError("I/O through the shim's endpoints does not end: try again later")
            controller = self.controller
            with controller.aside() if controller is not None else contextlib.nullcontext():
                yield
            if self.catch_up():
                raise MachineError(
                    "I/O came past the shim's endpoints meanwhile: try again when it rests"
                )

    def _doubt_all(self, why: str) -> None:
        for tracker in (*self.trackers, *self._met_now):
            tracker.doubt(why)

    def _hung(self, commands: Sequence[str]) -> None:
        """What QEMU does with what it does not answer is not known; a query changes nothing."""
        for name in commands:
            if not name.startswith("query-"):
                self._doubt_all(f"QEMU did not answer {name}")

    async def start(self) -> None:
        """Start replication, or the backup job, on the chain that the shim built.

        :raises CommandFailed: QEMU refused
        """
        names = await self.shim.execute("query-named-block-nodes")
        replication = any(node["drv"] == "replication" for node in names)
        if replication:
            _expect_done(_START, await self._set_replication(_START))
        else:
            _expect_done(_BACKUP, await self._noted(_BACKUP))

    async def checkpoint(self) -> None:
        """Take a checkpoint.

        :raises CommandFailed: QEMU refused
        """
        _expect_done(_CHECKPOINT, await self._checkpoint(_CHECKPOINT))

    async def _noted(self, command: Command) -> Reply | None:
        """Pass on a command that may start a job, write, add a writer, or change a bitmap."""
        if actions := actions_of(parts(command)):
            async with self._changing_bitmaps:
                self.catch_up()
                self.bitmaps.begin()
                reply = await self._pass_on(command)
                self.catch_up()
                done = actions if reply is not None and not reply.failed else ()
                self.bitmaps.finish(done, await self._granularities() if done else {})
        else:
            reply = await self._pass_on(command)
        if self.bitmaps:
            self._end_bitmaps(command)
        return reply

    async def _granularities(self) -> dict[Key, int]:
        """Those of all named bitmaps, in bytes; none when QEMU cannot be queried."""
        try:
            nodes = await self.shim.execute("query-named-block-nodes")
        except QmpshimError:
            return {}
        return {
            (node["node-name"], bitmap["name"]): int(bitmap["granularity"])
            for node in nodes
            for bitmap in node.get("dirty-bitmaps", ())
            if "name" in bitmap
        }

    def _end_bitmaps(self, command: Command) -> None:
        """Follow no bitmap that may name less than is known after a command."""
        for name in used_bitmaps(command):
            self.bitmaps.forget_named(name)
        if ends_bitmaps(command):
            self.bitmaps.forget()
        for name in NOTED:
            self.shim.intercepts[name] = self._noted

    async def _pass_on(self, command: Command) -> Reply | None:
        starts = backup_starts(command)
        if starts:
            return await self._start_jobs(command, starts)
        if self.trackers and moves(command):
            async with self._still():  # or a request would be taken to go where it went before
                reply = await self.logs.pass_on(command)
                await self._after(command, reply)
                return reply
        reply = await self.logs.pass_on(command)
        await self._after(command, reply)
        return reply

    async def _after(self, command: Command, reply: Reply | None) -> None:
        """Record what a command may have written, and the writers now."""
        if not self.trackers or reply is None or reply.failed:
            return
        try:
            graph = await self.survey()
        except QmpshimError as error:
            self._doubt_all(f"who may write after {command.name} is not known: {error}")
            return
        written = effects(command)
        for tracker in self.trackers if written else ():
            territory = Territory(graph, tracker.found.nodes)
            for effect in written:
                nodes = [node for name in effect.names if (node := graph.behind(name))]
                roles = set().union(*(territory.reached(node) for node in nodes))
                if not nodes:  # it names none that is known: it may be any
                    roles = set(tracker.found.nodes)
                for role in roles:
                    tracker.suspect(Writer(WriterKind.COMMAND, effect.name, role))

    async def _start_jobs(self, command: Command, starts: Sequence[BackupStart]) -> Reply | None:
        async with self._meeting, self._still():
            met = [None if s.target is None else await self._meet_backup(s) for s in starts]
            starting = [known for known in met if known is not None]
            self._ended.clear()
            self.catch_up()
            for known in starting:  # what came so far came before T0
                known.apply_deferred()
                known.deferred = []
            self.bitmaps.settle()
            reply = await self._forward(Verb.START, command)
            if reply is None or reply.failed:
                for known in starting:
                    known.apply_deferred()
                self._met_now.clear()
                for start in starts:
                    self.passed_over.pop(start.job, None)
                return reply
            for start, tracker in zip(starts, met, strict=True):
                if start.target is None:  # the job runs, but nothing was relayed since
                    tracker = await self._meet_backup(start)
                if tracker is None:
                    if start.job in self._ended:
                        self.passed_over.pop(start.job, None)
                    continue
                await self._apply_before_start(tracker)
                tracker.job_started(start.job)
                tracker.apply_deferred()
                await self._follow(tracker)
                if start.job in self._ended:
                    tracker.job_ended()
            await self._after(command, reply)
            return reply

    async def _apply_before_start(self, tracker: ModelTracker) -> None:
        """Do in the model what was logged while a job was started, but came before its T0."""
        if not tracker.deferred:
            return
        from qmpshim.shim.tracking.baseline import flush
        from qmpshim.shim.tracking.start_moment import apply_before_start

        count = len(tracker.deferred)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await flush(self.shim.execute, tracker.found.nodes["hidden"])
                apply_before_start(tracker)
                break
            except ImageError as error:
                if attempt == _ATTEMPTS:
                    tracker.doubt(f"{_UNDER_WAY}: {error}")
                    return
            except QmpshimError as error:
                tracker.doubt(f"{_UNDER_WAY}: {error}")
                return
        before = count - len(tracker.deferred)
        self.bitmaps.came_before(tracker.found.nodes["secondary"], before)

    async def _cancel(self, command: Command) -> Reply | None:
        self.catch_up()  # what comes later may or may not be copied
        arguments = command.arguments or {}
        name = arguments.get("id" if command.name == "job-cancel" else "device")
        if not any(tracker.job and tracker.job == name for tracker in self.trackers):
            return await self.shim.forward(command)
        return await self._forward(Verb.STOP, command)

    async def _set_replication(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("primary") is True:
            return await self.shim.forward(command)
        async with self._meeting, self._still():
            if arguments.get("enable") is True:
                await self._meet_replication()
                reply = await self._forward(Verb.START, command)
                if reply is None or reply.failed:
                    self.passed_over.pop(_REPLICATION, None)
                for tracker in tuple(self._met_now):
                    await self._follow(tracker)
                self._step(Verb.START, command, reply, lambda oracle: oracle.chain.start())
            elif arguments.get("failover") is True:
                self.passed_over.pop(_REPLICATION, None)
                reply = await self._forward(Verb.FAILOVER, command)
                self._step(Verb.FAILOVER, command, reply, lambda oracle: oracle.chain.failover())
            elif arguments.get("enable") is False:
                self.passed_over.pop(_REPLICATION, None)
                reply = await self._forward(Verb.STOP, command)
                self._step(Verb.STOP, command, reply, lambda oracle: oracle.chain.stop())
            else:
                reply = await self.shim.forward(command)
            return reply

    async def _checkpoint(self, command: Command) -> Reply | None:
        async with self._still():
            reply = await self._forward(Verb.CHECKPOINT, command)
            self._step(Verb.CHECKPOINT, command, reply, lambda oracle: oracle.chain.checkpoint())
            return reply

    async def _forward(self, kind: Verb, command: Command) -> Reply | None:
        """Send a command of the chain's; it is a step of the schedule, too."""
        schedule = self.schedule
        if schedule is None:
            reply = await self.shim.forward(command)
            if self.catch_up() and kind is not Verb.STOP:
                for tracker in (*self.trackers, *self._met_now):
                    if tracker.deferred is None:
                        tracker.doubt(_UNDER_WAY)
            return reply
        step = schedule.begins(kind.value)
        reply = await self.shim.forward(command)
        error = None if reply is None else reply.value().get("error")
        if reply is None:
            schedule.ends(step, DISCONNECTED)
        else:
            schedule.ends(step, ReportedError(str(error["desc"])) if error else OK)
        return reply

    def _step(self, kind: Verb, command: Command, reply: Reply | None, do: Step) -> None:
        """Do a command in all models of replication, too, and compare how it ended."""
        chains = [t for t in self.trackers if t.found.workflow is Workflow.REPLICATION]
        error = None if reply is None else reply.value().get("error")
        if not chains or not _accepted(kind, command):
            return  # it never reached replication
        observed = "success" if error is None else str(error["desc"])
        predicted = {tracker: tracker.step(kind, do) or "success" for tracker in chains}
        if error is None:
            wrong = [tracker for tracker, result in predicted.items() if result != observed]
        else:  # QEMU goes through the filters in an order of its own, up to the first error
            wrong = [] if observed in predicted.values() else chains[:1]
            if len(chains) > 1:
                self._doubt_all(f"which chain {kind.value} failed on is not known")
        for tracker in wrong:
            if not tracker.doubts:
                where = (Verdict.ERROR_CONTRACT, kind.value)
                tracker.diverged(*where, predicted[tracker], observed)

    def _event(self, line: bytes) -> None:
        if b'"event": "RESUME"' in line:
            self._resumed += 1
            for tracker in (*self.trackers, *self._met_now):
                tracker.guest_runs()
        if b"JOB" not in line:
            return
        event = json.loads(line)
        data = event.get("data", {})
        over = data.get("device") if event["event"] in _JOB_ENDS else None
        if over is not None:
            self._ended.add(over)
            self.passed_over.pop(over, None)
        for tracker in self.trackers:
            if tracker.job and tracker.job == over:
                self.catch_up()
                tracker.job_ended()
            elif tracker.job and tracker.job == data.get("id"):
                tracker.ending |= data.get("status") == "aborting"

    def _exports_bypassed(self, exports: set[str]) -> None:
        for tracker in (*self.trackers, *self._met_now):
            tracker.exports_bypassed(exports)

    def _recorded(self, divergence: Divergence) -> None:
        self.divergences.append(divergence)
        self.shim.emit("X_SHIM_DIVERGENCE", divergence.to_json())

    # -- adoption ------------------------------------------------------------

    async def _meet_backup(self, start: BackupStart) -> ModelTracker | None:
        """Begin to model the chain of a job, unless it is known already.

        QEMU runs the command in any case; why there is no model is in the reply to queries.
        """
        self.passed_over.pop(start.job, None)
        try:
            source = await source_of_backup(self.shim.execute, start.device)
            await self.logs.insert_above_devices(source)
            found = await find_backup(self.shim.execute, source, start.target)
            if found is None:
                self._not_met(_NO_CHAIN)
            elif tracker := await self._tracker(found):
                return tracker
        except KeyError as error:
            self._not_met(f"QEMU does not tell of {error} how its disks hang together")
        except QmpshimError as error:
            self._not_met(str(error))
        self.passed_over[start.job] = f"job '{start.job}' is not modelled: {self.unmet}"
        return None

    async def _meet_replication(self) -> None:
        """Begin to model the chains under replication filters, but for those known already."""
        self.passed_over.pop(_REPLICATION, None)
        known = {tracker.found.nodes.get("top") for tracker in self.trackers}
        try:
            found = await find_replication(self.shim.execute)
            for chain in found:
                if chain.nodes["top"] not in known:
                    await self._tracker(chain)
            if found or known > {None}:
                return
            self._not_met(_NO_CHAIN)
        except KeyError as error:
            self._not_met(f"QEMU does not tell of {error} how its disks hang together")
        except QmpshimError as error:
            self._not_met(str(error))
        self.passed_over[_REPLICATION] = f"replication is not modelled: {self.unmet}"

    def _not_met(self, why: str) -> None:
        self.unmet = why
        log.warning("the chain is not modelled: %s", why)

    async def _tracker(self, found: ChainNodes) -> ModelTracker | None:
        """The tracker of a chain; a new one has read what is on the secondary disk."""
        known = next((t for t in self.trackers if t.found.nodes == found.nodes), None)
        if known is not None and not (known.doubts or known.unobserved):
            self.unmet = ""
            return known
        if self.controller is not None and self.trackers:
            self._not_met("the chain that is gated is the only one that is modelled")
            return None
        rest = (self.behaviour, self.payloads, self._recorded, self.controller)
        tracker = ModelTracker(found, *rest)
        tracker.deferred = []
        self._met_now.append(tracker)
        try:
            await self._survey([tracker])
            await self._read_baseline(tracker)
        except BaseException:
            self._met_now.remove(tracker)
            raise
        self.unmet = ""
        return tracker

    async def _read_baseline(self, tracker: ModelTracker) -> None:
        from qmpshim.shim.tracking.baseline import flush

        found = tracker.found
        aside = self.controller.aside() if self.controller is not None else contextlib.nullcontext()
        with aside:
            for role in found.geometry:
                await flush(self.shim.execute, found.nodes[role])
            files = {role: tracker.files(role) for role in found.geometry}
            there = {role: file for role, file in files.items() if file is not None}
            async with self.endpoints.view(found.nodes["secondary"]) as uri:
                take = tracker.follower.take_baseline
                doubts = await asyncio.to_thread(take, found, there, uri)
        for doubt in doubts:
            tracker.doubt(doubt)

    async def _follow(self, tracker: ModelTracker) -> None:
        """Follow a chain from now on, in the place of what was known of it."""
        if tracker not in self._met_now:
            return
        if tracker.deferred:
            tracker.doubt(_UNDER_WAY)
        tracker.apply_deferred()
        try:
            await self._survey([tracker])
        except QmpshimError as error:
            tracker.doubt(f"who may write is not known: {error}")
        tracker.met()
        self._met_now.remove(tracker)
        nodes = tracker.found.nodes
        self.trackers = [known for known in self.trackers if known.found.nodes != nodes]
        self.trackers.append(tracker)
        self.shim.intercepts["job-cancel"] = self._cancel
        for name in NOTED:
            self.shim.intercepts[name] = self._noted

    def _node_gone(self, command: Command, reply: Reply) -> None:
        """A node was taken away: a chain without it is none."""
        name = str((command.arguments or {}).get("node-name"))
        if not reply.failed:
            self.bitmaps.forget_node(name)
            self.trackers = [t for t in self.trackers if name not in t.found.nodes.values()]

    # -- writers ---------------------------------------------------------------

    async def survey(self) -> BlockGraph:
        """Record the writers of the chains' disks now; return the graph.

        :raises MachineError: QEMU cannot be queried
        """
        return await self._survey(self.trackers)

    async def _survey(self, trackers: Sequence[ModelTracker]) -> BlockGraph:
        resumed = self._resumed
        exports = await self.endpoints.writable()
        graph = BlockGraph(await self.shim.execute("x-debug-query-block-graph"))
        runs = (await self.shim.execute("query-status"))["status"] not in _STOPPED
        ran = runs or self._resumed != resumed
        jobs = {tracker.job for tracker in (*self.trackers, *self._met_now)}
        for tracker in trackers:
            tracker.survey(graph, exports, jobs, ran, runs)
        return graph

    # -- I/O ------------------------------------------------------------

    def side(self, export: str) -> Side | None:
        """Whose side an export is; None when it is no disk that may be written to."""
        node = self.endpoints.node(export)
        sides = (tracker.side(node) for tracker in self.trackers)
        return next((side for side in sides if side is not None), None)

    def changed(self, export: str, change: Change, error: int) -> None:
        """A request through an endpoint was answered: do it in the models."""
        node = self.endpoints.node(export)
        if change.kind not in (Verb.READ, Verb.FLUSH):
            on_log = bool(self.logs.logs) and self.endpoints.exported(export) in self.logs.logs
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
                self._doubt_all(str(error))
        return changes

    def _logged(self, node: str, change: Change) -> None:
        self.bitmaps.record(node, change)
        end = change.offset + change.length
        unordered = any(
            (node, True) == (other, low < end and change.offset < high)
            for other, low, high in self._beside_logs
        )
        for tracker in (*self.trackers, *self._met_now):
            if unordered and tracker.found.role(node):
                tracker.doubt("what came first, through an endpoint or past it, is not known")
            tracker.logged(node, change)

    def lost(self, export: str, change: Change) -> None:
        """A request will not be answered: QEMU, or its NBD server, went away."""
        for tracker in self.trackers:
            tracker.lost(self.endpoints.node(export), change)

    def doubt(self, export: str, why: str) -> None:
        """What goes through an export can no longer be followed."""
        for tracker in self.trackers:
            if tracker.side(self.endpoints.node(export)) is not None:
                tracker.doubt(why)

    # -- questions ------------------------------------------------------------

    @property
    def why_none(self) -> str:
        """Why no chain is modelled."""
        return f"the chain is not modelled: {self.unmet}" if self.unmet else _NONE_YET

    @property
    def not_modelled(self) -> str:
        """Why something that runs, or was started last, is not modelled; or ``""``."""
        if self.trackers and self.passed_over:
            return "; ".join(self.passed_over.values())
        return self.unmet

    def chosen(self, name: str | None = None) -> list[ModelTracker]:
        """The chains that *name* means, brought up to date; all without a name.

        :param name: a job's id, or a node's name
        :raises InputError: there is none of that name
        """
        self.catch_up()
        if name is None:
            return list(self.trackers)
        chosen = [tracker for tracker in self.trackers if tracker.goes_by(name)]
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
            raise NothingToTell(self.why_none)
        if len(chosen) > 1:
            names = ", ".join(tracker.name for tracker in chosen)
            raise InputError(f"several chains are modelled, say which: {names}")
        return chosen[0]

    def model(self) -> tuple[ChainNodes, Oracle]:
        """The one chain and its model.

        :raises InputError: there is none that is modelled, or more than one
        """
        tracker = self.one()
        return tracker.found, tracker.oracle

    async def close(self) -> None:
        """Take the endpoints down."""
        await self.logs.close()
        await self.endpoints.close()
        self.payloads.close()


def _accepted(kind: Verb, command: Command) -> bool:
    """Whether a command's arguments are such that QEMU hands it on to block replication.

    As ``xen-set-replication`` of qapi/migration.json and ``qmp_xen_set_replication`` of
    migration/colo.c have it (2.9 to 11.1).
    """
    arguments = command.arguments or {}
    if kind is Verb.CHECKPOINT:
        return not arguments
    names = arguments.keys()
    return (
        {"enable", "primary"} <= names <= {"enable", "primary", "failover"}
        and all(isinstance(value, bool) for value in arguments.values())
        and not (arguments["enable"] and "failover" in names)
    )


def _expect_done(command: Command, reply: Reply | None) -> None:
    if reply is None:
        raise MachineDied(f"QEMU went away during {command.name}")
    if reply.failed:
        error = reply.value()["error"]
        raise CommandFailed(command.name, error["class"], error["desc"])
