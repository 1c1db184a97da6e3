"""The shim's own commands: what they answer, and how they look to introspecting clients."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from qmpshim.conformance import bundle as bundles
from qmpshim.conformance.oracle import Oracle, View
from qmpshim.conformance.verify import replay, setup_for
from qmpshim.errors import InputError
from qmpshim.machine.builds import Build
from qmpshim.machine.secondary import SECTOR
from qmpshim.machine.workspace import Workspace
from qmpshim.model.chain import Workflow
from qmpshim.model.disk import Alloc, Qcow2
from qmpshim.shim.json_text import Value
from qmpshim.shim.server import Shim
from qmpshim.shim.upstream import Reply
from qmpshim.shim.verification import verify
from qmpshim.shim.watch import Watch

_MOST = 16 << 20  # bytes x-shim-predict tells of at once


@dataclass(frozen=True, slots=True)
class Field:
    """A member of an object: its name, its type, and whether it may be missing."""

    name: str
    type: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """A command as its schema tells it."""

    arguments: tuple[Field, ...]
    returns: str


_ROLES = ("secondary", "hidden", "active", "top")
_ALLOCATIONS = ("unallocated", "zero", "data", "allocated")
#: Enumerations by type name.
ENUMS: Mapping[str, tuple[str, ...]] = {
    "XShimDisk": _ROLES,
    "XShimAllocation": _ALLOCATIONS,
    "XShimWorkflow": ("backup", "replication"),
}
#: Objects by type name.
OBJECTS: Mapping[str, tuple[Field, ...]] = {
    "XShimEndpoint": (Field("export", "str"), Field("node", "str"), Field("uri", "str")),
    "XShimNode": (Field("disk", "XShimDisk"), Field("node", "str")),
    "XShimChain": (
        Field("workflow", "XShimWorkflow"),
        Field("stage", "str"),
        Field("size", "int"),
        Field("cluster-size", "int"),
        Field("nodes", "[XShimNode]"),
        Field("error", "str", True),
    ),
    "XShimStatus": (
        Field("clients", "int"),
        Field("commands", "int"),
        Field("malformed", "int"),
        Field("events", "int"),
        Field("operations", "int"),
        Field("divergences", "int"),
        Field("doubts", "[str]"),
        Field("endpoints", "[XShimEndpoint]"),
        Field("chain", "XShimChain", True),
    ),
    "XShimExtent": (
        Field("offset", "int"),
        Field("length", "int"),
        Field("operation", "int"),
        Field("zero", "bool"),
        Field("allocation", "XShimAllocation", True),
    ),
    "XShimPrediction": (
        Field("node", "str"),
        Field("offset", "int"),
        Field("length", "int"),
        Field("extents", "[XShimExtent]"),
        Field("sha256", "str"),
        Field("data", "str", True),
    ),
    "XShimVerdict": (
        Field("verdict", "str"),
        Field("where", "str"),
        Field("operation", "int"),
        Field("predicted", "str"),
        Field("observed", "str"),
    ),
    "XShimVerification": (
        Field("as-predicted", "bool"),
        Field("verdicts", "[XShimVerdict]"),
        Field("compared", "int"),
        Field("doubts", "[str]"),
    ),
    "XShimRun": (
        Field("start", "int"),
        Field("count", "int"),
        Field("allocation", "XShimAllocation"),
    ),
    "XShimDiskMap": (
        Field("disk", "XShimDisk"),
        Field("node", "str"),
        Field("runs", "[XShimRun]"),
    ),
    "XShimMap": (
        Field("cluster-size", "int"),
        Field("clusters", "int"),
        Field("disks", "[XShimDiskMap]"),
    ),
    "XShimReplay": (
        Field("reproduced", "bool"),
        Field("operations", "int"),
        Field("verdict", "XShimVerdict", True),
    ),
    "XShimNothing": (),
    "XShimGone": (
        Field("reason", "str"),
        Field("status", "int", True),
        Field("signal", "int", True),
    ),
}
#: The commands by name.
COMMANDS: Mapping[str, Definition] = {
    "x-shim-status": Definition((), "XShimStatus"),
    "x-shim-predict": Definition(
        (
            Field("node", "str"),
            Field("offset", "int", True),
            Field("length", "int", True),
            Field("data", "bool", True),
        ),
        "XShimPrediction",
    ),
    "x-shim-verify": Definition((), "XShimVerification"),
    "x-shim-map": Definition((), "XShimMap"),
    "x-shim-checkpoint": Definition((), "XShimNothing"),
    "x-shim-replay": Definition((Field("bundle", "str"),), "XShimReplay"),
}
EVENTS: Mapping[str, str] = {
    "X_SHIM_DIVERGENCE": "XShimVerdict",
    "X_SHIM_QEMU_GONE": "XShimGone",
}
_JSON_TYPES = {"int": "int", "str": "string", "bool": "boolean"}
_EXPECTED = {**_JSON_TYPES, "int": "integer"}


def _check(name: str, arguments: Mapping[str, Value]) -> None:
    """Refuse arguments in the words of QEMU's own visitor.

    :raises InputError: they do not fit
    """
    fields = COMMANDS[name].arguments
    for field in fields:
        if field.name not in arguments:
            if field.optional:
                continue
            raise InputError(f"Parameter '{field.name}' is missing")
        value = arguments[field.name]
        fits = {"int": int, "str": str, "bool": bool}[field.type]
        if not isinstance(value, fits) or (fits is int and isinstance(value, bool)):
            kind = _EXPECTED[field.type]
            raise InputError(f"Invalid parameter type for '{field.name}', expected: {kind}")
    known = {field.name for field in fields}
    for member in arguments:
        if member not in known:
            raise InputError(f"Parameter '{member}' is unexpected")


def schema() -> list[dict[str, Any]]:
    """The commands and events as entities of ``query-qmp-schema``."""

    def members(fields: tuple[Field, ...]) -> list[dict[str, Any]]:
        return [
            {"name": f.name, "type": f.type, **({"default": None} if f.optional else {})}
            for f in fields
        ]

    entities: list[dict[str, Any]] = [
        {"name": name, "meta-type": "builtin", "json-type": _JSON_TYPES[name]}
        for name in ("int", "str", "bool")  # QEMU has them, unless it uses none
    ]
    for name, values in ENUMS.items():
        told = [{"name": value} for value in values]
        entities.append(
            {"name": name, "meta-type": "enum", "values": list(values), "members": told}
        )
    arrays: set[str] = set()
    for name, fields in OBJECTS.items():
        entities.append({"name": name, "meta-type": "object", "members": members(fields)})
        arrays.update(field.type for field in fields if field.type.startswith("["))
    for name, definition in COMMANDS.items():
        argument = f"{name}-arg"
        entities.append(
            {"name": argument, "meta-type": "object", "members": members(definition.arguments)}
        )
        entities.append(
            {
                "name": name,
                "meta-type": "command",
                "arg-type": argument,
                "ret-type": definition.returns,
                "features": ["unstable"],
            }
        )
    for event, data in EVENTS.items():
        entities.append({"name": event, "meta-type": "event", "arg-type": data})
    entities += [
        {"name": array, "meta-type": "array", "element-type": array[1:-1]}
        for array in sorted(arrays)
    ]
    return entities


class Commands:
    """The commands of one shim, made known to it.

    :param build: the build that runs, for replays; None when the shim met a running QEMU
    """

    def __init__(self, shim: Shim, watch: Watch, build: Build | None = None) -> None:
        self._shim = shim
        self._watch = watch
        self._build = build
        self._patched: dict[bytes, bytes] = {}
        for name, handler in {
            "x-shim-status": self._status,
            "x-shim-predict": self._predict,
            "x-shim-verify": self._verify,
            "x-shim-map": self._map,
            "x-shim-checkpoint": self._checkpoint,
            "x-shim-replay": self._replay,
        }.items():
            shim.handlers[name] = self._checked(name, handler)
        shim.patches["query-commands"] = self._add([{"name": name} for name in COMMANDS])
        shim.patches["query-qmp-schema"] = self._add(schema())

    @staticmethod
    def _checked(
        name: str, handler: Callable[[dict[str, Value]], Awaitable[object]]
    ) -> Callable[[dict[str, Value]], Awaitable[object]]:
        async def checked(arguments: dict[str, Value]) -> object:
            _check(name, arguments)
            return await handler(arguments)

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

    async def _status(self, _: dict[str, Value]) -> object:
        shim, watch = self._shim, self._watch
        counters = shim.counters
        status: dict[str, object] = {
            "clients": len(shim.clients),
            "commands": counters.commands,
            "malformed": counters.malformed,
            "events": counters.events,
            "operations": watch.ledger.operations,
            "divergences": len(watch.divergences),
            "doubts": list(watch.doubts),
            "endpoints": await watch.endpoints(),
        }
        if watch.found is not None and watch.oracle is not None:
            found, chain = watch.found, watch.oracle.chain
            running = "running" if chain.job is not None else "none"
            backup = found.workflow is Workflow.BACKUP
            told: dict[str, object] = {
                "workflow": found.workflow.value,
                "stage": running if backup else chain.stage.value,
                "size": found.size,
                "cluster-size": found.cluster,
                "nodes": [{"disk": role, "node": node} for role, node in found.nodes.items()],
            }
            if not backup and (error := chain.status()) is not None:
                told["error"] = error
            status["chain"] = told
        return status

    async def _predict(self, arguments: dict[str, Value]) -> object:
        found, oracle = self._watch.model()
        node = str(arguments["node"])
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
        start, end = offset // SECTOR, -(-(offset + length) // SECTOR)
        owners = _view(oracle, role).read(start, end - start)
        extents = []
        at = start
        image = getattr(oracle.chain, role, None)
        for (owner, kind), run in groupby(
            zip(owners, _kinds(image, start, end - start), strict=True)
        ):
            count = sum(1 for _ in run)
            extent: dict[str, object] = {
                "offset": at * SECTOR,
                "length": count * SECTOR,
                "operation": abs(owner),
                "zero": owner <= 0,
            }
            if kind is not None:
                extent["allocation"] = kind.name.lower()
            extents.append(extent)
            at += count
        low = offset - start * SECTOR
        data = self._watch.ledger.data(owners, start)[low : low + length]
        told: dict[str, object] = {
            "node": found.nodes[role],
            "offset": offset,
            "length": length,
            "extents": extents,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        if arguments.get("data") is True:
            told["data"] = base64.b64encode(data).decode()
        return told

    async def _verify(self, _: dict[str, Value]) -> object:
        await self._shim.hold_commands(others=1)
        try:
            verified = await verify(self._watch)
        finally:
            self._shim.release_commands()
        return {
            "as-predicted": not verified.divergences and not verified.doubts,
            "verdicts": [divergence.to_json() for divergence in verified.divergences],
            "compared": verified.compared,
            "doubts": list(verified.doubts),
        }

    async def _map(self, _: dict[str, Value]) -> object:
        found, oracle = self._watch.model()
        clusters = -(-found.size // found.cluster)
        disks = []
        for role in ("secondary", "hidden", "active"):
            if role not in found.nodes:
                continue
            image = getattr(oracle.chain, role)
            sectors = found.cluster // SECTOR
            if isinstance(image, Qcow2):
                kinds = [image.alloc.get(index, Alloc.UNALLOCATED) for index in range(clusters)]
            else:
                kinds = [
                    Alloc.DATA
                    if max(image.contents.read(i * sectors, sectors), default=0) > 0
                    else Alloc.ZERO
                    for i in range(clusters)
                ]
            runs = []
            at = 0
            for kind, run in groupby(kinds):
                count = sum(1 for _ in run)
                runs.append({"start": at, "count": count, "allocation": kind.name.lower()})
                at += count
            disks.append({"disk": role, "node": found.nodes[role], "runs": runs})
        return {"cluster-size": found.cluster, "clusters": clusters, "disks": disks}

    async def _checkpoint(self, _: dict[str, Value]) -> object:
        """As the contract wants it: the VM stopped, I/O of both sides settled."""
        self._watch.model()
        running = (await self._shim.execute("query-status"))["running"]
        if running:
            await self._shim.execute("stop")
        try:
            await self._watch.checkpoint()
        finally:
            if running:
                await self._shim.execute("cont")
        return {}

    async def _replay(self, arguments: dict[str, Value]) -> object:
        """On a QEMU of its own of the same build: a bundle needs a fresh chain."""
        if self._build is None:
            raise InputError("the shim did not start this QEMU and does not know its build")
        case = bundles.load(Path(str(arguments["bundle"])))
        setup = setup_for(self._build, case.spec)
        with Workspace() as workspace:
            result = await replay(case, setup, workspace, lambda _: None)
        told: dict[str, object] = {
            "reproduced": result.divergence is not None,
            "operations": result.done,
        }
        if result.divergence is not None:
            told["verdict"] = result.divergence.to_json()
        return told


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


def _kinds(image: object, start: int, count: int) -> list[Alloc | None]:
    if not isinstance(image, Qcow2):
        return [None] * count
    kinds: list[Alloc | None] = []
    for _, length, kind in image.runs(start, count):
        kinds += [kind] * length
    return kinds
