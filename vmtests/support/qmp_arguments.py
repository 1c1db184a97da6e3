"""Arguments for every command of a build, from its own schema: right, missing, wrong, extra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Commands whose right arguments would end QEMU, or make it wait for something.
NOT_RIGHT = {"quit", "system_powerdown", "system_reset", "qmp_capabilities"}
#: Commands whose answers depend on things that are not the same in two processes.
NOT_SAME = {"query-qmp-schema", "query-commands", "query-chardev"}


class Schema:
    """What ``query-qmp-schema`` answered."""

    def __init__(self, entities: list[dict[str, Any]]) -> None:
        self._by_name = {entity["name"]: entity for entity in entities}

    @property
    def commands(self) -> list[str]:
        """The names of all commands."""
        return sorted(n for n, e in self._by_name.items() if e["meta-type"] == "command")

    def members(self, command: str) -> list[dict[str, Any]]:
        """The members of a command's arguments."""
        return list(self._by_name[self._by_name[command]["arg-type"]].get("members", []))

    def value(self, type_: str, depth: int = 0) -> Any:
        """A smallest value of a type."""
        entity = self._by_name[type_]
        match entity["meta-type"]:
            case "builtin":
                return {"int": 0, "boolean": False, "number": 0.5, "null": None, "value": 1}.get(
                    entity["json-type"], "x"
                )
            case "enum":
                return entity["values"][0]
            case "array":
                return [self.value(entity["element-type"], depth + 1)] if depth < 6 else []
            case "alternate":
                return self.value(entity["members"][0]["type"], depth + 1)
        made = {
            member["name"]: self.value(member["type"], depth + 1)
            for member in entity.get("members", [])
            if "default" not in member and depth < 6
        }
        tag = entity.get("tag")
        for variant in entity.get("variants", []):
            if made.get(tag) == variant["case"]:
                made |= self.value(variant["type"], depth + 1)
        return made

    def cases(self, command: str) -> Iterator[dict[str, Any]]:
        """Requests for a command, some right and most not."""
        members = self.members(command)
        right = self.value(self._by_name[command]["arg-type"])
        yield {"execute": command, "arguments": {**right, "x-no-such": 1}, "id": [command]}
        for member in members[:3]:
            name = member["name"]
            yield {"execute": command, "arguments": {**right, name: {"wrong": []}}}
            yield {"execute": command, "arguments": {**right, name: [0.25]}, "id": None}
            if name in right:
                yield {
                    "execute": command,
                    "arguments": {k: v for k, v in right.items() if k != name},
                    "id": 1.5,
                }
        if command not in NOT_RIGHT and command not in NOT_SAME:
            if any("default" not in member for member in members):
                yield {"execute": command, "id": "none"}
            yield {"execute": command, "arguments": right, "id": {"right": [1, 2.5]}}
        yield {"exec-oob": command, "arguments": {"x-no-such": right}}
