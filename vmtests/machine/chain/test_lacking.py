"""What a build's schema has not of a command is found from what its QEMU refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from qmpshim.errors import CommandFailed, OptionMissing
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.qapi import Mismatch, MismatchKind
from qmpshim.machine.chain.blocking import BlockingChain
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.chain.parts import Node
from qmpshim.machine.chain.secondary import ChainSpec

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
    value = [one.detail for one in mismatches if one.kind is MismatchKind.UNKNOWN_VALUE]
    place = mismatches[0].place.removeprefix("it.")
    missing = value[0] if value else command if place == "it" else f"option {place} of {command}"
    assert machine.schema.missing(command, arguments) == missing
    with pytest.raises(CommandFailed):
        machine.call(command, arguments)


def test_what_is_missing_is_called_by_its_name(qemu_build: Build) -> None:
    """And not as QEMU refuses it, which does not say of what it is a parameter."""
    nodes = (*SHAPE.topology.parts, Node("more", "none-such", {"file": "secondary"}))
    topology = replace(SHAPE.topology, parts=nodes)
    with pytest.raises(OptionMissing) as caught:
        GatedMachine(qemu_build, replace(SHAPE, topology=topology)).close()
    assert str(caught.value) == "this QEMU has no none-such"
    spec = ChainSpec("backup", 1 << 20, 1 << 16, "raw", (("secondary", "none-such", 1),))
    with pytest.raises(OptionMissing) as caught:
        BlockingChain(qemu_build, spec).close()
    assert str(caught.value) == "this QEMU has no option none-such of blockdev-add"


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


def test_another_process_has_the_same_while_its_greeting_is_the_same(
    machine: GatedMachine, qemu_build: Build
) -> None:
    """A build may be replaced by another one in its place."""
    with closing(GatedMachine(qemu_build, SHAPE)) as another:
        assert another.schema is machine.schema
        another.qmp.greeting = {"QMP": {}}
        assert another.schema is not machine.schema
        assert another.schema.commands == machine.schema.commands
