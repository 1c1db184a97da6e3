"""The secondary's chain for plain functions: each call runs until QEMU has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qmpshim.errors import BuildError, CommandFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.host.workspace import Closes, Workspace
from qmpshim.machine.nbd.client import NbdClient

T = TypeVar("T")


class BlockingChain(Closes):
    """A QEMU of *build* with the chain open and nothing started; a context manager.

    The synchronous face of :class:`~qmpshim.machine.chain.secondary.SecondaryChain`, whose nodes
    and exports it has: ``primary`` and ``guest`` are clients at its two ends.

    :raises BuildError: this QEMU cannot build the chain
    """

    def __init__(self, build: Build, spec: ChainSpec) -> None:
        self.build = build
        self.spec = spec
        self._workspace = Workspace()
        self._runner = asyncio.Runner()
        self.qemu = Qemu(
            build.command(),
            self._workspace.path,
            machine=build.no_machine,
            env=dict(build.env),
        )
        self.chain = SecondaryChain(self.qemu, spec, self._workspace.path, build.tool("qemu-img"))
        try:
            self.run(self.qemu.start())
            self.run(self.chain.build())
        except CommandFailed as error:
            self.close()
            raise BuildError(f"{build.name} cannot build the chain: {error}") from error
        except BaseException:
            self.close()
            raise

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, of :attr:`chain` for example, to its end."""
        return self._runner.run(what)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command; see :meth:`Qemu.execute` for what is raised."""
        return self.run(self.qemu.execute(command, arguments))

    @property
    def primary(self) -> NbdClient:
        """A client of the secondary disk's export."""
        return self.chain.primary

    @property
    def guest(self) -> NbdClient:
        """A client of the export where a guest would be."""
        client = self.chain.guest
        assert isinstance(client, NbdClient)  # no guest is in the way here
        return client

    def image(self, node: str) -> Path:
        """The file behind ``secondary``, ``hidden`` or ``active``."""
        return self.chain.image(node)

    def start(self) -> None:
        """Start the backup job, or replication."""
        self.run(self.chain.start())

    def checkpoint(self) -> None:
        """Take a checkpoint: the VM stopped, I/O settled."""
        self.run(self.chain.checkpoint())

    def stop(self) -> None:
        """Stop the backup job, or replication without failover."""
        self.run(self.chain.stop())

    def failover(self) -> None:
        """Fail over, and wait until the active disk is committed into the secondary disk."""
        self.run(self.chain.failover())

    def status(self) -> str | None:
        """The text of replication's error, or ``None``."""
        return self.run(self.chain.status())

    def settle(self) -> None:
        """Let all I/O end and have qcow2's tables in the files."""
        self.run(self.chain.settle())

    def close(self) -> None:
        """End QEMU and remove its files."""
        self.chain.close()
        self.run(self.qemu.close())
        self._runner.close()
        self._workspace.close()
