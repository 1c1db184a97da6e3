"""What may come next in a line of the shell: from the build's own schema, and what exists now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmpshim.shim.shell.json import locate
from qmpshim.shim.shell.language import in_transaction

LOCAL = {
    ":checkpoint": "take a checkpoint as the contract wants it",
    ":discard": "EXPORT OFFSET LENGTH: discard through an endpoint",
    ":events": "on or off: show events",
    ":fail": "NUMBER ERROR: end a held I/O with an error, e.g. EIO",
    ":flush": "EXPORT: flush through an endpoint",
    ":graph": "draw the block graph",
    ":held": "what is held and what is in flight (on a gated chain)",
    ":help": "[COMMAND [driver=qcow2]]: its arguments and types; qmp-shell: what differs there",
    ":hmp": "LINE: a line for the human monitor, as it stands",
    ":hold": "[DISK] [OPERATION] [metadata]: hold such I/O from now on (on a gated chain)",
    ":let": "hold nothing any more, and let go what is held",
    ":log": "FILE: write the lines there as they are typed, for --script; off: stop",
    ":map": "draw the clusters of the three disks",
    ":predict": "NODE [OFFSET [LENGTH]]: what the model predicts",
    ":quit": "(or exit) leave; a QEMU that the shell started ends",
    ":read": "EXPORT OFFSET LENGTH: read through an endpoint",
    ":record": "FILE: write what was done so far as a bundle for `qmpshim replay`",
    ":release": "NUMBER...|all: let go what is held",
    ":schedule": "what was done, in the explorer's words; BUNDLE [N]: take its (first N) steps",
    ":source": "FILE: run its lines",
    ":status": "what the shim knows",
    ":verbose": "on or off: show all QMP messages",
    ":verify": "hold QEMU against the model now",
    ":wait": "until nothing is in flight",
    ":write": "EXPORT (primary, guest or an NBD export's id) OFFSET LENGTH "
    "pattern|zero|zero-no-hole|0xNN",
}
#: Of what ``:hold`` holds the I/O, and which.
HELD_DISKS = ("secondary", "hidden", "active")
HELD_OPERATIONS = ("read", "write", "zero", "discard", "flush")
_HOLD = (*HELD_DISKS, *HELD_OPERATIONS, "metadata")
_HELP = (":help", "help", "?")
_NODES = frozenset(
    (
        *("node-name", "node", "device", "target", "file", "backing"),
        *("base-node", "top-node", "overlay", "image", "replaces"),
    )
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion.

    :ivar text: what to put there
    :ivar back: how many characters before the cursor it replaces
    :ivar meta: what it is
    """

    text: str
    back: int
    meta: str = ""


@dataclass(slots=True)
class LiveNames:
    """Names that exist right now."""

    nodes: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    disks: list[str] = field(default_factory=list)  # exports over NBD


