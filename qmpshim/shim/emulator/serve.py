"""``qmpshim serve``: the endpoint as a service, and as a stand-in for the QEMU binary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qmpshim.errors import InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import Workspace
from qmpshim.shim.emulator.client_acceptor import ClientAcceptor
from qmpshim.shim.emulator.deferred_tracking import DeferredTracking
from qmpshim.shim.emulator.emulator import Emulator
from qmpshim.shim.emulator.monitors import extract
from qmpshim.shim.endpoint.listener import Address, check_address, raise_fd_limit, tls_context
from qmpshim.shim.endpoint.server import Shim

if TYPE_CHECKING:  # what a QEMU has to wait for, or only a few need, is imported where it is used
    from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
    from qmpshim.shim.tracking.chains import TrackedChains


_LARGEST_GATED = 64 << 20  # bytes of a gated chain's disk: its images are in memory


@dataclass(frozen=True, slots=True)
class Options:
    """What to serve.

    :ivar listen: where clients may come; none: a socket in a private directory
    :ivar qmp: a running QEMU's monitor; None: start one
    :ivar build: what to start
    :ivar arguments: QEMU's arguments; its QMP monitors become the shim's. None: a QEMU for block
        devices alone
    :ivar chain: a chain of disks to build before clients come
    :ivar gated: serve its images from a gate of ours: the secondary disk holds data, and
        replication (or backup) runs, as where the explorer begins
    :ivar log_writes: put writable exports on nodes that log for us: I/O is seen whichever way it
        comes
    :ivar machine: QEMU's ``-machine``, when it is for block devices alone
    :ivar allow_remote: listen where others can reach it; needs *tls*
    :ivar tls: a directory with ca-cert.pem, server-cert.pem and server-key.pem
    :ivar limit: seconds QEMU may take to answer the shim
    :ivar hold_stderr: see :class:`~qmpshim.shim.emulator.emulator.Emulator`
    :ivar silent_end: do not report to clients how QEMU ended, as QEMU itself does not
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
    hold_stderr: bool = False
    silent_end: bool = False


@dataclass(slots=True)
class Served:
    """A running endpoint.

    :ivar addresses: where clients may come
    :ivar emulator: the QEMU that was started, if one was
    :ivar chain: the chain that was built, if one was
    :ivar build: what was started
    """

    shim: Shim
    tracking: DeferredTracking
    addresses: list[Address] = field(default_factory=list)
    emulator: Emulator | None = None
    chain: SecondaryChain | None = None
    build: Build | None = None

    @property
    def chains(self) -> TrackedChains:
        """The chains behind the endpoint."""
        return self.tracking.chains


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
        acceptor = ClientAcceptor(stack)
        listen = list(options.listen)
        if not listen and not monitors:
            listen = [Address(path=workspace.path / "qmp.sock")]
        for (
            address
        ) in listen:  # before QEMU runs; a client that connects finds one that has come up
            check_address(address, options.allow_remote, tls)
        for monitor in monitors:
            await acceptor.open(monitor)
        await acceptor.wait_for_clients()
        if options.qmp is not None:
            shim = Shim(await options.qmp.connect())
            stack.push_async_callback(shim.close)
            await shim.start(options.limit)
            served = _served(shim, workspace, None, guarding=False)
        else:
            served = await _started(options, arguments, workspace, stack, acceptor)
        stack.push_async_callback(served.tracking.close)
        if options.log_writes:
            served.chains.logs.watch_writers()
        acceptor.attach_to(served.shim)
        served.addresses = [
            await acceptor.listen(address, options.allow_remote, tls) for address in listen
        ]
        yield served


def _served(shim: Shim, workspace: Workspace, build: Build | None, guarding: bool) -> Served:
    tracking = DeferredTracking(shim, workspace.subdirectory("watch"), build, guarding)
    return Served(shim, tracking, build=build)


