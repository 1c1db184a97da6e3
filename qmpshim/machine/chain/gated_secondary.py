"""The secondary's chain with its images on a gate: each I/O of QEMU's can be held by hand.

As :class:`~qmpshim.machine.chain.gated.GatedMachine`, for a QEMU that is not moved step by step.
"""

from __future__ import annotations

from typing import Any

from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import blank_qcow2
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.store import MemoryStore

LARGEST = 64 << 20  # bytes: the images are in memory


class GatedSecondary(SecondaryChain):
    """A chain on *qemu* whose images are on *gate*, which must have been started.

    :param build: whose ``qemu-img`` makes the hidden and the active disk
    :param content: of the secondary disk, in the beginning
    :raises InputError: the chain is too large, or its secondary disk is no raw image
    """

    def __init__(
        self, qemu: Qemu, spec: ChainSpec, gate: Gate, build: Build, content: bytes
    ) -> None:
        if spec.size > LARGEST:
            raise InputError(f"a gated chain's disks are in memory: at most {LARGEST >> 20}M")
        if spec.secondary != "raw":
            raise InputError("a gated chain's secondary disk is a raw image")
        super().__init__(qemu, spec, qemu.directory)
        self.gate = gate
        self._build = build
        self._content = content
        self._stores: list[MemoryStore] = []

    def _create_secondary(self) -> None:
        self._add("secondary", self._content)

    def _create(self, node: str) -> None:
        self._add(node, blank_qcow2(self._build, self.spec.size, self.spec.cluster))

    def _add(self, node: str, content: bytes) -> None:
        store = MemoryStore(content)
        self._stores.append(store)
        self.gate.add(node, store)

    def _storage(self, node: str) -> dict[str, Any]:
        return self.gate.blockdev(node)

    async def rebuild(self) -> None:
        """Not for a chain that is led by hand."""
        raise InputError("a gated chain is not rebuilt: start another one")

    async def forget(self) -> None:
        """Let everything go that is held, and give the images back; QEMU must have ended."""
        await self.gate.stop()
        for store in self._stores:
            store.close()