class CommandSchema:
    """What ``query-qmp-schema`` answered."""

    def __init__(self, entities: Iterable[Mapping[str, Any]]) -> None:
        self._by_name = {entity["name"]: entity for entity in entities}
        self.commands = sorted(
            name for name, entity in self._by_name.items() if entity["meta-type"] == "command"
        )

    def members(
        self, command: str, path: Iterable[str | int], given: Any
    ) -> list[Mapping[str, Any]]:
        """The members of a command's arguments at *path*, union branches by what was *given*."""
        if command not in self.commands:
            return []
        type_, here = self._by_name[command]["arg-type"], given
        for name in path:
            found = self._child(type_, name, here)
            if found is None:
                return []
            type_, here = found["type"], _inside(here, name)
        return self._members(type_, here)

    def member(
        self, command: str, path: Iterable[str | int], given: Any
    ) -> Mapping[str, Any] | None:
        """The member at *path* itself, its name and type; an item of a list has the list's name."""
        *above, last = path
        if command not in self.commands:
            return None
        made = {"name": "", "type": self._by_name[command]["arg-type"]}
        here = given
        for name in (*above, last):
            found = self._child(made["type"], name, here)
            if found is None:
                return None
            made = {"name": found["name"] or made["name"], "type": found["type"]}
            here = _inside(here, name)
        return made

    def cases(self, command: str) -> tuple[str, list[str]]:
        """The argument that chooses between branches and its values; none: ("", [])."""
        entity = self._by_name[self._by_name[command]["arg-type"]]
        return entity.get("tag", ""), sorted(one["case"] for one in entity.get("variants", []))

    def _child(self, type_: str, name: str | int, given: Any) -> Mapping[str, Any] | None:
        if isinstance(name, int):
            for one in self._branches(type_):
                if self._by_name[one]["meta-type"] == "array":
                    return {"name": "", "type": self._by_name[one]["element-type"]}
            return None
        members = self._members(type_, given)
        return next((member for member in members if member["name"] == name), None)

    def _branches(self, type_: str) -> list[str]:
        entity = self._by_name[type_]
        if entity["meta-type"] != "alternate":
            return [type_]
        return [branch["type"] for branch in entity["members"]]

    def _members(self, type_: str, given: Any) -> list[Mapping[str, Any]]:
        entity = self._by_name[type_]
        if entity["meta-type"] == "alternate":
            for branch in entity["members"]:
                if found := self._members(branch["type"], given):
                    return found
            return []
        members = list(entity.get("members", []))
        tag = entity.get("tag")
        if tag and isinstance(given, Mapping):
            for variant in entity.get("variants", []):
                if variant["case"] == given.get(tag):
                    members += self._members(variant["type"], given)
        return members

    def values(self, type_: str) -> list[str]:
        """The values of an enumeration or boolean; [] for others."""
        entity = self._by_name[type_]
        match entity["meta-type"]:
            case "enum":
                return list(entity["values"])
            case "builtin":
                return ["true", "false"] if entity["json-type"] == "boolean" else []
            case "alternate":
                found = [self.values(branch["type"]) for branch in entity["members"]]
                return [value for values in found for value in values]
        return []

    def describe(self, type_: str) -> str:
        """A type in words."""
        entity = self._by_name[type_]
        match entity["meta-type"]:
            case "builtin":
                return str(entity["json-type"])
            case "enum":
                values = entity["values"]
                return "|".join(values[:8]) + ("|..." if len(values) > 8 else "")
            case "array":
                return f"[{self.describe(entity['element-type'])}]"
            case "alternate":
                return " or ".join(self.describe(b["type"]) for b in entity["members"])
        names = [member["name"] for member in entity.get("members", [])]
        return "{" + ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") + "}"


def _inside(here: Any, name: str | int) -> Any:
    if isinstance(name, int):
        return here[name] if isinstance(here, list) and name < len(here) else {}
    return here.get(name, {}) if isinstance(here, Mapping) else {}


def candidates(text: str, schema: CommandSchema, live: LiveNames) -> Iterator[Candidate]:
    """What may stand at the end of *text*."""
    stripped = text.lstrip()
    if stripped.startswith("{"):
        yield from _in_json(stripped, schema, live)
        return
    if in_transaction(stripped):
        yield from _in_transaction(stripped, schema, live)
        return
    words = stripped.split(" ")
    last = words[-1]
    if len(words) == 1:
        if last.startswith(":"):
            yield from (
                Candidate(word, len(last), meta)
                for word, meta in LOCAL.items()
                if word.startswith(last)
            )
            return
        yield from _starting(last, [*schema.commands, "help", "exit"])
    elif words[0] in _HELP and len(words) == 2:
        yield from _starting(last, [*schema.commands, "qmp-shell"])
    elif words[0] in _HELP and len(words) == 3 and words[1] in schema.commands:
        tag, cases = schema.cases(words[1])
        yield from _starting(last, [f"{tag}={case}" for case in cases])
    elif words[0] == ":predict" and len(words) == 2:
        yield from _starting(last, ["secondary", "hidden", "active", "top", *live.nodes])
    elif words[0] in (":write", ":read", ":discard", ":flush") and len(words) == 2:
        yield from _starting(last, ["primary", "guest", *live.disks])
    elif words[0] == ":write" and len(words) == 5:
        yield from _starting(last, ["pattern", "zero", "zero-no-hole"])
    elif words[0] == ":hold":
        unused = [word for word in _HOLD if word not in words[1:-1]]
        yield from _starting(last, unused)
    elif words[0] == ":release" and len(words) == 2:
        yield from _starting(last, ["all"])
    elif words[0] == ":fail" and len(words) == 3:
        yield from _starting(last, ["EIO", "ENOSPC"])
    elif words[0] in (":events", ":verbose") and len(words) == 2:
        yield from _starting(last, ["on", "off"])
    elif not words[0].startswith(":"):
        at = _Arguments(words[0], (), _given(words[1:-1]))
        yield from _argument(at, words[1:-1], last, schema, live)


