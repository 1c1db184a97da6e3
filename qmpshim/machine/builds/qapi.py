"""A build's own QMP schema (``query-qmp-schema``), and values held against it.

Source: QEMU docs/devel/qapi-code-gen, "Client JSON Protocol introspection".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

_JSON: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "value": lambda _value: True,
}


class MismatchKind(Enum):
    """In what a value differs from its type: the schema has no such name, ..."""

    UNKNOWN_NAME = "is not in the schema"  # of a command, an event or a member
    UNKNOWN_VALUE = "is {detail!r}, which its enumeration has not"
    WRONG_TYPE = "is no {detail}"
    MISSING = "is missing"


_LACKING = {MismatchKind.UNKNOWN_NAME, MismatchKind.UNKNOWN_VALUE}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference between a value and its type in the schema.

    :ivar place: where in the value, as in ``it.file.driver``
    :ivar detail: the value that the enumeration has not; or the JSON type that is wanted
    """

    kind: MismatchKind
    place: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place} {self.kind.value.format(detail=self.detail)}"


class Schema:
    """What ``query-qmp-schema`` answered."""

    def __init__(self, entities: Sequence[Mapping[str, Any]]) -> None:
        self._entities = {str(entity["name"]): entity for entity in entities}

    @property
    def commands(self) -> list[str]:
        """All commands."""
        return sorted(n for n, one in self._entities.items() if one["meta-type"] == "command")

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
        scalar = self._entities[type_]["meta-type"] in ("builtin", "enum")
        return self._json_of(type_) if scalar else None

    def lacking(self, command: str, arguments: Mapping[str, Any]) -> list[Mismatch]:
        """What the schema has not of a command with these arguments: it, members, enum values."""
        if command not in self._entities:
            return [Mismatch(MismatchKind.UNKNOWN_NAME, "it")]
        mismatches = self._mismatches(str(self._entities[command]["arg-type"]), arguments, "it")
        return [one for one in mismatches if one.kind in _LACKING]

    def missing(self, command: str, arguments: Mapping[str, Any]) -> str:
        """The first that it lacks of a command with these arguments, in words; ``""``: nothing.

        An enumeration's value, such as a driver, is named by itself, without its option.
        """
        found = self.lacking(command, arguments)
        for one in found:
            if one.kind is MismatchKind.UNKNOWN_VALUE:
                return one.detail
        if not found:
            return ""
        _, _, option = found[0].place.partition(".")
        return f"option {option} of {command}" if option else command

    def answer_mismatches(self, command: str, value: Any) -> list[Mismatch]:
        """In what a command's return value differs from what is promised."""
        return list(self._mismatches(str(self._entities[command]["ret-type"]), value, "return"))

    def event_mismatches(self, event: Mapping[str, Any]) -> list[Mismatch]:
        """In what an event differs from what is promised."""
        entity = self._entities.get(str(event["event"]))
        if entity is None or entity["meta-type"] != "event":
            return [Mismatch(MismatchKind.UNKNOWN_NAME, "it")]
        return list(self._mismatches(str(entity["arg-type"]), event.get("data", {}), "data"))

    def _mismatches(self, type_: str, value: Any, at: str) -> Iterator[Mismatch]:
        entity = self._entities[type_]
        if not self._is_json_of(type_, value):
            yield Mismatch(MismatchKind.WRONG_TYPE, at, self._json_of(type_))
            return
        match entity["meta-type"]:
            case "enum" if value not in entity["values"]:
                yield Mismatch(MismatchKind.UNKNOWN_VALUE, at, value)
            case "array":
                for item in value:
                    yield from self._mismatches(str(entity["element-type"]), item, f"{at}[]")
            case "alternate":  # no two of them have the same JSON type
                of_this_type = (
                    name
                    for member in entity["members"]
                    if self._is_json_of(name := str(member["type"]), value)
                )
                yield from self._mismatches(next(of_this_type), value, at)
            case "object":
                yield from self._object(entity, value, at)

    def _is_json_of(self, type_: str, value: Any) -> bool:
        """Whether a value is of the JSON type that a type, or one of an alternate's, has."""
        entity = self._entities[type_]
        if entity["meta-type"] == "alternate":
            return any(self._is_json_of(str(m["type"]), value) for m in entity["members"])
        return _JSON[self._json_of(type_)](value)

    def _json_of(self, type_: str) -> str:
        entity = self._entities[type_]
        kind = str(entity["meta-type"])
        return (
            str(entity["json-type"]) if kind == "builtin" else "string" if kind == "enum" else kind
        )

    def _object(
        self, entity: Mapping[str, Any], value: Mapping[str, Any], at: str
    ) -> Iterator[Mismatch]:
        members = {str(m["name"]): m for m in entity.get("members", ())}
        for variant in entity.get("variants", ()):
            if value.get(str(entity["tag"])) == variant["case"]:
                more = self._entities[str(variant["type"])].get("members", ())
                members |= {str(m["name"]): m for m in more}
        for name, member in members.items():
            if name in value:
                yield from self._mismatches(str(member["type"]), value[name], f"{at}.{name}")
            elif "default" not in member:
                yield Mismatch(MismatchKind.MISSING, f"{at}.{name}")
        for name in value.keys() - members.keys():
            yield Mismatch(MismatchKind.UNKNOWN_NAME, f"{at}.{name}")
