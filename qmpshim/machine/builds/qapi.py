"""A build's own QMP schema (``query-qmp-schema``), and values held against it.

Source: QEMU docs/devel/qapi-code-gen, "Client JSON Protocol introspection".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_JSON: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "value": lambda _value: True,
}


class Schema:
    """What ``query-qmp-schema`` answered."""

    def __init__(self, entities: Sequence[Mapping[str, Any]]) -> None:
        self._entities = {str(entity["name"]): entity for entity in entities}

    def _named(self, kind: str) -> list[str]:
        return sorted(n for n, one in self._entities.items() if one["meta-type"] == kind)

    @property
    def commands(self) -> list[str]:
        """All commands."""
        return self._named("command")

    @property
    def events(self) -> list[str]:
        """All events."""
        return self._named("event")

    def dangling(self) -> list[str]:
        """Types that are used and not there."""
        used: set[str] = set()
        for entity in self._entities.values():
            used |= {
                str(entity[k]) for k in ("arg-type", "ret-type", "element-type") if k in entity
            }
            if entity["meta-type"] != "enum":  # whose members have names only
                used |= {str(m["type"]) for m in entity.get("members", ())}
            used |= {str(v["type"]) for v in entity.get("variants", ())}
        return sorted(used - self._entities.keys())

    def members(self, command: str) -> list[Mapping[str, Any]]:
        """The members of a command's arguments."""
        return list(self._entities[self._entities[command]["arg-type"]].get("members", ()))

    def required(self, command: str) -> list[str]:
        """Arguments that a command cannot do without."""
        return [str(m["name"]) for m in self.members(command) if "default" not in m]

    def json_type(self, type_: str) -> str | None:
        """The JSON type of a built-in type or an enumeration; None for others."""
        entity = self._entities[type_]
        if entity["meta-type"] == "enum":
            return "string"
        return str(entity["json-type"]) if entity["meta-type"] == "builtin" else None

    def argument_faults(self, command: str, arguments: Mapping[str, Any]) -> list[str]:
        """Why the build does not take a command with these arguments, whatever their values do."""
        if command not in self._entities:
            return ["it is not in the schema"]
        return list(self._faults(str(self._entities[command]["arg-type"]), arguments, "it"))

    def answer_faults(self, command: str, value: Any) -> list[str]:
        """In what a command's return value differs from what is promised."""
        return list(self._faults(str(self._entities[command]["ret-type"]), value, "return"))

    def event_faults(self, event: Mapping[str, Any]) -> list[str]:
        """In what an event differs from what is promised."""
        entity = self._entities.get(str(event["event"]))
        if entity is None or entity["meta-type"] != "event":
            return ["it is not in the schema"]
        return list(self._faults(str(entity["arg-type"]), event.get("data", {}), "data"))

    def _faults(self, type_: str, value: Any, at: str) -> Iterator[str]:
        entity = self._entities[type_]
        kind = entity["meta-type"]
        if kind == "builtin":
            if not _JSON[entity["json-type"]](value):
                yield f"{at} is no {entity['json-type']}"
        elif kind == "enum":
            if value not in entity["values"]:
                yield f"{at} is {value!r}, which its enumeration has not"
        elif kind == "array":
            if not isinstance(value, list):
                yield f"{at} is no array"
                return
            for item in value:
                yield from self._faults(str(entity["element-type"]), item, f"{at}[]")
        elif kind == "alternate":
            faults = [list(self._faults(str(m["type"]), value, at)) for m in entity["members"]]
            if all(faults):
                yield f"{at} is none of its alternatives"
        elif kind == "object":
            yield from self._object(entity, value, at)

    def _object(self, entity: Mapping[str, Any], value: Any, at: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{at} is no object"
            return
        members = {str(m["name"]): m for m in entity.get("members", ())}
        for variant in entity.get("variants", ()):
            if value.get(str(entity["tag"])) == variant["case"]:
                more = self._entities[str(variant["type"])].get("members", ())
                members |= {str(m["name"]): m for m in more}
        for name, member in members.items():
            if name in value:
                yield from self._faults(str(member["type"]), value[name], f"{at}.{name}")
            elif "default" not in member:
                yield f"{at}.{name} is missing"
        for name in value.keys() - members.keys():
            yield f"{at}.{name} is not in the schema"