def _in_transaction(text: str, schema: CommandSchema, live: LiveNames) -> Iterator[Candidate]:
    """An action of ``transaction(``: one a line."""
    action = text.removeprefix("transaction(").rpartition("\n")[2].lstrip()
    name, *words = action.split(" ")
    path = ("actions", 0)
    if not words:
        kind = schema.member("transaction", [*path, "type"], {})
        yield from _starting(name, schema.values(kind["type"]) if kind is not None else [])
        return
    given = {"actions": [{"type": name, "data": _given(words[:-1])}]}
    at = _Arguments("transaction", (*path, "data"), given)
    yield from _argument(at, words[:-1], words[-1], schema, live)


def _starting(part: str, names: Iterable[str]) -> Iterator[Candidate]:
    seen = dict.fromkeys(name for name in names if name.startswith(part))
    return (Candidate(name, len(part)) for name in seen)


def _given(words: Iterable[str]) -> dict[str, Any]:
    """The arguments typed so far, values as text."""
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        place = given
        *outer, name = key.split(".")
        for step in outer:
            inner = place.setdefault(step, {})
            place = inner if isinstance(inner, dict) else {}
        if equals:
            place[name] = value
    return given


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Which arguments are being typed.

    :ivar command: the command's name
    :ivar path: where in its arguments they are
    :ivar given: the command's arguments so far
    """

    command: str
    path: tuple[str | int, ...]
    given: Mapping[str, Any]


def _argument(
    at: _Arguments, before: list[str], last: str, schema: CommandSchema, live: LiveNames
) -> Iterator[Candidate]:
    key, equals, value = last.partition("=")
    *path, name = key.split(".")
    members = schema.members(at.command, (*at.path, *path), at.given)
    if equals:
        member = next((member for member in members if member["name"] == name), None)
        if member is not None:
            names = _values(at.command, member, schema, live)
            yield from _starting(value, names)
        return
    used = {word.partition("=")[0] for word in before}
    for member in members:
        full = ".".join([*path, member["name"]])
        if full in used or not full.startswith(key):
            continue
        inner = (*at.path, *path, member["name"])
        nested = bool(schema.members(at.command, inner, at.given))
        scalar = schema.values(member["type"])
        ending = "." if nested and not scalar else "="
        optional = "" if "default" not in member else "optional, "
        yield Candidate(full + ending, len(key), optional + schema.describe(member["type"]))


def _values(
    command: str, member: Mapping[str, Any], schema: CommandSchema, live: LiveNames
) -> list[str]:
    name = member["name"]
    values = schema.values(member["type"])
    if values:
        return values
    if name in ("id", "job-id", "device") and ("job" in command):
        return live.jobs
    if name == "id" and "export" in command:
        return live.exports
    if name in _NODES:
        return live.nodes
    return []


def _in_json(text: str, schema: CommandSchema, live: LiveNames) -> Iterator[Candidate]:
    place = locate(text)
    if not isinstance(place.root, dict) or not place.expects:
        return
    command = place.root.get("execute") or place.root.get("exec-oob") or ""
    path = [*place.path, place.key] if place.key is not None else place.path
    if place.expects == "key":
        if not path:
            used = place.root
            names = dict.fromkeys(("execute", "arguments", "id", "exec-oob"), "")
        elif path[0] == "arguments":
            used = _at(place.root, path)
            members = schema.members(str(command), path[1:], place.root["arguments"])
            names = {m["name"]: schema.describe(m["type"]) for m in members}
        else:
            return
        names = {name: meta for name, meta in names.items() if name not in used}
    elif place.key in ("execute", "exec-oob") and not place.path:
        names = dict.fromkeys(schema.commands, "")
    elif path and path[0] == "arguments":
        if place.key is None:  # an item of a list
            path = [*path, len(_at(place.root, path))]
        found = schema.member(str(command), path[1:], place.root.get("arguments", {}))
        if found is None:
            return
        names = dict.fromkeys(_values(str(command), found, schema, live), "")
    else:
        return
    for name, meta in names.items():
        if name.startswith(place.part):
            bare = place.quote or name in ("true", "false")
            yield Candidate(name if bare else f'"{name}"', len(place.part), meta)


def _at(root: Any, path: Iterable[str | int]) -> Any:
    """The container at *path*, which is there, as the cursor is in it."""
    for step in path:
        root = root[step]
    return root
