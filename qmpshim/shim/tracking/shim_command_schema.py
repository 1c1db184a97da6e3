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
    "XShimEndpoint": (Field("export", "str"), Field("node", "str"), Field("uri", "str")),
    "XShimNode": (Field("disk", "XShimDisk"), Field("node", "str")),
    "XShimUnobserved": (
        Field("writer", "XShimWriterKind"),
        Field("name", "str"),
        Field("node", "str"),
        Field("since", "str"),
        Field("after-operation", "int"),
        Field("chain", "str"),
    ),
    "XShimChain": (
        Field("workflow", "XShimWorkflow"),
        Field("stage", "str"),
        Field("size", "int"),
        Field("cluster-size", "int"),
        Field("nodes", "[XShimNode]"),
        Field("error", "str", True),
        Field("name", "str"),
        Field("job", "str", True),
        Field("divergences", "int"),
        Field("doubts", "[str]"),
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
        Field("hung", "int", True),
        Field("unobserved", "[XShimUnobserved]"),
        Field("chains", "[XShimChain]"),
        Field("chain", "XShimChain", True),
        Field("not-modelled", "str", True),
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
        Field("unobserved", "[XShimUnobserved]"),
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
        Field("chains", "[XShimVerifiedChain]"),
    ),
    "XShimVerifiedChain": (
        Field("name", "str"),
        Field("as-predicted", "bool"),
        Field("verdicts", "[XShimVerdict]"),
        Field("compared", "int"),
        Field("doubts", "[str]"),
        Field("bitmaps", "[str]"),
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
        Field("not-modelled", "str", True),
    ),
    "XShimReplay": (
        Field("reproduced", "bool"),
        Field("operations", "int"),
        Field("verdict", "XShimVerdict", True),
    ),
    "XShimRecord": (
        Field("kind", "XShimBundleKind", True),
        Field("case", "any", True),
        Field("shows", "str", True),
        Field("not-modelled", "str", True),
    ),
    "XShimRule": (
        Field("disk", "XShimDisk", True),
        Field("operation", "XShimOperation", True),
        Field("metadata", "bool"),
    ),
    "XShimHeldIO": (
        Field("number", "int"),
        Field("disk", "XShimDisk"),
        Field("operation", "str"),
        Field("offset", "int"),
        Field("length", "int"),
        Field("step", "str"),
    ),
    "XShimHeld": (
        Field("rules", "[XShimRule]"),
        Field("held", "[XShimHeldIO]"),
        Field("in-flight", "[str]"),
        Field("next-operation", "int"),
        Field("not-gated", "str", True),
    ),
    "XShimSchedule": (Field("steps", "[str]"), Field("not-gated", "str", True)),
    "XShimWatched": (Field("node", "str"),),
    "XShimNothing": (),
    "XShimHung": (Field("seconds", "int"), Field("commands", "[str]")),
    "XShimAnswers": (Field("seconds", "int"),),
    "XShimGone": (
        Field("reason", "str"),
        Field("status", "int", True),
        Field("signal", "int", True),
    ),
}
_CHAIN = Field("chain", "str", True)  # which of several: a job's id or a node's name
_NOT_MODELLED = "not-modelled"
_NO_MAP = Empty(_NOT_MODELLED, {"cluster-size": 0, "clusters": 0, "disks": []})
_NO_SCHEDULE = Empty("not-gated", {"steps": []})
_NONE_HELD = Empty("not-gated", {"rules": [], "held": [], "in-flight": [], "next-operation": 0})
#: The commands by name.
COMMANDS: Mapping[str, Definition] = {
    "x-shim-status": Definition((_CHAIN,), "XShimStatus"),
    "x-shim-predict": Definition(
        (
            Field("node", "str"),
            Field("offset", "int", True),
            Field("length", "int", True),
            Field("data", "bool", True),
            _CHAIN,
        ),
        "XShimPrediction",
    ),
    "x-shim-verify": Definition((_CHAIN,), "XShimVerification"),
    "x-shim-map": Definition((_CHAIN,), "XShimMap", empty=_NO_MAP),
    "x-shim-checkpoint": Definition((), "XShimNothing"),
    "x-shim-watch-node": Definition((Field("node", "str"),), "XShimWatched"),
    "x-shim-replay": Definition((Field("bundle", "str"),), "XShimReplay"),
    "x-shim-record": Definition((_CHAIN,), "XShimRecord", empty=Empty(_NOT_MODELLED, {})),
    "x-shim-hold": Definition(
        (
            Field("disk", "XShimDisk", True),
            Field("operation", "XShimOperation", True),
            Field("metadata", "bool", True),
        ),
        "XShimHeld",
        oob=True,
        empty=_NONE_HELD,
    ),
    "x-shim-let": Definition((), "XShimHeld", oob=True, empty=_NONE_HELD),
    "x-shim-held": Definition((), "XShimHeld", oob=True, empty=_NONE_HELD),
    "x-shim-release": Definition(
        (Field("number", "int", True), Field("errno", "int", True)),
        "XShimHeld",
        oob=True,
        empty=_NONE_HELD,
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
