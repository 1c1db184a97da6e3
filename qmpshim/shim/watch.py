"""Keeps the reference model in step with what passes: commands, and I/O through the relays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.oracle import Oracle
from qmpshim.errors import CommandFailed, HostError, InputError, MachineDied, MachineError
from qmpshim.machine.nbd_client import NbdClient
from qmpshim.machine.nbd_proto import CMD_NO_HOLE, Op, Request
from qmpshim.machine.relay import Relay
from qmpshim.machine.secondary import SECTOR, ChainSpec
from qmpshim.model.behaviour import Behaviour
from qmpshim.model.chain import CommandError, Workflow
from qmpshim.model.co import Co, ModelIOError, run_straight
from qmpshim.model.disk import Image, owned
from qmpshim.model.verdict import Verdict
from qmpshim.shim.discovery import Found, children, find_backup, find_replication
from qmpshim.shim.endpoint import Address
from qmpshim.shim.ledger import Ledger
from qmpshim.shim.server import OWN_EXPORT, Shim
from qmpshim.shim.session import Command
from qmpshim.shim.upstream import Reply

log = logging.getLogger(__name__)

_SETTLE = 2.0  # seconds a command waits for I/O under way before it passes anyhow
_BASELINE_LIMIT = 4 << 30  # bytes of old data read when a chain is adopted
_JOB_ENDS = ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR")


class Watch:
    """The model of the chain behind a shim.

    :param directory: private; sockets and what was written go there
    :param behaviour: what the model is told about this QEMU version
    """

    def __init__(self, shim: Shim, directory: Path, behaviour: Behaviour) -> None:
        self.shim = shim
        self.directory = directory
        self.behaviour = behaviour
        self.found: Found | None = None
        self.oracle: Oracle | None = None
        self.ledger = Ledger(directory)
        self.relays: dict[str, Relay] = {}
        self.divergences: list[Divergence] = []
        self.doubts: list[str] = []  # why the model may no longer say what must be
        self._nodes: dict[str, str] = {}  # node by export
        self._server: Address | None = None  # QEMU's NBD server, where a client started it
        self._job = ""
        self._sockets = 0
        for name in ("blockdev-backup", "drive-backup"):
            shim.intercepts[name] = self._backup
        shim.intercepts["xen-set-replication"] = self._set_replication
        shim.intercepts["xen-colo-do-checkpoint"] = self._checkpoint
        shim.watchers["nbd-server-start"] = self._server_started
        shim.watchers["nbd-server-stop"] = self._server_stopped
        shim.on_event(self._event)

    # -- commands ------------------------------------------------------------

    @asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """Relayed I/O has ended, and none begins, while the context lasts."""
        for relay in self.relays.values():
            relay.pause()
        try:
            try:
                async with asyncio.timeout(_SETTLE):
                    for relay in self.relays.values():
                        await relay.settled()
            except TimeoutError:
                self.doubt("a command passed while I/O was under way")
            yield
        finally:
            for relay in self.relays.values():
                relay.resume()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No relayed I/O and no client's command, while the context lasts.

        :raises MachineError: I/O does not end
        """
        async with self._still():
            if any(relay.in_flight for relay in self.relays.values()):
                raise MachineError("I/O through the shim's endpoints does not end: try again later")
            yield

    def doubt(self, why: str) -> None:
        """The model may no longer say what must be."""
        if why not in self.doubts:
            self.doubts.append(why)

    async def _backup(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("sync") != "none":
            return await self.shim.ask(command)
        found = None
        with contextlib.suppress(CommandFailed, KeyError):
            found = await find_backup(
                self.shim.execute, str(arguments.get("device")), str(arguments.get("target"))
            )
        async with self._still():
            if found is not None and self.oracle is None:
                await self.adopt(found)
            reply = await self.shim.ask(command)
            if found is not None and reply is not None and not reply.failed:
                self._job = str(arguments.get("job-id") or arguments.get("device"))
                self._step("start", reply, lambda oracle: oracle.chain.start())
            return reply

    async def _set_replication(self, command: Command) -> Reply | None:
        arguments = command.arguments or {}
        if arguments.get("primary") is True:
            return await self.shim.ask(command)
        async with self._still():
            if arguments.get("enable") is True and self.oracle is None:
                with contextlib.suppress(CommandFailed, KeyError):
                    found = await find_replication(self.shim.execute)
                    if found is not None:
                        await self.adopt(found)
            reply = await self.shim.ask(command)
            if arguments.get("enable") is True:
                self._step("start", reply, lambda oracle: oracle.chain.start())
            elif arguments.get("failover") is True:
                self._step("failover", reply, lambda oracle: oracle.chain.failover())
            elif arguments.get("enable") is False:
                self._step("stop", reply, lambda oracle: oracle.chain.stop())
            return reply

    async def checkpoint(self) -> None:
        """Take a checkpoint.

        :raises CommandFailed: QEMU refused
        """
        reply = await self._checkpoint(Command("xen-colo-do-checkpoint", None, None, False))
        if reply is None:
            raise MachineDied("QEMU went away during xen-colo-do-checkpoint")
        if reply.failed:
            error = reply.value()["error"]
            raise CommandFailed("xen-colo-do-checkpoint", error["class"], error["desc"])

    async def _checkpoint(self, command: Command) -> Reply | None:
        async with self._still():
            reply = await self.shim.ask(command)
            self._step("checkpoint", reply, lambda oracle: oracle.chain.checkpoint())
            return reply

    def _step(self, name: str, reply: Reply | None, do: Callable[[Oracle], Co[None]]) -> None:
        """Do a command in the model, too, and compare how it ended."""
        oracle = self.oracle
        if oracle is None:
            return
        if oracle.spec.workflow is not Workflow.REPLICATION and name != "start":
            return
        error = None if reply is None else reply.value().get("error")
        if error is not None and error["desc"].startswith("Parameter "):
            return  # it never reached replication
        observed = None if error is None else str(error["desc"])
        predicted = None
        try:
            run_straight(do(oracle))
        except CommandError as failure:
            predicted = failure.desc
        if predicted != observed:
            self.diverged(
                Verdict.ERROR_CONTRACT, name, predicted or "success", observed or "success"
            )

    def _event(self, line: bytes) -> None:
        if self._job and self.oracle and any(name.encode() in line for name in _JOB_ENDS):
            data = json.loads(line).get("data", {})
            if data.get("device") == self._job:
                self._job = ""
                self.oracle.chain.job = None

    def diverged(self, verdict: Verdict, where: str, predicted: str, observed: str) -> None:
        """Record a divergence and tell all clients."""
        found = Divergence(verdict, where, self.ledger.operations, predicted, observed)
        self.divergences.append(found)
        self.shim.emit("X_SHIM_DIVERGENCE", found.to_json())

    # -- adoption ------------------------------------------------------------

    async def adopt(self, found: Found) -> None:
        """Begin to model a chain; what is on its secondary disk now is where it starts from."""
        spec = ChainSpec(found.workflow, found.size, found.cluster, found.secondary)
        oracle = Oracle(spec, self.behaviour)
        async with self.export(found.nodes["secondary"]) as uri:
            await asyncio.to_thread(self._read_baseline, uri, oracle)
        self.found, self.oracle = found, oracle

    def _read_baseline(self, uri: str, oracle: Oracle) -> None:
        with contextlib.closing(NbdClient(uri)) as client:
            extents = client.data_extents()
            if sum(length for _, length in extents) > _BASELINE_LIMIT:
                self.doubt("the secondary disk held too much data to remember it")
                return
            step = 8 << 20
            for offset, length in extents:
                for at in range(offset, offset + length, step):
                    data = client.read(min(step, offset + length - at), at)
                    if any(data):
                        number = self.ledger.note(at // SECTOR, data)
                        count = len(data) // SECTOR
                        oracle.chain.secondary.contents.write(at // SECTOR, owned(number, count))

    @asynccontextmanager
    async def export(self, node: str) -> AsyncIterator[str]:
        """A read-only NBD export of *node* for ourselves; gives its URI."""
        own = False
        if self._server is None:
            own = True
            path = self.directory / "own.sock"
            await self.shim.execute(
                "nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}}
            )
            self._server = Address(path=path)
        name = OWN_EXPORT
        try:
            await self.shim.execute(
                "block-export-add", {"type": "nbd", "id": name, "name": name, "node-name": node}
            )
            try:
                yield self._uri(name)
            finally:
                await self.shim.execute("block-export-del", {"id": name, "mode": "hard"})
                while await self._has_export(name):  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        finally:
            if own:
                self._server = None
                await self.shim.execute("nbd-server-stop")

    async def _has_export(self, name: str) -> bool:
        return any(e["id"] == name for e in await self.shim.execute("query-block-exports"))

    def _uri(self, export: str) -> str:
        assert self._server is not None
        if self._server.path is not None:
            return f"nbd+unix:///{export}?socket={self._server.path}"
        return f"nbd://{self._server}/{export}"

    # -- exports and I/O ------------------------------------------------------------

    def _server_started(self, command: Command, reply: Reply) -> None:
        if reply.failed:
            return
        addr = (command.arguments or {}).get("addr")
        self.server_at(addr)

    def server_at(self, addr: Any) -> None:
        """QEMU's NBD server listens at *addr*, a ``SocketAddressLegacy``."""
        match addr:
            case {"type": "unix", "data": {"path": str(path)}}:
                self._server = Address(path=Path(path))
            case {"type": "inet", "data": {"host": str(host), "port": str(port)}}:
                self._server = Address(host=host, port=int(port))

    def _server_stopped(self, _command: Command, reply: Reply) -> None:
        if not reply.failed:
            self._server = None

    async def endpoints(self) -> list[dict[str, Any]]:
        """The relays, one for each of QEMU's NBD exports; makes those that are missing."""
        if self._server is None:
            return []
        exports = {
            e["id"]: e["node-name"]
            for e in await self.shim.execute("query-block-exports")
            if e["type"] == "nbd"
        }
        for gone in set(self.relays) - set(exports):
            await self.relays.pop(gone).close()
        below = await children(self.shim.execute)
        for name, node in exports.items():
            # A backup job puts its filter between the export and the disk.
            while node.startswith("#") and (node, "file") in below:
                node = below[node, "file"]
            self._nodes[name] = node
            if name not in self.relays:
                self._sockets += 1
                path = self.directory / f"relay-{self._sockets}.sock"
                relay = Relay(self._server.connect, name, path, self._observer(name))
                await relay.start()
                self.relays[name] = relay
        return [
            {"export": name, "node": self._nodes[name], "uri": relay.uri}
            for name, relay in sorted(self.relays.items())
        ]

    def _observer(self, export: str) -> Callable[[Request, int], None]:
        def observe(request: Request, error: int) -> None:
            found, oracle = self.found, self.oracle
            if found is None or oracle is None:
                return
            role = found.role(self._nodes[export])
            if role is None:
                return
            self._observe(oracle, role, request, error)

        return observe

    def _observe(self, oracle: Oracle, role: str, request: Request, error: int) -> None:
        """A change went through an endpoint: do it in the model."""
        chain = oracle.chain
        guest = role != "secondary"
        if guest and role != ("top" if oracle.spec.workflow is Workflow.REPLICATION else ""):
            self.doubt(f"the {role} disk was written to directly")
            return
        start = request.offset // SECTOR
        end = -(-(request.offset + request.length) // SECTOR)
        count = end - start
        if not count:
            return
        view = oracle.guest_view if guest else oracle.primary_view
        operation: Co[None]
        try:
            aligned = not (request.offset % SECTOR or request.length % SECTOR)
            if request.type == Op.TRIM.value:
                number = self.ledger.note(start, None)
                operation = (chain.guest_discard if guest else chain.primary_discard)(
                    start, count, number
                )
            elif request.type == Op.WRITE_ZEROES.value and aligned:
                number = self.ledger.note(start, None)
                operation = (chain.guest_zero if guest else chain.primary_zero)(
                    start, count, number
                )
                if request.flags & CMD_NO_HOLE and not guest:
                    operation = chain.primary_write(
                        start, count, self.ledger.note(start, bytes(count * SECTOR))
                    )
            else:
                data = bytearray(request.data or bytes(request.length))
                if not aligned:
                    whole = bytearray(self.ledger.data(view.read(start, count), start))
                    at = request.offset - start * SECTOR
                    whole[at : at + request.length] = data
                    data = whole
                number = self.ledger.note(start, data)
                operation = (chain.guest_write if guest else chain.primary_write)(
                    start, count, number
                )
            run_straight(operation)
        except HostError as failure:
            self.doubt(str(failure))
            return
        except ModelIOError as failure:
            if error != failure.errno:
                self._wrong_errno(role, request, failure.errno, error)
            return
        if error:
            self._wrong_errno(role, request, 0, error)

    def _wrong_errno(self, role: str, request: Request, predicted: int, observed: int) -> None:
        where = f"write to the {role} at byte {request.offset}"
        self.diverged(Verdict.ERROR_CONTRACT, where, f"errno {predicted}", f"errno {observed}")

    # -- questions ------------------------------------------------------------

    def model(self) -> tuple[Found, Oracle]:
        """The chain and its model.

        :raises InputError: there is no chain that is modelled
        """
        if self.found is None or self.oracle is None:
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

    async def close(self) -> None:
        """Take the endpoints down."""
        for relay in self.relays.values():
            await relay.close()
        self.ledger.close()
