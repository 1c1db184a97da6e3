"""The reactor's clients: a QEMU that goes away is told as such."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import MachineDied
from qmpshim.machine.reactor import Reactor
from qmpshim.machine.wire import WireNbd


def test_an_nbd_server_that_goes_away_before_the_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()

    class Left(socket.socket):
        """Connects, and the server is gone."""

        def connect(self, address: Any) -> None:
            super().connect(address)
            listening.close()

    monkeypatch.setattr(socket, "socket", Left)
    with contextlib.closing(Reactor()) as reactor, pytest.raises(MachineDied, match="NBD"):
        WireNbd(reactor, tmp_path / "s", "e")