async def _started(
    options: Options,
    arguments: list[str],
    workspace: Workspace,
    stack: AsyncExitStack,
    acceptor: ClientAcceptor,
) -> Served:
    build = options.build or builds.resolve(None)
    inherit = options.arguments is not None
    argv = build.emulator_command()
    if inherit:
        argv += arguments
    else:
        argv += ["-machine", options.machine, "-nodefaults", "-display", "none"]
        argv += ["-no-user-config"]
    directory = workspace.subdirectory("qemu")
    emulator = Emulator(
        argv,
        directory,
        build.environment(),
        options.limit,
        inherit,
        acceptor.inherited,
        acceptor.print if acceptor.stdio else None,
        options.hold_stderr,
    )
    await emulator.start()
    emulator.shim.silent_end = options.silent_end
    stack.push_async_callback(emulator.close)
    served = _served(emulator.shim, workspace, build, guarding=True)  # it ends with us
    served.emulator = emulator
    if options.chain is not None:
        await _chained(options, options.chain, served, build, stack)
    return served


async def _chained(
    options: Options, spec: ChainSpec, served: Served, build: Build, stack: AsyncExitStack
) -> None:
    """Build a chain on the QEMU that was started."""
    from qmpshim.conformance.explore.harness.qemu_pool import base_content
    from qmpshim.machine.chain.images import GateImages
    from qmpshim.machine.chain.secondary import SecondaryChain
    from qmpshim.machine.nbd.gate.gate import Gate
    from qmpshim.model.units import SECTOR
    from qmpshim.shim.gated.commands import held_io
    from qmpshim.shim.gated.io_controller import IoController
    from qmpshim.shim.gated.schedule import Schedule
    from qmpshim.shim.tracking.write_logs import LoggedSecondary

    gated, log_writes = options.gated, options.log_writes
    emulator, chains = served.emulator, served.chains
    assert emulator is not None
    if gated:
        if spec.size > _LARGEST_GATED:
            raise InputError(
                f"a gated chain's disks are in memory: at most {_LARGEST_GATED >> 20}M"
            )
        if spec.secondary != "raw":
            raise InputError("a gated chain's secondary disk is a raw image")
        gate = Gate(tracing=False)
        await gate.start(emulator.directory / "gate.sock")
        sectors = spec.size // SECTOR
        images = GateImages(gate, build, spec.cluster, base_content(sectors))
        stack.push_async_callback(images.close)
        stack.push_async_callback(emulator.close)  # the images go after QEMU
        chain = SecondaryChain(emulator, spec, emulator.directory, images=images)
    else:
        rest = (emulator, spec, emulator.directory, build.tool("qemu-img"))
        chain = LoggedSecondary(chains.logs, *rest) if log_writes else SecondaryChain(*rest)
    stack.callback(chain.close)
    await chain.build()
    chain.close()  # what is written now must come through the relays
    path = str(emulator.directory / "nbd.sock")
    chains.nbd_exports.server_at({"type": "unix", "data": {"path": path}}, private=True)
    served.chain = chain
    if gated:
        schedule = Schedule(spec.workflow, sectors, spec.cluster // SECTOR)
        controller = chains.controller = IoController(
            *(gate, emulator.pid, schedule),
            lambda held: chains.shim.emit("X_SHIM_HELD", held_io(held)),
        )
        served.shim.watchdog.excused = lambda: bool(gate.held)
        stack.push_async_callback(controller.close)  # or QEMU would never end
        with controller.aside():
            begins = chain.topology.begins
            assert begins is not None
            await served.shim.perform(begins.name, begins.arguments)
        schedule.forget()
    await chains.nbd_exports.entries()


async def serve(options: Options, ready: Callable[[Served], None]) -> int:
    """Serve until QEMU ends, or until cancelled; gives QEMU's exit status.

    :param ready: called once clients may connect

    A QEMU that was started is ended on the way out; one that was attached to lives on. Raises what
    :func:`endpoint` raises.
    """
    async with endpoint(options) as served:
        ready(served)
        await served.shim.gone.wait()
        if served.emulator is None:
            return 0
        return await served.emulator.wait()
