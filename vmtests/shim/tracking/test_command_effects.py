"""What commands may write to, read from their arguments."""

from __future__ import annotations

from typing import Any

import pytest

from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.tracking.command_effects import BackupStart, Effect, backup_starts, effects, moves


def _command(name: str, arguments: dict[str, Any]) -> Command:
    return Command(name, arguments, None, False)


def _line(text: str) -> Command:
    return _command("human-monitor-command", {"command-line": text})


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (_line('qemu-io a "write -P 3 0 64k"'), ("a",)),
        (_line('qemu-io -d /machine/x "discard 0 1M"'), ("/machine/x",)),
        (_line('qemu-io "a" "aio_write 0 512"'), ("a",)),
        (_line("loadvm s"), ()),
        (_command("block_resize", {"node-name": "a", "size": 1}), ("a",)),
        (_command("blockdev-backup", {"device": "x", "target": "a", "sync": "full"}), ("a",)),
        (_command("blockdev-mirror", {"device": "x", "target": "a", "speed": 1}), ("x", "a")),
        (_command("blockdev-reopen", {"options": [{"node-name": "a"}]}), ("a",)),
    ],
)
def test_writes(command: Command, names: tuple[str, ...]) -> None:
    assert [effect.names for effect in effects(command)] == [names]
    action = {"type": command.name, "data": command.arguments}
    assert effects(_command("transaction", {"actions": [action]})) == effects(command)


@pytest.mark.parametrize(
    "command",
    [
        *(_line('qemu-io a "read 0 64k"'), _line("info block"), _line("")),
        _command("blockdev-backup", {"device": "a", "target": "b", "sync": "none"}),
        _command("block-dirty-bitmap-add", {"node": "a", "name": "b"}),
        *(_command("transaction", {}), _command("transaction", {"actions": [1, {}]})),
    ],
)
def test_writes_nothing(command: Command) -> None:
    assert effects(command) == []
    assert not moves(command)


def test_jobs_that_are_started() -> None:
    arguments = {"device": "a", "target": "b", "sync": "none"}
    to_file = {**arguments, "job-id": "j"}
    actions = [
        {"type": "block-dirty-bitmap-add", "data": {"node": "a", "name": "n"}},
        {"type": "blockdev-backup", "data": arguments},
        {"type": "drive-backup", "data": to_file},
        {"type": "blockdev-backup", "data": {**arguments, "sync": "full"}},
    ]
    command = _command("transaction", {"actions": actions})
    starts = [BackupStart("a", "a", "b"), BackupStart("j", "a", None)]
    assert backup_starts(command) == starts
    assert effects(command) == [Effect("blockdev-backup", ("b",))]


def test_moves() -> None:
    assert moves(_command("blockdev-snapshot", {"node": "a", "overlay": "b"}))
    assert moves(_line("snapshot_blkdev a b"))
