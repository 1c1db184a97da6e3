"""The shim's own commands: what they answer."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.oracle import Oracle, View
from qmpshim.errors import InputError, MachineHung, NothingToReport
from qmpshim.machine.builds.build import Build
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.disks.image import Alloc, Qcow2Image
from qmpshim.model.units import SECTOR, runs_of, touched
from qmpshim.shim.endpoint.server import Handler, Shim
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.gated.commands import GatedCommands
from qmpshim.shim.json.text import Value
from qmpshim.shim.tracking.chains import TrackedChains
from qmpshim.shim.tracking.shim_command_schema import COMMANDS, check, schema
from qmpshim.shim.tracking.tracker import ModelTracker

_MOST = 16 << 20  # bytes in a reply of x-shim-predict


class Commands:
    """The commands of one shim, made known to it.

    :param build: the build that runs, for replays; None when the shim attached to one
    """

    def __init__(self, shim: Shim, chains: TrackedChains, build: Build | None = None) -> None:
        self._shim = shim
        self._chains = chains
        self._build = build
        self._patched: dict[bytes, bytes] = {}
        handlers: dict[str, Handler] = {
            "x-shim-status": self._status,
            "x-shim-predict": self._predict,
            "x-shim-verify": self._verify,
            "x-shim-map": self._map,
            "x-shim-checkpoint": self._checkpoint,
            "x-shim-watch-node": self._watch_node,
            "x-shim-replay": self._replay,
            "x-shim-record": self._record,
            **GatedCommands(chains).handlers,
        }
        for name, handler in handlers.items():
            shim.handlers[name] = self._checked(name, handler)
        shim.oob.update(name for name, definition in COMMANDS.items() if definition.oob)
        shim.patches["query-commands"] = self._add([{"name": name} for name in COMMANDS])
        shim.patches["query-qmp-schema"] = self._add(schema())

    @staticmethod
    def _checked(name: str, handler: Handler) -> Handler:
        async def checked(arguments: dict[str, Value]) -> object:
            check(name, arguments)
            try:
                return await handler(arguments)
            except NothingToReport as error:
                empty = COMMANDS[name].empty
                if (
                    empty is None or arguments
                ):  # a client that names something wants that very thing
                    raise
                return {**empty.rest, empty.why: str(error)}

        return checked

    def _add(self, entities: list[dict[str, Any]]) -> Callable[[Reply], Reply]:
        """Adds *entities* to the list that QEMU returned."""

        def patch(reply: Reply) -> Reply:
            key = hashlib.sha256(reply.body).digest()
            if key not in self._patched:
                value = reply.value()
                have = {entity["name"] for entity in value["return"]}
                missing = [entity for entity in entities if entity["name"] not in have]
                value["return"] += missing
                self._patched = {**self._patched, key: json.dumps(value).encode()}
            return Reply(self._patched[key])

        return patch

    async def _status(self, arguments: dict[str, Value]) -> object:
        shim, chains = self._shim, self._chains
        trackers = chains.chosen(_chain(arguments))
        if trackers:
            with contextlib.suppress(MachineHung):  # then those of the last survey are returned
                await chains.survey()
        counters = shim.counters
        status: dict[str, object] = {
            "clients": len(shim.clients),
            "commands": counters.commands,
            "malformed": counters.malformed,
            "events": counters.events,
            "operations": chains.payloads.operations,
            "divergences": len(chains.divergences),
            "doubts": chains.doubts,
            "endpoints": await self._endpoints(),
            "unobserved": [one for tracker in trackers for one in _unobserved(tracker)],
            "chains": [_describe(tracker) for tracker in trackers],
        }
        if shim.watchdog.is_hung:
            status["hung"] = int(shim.upstream.silent_for)
        if trackers:
            status["chain"] = _describe(trackers[0])
        if why := chains.not_modelled:
            status["not-modelled"] = why
        return status

    async def _endpoints(self) -> object:
        """Those that there are, or were when QEMU answered last."""
        endpoints = self._chains.nbd_exports
        try:
            return await endpoints.entries()
        except MachineHung:
            return endpoints.known()

    async def _predict(self, arguments: dict[str, Value]) -> object:
        node = str(arguments["node"])
        tracker = self._with_node(node, _chain(arguments))
        found, oracle = tracker.found, tracker.oracle
        role = found.role(node)
        if role is None:
            names = ", ".join(found.nodes.values())
            raise InputError(f"'{node}' is no disk of the chain: {names}")
        offset = int(str(arguments.get("offset", 0)))
        length = int(str(arguments.get("length", min(found.size - offset, _MOST))))
        if offset < 0 or length < 1 or offset + length > found.size:
            raise InputError(f"the range is not within the disk's {found.size} bytes")
        if length > _MOST:
            raise InputError(f"a prediction tells of {_MOST} bytes at most")
        sectors = touched(offset, length, SECTOR)
        start, count = sectors.start, len(sectors)
        owners = _view(oracle, role).read(start, count)
        extents = []
        image = getattr(oracle.chain, role, None)
        there = zip(owners, _kinds(image, start, count), strict=True)
        for at, end, (owner, kind) in runs_of(there, start):
            extent: dict[str, object] = {
                "offset": at * SECTOR,
                "length": (end - at) * SECTOR,
                "operation": abs(owner),
                "zero": owner <= 0,
            }
            if kind is not None:
                extent["allocation"] = kind.name.lower()
            extents.append(extent)
        low = offset - start * SECTOR
        data = self._chains.payloads.data(owners, start)[low : low + length]
        reply: dict[str, object] = {
            "node": found.nodes[role],
            "offset": offset,
            "length": length,
            "extents": extents,
            "sha256": hashlib.sha256(data).hexdigest(),
            "unobserved": _unobserved(tracker),
        }
        if arguments.get("data") is True:
            reply["data"] = base64.b64encode(data).decode()
        return reply

    def _with_node(self, node: str, chain: str | None) -> ModelTracker:
        """The chain that is chosen, or the only one with that node.

        :raises InputError: there is none, or more than one
        """
        if chain is None:
            having = [t for t in self._chains.chosen() if node in t.found.nodes.values()]
            if len(having) == 1:
                return having[0]
        return self._chains.one(chain)

    async def _verify(self, arguments: dict[str, Value]) -> object:
        from qmpshim.shim.tracking.verification import verify

        async with self._shim.window.no_commands(own=1):
            trackers = self._chains.chosen(_chain(arguments))
            verified = await verify(self._chains, trackers)
        named = _chain(arguments) is not None
        unmodelled = [] if named else self._chains.unmodelled.values()
        chains = [
            {
                "name": one.tracker.name,
                "as-predicted": one.as_predicted,
                "verdicts": [divergence.to_json() for divergence in one.divergences],
                "compared": one.compared,
                "doubts": list(one.doubts),
                "bitmaps": list(one.bitmaps),
            }
            for one in verified
        ]
        doubts = dict.fromkeys(why for one in verified for why in one.doubts)
        doubts |= dict.fromkeys(unmodelled)
        return {
            "as-predicted": bool(verified)
            and not unmodelled
            and all(one.as_predicted for one in verified),
            "verdicts": [found.to_json() for one in verified for found in one.divergences],
            "compared": sum(one.compared for one in verified),
            "doubts": list(doubts) if verified else [self._chains.why_none],
            "chains": chains,
        }

    async def _map(self, arguments: dict[str, Value]) -> object:
        tracker = self._chains.one(_chain(arguments))
        found, oracle = tracker.found, tracker.oracle
        clusters = -(-found.size // found.cluster)
        disks = []
        for role in ("secondary", "hidden", "active"):
            if role not in found.nodes:
                continue
            image = getattr(oracle.chain, role)
            sectors = found.cluster // SECTOR
            if isinstance(image, Qcow2Image):
                kinds = [_kind(image, index * sectors, sectors) for index in range(clusters)]
            else:
                kinds = [
                    Alloc.DATA
                    if max(image.contents.read(i * sectors, sectors), default=0) > 0
                    else Alloc.ZERO
                    for i in range(clusters)
                ]
            runs = [
                {"start": at, "count": end - at, "allocation": kind.name.lower()}
                for at, end, kind in runs_of(kinds)
            ]
            disks.append({"disk": role, "node": found.nodes[role], "runs": runs})
        return {"cluster-size": found.cluster, "clusters": clusters, "disks": disks}

    async def _checkpoint(self, _: dict[str, Value]) -> object:
        """As the contract wants it: the VM stopped, I/O of both sides settled."""
        if not self._chains.chosen():
            raise NothingToReport(self._chains.why_none)
        running = (await self._shim.execute("query-status"))["running"]
        if running:
            await self._shim.execute("stop")
        try:
            await self._shim.perform("xen-colo-do-checkpoint")
        finally:
            if running:
                await self._shim.execute("cont")
        return {}

    async def _watch_node(self, arguments: dict[str, Value]) -> object:
        return {"node": await self._chains.logs.insert(str(arguments["node"]))}

    async def _replay(self, arguments: dict[str, Value]) -> object:
        """On a QEMU of its own of the same build: a bundle needs a fresh chain."""
        from qmpshim.shim.tracking import replays

        return await replays.again(self._known_build(), Path(str(arguments["bundle"])))

    async def _record(self, arguments: dict[str, Value]) -> object:
        from qmpshim.shim.tracking import replays

        return await replays.record(self._chains, self._build, _chain(arguments))

    def _known_build(self) -> Build:
        if self._build is None:
            raise InputError("the shim did not start this QEMU and does not know its build")
        return self._build


def _chain(arguments: dict[str, Value]) -> str | None:
    chain = arguments.get("chain")
    return None if chain is None else str(chain)


def _describe(tracker: ModelTracker) -> dict[str, object]:
    """A chain, as ``XShimChain``."""
    found, chain = tracker.found, tracker.oracle.chain
    running = "running" if chain.job is not None else "none"
    backup = found.workflow is Workflow.BACKUP
    reply: dict[str, object] = {
        "workflow": found.workflow.value,
        "stage": running if backup else chain.stage.value,
        "size": found.size,
        "cluster-size": found.cluster,
        "nodes": [{"disk": role, "node": node} for role, node in found.nodes.items()],
        "name": tracker.name,
        "divergences": len(tracker.divergences),
        "doubts": list(tracker.doubts),
    }
    if tracker.job:
        reply["job"] = tracker.job
    if not backup and (error := chain.status()) is not None:
        reply["error"] = error
    return reply


def _unobserved(tracker: ModelTracker) -> list[dict[str, object]]:
    """The writers that may have written to a chain unobserved, as ``XShimUnobserved``."""
    return [
        {
            "writer": one.writer.kind.value,
            "name": one.writer.name,
            "node": one.node,
            "since": one.time,
            "after-operation": one.operation,
            "chain": tracker.name,
        }
        for one in tracker.unobserved.values()
    ]


def _view(oracle: Oracle, role: str) -> View:
    match role:
        case "secondary":
            return oracle.primary_view
        case "hidden":
            return oracle.hidden_view
        case "active":
            chain = oracle.chain
            return View(chain, (chain.active, chain.hidden, chain.secondary))
    return oracle.guest_view


def _kind(image: Qcow2Image, start: int, count: int) -> Alloc:
    """The allocation of a range as a whole: what all of it is, or DATA where any of it is."""
    kinds = {kind for _, _, kind in image.runs(start, min(count, image.size - start))}
    if len(kinds) == 1:
        return kinds.pop()
    return Alloc.DATA if Alloc.DATA in kinds else Alloc.UNKNOWN


def _kinds(image: object, start: int, count: int) -> list[Alloc | None]:
    if not isinstance(image, Qcow2Image):
        return [None] * count
    kinds: list[Alloc | None] = []
    for _, length, kind in image.runs(start, count):
        kinds += [kind] * length
    return kinds
