"""A kind of check: the same bytes to a QEMU directly and to another through the shim.

To a client the shim is QEMU, so every answer must be the same: to JSON that is none, and to each
command of the build with arguments it does not know.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.errors import BuildError, MachineDied, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import bare, launch
from qmpshim.model.check.verdict import Verdict
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.endpoint.background import background

ANSWER_LIMIT = 20.0
#: What QEMU's own tests/qtest/qmp-test.c sends, and more of the kind.
MALFORMED = (
    b"null",
    b"{}",
    b"{]\n",
    b"{\xff",
    b"{'execute': true }",
    b"{'execute': 'nonexistent', 'id':'\n",
    b"{ 'execute': 'no-such-cmd', 'arguments': [] }",
    b"{ 'execute': 'no-such-cmd', 'extra': true }",
    b"{'execute': 'x', 'execute': 'y'}",
    b"[1 2] [1,,2] [,] [1,] :",
    b"'\\ud800' '\\udc00' '\\x' '\xc3\xa9' '\xed\xa0\x80'",
    b"[" * 1025 + b"]" * 1025,
    b"{'execute': 'query-version', 'id': [1.0, -0, 1e20, 9223372036854775808, {'b': {}, 'a': []}]}",
    b"{'execute': 'query-version'}{'execute': 'query-name'}  {'execute':\n'query-uuid'}",
    b"{'execute': 'qmp_capabilities', 'arguments': {'enable': ['no-such']}}",
    b"{'exec-oob': 'query-name', 'id': 1}",
    b"{'execute': 'stop'} {'execute': 'stop'} {'execute': 'cont', 'id': 'c'}",
    b"{'execute': 'stop'}{'execute': 'query-status', 'id': 'a'}{'execute': 'cont', 'id': 'b'}",
    b"{'execute': 'no-such'} {] {'execute': 'query-name', 'ID': 3}",
    b"{'execute': 'query-name', 'id': 0.1, 'arguments': {'x': 1}}",
    b"{'execute': 'balloon', 'arguments': {'value': 1.0}}",
    b"% foo bar ] 5",
)


def run(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """No arguments.

    :param directory: gets what the QEMU that is connected to directly writes
    """
    found: list[CaseFinding] = []
    with (
        _direct(build, directory) as direct,
        background(Options(build=build)) as served,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.connect(str(served.addresses[0].path))
        through = _Connection(sock)
        connections = (direct, through)
        cases = [*MALFORMED, b"{'execute': 'qmp_capabilities'}", *MALFORMED]
        first = [_normal(connection.message()) for connection in connections]
        if first[0] != first[1]:
            found.append(_difference(case, b"(nothing)", first[0], first[1]))
        sent = 0
        names: list[str] | None = None
        while cases:
            data = cases.pop(0)
            sent += 1
            try:
                answers = [connection.exchange(data) for connection in connections]
            except (MachineDied, MachineHung) as error:
                verdict = Verdict.CRASH if isinstance(error, MachineDied) else Verdict.HANG
                found.append(_found(case, verdict, data, "an answer", str(error)))
                break
            if answers[0] != answers[1]:
                found.append(_difference(case, data, answers[0], answers[1]))
            if not cases and names is None:
                listed = direct.exchange(b"{'execute': 'query-commands'}")
                (listed,) = [one["return"] for one in listed if "return" in one]
                names = sorted(one["name"] for one in listed)
                through.exchange(b"{'execute': 'query-commands'}")
                cases = [
                    b'{"execute": "%s", "arguments": {"x-no-such": 1}, "id": 7}' % name.encode()
                    for name in names
                    if name != "query-qmp-schema"  # takes it in 5.2, and lists x-shim commands
                ]
    return CaseOutcome(
        Status.DIVERGED if found else Status.OK,
        f"{sent} requests, each directly and through the shim",
        tuple(found),
        {"requests": sent},
    )


def _difference(case: Case, data: bytes, direct: Any, through: Any) -> CaseFinding:
    return _found(
        case,
        Verdict.PROTOCOL,
        data,
        f"directly: {str(direct)[:500]}",
        f"shim: {str(through)[:500]}",
    )


def _found(case: Case, verdict: Verdict, data: bytes, predicted: str, observed: str) -> CaseFinding:
    sent = data[:60].decode(errors="replace")
    return CaseFinding(
        verdict,
        f"the shim differs: {sent}",
        f"the shim before QEMU answers {sent!r} otherwise than QEMU"
        + ("" if verdict is Verdict.PROTOCOL else f": {observed}"),
        predicted,
        observed,
    )


class _Number(str):
    """A number as it was written; equal to no string that was one."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Number) and str.__eq__(self, other)

    __hash__ = str.__hash__


class _Connection:
    """A blocking client."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_LIMIT)
        self._sock = sock
        self._file = sock.makefile("rb")
        self._mark = 0

    def message(self) -> Any:
        """The next message.

        :raises MachineDied: the connection ended
        :raises MachineHung: nothing came
        """
        try:
            line = self._file.readline()
        except TimeoutError as error:
            raise MachineHung(f"no answer in {ANSWER_LIMIT:g} s") from error
        except OSError as error:
            raise MachineDied(f"the connection ended: {error}") from error
        if not line:
            raise MachineDied("the connection ended")
        line = re.sub(rb"(?<=[ \[])(inf|nan)(?=[,\]}])", rb'"\1"', line)
        # To Python 1, 1.0 and True are equal; to a client they are not.
        return json.loads(line, parse_int=_Number, parse_float=_Number)

    def exchange(self, data: bytes) -> list[Any]:
        """What *data* leads to; events last, since their place among the answers is chance.

        0xFF brings the parser out of whatever state it is in (QEMU's docs/interop/qmp-spec).
        """
        self._mark += 1
        mark = f"x-mark-{self._mark}"
        try:
            self._sock.sendall(data + b'\xff{"execute": "query-name", "id": "%s"}' % mark.encode())
        except OSError as error:
            raise MachineDied(f"the connection ended: {error}") from error
        messages: list[Any] = []
        while (message := self.message()).get("id") != mark:
            messages.append(_normal(message))
        return sorted(messages, key=lambda one: "event" in one)


def _normal(message: Any) -> Any:
    """A message without what differs from run to run."""
    if isinstance(message, dict):
        return {k: _normal(v) for k, v in message.items() if k != "timestamp"}
    return message


@contextlib.contextmanager
def _direct(build: Build, directory: Path) -> Iterator[_Connection]:
    argv = bare(build.emulator_command(), build.no_machine)
    process, ours = launch(argv, build.no_machine, directory, build.environment())
    try:
        with ours:
            yield _Connection(ours)
    except MachineDied as error:
        raise BuildError(f"{build.name} ended before it greeted") from error
    finally:
        process.kill()
        process.wait()
