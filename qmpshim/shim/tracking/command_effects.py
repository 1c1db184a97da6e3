"""What a client's command may change by itself, read from its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qmpshim.shim.endpoint.session import Command

_JOBS = ("blockdev-backup", "drive-backup")
#: These write to nodes that their arguments name, or below them.
_WRITING = frozenset(
    {
        *("block_resize", "block-commit", "block-stream", "blockdev-create"),
        *("blockdev-mirror", "drive-mirror", "blockdev-reopen", "x-blockdev-reopen"),
        *("blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"),
        *("snapshot-load", "snapshot-save", "snapshot-delete"),
    }
)
#: After these what an export or a device writes to may be another node.
_MOVING = frozenset(
    {
        *("blockdev-snapshot", "blockdev-snapshot-sync", "blockdev-reopen", "x-blockdev-reopen"),
        *("x-blockdev-change", "blockdev-insert-medium", "blockdev-change-medium", "change"),
        *("block-job-complete", "job-complete"),
    }
)
#: After these there may be another writer.
_BRINGING = frozenset(
    {
        *("block-export-add", "nbd-server-add", "device_add", "human-monitor-command"),
        *("migrate-incoming", "job-finalize", "block-job-finalize"),
    }
)
#: All that concern a chain that is followed, beside backup jobs and ``transaction``.
NOTED = _WRITING | _MOVING | _BRINGING

#: These put other contents, or another size, in a disk's place.
_REPLACING = frozenset({"block_resize", "snapshot-load"})
_HMP_REPLACING = frozenset({"block_resize", "loadvm"})
_USING = frozenset({*_JOBS, "blockdev-mirror"})
#: Alone, beside ``transaction``.
BITMAP_COMMANDS = frozenset(
    f"block-dirty-bitmap-{verb}"
    for verb in ("add", "remove", "clear", "enable", "disable", "merge")
)

# HMP. What is in neither table changes no disk by itself, but may bring a writer.
_HMP_WRITING = frozenset(
    {
        *("block_resize", "block_stream", "commit", "drive_mirror", "loadvm", "savevm", "delvm"),
        *("snapshot_blkdev", "snapshot_blkdev_internal", "snapshot_delete_blkdev_internal"),
    }
)
_HMP_MOVING = frozenset({"block_job_complete", "change", "snapshot_blkdev"})
_QEMU_IO = re.compile(r'\s*qemu-io\s+(?:-d\s+)?("[^"]*"|\S+)\s*(.*)', re.DOTALL)
_READING = frozenset(
    {
        *("read", "readv", "r", "aio_read", "map", "alloc", "length", "l", "info", "i"),
        *("flush", "f", "aio_flush", "sleep", "help", "h", "?", "quit", "q", ""),
    }
)


@dataclass(frozen=True, slots=True)
class Effect:
    """A command writes.

    :ivar names: among them are the nodes, backends or devices to which it may; none: any
    """

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupStart:
    """A ``sync=none`` backup job is started.

    :ivar job: its id
    :ivar device: node or backend to copy from
    :ivar target: node to copy to; None: one that QEMU makes for a file
    """

    job: str
    device: str
    target: str | None


def backup_starts(command: Command) -> list[BackupStart]:
    """The jobs that a command starts, alone or in a transaction."""
    return [
        BackupStart(
            str(arguments.get("job-id") or arguments.get("device")),
            str(arguments.get("device")),
            str(arguments.get("target")) if name == "blockdev-backup" else None,
        )
        for name, arguments in parts(command)
        if name in _JOBS and arguments.get("sync") == "none"
    ]


def used_bitmaps(command: Command) -> list[str]:
    """The names of the bitmaps that the jobs which a command starts use, and change."""
    found = (arguments.get("bitmap") for name, arguments in parts(command) if name in _USING)
    return [name for name in found if isinstance(name, str)]


def ends_bitmaps(command: Command) -> bool:
    """Whether after a command bitmaps may name less than what was seen to be written to a disk."""
    return moves(command) or any(
        name in _REPLACING
        or (name == "human-monitor-command" and _first(arguments) in _HMP_REPLACING)
        for name, arguments in parts(command)
    )


def effects(command: Command) -> list[Effect]:
    """What a command may write to beside what the chains' own jobs do."""
    found = []
    for name, arguments in parts(command):
        if name in _JOBS:
            if arguments.get("sync") != "none":
                found.append(Effect(name, (str(arguments.get("target")),)))
        elif name in _WRITING:
            found.append(Effect(name, tuple(_texts(arguments))))
        elif name == "human-monitor-command":
            found += _monitor_line(str(arguments.get("command-line")))
    return found


def moves(command: Command) -> bool:
    """Whether clients' writes may go elsewhere after a command."""
    return any(
        name in _MOVING or (name == "human-monitor-command" and _first(arguments) in _HMP_MOVING)
        for name, arguments in parts(command)
    )


def parts(command: Command) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The command's name and arguments; of a transaction those of its actions."""
    arguments: Mapping[str, Any] = command.arguments or {}
    if command.name != "transaction":
        yield command.name, arguments
        return
    actions = arguments.get("actions")
    for action in actions if isinstance(actions, list) else ():
        if isinstance(action, dict) and isinstance(action.get("data"), dict):
            yield str(action.get("type")), action["data"]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _monitor_line(line: str) -> Iterator[Effect]:
    if match := _QEMU_IO.fullmatch(line):
        target, what = match[1].strip('"'), match[2].strip().strip('"').split()
        if (what[0] if what else "") not in _READING:
            yield Effect(line.strip(), (target,))
    elif _first({"command-line": line}) in _HMP_WRITING:
        yield Effect(line.strip(), ())


def _first(arguments: Mapping[str, Any]) -> str:
    """The first word of a line for the human monitor."""
    return next(iter(str(arguments.get("command-line")).split()), "")
