"""QMP commands as data, and the same with more arguments of the backup jobs that they start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

BACKS_UP = "blockdev-backup"
TRANSACTION = "transaction"


@dataclass(frozen=True, slots=True)
class QmpCommand:
    """A QMP command and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drains(self) -> bool:
        """Whether all requests under way end before it does anything.

        A transaction drains all disks first, and a backup job is started by one
        (``qmp_transaction``, ``blockdev_do_action``, blockdev.c; QEMU 5.2, 7.2 and 10.0).
        """
        return self.name in (BACKS_UP, TRANSACTION)

    def to_json(self) -> list[Any]:
        """Name and arguments, for a script that sends it."""
        return [self.name, dict(self.arguments)]

    def to_words(self) -> str:
        """Name and arguments, as they are typed in the shell."""
        values = (
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.arguments.items()
        )
        return " ".join((self.name, *values))


def actions_of(command: QmpCommand) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a command does, one or, in a transaction, several: names and arguments."""
    if command.name != TRANSACTION:
        yield command.name, command.arguments
        return
    for action in command.arguments["actions"]:
        yield action["type"], action["data"]


def with_arguments(command: QmpCommand, options: Mapping[str, Any]) -> QmpCommand:
    """A command with more arguments of the backup job that it starts, if it does."""
    if command.name == BACKS_UP:
        return replace(command, arguments=_nested(command.arguments, options))
    if command.name != TRANSACTION:
        return command
    actions = [
        {"type": kind, "data": _nested(data, options) if kind == BACKS_UP else data}
        for kind, data in actions_of(command)
    ]
    return replace(command, arguments={**command.arguments, "actions": actions})


def _nested(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments and more of them; ``x-perf.max-workers`` is one of ``x-perf``."""
    arguments: dict[str, Any] = dict(given)
    for option, value in options.items():
        outer, dot, inner = option.partition(".")
        arguments[outer] = {**arguments.get(outer, {}), inner: value} if dot else value
    return arguments
