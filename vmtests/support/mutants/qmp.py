"""Mutants of the monitor: what is sent to QEMU, and what comes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.machine.chain.gated import GatedMachine
from vmtests.support.directed import Mutant

Arguments = Mapping[str, Any]
Call = Callable[[str, Arguments], Any]


def calling(other: Callable[[Call, str, Arguments], Any]) -> Mutant:
    """Commands are done in another way.

    :param other: is given the way that the machine has, and a command's name and arguments
    """

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def called(name: str, arguments: Arguments | None = None) -> Any:
            return other(call, name, arguments or {})

        machine.call = called  # type: ignore[method-assign, assignment]

    return mutant


def answering(command: str, change: Callable[[Any], Any]) -> Mutant:
    """What a command returns is changed."""

    def other(call: Call, name: str, arguments: Arguments) -> Any:
        value = call(name, arguments)
        return change(value) if name == command else value

    return calling(other)


def asking_otherwise(change: Callable[[str, Arguments], Arguments | None]) -> Mutant:
    """Commands have other arguments.

    :param change: of a command's name and arguments; None: it is not sent, and says success
    """

    def other(call: Call, name: str, arguments: Arguments) -> Any:
        changed = change(name, arguments)
        return {} if changed is None else call(name, changed)

    return calling(other)


def asking(command: str, **changes: Any) -> Mutant:
    """A command has other arguments; without any it is not sent, and says success."""

    def change(name: str, arguments: Arguments) -> Arguments | None:
        if name != command:
            return arguments
        return {**arguments, **changes} if changes else None

    return asking_otherwise(change)


def still_exported(machine: GatedMachine) -> None:
    """The export that should be removed stays, and is not shown."""
    asking("block-export-del")(machine)
    answering("query-block-exports", lambda value: [])(machine)


def started(machine: GatedMachine) -> None:
    """Replication runs already."""
    machine.start()


def larger(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All nodes have a sector more."""
    for node in nodes:
        node["image"]["virtual-size"] += 512
    return nodes


def all_shared(node: str) -> Mutant:
    """Every permission of a node is shared."""
    return _permissions(node, {"shared-perm": ["write", "resize"]})


def without_child(node: str) -> Mutant:
    """The block graph has the node, and no edge to it."""

    def change(graph: Any) -> Any:
        (own,) = (one["id"] for one in graph["nodes"] if one["name"] == node)
        return {**graph, "edges": [e for e in graph["edges"] if e["child"] != own]}

    return answering("x-debug-query-block-graph", change)


def none_taken(node: str) -> Mutant:
    """No permission of a node is taken."""
    return _permissions(node, {"perm": []})


def _permissions(node: str, change: dict[str, list[str]]) -> Mutant:
    def changed(graph: dict[str, Any]) -> dict[str, Any]:
        (number,) = (one["id"] for one in graph["nodes"] if one["name"] == node)
        edges = [{**e, **(change if e["child"] == number else {})} for e in graph["edges"]]
        return {**graph, "edges": edges}

    return answering("x-debug-query-block-graph", changed)


#: A disk that should shrink to its first size says success.
not_shrunk = asking_otherwise(
    lambda name, arguments: (
        None if (name, arguments.get("size")) == ("block_resize", 2 * CLUSTER) else arguments
    )
)


def more_done(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All jobs have copied a sector more."""
    return [{**job, "offset": job["offset"] + 512} for job in jobs]


def not_recording(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """No bitmap records."""
    for node in nodes:
        for bitmap in node.get("dirty-bitmaps", []):
            bitmap["recording"] = False
    return nodes


def jobs_failed(machine: GatedMachine) -> None:
    """Each job that ended has failed, as its event has it."""

    def failed(status: Any) -> Any:
        for event in machine.qmp.events:
            if event.get("event") == "BLOCK_JOB_COMPLETED":
                event["data"]["error"] = "no space"
        return status

    answering("query-version", failed)(machine)


def event_without_reason(machine: GatedMachine) -> None:
    """A disk of the quorum is reported as bad."""
    machine.qmp.events.append({"event": "QUORUM_REPORT_BAD", "data": {"node-name": "forward"}})


def other_job_failed(machine: GatedMachine) -> None:
    """A job is reported to have ended before."""
    data = {"device": "backup", "offset": 0, "len": 2 * CLUSTER, "error": "no space"}
    machine.qmp.events.append({"event": "BLOCK_JOB_COMPLETED", "data": data})


@calling
def not_cancelled(call: Call, name: str, arguments: Arguments) -> Any:
    """A job that is to be cancelled is done at full speed."""
    if name == "block-job-cancel":
        return call("block-job-set-speed", {**arguments, "speed": 0})
    return call(name, arguments)
