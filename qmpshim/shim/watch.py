"""Keeps the reference model in step with what passes: commands, and I/O through the endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.oracle import Oracle
from qmpshim.conformance.workload import Kind, Operation, Side
from qmpshim.errors import (
    CommandFailed,
    HostError,
    InputError,
    MachineDied,
    MachineError,
    QmpshimError,
    errno_words,
)
from qmpshim.machine.blklog import LogError
from qmpshim.machine.images import map_file
from qmpshim.machine.qcow2 import BytesLike
from qmpshim.machine.secondary import SECTOR, ChainSpec
from qmpshim.model.behaviour import Behaviour
from qmpshim.model.chain import CommandError, Workflow
from qmpshim.model.co import Co, run_straight
from qmpshim.model.disk import Image
from qmpshim.model.verdict import Verdict
from qmpshim.shim.baseline import Files, flush
from qmpshim.shim.discovery import Found, find_backup, find_replication
from qmpshim.shim.endpoints import Endpoints
from qmpshim.shim.eye import Eye
from qmpshim.shim.follow import Change, Follower
from qmpshim.shim.hand import Hand
from qmpshim.shim.ledger import Ledger
from qmpshim.shim.logwatch import LogWatch
from qmpshim.shim.schedule import Schedule
from qmpshim.shim.server import Shim
from qmpshim.shim.session import Command
from qmpshim.shim.upstream import Reply

log = logging.getLogger(__name__)

_SETTLE = 2.0  # seconds a command waits for I/O under way before it passes anyhow
_JOB_ENDS = ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR")
_NO_CHAIN = "the disks are no such chain: a raw or qcow2 disk under a qcow2 one"
_CHECKPOINT = Command("xen-colo-do-checkpoint", None, None, False)
_START = Command("xen-set-replication", {"enable": True, "primary": False}, None, False)
_BACKUP = Command(
    "blockdev-backup",
    {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"},
    None,
    False,
)


class Watch:
    """The model of the chain behind a shim.

    :param directory: private; sockets and what was written go there
    :param behaviour: what the model is told about this QEMU version
    :ivar hand: holds the I/O, where the chain is gated
    :ivar unmet: why the chain that was started last is not modelled, or ``""``
    """

    def __init__(self, shim: Shim, directory: Path, behaviour: Behaviour) -> None:
        self.shim = shim
        self.behaviour = behaviour
        self.found: Found | None = None
        self.follower: Follower | None = None
        self.hand: Hand | None = None
        self.ledger = Ledger(directory)
        self.logs = LogWatch(shim, directory)
        self.endpoints = Endpoints(shim, directory, lambda export: Eye(self, export))
        self.divergences: list[Divergence] = []
        self.doubts: list[str] = []  # why the model may no longer say what must be
        self.unmet = ""
        self._job = ""
        for name in ("blockdev-backup", "drive-backup"):
            shim.intercepts[name] = self._backup
        shim.intercepts["block-job-cancel"] = self._cancel
        shim.intercepts["xen-set-replication"] = self._set_replication
        shim.intercepts["xen-colo-do-checkpoint"] = self._checkpoint
        shim.on_event(self._event)
        shim.watchdog.noticed = self._hung

    @property
    def oracle(self) -> Oracle | None:
        """The model, once there is a chain."""
        return None if self.follower is None else self.follower.oracle

    @property
    def schedule(self) -> Schedule | None:
        """Where a gated chain's steps are taken down."""
        return None if self.hand is None else self.hand.schedule

    # -- commands ------------------------------------------------------------

    @asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """Relayed I/O has ended, and none begins, while the context lasts."""
        if self.hand is not None and self.hand.held:
            self.doubt("a command passed while I/O was held")
            yield
            return
        self.endpoints.pause()
        try:
            try:
                async with asyncio.timeout(_SETTLE):
                    await self.endpoints.settled()
            except TimeoutError:
                self.doubt("a command passed while I/O was under way")
            self.catch_up()
            yield
        finally:
            self.endpoints.resume()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No relayed I/O and no client's command, while the context lasts.

        :raises MachineError: I/O does not end
        """
        if self.hand is not None and self.hand.held:
            raise MachineError("I/O is held: release it first")
        async with self._still():
            if self.endpoints.in_flight:
                raise MachineError("I/O through the shim's endpoints does not end: try again later")
            with self.hand.aside() if self.hand is not None else contextlib.nullcontext():
                yield
            if self.catch_up():
                raise MachineError(
                    "I/O came past the shim's endpoints meanwhile: try again when it rests"
                )

    def doubt(self, why: str) -> None:
        """The model may no longer say what must be."""
        if why not in self.doubts:
            self.doubts.append(why)

    def _hung(self, commands: Sequence[str]) -> None:
        """What QEMU does with what it does not answer is not known; a query changes nothing."""
        for name in commands:
            if not name.startswith("query-"):
                self.doubt(f"QEMU did not answer {name}")

    async def start(self) -> None:
        """Start replication, or the backup job, on the chain that the shim built.

        :raises CommandFailed: QEMU refused
        """
        names = await self.shim.execute("query-named-block-nodes")
        replication = any(node["drv"] == "replication" for node in names)
        if replication:
            _expect_done(_START, await self._set_replication(_START))
        else:
            _expect_done(_BACKUP, await self._backup(_BACKUP))

    async def checkpoint(self) -> None:
        """Take a checkpoint.

        :raises CommandFailed: QEMU refused
        """
        _expect_done(_CHECKPOINT, await self._checkpoint(_CHECKPOINT))

    async def _backup(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("sync") != "none":
            return await self.shim.ask(command)
        device, target = str(arguments.get("device")), str(arguments.get("target"))
        async with self._still():
            found = await self._meet(find_backup(self.shim.execute, device, target))
            reply = await self._ask(Kind.START, command)
            if found is not None and reply is not None and not reply.failed:
                self._job = str(arguments.get("job-id") or arguments.get("device"))
                self._step(Kind.START, reply, lambda oracle: oracle.chain.start())
            return reply

    async def _cancel(self, command: Command) -> Reply | None:
        if not self._job or (command.arguments or {}).get("device") != self._job:
            return await self.shim.ask(command)
        return await self._ask(Kind.STOP, command)

    async def _set_replication(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("primary") is True:
            return await self.shim.ask(command)
        async with self._still():
            if arguments.get("enable") is True:
                await self._meet(find_replication(self.shim.execute))
                reply = await self._ask(Kind.START, command)
                self._step(Kind.START, reply, lambda oracle: oracle.chain.start())
            elif arguments.get("failover") is True:
                reply = await self._ask(Kind.FAILOVER, command)
                self._step(Kind.FAILOVER, reply, lambda oracle: oracle.chain.failover())
            elif arguments.get("enable") is False:
                reply = await self._ask(Kind.STOP, command)
                self._step(Kind.STOP, reply, lambda oracle: oracle.chain.stop())
            else:
                reply = await self.shim.ask(command)
            return reply

    async def _checkpoint(self, command: Command) -> Reply | None:
        async with self._still():
            reply = await self._ask(Kind.CHECKPOINT, command)
            self._step(Kind.CHECKPOINT, reply, lambda oracle: oracle.chain.checkpoint())
            return reply

    async def _ask(self, kind: Kind, command: Command) -> Reply | None:
        """Send a command of the chain's; it is a step of the schedule, too."""
        schedule = self.schedule
        if schedule is None:
            reply = await self.shim.ask(command)
            if self.catch_up():
                self.doubt("a command passed while I/O was under way")
            return reply
        step = schedule.begins(kind.value)
        reply = await self.shim.ask(command)
        error = None if reply is None else reply.value().get("error")
        schedule.ends(step, "gone" if reply is None else error["desc"] if error else "ok")
        return reply

    def _step(self, kind: Kind, reply: Reply | None, do: Callable[[Oracle], Co[None]]) -> None:
        """Do a command in the model, too, and compare how it ended."""
        follower = self.follower
        if follower is None:
            return
        if follower.oracle.spec.workflow is not Workflow.REPLICATION and kind is not Kind.START:
            return
        error = None if reply is None else reply.value().get("error")
        if error is not None and error["desc"].startswith("Parameter "):
            return  # it never reached replication
        observed = None if error is None else str(error["desc"])
        predicted = None
        follower.command(kind)
        try:
            run_straight(do(follower.oracle))
        except CommandError as failure:
            predicted = failure.desc
        if predicted != observed and not self.doubts:
            self.diverged(
                Verdict.ERROR_CONTRACT, kind.value, predicted or "success", observed or "success"
            )

    def _event(self, line: bytes) -> None:
        if self._job and self.follower and any(name.encode() in line for name in _JOB_ENDS):
            data = json.loads(line).get("data", {})
            if data.get("device") == self._job:
                self._job = ""
                self.follower.command(Kind.STOP)
                self.follower.oracle.chain.job = None

    def diverged(self, verdict: Verdict, where: str, predicted: str, observed: str) -> None:
        """Record a divergence and tell all clients."""
        found = Divergence(verdict, where, self.ledger.operations, predicted, observed)
        self.divergences.append(found)
        self.shim.emit("X_SHIM_DIVERGENCE", found.to_json())

    # -- adoption ------------------------------------------------------------

    async def _meet(self, finding: Awaitable[Found | None]) -> Found | None:
        """Begin to model the chain that a client starts, unless there is one already.

        QEMU does what it is told in any case; why there is no model is told who asks for it.
        """
        found = None
        try:
            found = await finding
            if self.oracle is None:
                self.unmet = "" if found else _NO_CHAIN
                if found is not None:
                    await self.adopt(found)
        except KeyError as error:
            self.unmet = f"QEMU does not tell of {error} how its disks hang together"
        except QmpshimError as error:
            self.unmet = str(error)
        if self.unmet:
            log.warning("the chain is not modelled: %s", self.unmet)
        return found

    async def adopt(self, found: Found) -> None:
        """Begin to model a chain; what is on its secondary disk now is where it starts from."""
        spec = ChainSpec(found.workflow, found.size, found.cluster, found.secondary)
        follower = Follower(Oracle(spec, self.behaviour), self.ledger)
        aside = self.hand.aside() if self.hand is not None else contextlib.nullcontext()
        with aside:
            for role in found.geometry:
                await flush(self.shim.execute, found.nodes[role])
            files = {role: self._files(found, role) for role in found.geometry}
            there = {role: file for role, file in files.items() if file is not None}
            async with self.endpoints.view(found.nodes["secondary"]) as uri:
                doubts = await asyncio.to_thread(follower.take_baseline, found, there, uri)
        for doubt in doubts:
            self.doubt(doubt)
        self.found, self.follower = found, follower

    # -- I/O ------------------------------------------------------------

    def side(self, export: str) -> Side | None:
        """Whose side an export is; None when it is no disk that may be written to."""
        if self.found is None:
            return None
        role = self.found.role(self.endpoints.node(export))
        if role == "secondary":
            return Side.PRIMARY
        top = "top" if self.found.workflow is Workflow.REPLICATION else "hidden"
        return Side.GUEST if role == top else None

    def changed(self, export: str, change: Change, error: int) -> None:
        """A request through an endpoint was answered: do it in the model."""
        follower, found = self.follower, self.found
        if follower is None or found is None:
            return
        role = found.role(self.endpoints.node(export))
        if role is None:
            return
        quiet = change.kind in (Kind.READ, Kind.FLUSH)
        if not quiet and role not in ("secondary", "top"):
            self.doubt(f"the {role} disk was written to directly")
            return
        if self.side(export) is None:
            return
        if self.hand is not None and self.hand.failed:
            self.doubt("an I/O of QEMU's was ended with an error by hand")
        if not quiet and self.endpoints.exported(export) in self.logs.logs:
            self.catch_up()  # it is in the log by now, with what came from elsewhere
            return
        try:
            predicted = follower.request(change)
        except HostError as failure:
            self.doubt(str(failure))
            return
        if self.doubts:
            return
        if predicted != error and not quiet:
            where = f"write to the {role} at byte {change.offset}"
            said = [errno_words(one) if one else "success" for one in (predicted, error)]
            self.diverged(Verdict.ERROR_CONTRACT, where, *said)

    def catch_up(self) -> int:
        """Do in the model what the write logs tell; gives how many changes that were."""
        changes = 0
        try:
            for log in self.logs.logs.values():
                for kind, offset, length, data in log.new():
                    changes += 1
                    self._logged(log.node, kind, offset, length, data)
        except (LogError, HostError) as error:
            self.doubt(str(error))
        return changes

    def _logged(self, node: str, kind: Kind, offset: int, length: int, data: bytes) -> None:
        follower, found = self.follower, self.found
        role = None if found is None else found.role(node)
        if follower is None or role not in ("secondary", "top"):
            return
        side = Side.PRIMARY if role == "secondary" else Side.GUEST
        if follower.request(Change(side, kind, offset, length, data)):
            self.doubt("a logged request must have failed, which the log does not tell")
        if kind is Kind.ZERO:
            chain = follower.oracle.chain
            image = chain.secondary if side is Side.PRIMARY else chain.active
            follower.forget_how(image, offset // SECTOR, length // SECTOR)

    def lost(self, export: str, change: Change) -> None:
        """A request will not be answered: QEMU, or its NBD server, went away."""
        if self.follower is not None and self.side(export) is not None:
            self.doubt("QEMU's NBD server hung up during a request: who knows what it did")
            with contextlib.suppress(HostError):
                self.follower.request(change)

    # -- questions ------------------------------------------------------------

    def model(self) -> tuple[Found, Oracle]:
        """The chain and its model.

        :raises InputError: there is no chain that is modelled
        """
        self.catch_up()
        if self.found is None or self.oracle is None:
            if self.unmet:
                raise InputError(f"the chain is not modelled: {self.unmet}")
            raise InputError(
                "no chain is modelled yet: start replication (xen-set-replication) or a backup "
                "job with sync=none"
            )
        return self.found, self.oracle

    def image(self, role: str) -> Image:
        """The model's image of a role."""
        image = getattr(self.model()[1].chain, role)
        assert isinstance(image, Image)
        return image

    def content(self, role: str) -> BytesLike | None:
        """The bytes of a role's image; None when they are out of our reach.

        :raises OSError: they cannot be read
        """
        files = self._files(self.model()[0], role)
        return None if files is None else files.image

    def _files(self, found: Found, role: str) -> Files | None:
        if self.hand is not None:
            return Files(self.hand.gate.snapshot(role))
        path, data = found.files.get(role), found.data_files.get(role)
        if path is None:
            return None
        return Files(map_file(path), None if data is None else map_file(data))

    def operations(self) -> tuple[Operation, ...]:
        """What was done since the chain was met.

        :raises InputError: not all of it is known
        """
        self.model()
        assert self.follower is not None
        if not self.follower.whole:
            raise InputError("too much was done for a bundle")
        if self.follower.unrecordable:
            raise InputError(f"a bundle cannot begin with {self.follower.unrecordable}")
        return tuple(self.follower.operations)

    async def close(self) -> None:
        """Take the endpoints down."""
        await self.logs.close()
        await self.endpoints.close()
        self.ledger.close()


def _expect_done(command: Command, reply: Reply | None) -> None:
    if reply is None:
        raise MachineDied(f"QEMU went away during {command.name}")
    if reply.failed:
        error = reply.value()["error"]
        raise CommandFailed(command.name, error["class"], error["desc"])
