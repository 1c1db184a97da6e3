"""Commands of clients that concern the chains: passed on to QEMU, and done in the models, too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from qmpshim.errors import ImageError, QmpshimError
from qmpshim.model.answers import DISCONNECTED, OK, ReportedError
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Verb
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.tracking.chains import UNDER_WAY, TrackedChains
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
from qmpshim.shim.tracking.dirty_bitmaps import Key, actions_of
from qmpshim.shim.tracking.tracker import ModelTracker
from qmpshim.shim.tracking.tracking_start import REPLICATION, TrackingStart
from qmpshim.shim.tracking.writers import ChainSubgraph, Writer, WriterKind

_ATTEMPTS = 5  # to read an overlay that QEMU writes to


class ChainCommands:
    """Intercepts the commands of a shim's clients that start, change or end chains."""

    def __init__(self, chains: TrackedChains) -> None:
        self.chains = chains
        self.adoption = TrackingStart(chains)
        self._starting = asyncio.Lock()
        self._changing_bitmaps = asyncio.Lock()
        intercepts = chains.shim.intercepts
        for name in ("blockdev-backup", "drive-backup", "transaction", *BITMAP_COMMANDS):
            intercepts[name] = self._noted
        intercepts["block-job-cancel"] = self._cancel
        intercepts["xen-set-replication"] = self._set_replication
        intercepts["xen-colo-do-checkpoint"] = self._checkpoint

    async def _noted(self, command: Command) -> Reply | None:
        """Pass on a command that may start a job, write, add a writer, or change a bitmap."""
        if actions := actions_of(parts(command)):
            async with self._changing_bitmaps:
                self.chains.catch_up()
                self.chains.bitmaps.begin()
                reply = await self._pass_on(command)
                self.chains.catch_up()
                done = actions if reply is not None and not reply.failed else ()
                self.chains.bitmaps.finish(done, await self._granularities() if done else {})
        else:
            reply = await self._pass_on(command)
        if self.chains.bitmaps:
            self._end_bitmaps(command)
        return reply

    async def _granularities(self) -> dict[Key, int]:
        """Those of all named bitmaps, in bytes; none when QEMU cannot be queried."""
        try:
            nodes = await self.chains.shim.execute("query-named-block-nodes")
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
            self.chains.bitmaps.forget_named(name)
        if ends_bitmaps(command):
            self.chains.bitmaps.forget()
        self._intercept_noted()

    def _intercept_noted(self) -> None:
        """From now on record what else may write, too: something is followed that it concerns."""
        for name in NOTED:
            self.chains.shim.intercepts[name] = self._noted

    async def _follow(self, tracker: ModelTracker) -> None:
        if await self.adoption.follow(tracker):
            self.chains.shim.intercepts["job-cancel"] = self._cancel
            self._intercept_noted()

    async def _pass_on(self, command: Command) -> Reply | None:
        starts = backup_starts(command)
        if starts:
            return await self._start_jobs(command, starts)
        if self.chains.trackers and moves(command):
            # Else a request would be taken to go where it went before.
            async with self.chains.paused():
                reply = await self.chains.logs.pass_on(command)
                await self._after(command, reply)
                return reply
        reply = await self.chains.logs.pass_on(command)
        await self._after(command, reply)
        return reply

    async def _after(self, command: Command, reply: Reply | None) -> None:
        """Record what a command may have written, and the writers now."""
        if not self.chains.trackers or reply is None or reply.failed:
            return
        try:
            graph = await self.chains.survey()
        except QmpshimError as error:
            self.chains.doubt_all(f"who may write after {command.name} is not known: {error}")
            return
        written = effects(command)
        for tracker in self.chains.trackers if written else ():
            subgraph = ChainSubgraph(graph, tracker.found.nodes)
            for effect in written:
                nodes = [node for name in effect.names if (node := graph.behind(name))]
                roles = set().union(*(subgraph.reached(node) for node in nodes))
                if not nodes:  # it names none that is known: it may be any
                    roles = set(tracker.found.nodes)
                for role in roles:
                    tracker.suspect(Writer(WriterKind.COMMAND, effect.name, role))

    async def _start_jobs(self, command: Command, starts: Sequence[BackupStart]) -> Reply | None:
        async with self._starting, self.chains.paused():
            adopted = [None if s.target is None else await self.adoption.backup(s) for s in starts]
            starting = [known for known in adopted if known is not None]
            self.chains.ended_jobs.clear()
            self.chains.catch_up()
            for known in starting:  # what came so far came before T0
                known.apply_deferred()
                known.deferred = []
            self.chains.bitmaps.settle()
            reply = await self._forward(Verb.START, command)
            if reply is None or reply.failed:
                for known in starting:
                    known.apply_deferred()
                self.chains.starting.clear()
                for start in starts:
                    self.chains.unmodelled.pop(start.job, None)
                return reply
            for start, tracker in zip(starts, adopted, strict=True):
                if start.target is None:  # the job runs, but nothing was relayed since
                    tracker = await self.adoption.backup(start)
                if tracker is None:
                    if start.job in self.chains.ended_jobs:
                        self.chains.unmodelled.pop(start.job, None)
                    continue
                await self._apply_before_start(tracker)
                tracker.job_started(start.job)
                tracker.apply_deferred()
                await self._follow(tracker)
                if start.job in self.chains.ended_jobs:
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
                await flush(self.chains.shim.execute, tracker.found.nodes["hidden"])
                apply_before_start(tracker)
                break
            except ImageError as error:
                if attempt == _ATTEMPTS:
                    tracker.doubt(f"{UNDER_WAY}: {error}")
                    return
            except QmpshimError as error:
                tracker.doubt(f"{UNDER_WAY}: {error}")
                return
        before = count - len(tracker.deferred)
        self.chains.bitmaps.came_before(tracker.found.nodes["secondary"], before)

    async def _cancel(self, command: Command) -> Reply | None:
        self.chains.catch_up()  # what comes later may or may not be copied
        arguments = command.arguments or {}
        name = arguments.get("id" if command.name == "job-cancel" else "device")
        if not any(tracker.job and tracker.job == name for tracker in self.chains.trackers):
            return await self.chains.shim.forward(command)
        return await self._forward(Verb.STOP, command)

    async def _set_replication(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("primary") is True:
            return await self.chains.shim.forward(command)
        async with self._starting, self.chains.paused():
            match arguments:
                case {"enable": True}:
                    kind = Verb.START
                    await self.adoption.replication()
                case {"failover": True}:
                    kind = Verb.FAILOVER
                case {"enable": False}:
                    kind = Verb.STOP
                case _:
                    return await self.chains.shim.forward(command)
            if kind is not Verb.START:
                self.chains.unmodelled.pop(REPLICATION, None)
            reply = await self._forward(kind, command)
            if kind is Verb.START:
                if reply is None or reply.failed:
                    self.chains.unmodelled.pop(REPLICATION, None)
                for tracker in tuple(self.chains.starting):
                    await self._follow(tracker)
            self._step(kind, command, reply)
            return reply

    async def _checkpoint(self, command: Command) -> Reply | None:
        async with self.chains.paused():
            reply = await self._forward(Verb.CHECKPOINT, command)
            self._step(Verb.CHECKPOINT, command, reply)
            return reply

    async def _forward(self, kind: Verb, command: Command) -> Reply | None:
        """Send a command of the chain's; it is a step of the schedule, too."""
        schedule = self.chains.schedule
        if schedule is None:
            reply = await self.chains.shim.forward(command)
            if self.chains.catch_up() and kind is not Verb.STOP:
                for tracker in self.chains.all:
                    if tracker.deferred is None:
                        tracker.doubt(UNDER_WAY)
            return reply
        step = schedule.begins(kind.value)
        reply = await self.chains.shim.forward(command)
        error = None if reply is None else reply.value().get("error")
        if reply is None:
            schedule.ends(step, DISCONNECTED)
        else:
            schedule.ends(step, ReportedError(str(error["desc"])) if error else OK)
        return reply

    def _step(self, kind: Verb, command: Command, reply: Reply | None) -> None:
        """Do a command in all models of replication, too, and compare how it ended."""
        chains = [t for t in self.chains.trackers if t.found.workflow is Workflow.REPLICATION]
        error = None if reply is None else reply.value().get("error")
        if not chains or not _accepted(kind, command):
            return  # it never reached replication
        observed = None if error is None else str(error["desc"])
        predicted = {tracker: tracker.step(kind) for tracker in chains}
        if error is None:
            wrong = [tracker for tracker, result in predicted.items() if result != observed]
        else:  # QEMU goes through the filters in an order of its own, up to the first error
            wrong = [] if observed in predicted.values() else chains[:1]
            if len(chains) > 1:
                self.chains.doubt_all(f"which chain {kind.value} failed on is not known")
        for tracker in wrong:
            if not tracker.doubts:
                tracker.answered(kind.value, predicted[tracker], observed)


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
