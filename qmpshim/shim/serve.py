"""``qmpshim serve``: the endpoint as a service, and as a stand-in for the QEMU binary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qmpshim.conformance.real_stage import base_content
from qmpshim.errors import BuildError, InputError
from qmpshim.machine import builds
from qmpshim.machine.builds import Build, read_version
from qmpshim.machine.gate import Gate
from qmpshim.machine.gated_chain import Form
from qmpshim.machine.gated_secondary import GatedSecondary
from qmpshim.machine.secondary import SECTOR, ChainSpec, SecondaryChain
from qmpshim.machine.workspace import Workspace
from qmpshim.model.behaviour import Behaviour, behaviour_of
from qmpshim.shim.commands import Commands
from qmpshim.shim.emulator import Emulator
from qmpshim.shim.endpoint import Address, Listener, raise_fd_limit, tls_context
from qmpshim.shim.hand import Hand
from qmpshim.shim.hand_commands import held_io
from qmpshim.shim.logwatch import LoggedSecondary
from qmpshim.shim.monitors import Monitor, extract
from qmpshim.shim.schedule import Schedule
from qmpshim.shim.server import Shim
from qmpshim.shim.watch import Watch

log = logging.getLogger(__name__)

_INFORMATION = {"-version", "-help", "-h", "-daemonize", "-device=help"}


@dataclass(frozen=True, slots=True)
class Options:
    """What to serve.

    :ivar listen: where clients may come; none: a socket in a private directory
    :ivar qmp: a running QEMU's monitor; None: start one
    :ivar build: what to start
    :ivar arguments: QEMU's arguments; its QMP monitors become the shim's. None: a QEMU for block
        devices alone
    :ivar chain: a chain of disks to build before clients come
    :ivar gated: hold its storage in our hands: the secondary disk holds data, and replication (or
        backup) runs, as where the explorer begins
    :ivar log_writes: put writable exports on nodes that log for us: I/O is seen whichever way it
        comes
    :ivar machine: QEMU's ``-machine``, when it is for block devices alone
    :ivar allow_remote: listen where others can reach it; needs *tls*
    :ivar tls: a directory with ca-cert.pem, server-cert.pem and server-key.pem
    :ivar limit: seconds QEMU may take to answer the shim
    """

    listen: tuple[Address, ...] = ()
    qmp: Address | None = None
    build: Build | None = None
    arguments: tuple[str, ...] | None = None
    chain: ChainSpec | None = None
    gated: bool = False
    log_writes: bool = False
    machine: str = "none"
    allow_remote: bool = False
    tls: Path | None = None
    limit: float = 30.0


@dataclass(slots=True)
class Served:
    """A running endpoint.

    :ivar addresses: where clients may come
    :ivar emulator: the QEMU that was started, if one was
    :ivar chain: the chain that was built, if one was
    :ivar build: what was started
    """

    shim: Shim
    watch: Watch
    addresses: list[Address] = field(default_factory=list)
    emulator: Emulator | None = None
    chain: SecondaryChain | None = None
    build: Build | None = None


@asynccontextmanager
async def endpoint(options: Options) -> AsyncIterator[Served]:
    """Serve while the context lasts.

    :raises InputError: an option is wrong, an address cannot be used
    :raises HostError: QEMU cannot be run
    :raises BuildError: QEMU does not start, or cannot build the chain
    :raises MachineError: QEMU does not answer
    """
    if options.gated and options.log_writes:
        raise InputError("a gated chain's I/O is seen anyhow: leave out --log-writes")
    if options.gated and options.chain is None:
        raise InputError("--gated needs a chain: say which with --workflow")
    if options.qmp is not None and options.chain is not None:
        raise InputError("--workflow builds a chain on a QEMU of the shim's own, not with --qmp")
    raise_fd_limit()
    tls = tls_context(options.tls) if options.tls is not None else None
    arguments, monitors = extract(options.arguments or ())
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace())
        door = _Door(stack)
        listen = list(options.listen)
        if not listen and not monitors:
            listen = [Address(path=workspace.path / "qmp.sock")]
        addresses = [await door.listen(address, options.allow_remote, tls) for address in listen]
        for monitor in monitors:
            await door.open(monitor)
        await door.wait_for_clients()
        if options.qmp is not None:
            shim = Shim(await options.qmp.connect())
            stack.push_async_callback(shim.close)
            await shim.start(options.limit)
            version = shim.upstream.greeting["QMP"]["version"]["qemu"]
            number = (version["major"], version["minor"], version["micro"])
            served = _watched(shim, workspace, behaviour_of(number), None)
        else:
            served = await _started(options, arguments, workspace, stack, door)
        stack.push_async_callback(served.watch.close)
        if options.log_writes:
            served.watch.logs.watch_exports()
        door.attach_to(served.shim)
        served.addresses = addresses
        yield served


def _watched(shim: Shim, workspace: Workspace, behaviour: Behaviour, build: Build | None) -> Served:
    watch = Watch(shim, workspace.subdirectory("watch"), behaviour)
    Commands(shim, watch, build)
    return Served(shim, watch, build=build)


async def _started(
    options: Options,
    arguments: list[str],
    workspace: Workspace,
    stack: AsyncExitStack,
    door: _Door,
) -> Served:
    build = options.build or builds.resolve(None)
    inherit = options.arguments is not None
    argv = build.command()
    if inherit:
        argv += arguments
    else:
        argv += ["-machine", options.machine, "-nodefaults", "-display", "none"]
        argv += ["-no-user-config"]
    directory = workspace.subdirectory("qemu")
    emulator = Emulator(
        argv, directory, build.environment(), options.limit, inherit, door.inherited, door.stdio
    )
    await emulator.start()
    stack.push_async_callback(emulator.close)
    version, _ = read_version(build)
    served = _watched(emulator.shim, workspace, behaviour_of(version), build)
    served.emulator = emulator
    if options.chain is not None:
        await _chained(options, options.chain, served, build, stack)
    return served


async def _chained(
    options: Options, spec: ChainSpec, served: Served, build: Build, stack: AsyncExitStack
) -> None:
    """Build a chain on the QEMU that was started."""
    gated, log_writes = options.gated, options.log_writes
    emulator, watch = served.emulator, served.watch
    assert emulator is not None
    if gated:
        gate = Gate(tracing=False)
        await gate.start(emulator.directory / "gate.sock")
        sectors = spec.size // SECTOR
        images = GatedSecondary(emulator, spec, gate, base_content(sectors))
        stack.push_async_callback(images.forget)
        stack.push_async_callback(emulator.close)  # the images go after QEMU
        chain: SecondaryChain = images
    else:
        rest = (emulator, spec, emulator.directory, build.tool("qemu-img"))
        chain = LoggedSecondary(watch.logs, *rest) if log_writes else SecondaryChain(*rest)
    stack.callback(chain.close)
    await chain.build()
    chain.close()  # what is written now must come through the relays
    path = str(emulator.directory / "nbd.sock")
    watch.endpoints.server_at({"type": "unix", "data": {"path": path}})
    served.chain = chain
    if gated:
        schedule = Schedule(Form(spec.workflow.value), sectors, spec.cluster // SECTOR)
        hand = watch.hand = Hand(
            *(gate, emulator.pid, schedule),
            lambda held: watch.shim.emit("X_SHIM_HELD", held_io(held)),
        )
        stack.push_async_callback(hand.close)  # or QEMU would never end
        with hand.aside():
            await watch.start()
        schedule.forget()
    await watch.endpoints.told()


def _inherited_fds() -> tuple[int, ...]:
    """Descriptors that whoever started this process meant for QEMU."""
    return tuple(
        fd
        for fd in (int(name) for name in os.listdir("/proc/self/fd"))
        if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)
    )


class _Door:
    """Lets clients in before there is a shim: they wait inside."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._early: list[socket.socket] = []
        self._shim: Shim | None = None
        self._came = asyncio.Event()
        self._wait = False
        self.inherited = _inherited_fds()
        self.stdio = False

    def _attach(self, sock: socket.socket) -> None:
        if self._shim is None:
            self._early.append(sock)
            self._came.set()
        else:
            self._shim.attach(sock)

    async def listen(
        self, address: Address, allow_remote: bool = False, tls: ssl.SSLContext | None = None
    ) -> Address:
        listener = Listener(address, self._attach, allow_remote, tls)
        self._stack.push_async_callback(listener.close)
        return listener.address

    async def open(self, monitor: Monitor) -> None:
        """Make what a monitor of the command line asks for."""
        if monitor.stdio:
            self.stdio = True
            await self._standard_streams()
        elif monitor.fd is not None:
            sock = socket.socket(fileno=monitor.fd)
            if monitor.server:
                listener = Listener.inherited(sock, self._attach)
                self._stack.push_async_callback(listener.close)
            else:
                self._attach(sock)
        elif monitor.address is not None and monitor.server:
            await self.listen(monitor.address)
            self._wait = self._wait or monitor.wait
        elif monitor.address is not None:
            self._attach(await monitor.address.connect())

    async def wait_for_clients(self) -> None:
        """QEMU with ``wait=on`` does nothing before its first client is there."""
        if self._wait:
            await self._came.wait()

    def attach_to(self, shim: Shim) -> None:
        self._shim = shim
        for sock in self._early:
            shim.attach(sock)
        self._early.clear()

    async def _standard_streams(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._attach(theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        stdin = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)

        async def inwards() -> None:
            while data := await stdin.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        async def outwards() -> None:
            while data := await reader.read(1 << 16):
                os.write(1, data)

        tasks = [asyncio.ensure_future(inwards()), asyncio.ensure_future(outwards())]

        async def end() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tasks[1], 1.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.transport.abort()

        self._stack.push_async_callback(end)


async def serve(options: Options, ready: Callable[[Served], None]) -> int:
    """Serve until QEMU ends, or until cancelled; gives QEMU's exit status.

    :param ready: told once clients may come

    A QEMU that was started is ended on the way out; one that was met lives on. Raises what
    :func:`endpoint` raises.
    """
    async with endpoint(options) as served:
        ready(served)
        await served.shim.gone.wait()
        if served.emulator is None:
            return 0
        return await served.emulator.wait()


def stand_in(arguments: Sequence[str], name: str | None = None) -> int:
    """Be QEMU: run the real one with *arguments*, the shim before its QMP monitors.

    :param name: the build to run, see :func:`qmpshim.machine.builds.resolve`
    :raises QmpshimError: as :func:`endpoint`
    """
    build = builds.resolve(name)
    _, monitors = extract(arguments)
    if not monitors or _INFORMATION & {"-" + word.lstrip("-") for word in arguments}:
        argv = [*build.command(), *arguments]
        os.execvpe(argv[0], argv, build.environment())
    options = Options(build=build, arguments=tuple(arguments), limit=3600.0)
    status = asyncio.run(_stand_in(options))
    if status < 0:  # die of what QEMU died of
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


async def _stand_in(options: Options) -> int:
    loop = asyncio.get_running_loop()
    emulator: list[Emulator] = []
    early: list[int] = []

    def pass_on(number: int) -> None:
        if emulator:
            emulator[0].send_signal(number)
        else:
            early.append(number)
            task.cancel()

    def ready(served: Served) -> None:
        assert served.emulator is not None
        emulator.append(served.emulator)

    task = asyncio.ensure_future(serve(options, ready))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, pass_on, number)
    try:
        return await task
    except asyncio.CancelledError:
        return -early[0] if early else 1
    except BuildError as error:
        log.info("%s", error)
        return 1  # QEMU has said on stderr what is wrong


def stand_in_main() -> int:
    """The entry point of ``qmpshim-qemu``; ``$QMPSHIM_BUILD`` names the build."""
    return stand_in(sys.argv[1:], os.environ.get("QMPSHIM_BUILD"))
