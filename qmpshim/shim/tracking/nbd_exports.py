"""QEMU's NBD exports as the shim offers them: a relay before each, and exports for itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qmpshim.errors import MachineDied
from qmpshim.machine.chain.block_graph import OWN_NODE
from qmpshim.machine.nbd.relay import Relay, RelayObserver
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.endpoint.server import OWN_EXPORT, Shim
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.tracking.dirty_bitmaps import Key, bitmap_key
from qmpshim.shim.tracking.discovery import children
from qmpshim.shim.tracking.nbd_forwarder import NbdForwarder
from qmpshim.shim.tracking.writers import Export

#: After these an export's name may stand for another node, or be at another address.
_CHANGES = (
    *("nbd-server-start", "nbd-server-add", "nbd-server-remove", "nbd-server-stop"),
    *("block-export-add", "block-export-del"),
)


class NbdExports:
    """The relays of one shim.

    :param directory: private; sockets go there
    :param observe: makes the observer of the requests to an export, from the export's name
    :param on_bypass: called with the exports that a client of QEMU's own server may be writing to
    :ivar guarding: stand before the NBD servers that clients start, to observe their clients
    """

    def __init__(
        self,
        shim: Shim,
        directory: Path,
        observe: Callable[[str], RelayObserver],
        on_bypass: Callable[[set[str]], None],
    ) -> None:
        self.guarding = False
        self._shim = shim
        self._directory = directory
        self._observe = observe
        self._on_bypass = on_bypass
        self._front: NbdForwarder | None = None
        self._private = False  # only the shim knows where the server is
        self._read_only: dict[str, bool] = {}  # by export's id, where it is known
        self._relays: dict[str, Relay] = {}
        self._exported: dict[str, str] = {}  # node by export's id
        self._names: dict[str, str] = {}  # to NBD clients, where it is not the id
        self._bitmaps: dict[str, list[Key]] = {}  # that it has, by export's id
        self._nodes: dict[str, str] = {}  # the disk that is meant by it
        self._server: Address | None = None  # QEMU's NBD server, where a client started it
        self._sockets = 0
        self._stale = True  # what is known of the exports
        self._lock = asyncio.Lock()
        shim.watchers.update(dict.fromkeys(_CHANGES, self._changed))
        shim.intercepts["nbd-server-start"] = self._start_server
        shim.intercepts["nbd-server-stop"] = self._stop_server

    # -- the server ------------------------------------------------------------

    def _changed(self, command: Command, reply: Reply) -> None:
        if reply.failed:
            return
        self._stale = True
        arguments: dict[str, Any] = dict(command.arguments or {})
        if command.name == "nbd-server-start" and self._front is None:
            self.server_at(arguments.get("addr"), private=False)
        elif command.name == "block-export-add":
            self._read_only[arguments["id"]] = arguments.get("writable") is not True
            if arguments.get("type") == "nbd":
                self._named(arguments["id"], arguments.get("name", arguments["node-name"]))
                node = arguments["node-name"]
                keys = [bitmap_key(one, node) for one in arguments.get("bitmaps", ())]
                self._bitmaps[arguments["id"]] = keys
        elif command.name == "nbd-server-add":  # the id is the name
            name = arguments.get("name", arguments["device"])
            self._read_only[name] = arguments.get("writable") is not True
            self._named(name, name)
        elif command.name == "nbd-server-stop":
            self._server = None

    async def _start_server(self, command: Command) -> Reply | None:
        """Have QEMU listen elsewhere, and stand where the client wants it to."""
        arguments: dict[str, Any] = dict(command.arguments or {})
        match arguments.get("addr"):
            case {"type": "unix", "data": {"path": str(text)}} if self.guarding:
                path = Path(text)
            case _:
                return await self._shim.forward(command)
        if not path.is_absolute() or self._front is not None:
            return await self._shim.forward(command)
        self._sockets += 1
        behind = self._directory / f"server-{self._sockets}.sock"
        arguments["addr"] = {"type": "unix", "data": {"path": str(behind)}}
        reply = await self._shim.forward(Command(command.name, arguments, command.id, command.oob))
        if reply is None or reply.failed:
            return reply
        front = NbdForwarder(path, behind, self._bypassed)
        try:
            front.start()
        except OSError:  # QEMU's reply gives the error
            await self._shim.execute("nbd-server-stop")
            return await self._shim.forward(command)
        self._front = front
        self._server, self._private = Address(path=behind), False
        return reply

    async def _stop_server(self, command: Command) -> Reply | None:
        reply = await self._shim.forward(command)
        if reply is not None and not reply.failed and self._front is not None:
            front, self._front = self._front, None
            await front.close()
        return reply

    def server_at(self, addr: Any, private: bool) -> None:
        """QEMU's NBD server listens at *addr*, a ``SocketAddressLegacy``.

        :param private: only the shim knows
        """
        self._private = private
        match addr:
            case {"type": "unix", "data": {"path": str(path)}}:
                self._server = Address(path=Path(path))
            case {"type": "inet", "data": {"host": str(host), "port": str(port)}}:
                self._server = Address(host=host, port=int(port))

    def _named(self, export: str, name: str) -> None:
        """An export was made under a *name* for NBD clients, which QEMU does not report later."""
        self._names[export] = name
        if export in self._relays:
            self._relays[export].name = name

    async def _reach(self) -> socket.socket:
        """A connection to QEMU's NBD server as it is now, once it is known what it exports."""
        if self._stale:
            await self._learn()
        if self._server is None:
            raise MachineDied("QEMU's NBD server was stopped")
        return await self._server.connect()

    # -- the relays ------------------------------------------------------------

    def node(self, export: str) -> str:
        """The disk behind an export, as it was when a client last connected to it."""
        return self._nodes[export]

    def exported(self, export: str) -> str:
        """The very node that is exported."""
        return self._exported[export]

    @property
    def in_flight(self) -> int:
        """Relayed requests that QEMU has not answered."""
        return sum(relay.in_flight for relay in self._relays.values())

    def pause(self) -> None:
        """Let no further request through until :meth:`resume`."""
        for relay in self._relays.values():
            relay.pause()

    def resume(self) -> None:
        """Let requests through again."""
        for relay in self._relays.values():
            relay.resume()

    async def settled(self) -> None:
        """Wait until QEMU has answered all that went through."""
        for relay in self._relays.values():
            await relay.settled()

    def _bypassed(self, name: str | None) -> None:
        known = {*self._exported, *self._read_only}
        self._on_bypass({e for e in known if name is None or self._names.get(e, e) == name})

    def all_seen(self, export: str) -> bool:
        """Whether no client can have written to an NBD export but through the relays."""
        if self._server is None:
            return False
        if self._private:
            return True
        front = self._front
        name = self._names.get(export, export)
        return front is not None and front.requested.isdisjoint({None, name})

    async def writable(self) -> list[Export]:
        """The exports that may be writable, on the nodes where they are now."""
        await self._learn()
        return [
            Export(
                *(e["id"], e["node-name"], self._nodes.get(e["id"], e["node-name"])),
                e["type"] == "nbd" and self.all_seen(e["id"]),
            )
            for e in await self._shim.execute("query-block-exports")
            if not (e["id"].startswith(OWN_NODE) or self._read_only.get(e["id"]))
        ]

    async def entries(self) -> list[dict[str, Any]]:
        """Export, node and URI of each relay; makes those that are missing."""
        async with self._lock:  # or two would make, or take down, the same
            if self._server is None:
                return []
            exports = await self._learn()
            for gone in set(self._relays) - exports:
                await self._relays.pop(gone).close()
            for name in exports - set(self._relays):
                self._sockets += 1
                path = self._directory / f"relay-{self._sockets}.sock"
                called = self._names.get(name, name)
                relay = Relay(self._reach, called, path, self._observe(name))
                await relay.start()
                self._relays[name] = relay
            return self.known()

    def known(self) -> list[dict[str, Any]]:
        """As :meth:`entries`, without querying QEMU."""
        return [
            {"export": name, "node": self._nodes[name], "uri": relay.uri}
            for name, relay in sorted(self._relays.items())
        ]

    async def _learn(self) -> set[str]:
        """Query which node each export is; return the exports."""
        self._stale = False
        exports = {
            e["id"]: e["node-name"]
            for e in await self._shim.execute("query-block-exports")
            if e["type"] == "nbd" and not e["id"].startswith(OWN_NODE)
        }
        below = await children(self._shim.execute)
        self._exported.update(exports)
        self._nodes.update({name: _meant(node, below) for name, node in exports.items()})
        return set(exports)

    async def bitmaps(self, node: str) -> list[tuple[str, Key]]:
        """The bitmaps that exports of *node* have: each with a URI of QEMU's own server."""
        exports = await self._learn() if self._server is not None else set()
        return [
            (self._uri(self._names.get(export, export)), key)
            for export in sorted(exports)
            if self._exported[export] == node
            for key in self._bitmaps.get(export, ())
        ]

    # -- for ourselves ------------------------------------------------------------

    @asynccontextmanager
    async def view(self, node: str) -> AsyncIterator[str]:
        """A read-only NBD export of *node* for ourselves; gives its URI."""
        own = False
        if self._server is None:
            own = True
            path = self._directory / "own.sock"
            await self._shim.execute(
                "nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}}
            )
            self._server = Address(path=path)
        name = OWN_EXPORT
        try:
            await self._shim.execute(
                "block-export-add", {"type": "nbd", "id": name, "name": name, "node-name": node}
            )
            try:
                yield self._uri(name)
            finally:
                await self._shim.execute("block-export-del", {"id": name, "mode": "hard"})
                while await self._has_export(name):  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        finally:
            if own:
                self._server = None
                await self._shim.execute("nbd-server-stop")

    async def _has_export(self, name: str) -> bool:
        return any(e["id"] == name for e in await self._shim.execute("query-block-exports"))

    def _uri(self, export: str) -> str:
        assert self._server is not None
        if self._server.path is not None:
            return nbd_uri(export, self._server.path)
        return f"nbd://{self._server}/{quote(export, safe='')}"

    async def close(self) -> None:
        """Take the relays down."""
        if self._front is not None:
            await self._front.close()
        for relay in self._relays.values():
            with contextlib.suppress(OSError):
                await relay.close()


def _meant(node: str, below: Mapping[tuple[str | None, str], str]) -> str:
    """The disk under a backup job's filter (a child of another name in each version) or ours."""
    while node.startswith(("#", OWN_NODE)):
        under = below.get((node, "file")) or below.get((node, "backing"))
        if under is None:
            break
        node = under
    return node
