"""Accepts a served QEMU's clients: at the given addresses, and at the monitors it replaces."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import threading
import time
from contextlib import AsyncExitStack

from qmpshim.shim.emulator.monitors import Monitor
from qmpshim.shim.endpoint.client import Client
from qmpshim.shim.endpoint.link import NO_RECEIVER, Batch, Link
from qmpshim.shim.endpoint.listener import Address, Listener
from qmpshim.shim.endpoint.server import Shim


def inherited_fds() -> tuple[int, ...]:
    """The inherited descriptors that this process's parent meant for QEMU."""
    return tuple(
        fd
        for fd in (int(name) for name in os.listdir("/proc/self/fd"))
        if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)
    )


_LAST_WORDS = 1.0  # seconds that standard output may take for them


class ClientAcceptor:
    """Lets clients in before there is a shim: they wait inside."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._early: list[tuple[socket.socket, bool]] = []
        self._stdio: socket.socket | None = None
        self._stdio_client: Client | None = None
        self._printing: Link | None = None
        self._shim: Shim | None = None
        self._came = asyncio.Event()
        stack.callback(self._turn_away)
        self._wait = False
        self.inherited = inherited_fds()

    @property
    def stdio(self) -> bool:
        """Whether a client is on standard input and output."""
        return self._stdio is not None

    def print(self, text: bytes) -> None:
        """What QEMU prints goes to standard output, in its place among the client's messages.

        Before the client is served, and after it has left, to the output alone.
        """
        client = self._stdio_client
        if client is not None and not client.link.closed:
            client.printed(text)
        else:
            assert self._printing is not None
            self._printing.write(text)

    def _attach(self, sock: socket.socket, pretty: bool = False) -> None:
        if self._shim is None:
            self._early.append((sock, pretty))
            self._came.set()
        else:
            self._serve(self._shim, sock, pretty)

    def _serve(self, shim: Shim, sock: socket.socket, pretty: bool) -> None:
        client = shim.attach(sock, pretty)
        if sock is self._stdio:
            self._stdio_client = client

    async def listen(
        self,
        address: Address,
        allow_remote: bool = False,
        tls: ssl.SSLContext | None = None,
        pretty: bool = False,
    ) -> Address:
        attach = functools.partial(self._attach, pretty=pretty)
        listener = Listener(address, attach, allow_remote, tls)
        self._stack.push_async_callback(listener.close)
        return listener.address

    async def open(self, monitor: Monitor) -> None:
        """Open the listener or connection that a monitor of the command line requests."""
        if monitor.stdio:
            await self._standard_streams(monitor.pretty)
        elif monitor.fd is not None:
            sock = socket.socket(fileno=monitor.fd)
            if monitor.server:
                attach = functools.partial(self._attach, pretty=monitor.pretty)
                listener = Listener.inherited(sock, attach)
                self._stack.push_async_callback(listener.close)
            else:
                self._attach(sock, monitor.pretty)
        elif monitor.address is not None and monitor.server:
            await self.listen(monitor.address, pretty=monitor.pretty)
            self._wait = self._wait or monitor.wait
        elif monitor.address is not None:
            self._attach(await monitor.address.connect(), monitor.pretty)

    async def wait_for_clients(self) -> None:
        """QEMU with ``wait=on`` does nothing before its first client is there."""
        if self._wait:
            await self._came.wait()

    def attach_to(self, shim: Shim) -> None:
        self._shim = shim
        for sock, pretty in self._early:
            self._serve(shim, sock, pretty)
        self._early.clear()

    def _turn_away(self) -> None:
        """The clients that connected before a shim existed for them."""
        for sock, _ in self._early:
            sock.close()
        self._early.clear()

    async def _standard_streams(self, pretty: bool) -> None:
        """Pass them on in threads: they may be files, or a terminal that others share."""
        ours, theirs = socket.socketpair()
        self._stdio = theirs
        printing = self._printing = Link(theirs.dup(), NO_RECEIVER, Batch())
        self._attach(theirs, pretty)

        def inwards() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(0, 1 << 16):
                    ours.sendall(data)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_WR)

        def outwards() -> None:
            with contextlib.suppress(OSError):
                while data := ours.recv(1 << 16):
                    while data:
                        data = data[os.write(1, data) :]
            with contextlib.suppress(OSError):  # the client is gone
                ours.shutdown(socket.SHUT_RDWR)

        writing = threading.Thread(target=outwards, daemon=True)
        writing.start()
        threading.Thread(target=inwards, daemon=True).start()

        async def end() -> None:
            deadline = time.monotonic() + _LAST_WORDS
            while printing.backlog and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            printing.close()
            while writing.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            if not writing.is_alive():
                ours.close()

        self._stack.push_async_callback(end)
