"""The shell's own ``:commands``: drawings, queries of the model, held I/O."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from qmpshim.conformance.bundles.again import replay_command
from qmpshim.errors import InputError, os_errors
from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.shell.client import ShellClient
from qmpshim.shim.shell.completion import LOCAL, CommandSchema
from qmpshim.shim.shell.gated import WORDS as GATED
from qmpshim.shim.shell.gated import Gated
from qmpshim.shim.shell.io import Disks, Flights
from qmpshim.shim.shell.language import DEVIATIONS, size

_CELLS = {"unallocated": ".", "zero": "0", "allocated": "+", "data": "#"}
_RANK = ".0+#"
#: Words that only a shim can answer; a plain QEMU does not know its commands.
NEEDS_SHIM = frozenset(
    (
        *("checkpoint", "map", "predict", "record", "status", "verify"),
        *("discard", "flush", "read", "write"),
        *(word for word in GATED if word != "wait"),
    )
)


def draw_map(reply: Mapping[str, Any], width: int) -> list[str]:
    """The disks' clusters, one line a disk; a cell stands for one cluster or more.

    :param reply: what ``x-shim-map`` returned
    :param width: cells
    """
    clusters = int(reply["clusters"])
    per_cell = max(1, -(-clusters // width))
    lines = [f"{clusters} clusters of {reply['cluster-size']} bytes, {per_cell} to a cell"]
    for disk in reply["disks"]:
        cells = ["."] * -(-clusters // per_cell)
        for run in disk["runs"]:
            mark = _CELLS[run["allocation"]]
            first, last = run["start"], run["start"] + run["count"] - 1
            for cell in range(first // per_cell, last // per_cell + 1):
                cells[cell] = max(cells[cell], mark, key=_RANK.index)
        lines.append(f"{disk['disk']:>9} {''.join(cells)}")
    return [*lines, "          . falls through  0 zeroes  # data  + one of the two"]


def draw_graph(reply: Mapping[str, Any]) -> list[str]:
    """The block graph as trees, from the nodes without a parent.

    :param reply: what ``x-debug-query-block-graph`` returned
    """
    nodes = {node["id"]: node for node in reply["nodes"]}
    children: dict[int, list[tuple[str, int]]] = {}
    for edge in reply["edges"]:
        children.setdefault(edge["parent"], []).append((edge["name"], edge["child"]))
    below = {child for edges in children.values() for _, child in edges}
    lines: list[str] = []

    def walk(number: int, name: str, depth: int, above: frozenset[int]) -> None:
        node = nodes[number]
        label = node["name"] or node["type"]
        kind = {"block-driver": "", "block-backend": " (backend)", "block-job": " (job)"}
        lines.append(f"{'  ' * depth}{name + ': ' if name else ''}{label}{kind[node['type']]}")
        if number not in above:
            for edge, child in children.get(number, []):
                walk(child, edge, depth + 1, above | {number})

    for number in nodes:
        if number not in below:
            walk(number, "", 0, frozenset())
    return lines


def explain(schema: CommandSchema, command: str, tag: str = "") -> list[str]:
    """A command's arguments and their types.

    :param tag: of a union's branches only this one, as ``driver=qcow2``
    :raises InputError: there is no such command, or no such branch
    """
    if command not in schema.commands:
        raise InputError(f"{command} is no command of this build")
    common = schema.members(command, [], {})
    lines = [command, *(f"  {_describe_member(schema, member)}" for member in common)]
    name, cases = schema.cases(command)
    branches = {f"{name}={case}": case for case in cases}
    if tag and tag not in branches:
        raise InputError(f"{command} has no {tag}" + (f": {name} chooses" if name else ""))
    for branch, case in branches.items():
        own = schema.members(command, [], {name: case})[len(common) :]
        if own and tag in ("", branch):
            lines.append(f"  with {branch}")
            lines += [f"    {_describe_member(schema, member)}" for member in own]
    return lines


def _describe_member(schema: CommandSchema, member: Mapping[str, Any]) -> str:
    optional = " (optional)" if "default" in member else ""
    return f"{member['name']}: {schema.describe(member['type'])}{optional}"


class Words:
    """Runs the ``:words``.

    :param write_line: prints a line
    :param run_file: runs the lines of a file
    :param switch: turns an option of the shell on or off, or sets it
    :param flights: what is under way
    :param address: of the shim or QEMU
    :param build: what runs, if this shell started it
    """

    def __init__(
        self,
        client: ShellClient,
        schema: CommandSchema,
        write_line: Callable[[str], None],
        run_file: Callable[[str], Awaitable[bool]],
        switch: Callable[[str, str], None],
        width: Callable[[], int],
        flights: Flights,
        address: Address,
        build: Build | None,
    ) -> None:
        self._client = client
        self._schema = schema
        self._write_line = write_line
        self._run_file = run_file
        self._switch = switch
        self._width = width
        self._flights = flights
        self._address = address
        self._build = build
        self._disks = Disks(client, flights)
        self._gated = Gated(client, self._disks, flights, write_line)

    async def run(self, name: str, words: Sequence[str]) -> bool:
        """Run one; gives whether all is as it should be.

        :raises QmpshimError: it cannot be done
        """
        self._needs_shim(name)
        match name, *words:
            case ("help", "qmp-shell"):
                self._show(f"{d.here}; qmp-shell: {d.there}    {d.line!r}" for d in DEVIATIONS)
            case "help", command, *tag if len(tag) <= 1:
                self._show(explain(self._schema, command, *tag))
            case ("help",):
                self._show(f"{word:12} {text}" for word, text in LOCAL.items())
            case "map", *_:
                self._show(draw_map(await self._modelled("x-shim-map"), self._width() - 12))
            case "hmp", line:
                await self._flights.wait(f"hmp {line}", self._hmp(line))
            case ("graph",):
                reply = await self._client.execute("x-debug-query-block-graph")
                self._show(draw_graph(reply))
            case ("status",):
                self._write_line(json.dumps(await self._client.execute("x-shim-status"), indent=2))
            case ("checkpoint",):
                await self._client.execute("x-shim-checkpoint")
            case ("verify",):
                return await self._verify()
            case "predict", node, *place if len(place) <= 2:
                await self._predict(node, place)
            case "write", side, offset, length, what:
                job = self._disks.write(side, size(offset), size(length), what)
                await self._flights.wait(" ".join((name, *words)), job)
            case "read", side, offset, length:
                job = self._disks.read(side, size(offset), size(length))
                await self._flights.wait(" ".join((name, *words)), job)
            case "discard", side, offset, length:
                job = self._disks.discard(side, size(offset), size(length))
                await self._flights.wait(" ".join((name, *words)), job)
            case "flush", side:
                await self._flights.wait(f"flush {side}", self._disks.flush(side))
            case (("verbose" | "events"), ("on" | "off") as value):
                self._switch(name, value)
            case "log", value:
                self._switch(name, value)
            case "record", path:
                await self._record(path)
            case "source", path:
                return await self._run_file(path)
            case _ if name in GATED and await self._gated.run(name, words):
                pass
            case _:
                known = LOCAL.get(f":{name}")
                raise InputError(
                    f":{name} is no word of the shell: try :help"
                    if known is None
                    else f"write :{name} {known}"
                )
        return True

    def _needs_shim(self, name: str) -> None:
        """Refuse a word that a plain QEMU knows nothing of.

        :raises InputError: the other side is no shim
        """
        if name in NEEDS_SHIM and "x-shim-status" not in self._schema.commands:
            here = quote(str(self._address))
            raise InputError(
                f":{name} asks a shim, and this is a plain QEMU: leave, start "
                f"`qmpshim serve --qmp {here} --listen ./shim.sock`, and then "
                "`qmpshim shell ./shim.sock`"
            )

    async def _hmp(self, line: str) -> str:
        arguments = {"command-line": line}
        reply = str(await self._client.execute("human-monitor-command", arguments))
        return reply.replace("\r", "").rstrip("\n")

    def close(self) -> None:
        """Hang up at the disks."""
        self._disks.close()

    async def _modelled(self, command: str) -> dict[str, Any]:
        """What a query about the chain answers.

        :raises InputError: there is no chain that is modelled
        """
        reply: dict[str, Any] = await self._client.execute(command)
        if why := reply.get("not-modelled"):
            raise InputError(why)
        return reply

    async def _record(self, path: str) -> None:
        await self._flights.land(5.0)
        reply = await self._modelled("x-shim-record")
        _write(path, json.dumps(reply["case"], indent=1) + "\n")
        again = replay_command(Path(path), self._build)
        self._write_line(f"wrote {path}; `{again}` shows: {reply['shows']}")

    def _show(self, lines: Any) -> None:
        for line in lines:
            self._write_line(line)

    async def _verify(self) -> bool:
        reply = await self._client.execute("x-shim-verify")
        for verdict in reply["verdicts"]:
            self._write_line(
                f"{verdict['verdict']}: {verdict['where']}: predicted {verdict['predicted']}; "
                f"observed {verdict['observed']}"
            )
        for doubt in reply["doubts"]:
            self._write_line(f"cannot say: {doubt}")
        if reply["as-predicted"]:
            self._write_line(f"as predicted: {reply['compared']} bytes compared")
        return bool(reply["as-predicted"])

    async def _predict(self, node: str, place: Sequence[str]) -> None:
        arguments: dict[str, Any] = {"node": node}
        for name, text in zip(("offset", "length"), place, strict=False):
            arguments[name] = size(text)
        reply = await self._client.execute("x-shim-predict", arguments)
        for extent in reply["extents"]:
            owner = f"operation {extent['operation']}" if extent["operation"] else "nobody"
            what = f"zeroes of {owner}" if extent["zero"] else f"data of {owner}"
            kind = f", {extent['allocation']}" if "allocation" in extent else ""
            self._write_line(f"{extent['offset']:#12x} +{extent['length']:#x} {what}{kind}")
        self._write_line(f"sha256 {reply['sha256']}")


def _write(path: str, text: str) -> None:
    with os_errors(InputError, f"cannot write {path}"):
        Path(path).write_text(text)
