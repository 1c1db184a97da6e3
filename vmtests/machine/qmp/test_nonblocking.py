"""The QMP client of the event loop: nonsense is reported as such."""

from __future__ import annotations

import contextlib
import socket

import pytest

from qmpshim.errors import CommandFailed, ProtocolBroken
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.qmp.nonblocking import NonBlockingQmp


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"qemu: warning", "no JSON"),
        (b"[1]", "no message"),
        (b'{"return": {}}', "nothing that was asked"),
        (b'{"return": {}, "id": 2}', "nothing that was asked"),
        (b'{"return": {}, "id": [1]}', "nothing that was asked"),
        (b'{"id": 1}', "neither an event nor an answer"),
        (b'{"error": "no", "id": 1}', "neither an event nor an answer"),
        (b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_not_qmp_is_reported_at_once(sent: bytes, why: str) -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        contextlib.closing(ManualEventLoop()) as loop,
        contextlib.closing(NonBlockingQmp(loop, ours)) as qmp,
    ):
        theirs.sendall(sent + b"\r\n")
        with pytest.raises(ProtocolBroken, match=why):
            qmp.call("query-name")


def test_an_answer_is_taken_once() -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        contextlib.closing(ManualEventLoop()) as loop,
        contextlib.closing(NonBlockingQmp(loop, ours)) as qmp,
    ):
        theirs.sendall(b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\n')
        with pytest.raises(CommandFailed, match="query-name: no"):
            qmp.call("query-name")
        theirs.sendall(b'{"return": {}, "id": 1}\n')
        with pytest.raises(ProtocolBroken, match="nothing that was asked"):
            qmp.call("query-name")
