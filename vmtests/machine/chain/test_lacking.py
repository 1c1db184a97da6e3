"""What a build's schema has not of a command is found from what its QEMU refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qmpshim.errors import CommandFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.qapi import Mismatch, MismatchKind
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine, Shape

SHAPE = Shape(TOPOLOGIES["backup"], 1 << 20, 1 << 16)
NODE = {"driver": "raw", "node-name": "one", "file": {"driver": "null-co", "size": 512}}


@pytest.fixture(scope="module")
def machine(qemu_build: Build) -> Iterator[GatedMachine]:
    with closing(GatedMachine(qemu_build, SHAPE)) as made:
        yield made


def unknown(place: str) -> Mismatch:
    return Mismatch(MismatchKind.UNKNOWN_NAME, place)


@pytest.mark.parametrize(
    ("command", "arguments", "mismatches"),
    [
        ("no-such-command", {}, [unknown("it")]),
        ("stop", {"one": 1}, [unknown("it.one")]),
        ("blockdev-add", {**NODE, "one": 1}, [unknown("it.one")]),
        (
            "blockdev-add",
            {**NODE, "file": {"driver": "null-co", "one": 1}},
            [unknown("it.file.one")],
        ),
        (
            "blockdev-add",
            {**NODE, "file": {"driver": "none-such"}},
            [Mismatch(MismatchKind.UNKNOWN_VALUE, "it.file.driver", "none-such")],
        ),
        (
            "transaction",
            {"actions": [{"type": "none-such", "data": {}}]},
            [
                Mismatch(MismatchKind.UNKNOWN_VALUE, "it.actions[].type", "none-such"),
                unknown("it.actions[].data"),
            ],
        ),
    ],
)
def test_what_the_schema_has_not(
    machine: GatedMachine, command: str, arguments: dict[str, Any], mismatches: list[Mismatch]
) -> None:
    assert machine.schema.lacking(command, arguments) == mismatches
    with pytest.raises(CommandFailed):
        machine.call(command, arguments)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("blockdev-add", {**NODE, "file": "no such node"}),
        ("blockdev-add", {**NODE, "file": 1}),  # neither a name nor an object
        ("blockdev-add", {**NODE, "discard": True}),
        ("blockdev-add", {"driver": "raw", "node-name": "one"}),
        ("blockdev-add", {**NODE, "node-name": "secondary"}),
        ("blockdev-del", {}),
        ("transaction", {"actions": {}}),
        ("transaction", {"actions": [{"type": "abort", "data": {}}]}),
    ],
)
def test_what_it_has_and_is_refused_nevertheless(
    machine: GatedMachine, command: str, arguments: dict[str, Any]
) -> None:
    """An argument that is wrong or missing is our mistake, and says nothing of the build."""
    assert machine.schema.lacking(command, arguments) == []
    with pytest.raises(CommandFailed):
        machine.call(command, arguments)


def test_it_is_asked_for_once(machine: GatedMachine) -> None:
    assert machine.schema is machine.schema
