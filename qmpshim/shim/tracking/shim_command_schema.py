"""The shim's own commands and events as introspecting clients see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import InputError
from qmpshim.shim.json.text import Value
from qmpshim.shim.tracking.writers import WriterKind


@dataclass(frozen=True, slots=True)
class Field:
    """A member of an object: its name, its type, and whether it may be missing."""

    name: str
    type: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Empty:
    """The reply to a query that has nothing to report, as QEMU's own queries give.

    :ivar why: the member with the reason
    :ivar rest: the other members
    """

    why: str
    rest: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Definition:
    """A command as in its schema.

    :ivar oob: also out of band
    :ivar empty: None for what is no query: it fails with the reason
    """

    arguments: tuple[Field, ...]
    returns: str
    oob: bool = False
    empty: Empty | None = None


def _fields(text: str) -> tuple[Field, ...]:
    """Members as in QAPI's schemas: ``name: type``, of an optional one ``*name: type``."""
    members = (one.strip().split(": ") for one in text.split(","))
    return tuple(Field(name.lstrip("*"), kind, name.startswith("*")) for name, kind in members)


_ROLES = ("secondary", "hidden", "active", "top")
_ALLOCATIONS = ("unallocated", "zero", "data", "allocated", "unknown")
#: Enumerations by type name.
ENUMS: Mapping[str, tuple[str, ...]] = {
    "XShimDisk": _ROLES,
    "XShimAllocation": _ALLOCATIONS,
    "XShimWorkflow": ("backup", "replication"),
    "XShimOperation": ("read", "write", "zero", "discard", "flush"),
    "XShimWriterKind": tuple(kind.value for kind in WriterKind),
    "XShimBundleKind": ("operations", "schedule"),
}
#: Objects by type name.
OBJECTS: Mapping[str, tuple[Field, ...]] = {
    "XShimEndpoint": _fields("export: str, node: str, uri: str"),
    "XShimNode": _fields("disk: XShimDisk, node: str"),
    "XShimUnobserved": _fields(
        "writer: XShimWriterKind, name: str, node: str, since: str, after-operation: int, "
        "chain: str"
    ),
    "XShimChain": _fields(
        "workflow: XShimWorkflow, stage: str, size: int, cluster-size: int, nodes: [XShimNode], "
        "*error: str, name: str, *job: str, divergences: int, doubts: [str]"
    ),
    "XShimStatus": _fields(
        "clients: int, commands: int, malformed: int, events: int, operations: int, "
        "divergences: int, doubts: [str], endpoints: [XShimEndpoint], *hung: int, "
        "unobserved: [XShimUnobserved], chains: [XShimChain], *chain: XShimChain, "
        "*not-modelled: str"
    ),
    "XShimExtent": _fields(
        "offset: int, length: int, operation: int, zero: bool, *allocation: XShimAllocation"
    ),
    "XShimPrediction": _fields(
        "node: str, offset: int, length: int, extents: [XShimExtent], sha256: str, *data: str, "
        "unobserved: [XShimUnobserved]"
    ),
    "XShimVerdict": _fields(
        "verdict: str, where: str, operation: int, predicted: str, observed: str"
    ),
    "XShimVerification": _fields(
        "as-predicted: bool, verdicts: [XShimVerdict], compared: int, doubts: [str], "
        "chains: [XShimVerifiedChain]"
    ),
    "XShimVerifiedChain": _fields(
        "name: str, as-predicted: bool, verdicts: [XShimVerdict], compared: int, doubts: [str], "
        "bitmaps: [str]"
    ),
    "XShimRun": _fields("start: int, count: int, allocation: XShimAllocation"),
    "XShimDiskMap": _fields("disk: XShimDisk, node: str, runs: [XShimRun]"),
    "XShimMap": _fields(
        "cluster-size: int, clusters: int, disks: [XShimDiskMap], *not-modelled: str"
    ),
    "XShimReplay": _fields("reproduced: bool, operations: int, *verdict: XShimVerdict"),
    "XShimRecord": _fields("*kind: XShimBundleKind, *case: any, *shows: str, *not-modelled: str"),
    "XShimRule": _fields("*disk: XShimDisk, *operation: XShimOperation, metadata: bool"),
    "XShimHeldIO": _fields(
        "number: int, disk: XShimDisk, operation: str, offset: int, length: int, step: str"
    ),
    "XShimHeld": _fields(
        "rules: [XShimRule], held: [XShimHeldIO], in-flight: [str], next-operation: int, "
        "*not-gated: str"
    ),
    "XShimSchedule": _fields("steps: [str], *not-gated: str"),
    "XShimWatched": _fields("node: str"),
    "XShimNothing": (),
    "XShimHung": _fields("seconds: int, commands: [str]"),
    "XShimAnswers": _fields("seconds: int"),
    "XShimGone": _fields("reason: str, *status: int, *signal: int"),
}
_CHAIN = _fields("*chain: str")  # which of several: a job's id or a node's name
_NOT_MODELLED = "not-modelled"
_NO_MAP = Empty(_NOT_MODELLED, {"cluster-size": 0, "clusters": 0, "disks": []})
_NO_SCHEDULE = Empty("not-gated", {"steps": []})
_NONE_HELD = Empty("not-gated", {"rules": [], "held": [], "in-flight": [], "next-operation": 0})
#: The commands by name.
COMMANDS: Mapping[str, Definition] = {
    "x-shim-status": Definition(_CHAIN, "XShimStatus"),
    "x-shim-predict": Definition(
        _fields("node: str, *offset: int, *length: int, *data: bool, *chain: str"),
        "XShimPrediction",
    ),
    "x-shim-verify": Definition(_CHAIN, "XShimVerification"),
    "x-shim-map": Definition(_CHAIN, "XShimMap", empty=_NO_MAP),
    "x-shim-checkpoint": Definition((), "XShimNothing"),
    "x-shim-watch-node": Definition(_fields("node: str"), "XShimWatched"),
    "x-shim-replay": Definition(_fields("bundle: str"), "XShimReplay"),
    "x-shim-record": Definition(_CHAIN, "XShimRecord", empty=Empty(_NOT_MODELLED, {})),
    "x-shim-hold": Definition(
        _fields("*disk: XShimDisk, *operation: XShimOperation, *metadata: bool"),
        "XShimHeld",
        oob=True,
        empty=_NONE_HELD,
    ),
    "x-shim-let": Definition((), "XShimHeld", oob=True, empty=_NONE_HELD),
    "x-shim-held": Definition((), "XShimHeld", oob=True, empty=_NONE_HELD),
    "x-shim-release": Definition(
        _fields("*number: int, *errno: int"), "XShimHeld", oob=True, empty=_NONE_HELD
    ),
    "x-shim-schedule": Definition((), "XShimSchedule", oob=True, empty=_NO_SCHEDULE),
}
EVENTS: Mapping[str, str] = {
    "X_SHIM_DIVERGENCE": "XShimVerdict",
    "X_SHIM_HELD": "XShimHeldIO",
    "X_SHIM_QEMU_ANSWERS": "XShimAnswers",
    "X_SHIM_QEMU_GONE": "XShimGone",
    "X_SHIM_QEMU_HUNG": "XShimHung",
}
_JSON_TYPES = {"int": "int", "str": "string", "bool": "boolean", "any": "value"}
_EXPECTED = {**_JSON_TYPES, "int": "integer"}
_PYTHON = {"int": int, "str": str, "bool": bool}


def check(name: str, arguments: Mapping[str, Value]) -> None:
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
        fits = _PYTHON.get(field.type, str)
        if not isinstance(value, fits) or (fits is int and isinstance(value, bool)):
            kind = _EXPECTED.get(field.type, "string")
            raise InputError(f"Invalid parameter type for '{field.name}', expected: {kind}")
        if field.type in ENUMS and value not in ENUMS[field.type]:
            raise InputError(f"Invalid parameter '{value}'")
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
        for name in _JSON_TYPES  # QEMU has them, unless it uses none
    ]
    for name, values in ENUMS.items():
        listed = [{"name": value} for value in values]
        entities.append(
            {"name": name, "meta-type": "enum", "values": list(values), "members": listed}
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
                **({"allow-oob": True} if definition.oob else {}),
            }
        )
    for event, data in EVENTS.items():
        entities.append({"name": event, "meta-type": "event", "arg-type": data})
    entities += [
        {"name": array, "meta-type": "array", "element-type": array[1:-1]}
        for array in sorted(arrays)
    ]
    return entities
