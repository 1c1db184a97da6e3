"""Every command that QEMU's qmp-cmd-test takes for a query answers, whatever there is to report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.shim.tracking.shim_command_schema import COMMANDS
from vmtests.support.stand_in import StandIn

#: Those of ours that are an errand of their own: they answer for the whole shim.
STATUS = {"x-shim-status", "x-shim-verify"}


@pytest.fixture
def shim(each_build: Build) -> Iterator[StandIn]:
    with StandIn(each_build) as made:
        yield made


def _queries(schema: list[dict[str, Any]]) -> list[str]:
    """Commands without mandatory arguments that return something (``add_query_tests``)."""
    entities = {entity["name"]: entity for entity in schema}
    found = []
    for entity in schema:
        if entity["meta-type"] == "command" and entity["name"] in COMMANDS:
            arguments = entities[entity["arg-type"]]
            returns = entities[entity["ret-type"]]
            mandatory = any("default" not in member for member in arguments["members"])
            if not mandatory and returns.get("members") != []:
                found.append(entity["name"])
    return found


def test_a_query_without_a_chain_answers_why(shim: StandIn) -> None:
    """A value, not an error; and it is what the schema says."""
    schema = shim.ask("query-qmp-schema")["return"]
    entities = {entity["name"]: entity for entity in schema}
    queries = _queries(schema)
    assert {"x-shim-map", "x-shim-record", "x-shim-held", "x-shim-hold"} <= set(queries)
    for name in sorted(set(queries) - STATUS):
        reply = shim.ask(name)
        assert "return" in reply, (name, reply)
        members = entities[entities[name]["ret-type"]]["members"]
        required = {member["name"] for member in members if "default" not in member}
        assert required <= reply["return"].keys() <= {m["name"] for m in members}, name
        why = reply["return"].keys() & {"not-modelled", "not-gated"}
        assert why and reply["return"][why.pop()].startswith("no chain is"), (name, reply)


def test_what_names_something_is_no_query(shim: StandIn) -> None:
    assert "no chain is gated" in shim.ask("x-shim-hold", {"disk": "hidden"})["error"]["desc"]
    assert "no chain is gated" in shim.ask("x-shim-release", {"number": 1})["error"]["desc"]
    assert "no chain is modelled" in shim.ask("x-shim-checkpoint")["error"]["desc"]
