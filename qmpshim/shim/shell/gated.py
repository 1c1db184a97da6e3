"""The shell's words for a gated chain: hold, see what is held, let go, take a schedule's steps."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.harness.choices import Fail, RealChoice, Start
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.scenarios import BASE
from qmpshim.errors import InputError
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR
from qmpshim.shim.shell.client import ShellClient
from qmpshim.shim.shell.completion import HELD_DISKS, HELD_OPERATIONS
from qmpshim.shim.shell.io import Disks, Flights

WORDS = ("hold", "held", "let", "release", "fail", "schedule", "wait")
_PATIENCE = 10.0  # seconds until a step must have become possible
_COMMANDS = TOPOLOGIES["replication"].commands
_REQUESTS = (
    *(Verb.READ, Verb.WRITE, Verb.WRITE_FUA, Verb.ZERO, Verb.ZERO_NO_HOLE),
    *(Verb.DISCARD, Verb.FLUSH),
)


class Gated:
    """Runs them.

    :param write_line: prints a line
    """

    def __init__(
        self, client: ShellClient, disks: Disks, flights: Flights, write_line: Callable[[str], None]
    ) -> None:
        self._client = client
        self._disks = disks
        self._flights = flights
        self._write_line = write_line

    async def run(self, name: str, words_: Sequence[str]) -> bool:
        """Run one; False: there is no such word.

        :raises QmpshimError: it cannot be done
        """
        match name, *words_:
            case ("hold", *what):
                self._show(await self._send("x-shim-hold", _rule(what)))
            case ("held",):
                self._show(await self._send("x-shim-held"))
            case ("let",):
                self._show(await self._send("x-shim-let"))
            case ("release", *which) if which:
                await self._release(which)
            case "fail", which, how:
                number = {"number": _number(which), "errno": _errno(how)}
                await self._send("x-shim-release", number)
            case ("wait",):
                if not await self._flights.land(_PATIENCE):
                    raise InputError(f"still in flight: {', '.join(self._flights.there)}")
            case ("schedule",):
                for line in (await self._send("x-shim-schedule"))["steps"]:
                    self._write_line(line)
            case "schedule", path, *most if len(most) <= 1:
                await self._take(Path(path), _number(most[0]) if most else None)
            case _:
                return False
        return True

    async def _send(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        # Out of band: a command may be blocked by the very I/O that is to be let go.
        reply = await self._client.execute(command, arguments, oob=True)
        if why := reply.get("not-gated"):
            raise InputError(why)
        return reply

    def _show(self, reply: dict[str, Any]) -> None:
        for rule in reply["rules"]:
            what = [rule.get("disk", "any disk"), rule.get("operation", "any I/O")]
            self._write_line(" ".join(["holding", *what, *["with metadata"] * rule["metadata"]]))
        if not reply["rules"]:
            self._write_line("holding nothing that comes")
        for held in reply["held"]:
            self._write_line(f"{held['number']:4} {held['step']}")
        for line in self._flights.there:
            self._write_line(f"in flight as {line}")

    async def _release(self, which: Sequence[str]) -> None:
        if list(which) == ["all"]:
            await self._send("x-shim-release")
            return
        for number in [_number(text) for text in which]:
            await self._send("x-shim-release", {"number": number})

    # -- schedules ------------------------------------------------------------

    async def _take(self, path: Path, most: int | None) -> None:
        """Take the steps of a bundle, the first *most* of them; then it is the person's turn."""
        finding = load_finding(path)
        for op in (*finding.scenario.setup, *finding.scenario.ops):
            _check(op)
        reply = await self._send("x-shim-held")
        if reply["held"] or reply["in-flight"]:
            raise InputError("something is held or in flight: end it first")
        for op in finding.scenario.setup:
            self._write_line(f"before: {op}")
            await self._job(op)
        await self._send("x-shim-hold")
        here: dict[int, int] = {}  # what the schedule's operations are called here
        for step in finding.schedule[:most]:
            await self._step(step, finding.scenario.ops, here)
        if most is None:
            await self._send("x-shim-let")

    async def _step(self, step: RealChoice, ops: Sequence[Operation], here: dict[int, int]) -> None:
        if isinstance(step, Start):
            op = ops[step.op]
            before = int((await self._send("x-shim-held"))["next-operation"])
            here[step.op] = before - 1 - BASE
            self._write_line(f"start {step.op}: {op}")
            await self._flights.wait(str(op), self._job(op))
            await self._until(lambda reply: reply["next-operation"] > before or not _listed(op))
            return
        error = [step.fault] if isinstance(step, Fail) else []
        name = f"{step.io} (of {here[step.op]})"
        number = await self._until(
            lambda reply: next((h["number"] for h in reply["held"] if h["step"] == name), None)
        )
        if number is None:
            raise InputError(f"the schedule cannot be followed: {name} is not held")
        self._write_line(f"{'fail' if error else 'complete'} {step.io} (of {step.op})")
        how = {"errno": int(error[0]) or errno.EIO} if error else {}
        await self._send("x-shim-release", {"number": number, **how})

    async def _until(self, look: Callable[[dict[str, Any]], Any]) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if found := look(await self._send("x-shim-held")):
                return found
            await asyncio.sleep(0.01)
        return None

    def _job(self, op: Operation) -> Coroutine[Any, Any, str]:
        if op.is_command:
            command = _COMMANDS[op.verb]
            return self._command(command.name, dict(command.arguments))
        side = op.side
        place = op.start * SECTOR, op.count * SECTOR
        match op.verb:
            case Verb.WRITE | Verb.WRITE_FUA:
                return self._disks.write(side, *place, "pattern", op.makes_durable)
            case Verb.ZERO | Verb.ZERO_NO_HOLE:
                return self._disks.write(side, *place, op.verb.replace("_", "-"))
            case Verb.DISCARD:
                return self._disks.discard(side, *place)
            case Verb.FLUSH:
                return self._disks.flush(side)
            case Verb.READ:
                return self._quiet_read(side, *place)
        raise NotImplementedError(op.name)  # _check() refuses it

    async def _quiet_read(self, side: str, offset: int, length: int) -> str:
        await self._disks.read(side, offset, length)
        return f"read {length} bytes at {offset} through {side}"

    async def _command(self, command: str, arguments: dict[str, Any]) -> str:
        await self._client.execute(command, arguments)
        return command


def _check(op: Operation) -> None:
    """That the shell can do an operation of a schedule.

    :raises InputError: it cannot
    """
    if op.verb not in (_COMMANDS if op.is_command else _REQUESTS):
        raise InputError(f"the shell cannot do {op}: `qmpshim replay` takes the whole schedule")


def _listed(op: Operation) -> bool:
    """Whether the shim records an operation: a mere query is no step there."""
    return op.verb not in (Verb.STATUS, Verb.UNEXPORT)


def _rule(what: Sequence[str]) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    for word in what:
        if word in HELD_DISKS:
            rule["disk"] = word
        elif word in HELD_OPERATIONS:
            rule["operation"] = word
        elif word == "metadata":
            rule["metadata"] = True
        else:
            raise InputError(
                f"{word!r}: hold a disk ({', '.join(HELD_DISKS)}), an operation "
                f"({', '.join(HELD_OPERATIONS)}), metadata"
            )
    return rule


def _number(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{text!r} is no number: `:held` lists them")
    return int(text)


def _errno(text: str) -> int:
    number = getattr(errno, text.upper(), None)
    if number is None and text.isdecimal() and int(text):
        number = int(text)
    if not isinstance(number, int):
        raise InputError(f"{text!r} is no error: write e.g. EIO or ENOSPC")
    return number
