"""A COLO pair on real QEMUs: a primary and a secondary, wired as docs/COLO-FT.txt has it.

::

    primary                                         secondary
    quorum ─┬─ primary disk                         quorum ── filter ── active ─ hidden ─ secondary
            └─ replication ── NBD client ── link ── NBD server ─────────────────────────┘
    migration ──────────────── channel ──────────── incoming

Both wires pass through this process: the NBD link (:mod:`qmpshim.machine.colo.nbd_link`) and the
migration channel (:mod:`qmpshim.machine.colo.migration_channel`). Only unix sockets are used, and
there is no network device: COLO's proxy then has nothing to compare, and checkpoints come by the
clock.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.errors import BuildError, CommandFailed, InputError, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.build import drive
from qmpshim.machine.chain.images import FileImages
from qmpshim.machine.chain.replication import failed_over
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.colo.linux_guest import LinuxGuest
from qmpshim.machine.colo.migration_channel import MigrationChannel
from qmpshim.machine.colo.nbd_link import NbdLink, Observer
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.topologies import (
    CLIENT,
    COLO_PRIMARY,
    COLO_SECONDARY,
    DISK,
    FORWARD,
    LINK,
    exported,
    forward,
    recorded,
)
from qmpshim.machine.guest.boot_sector import BootGuest
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.model.chain.behaviour import features_of

#: A checkpoint delay (ms) at which no checkpoint comes by itself.
NEVER = 3_600_000


@dataclass(frozen=True, slots=True)
class PairSpec:
    """The shape of a pair.

    :ivar size: virtual size of the disks in bytes
    :ivar cluster: cluster size of hidden and active disk in bytes
    :ivar colo: the secondary waits for a migration, and the members end by COLO's commands
    :ivar guest: what runs in the virtual machines; None: they have no CPU (``-machine none``), and
        both quorums are exported over NBD instead
    :ivar machine: QEMU's ``-machine`` where there is a guest
    :ivar accel: QEMU's ``-accel``, ``tcg`` or ``kvm``
    :ivar primary: the primary's chain
    :ivar secondary: the secondary's chain
    """

    size: int = 16 << 20
    cluster: int = 64 << 10
    colo: bool = True
    guest: BootGuest | LinuxGuest | None = None
    machine: str = "pc"
    accel: str = "tcg"
    primary: Topology = COLO_PRIMARY
    secondary: Topology = COLO_SECONDARY

    def __post_init__(self) -> None:
        if self.guest is not None and self.size < self.guest.end:
            raise InputError(f"the guest needs a disk of {self.guest.end} bytes, not {self.size}")

    def words(self, console: Path, terminal: bool = False) -> list[str]:
        """QEMU's options for the virtual machine.

        :param console: where the guest's output goes
        :param terminal: the guest takes input, too, if it is of that kind
        """
        if self.guest is None:
            return ["-m", "16"] if self.colo else []
        return [
            *("-accel", self.accel),
            *self.guest.words(console, terminal),
            *("-device", f"virtio-blk-pci,id=disk,drive={DISK}"),
        ]

    def initial(self) -> bytes:
        """What both disks hold at first."""
        first = self.guest.sector() if self.guest is not None else b""
        return first.ljust(self.size, b"\0")

    def sides(self) -> tuple[Topology, Topology]:
        """Both chains, the primary's first, as this guest needs them."""
        if self.guest is None:
            return exported(self.primary), exported(self.secondary)
        if isinstance(self.guest, LinuxGuest):
            return self.primary, recorded(self.secondary)
        return self.primary, self.secondary


class Pair:
    """Two QEMUs, started and wired by :meth:`build`.

    :param builds: of the primary and of the secondary
    :param directory: where everything goes; a short path, it holds unix sockets
    :param observer: called with each change that passed the NBD link
    :param limit: seconds any command may take
    """

    def __init__(
        self,
        spec: PairSpec,
        builds: tuple[Build, Build],
        directory: Path,
        observer: Observer,
        limit: float = COMMAND_LIMIT,
    ) -> None:
        self.spec = spec
        self.directory = directory
        self.limit = limit
        self.generation = 0
        self.primary = self._member("primary", builds[0], spec.initial())
        self.former: list[ColoNode] = []  # secondaries and primaries that were given up
        self._renew(builds[1], observer, spec.initial())

    def _member(self, name: str, build: Build, initial: bytes) -> ColoNode:
        spec, directory = self.spec, self.directory / name
        directory.mkdir()
        topology = spec.sides()[name != "primary"]
        images = FileImages(
            *(directory, build.tool("qemu-img"), spec.size, spec.cluster, initial),
            env=build.environment(),
        )
        machine = "none" if spec.guest is None else spec.machine
        return ColoNode(name, build, topology, images, machine, self.limit)

    def _renew(self, build: Build, observer: Observer, initial: bytes) -> None:
        """A new secondary, and new wires to it.

        :param initial: what the secondary disk begins with
        """
        self.generation += 1
        tag = "" if self.generation == 1 else str(self.generation)
        self.secondary = self._member(f"secondary{tag}", build, initial)
        at = self.secondary.directory
        self.link = NbdLink(at / "nbd.sock", LINK, at / "link.sock", observer)
        self.channel = MigrationChannel(at / "incoming.sock", at / "channel.sock")

    @property
    def members(self) -> tuple[ColoNode, ColoNode]:
        """Both sides, the primary first."""
        return self.primary, self.secondary

    @property
    def everybody(self) -> list[ColoNode]:
        """Both sides, and those that were given up."""
        return [*self.members, *self.former]

    def role(self, member: ColoNode) -> str:
        """What one of the two sides is now; its name is what it was when it was started."""
        return "primary" if member is self.primary else "secondary"

    # -- building -------------------------------------------------------------------------------

    async def build(self) -> None:
        """Make the disks, start both QEMUs and join them; nothing is replicated yet.

        :raises BuildError: a build has no replication driver, no quorum, or does not start
        :raises HostError: an image cannot be made
        """
        primary = self.primary
        words = ["-S", *self.spec.words(primary.console, terminal=True)]
        await primary.start(words, self.directory / "guest.sock")
        await self.start_secondary()
        await self.attach()

    async def start_secondary(self) -> None:
        """Start the secondary and the wires to it."""
        secondary = self.secondary
        words = self.spec.words(secondary.console)
        if self.spec.colo:
            words += ["-incoming", f"unix:{secondary.directory / 'incoming.sock'}"]
        await secondary.start(words, secondary.directory / "nbd.sock")
        await self.link.start()
        if self.spec.colo:
            await self.channel.start()

    async def attach(self) -> None:
        """Give the primary's quorum its second child, the way to the secondary.

        :raises BuildError: this build cannot
        """
        try:
            options = drive(forward(self.link.path), self.primary.images.storage)
            # The monitor takes a string with blanks in double quotes, as C does.
            quoted = options.replace("\\", "\\\\").replace('"', '\\"')
            await self.primary.human(f'drive_add -n buddy "{quoted}"')
            await self.primary.qemu.execute(
                "x-blockdev-change", {"parent": "quorum", "node": FORWARD}
            )
        except CommandFailed as error:
            raise BuildError(f"{self.primary.build.name} cannot join the pair: {error}") from error

    async def detach(self) -> None:
        """Take the way to the secondary away again ("Primary Failover")."""
        await self.primary.qemu.execute(
            "x-blockdev-change", {"parent": "quorum", "child": "children.1"}
        )
        with contextlib.suppress(CommandFailed):  # it may complain that the last flush failed
            await self.primary.human(f"drive_del {FORWARD}")
        nodes = await self.primary.qemu.execute("query-named-block-nodes")
        if any(node.get("node-name") == FORWARD for node in nodes):
            raise CommandFailed("drive_del", "", f"{FORWARD} is still there")

    async def do(self, member: ColoNode, operation: str) -> None:
        """Run the command that does an operation of block replication on one side, by its role.

        :raises CommandFailed: QEMU refuses
        """
        side = self.spec.primary if member is self.primary else self.spec.secondary
        await member.send(side.commands[operation])

    # -- block replication alone ----------------------------------------------------------------

    async def start_replication(self) -> None:
        """Start block replication without COLO: the secondary first, then the primary."""
        for member in (self.secondary, self.primary):
            await self.do(member, "start")

    async def checkpoint_disks(self) -> None:
        """``xen-colo-do-checkpoint`` on both sides; both must be stopped."""
        for member in self.members:
            await self.do(member, "checkpoint")

    async def pause(self) -> None:
        """Stop both sides, the primary first, and let their I/O end."""
        await self.primary.qemu.execute("stop")
        await self.stop_secondary()
        await self.link.settled()

    async def stop_secondary(self) -> None:
        """Stop the secondary, and have all its tables in the files."""
        await self.secondary.qemu.execute("stop")
        if not features_of(self.secondary.version).stop_flushes_target:
            await self.secondary.human('qemu-io hidden "flush"')

    async def resume(self) -> None:
        """Let both sides go on, the secondary first."""
        for member in (self.secondary, self.primary):
            await member.qemu.execute("cont")

    # -- COLO -----------------------------------------------------------------------------------

    async def start_colo(self, delay: int = NEVER) -> None:
        """Switch COLO on and migrate; returns when the migration was begun.

        :param delay: milliseconds between two checkpoints that come by the clock
        """
        for member in (self.secondary, self.primary):
            await member.qemu.execute(
                "migrate-set-capabilities", {"capabilities": _capabilities(member)}
            )
        await self.set_delay(delay)
        await self.primary.qemu.execute("migrate", {"uri": self.channel.uri})

    async def set_delay(self, delay: int) -> None:
        """Set ``x-checkpoint-delay``; while in COLO that takes a checkpoint at once."""
        await self.primary.qemu.execute("migrate-set-parameters", {"x-checkpoint-delay": delay})

    # -- resuming after a failover ---------------------------------------------------------------

    async def renew(self, survivor: ColoNode, build: Build, observer: Observer) -> None:
        """Give *survivor* a new secondary and mirror its disk there ("resume replication").

        Returns with the survivor stopped, both disks equal, and the primary's quorum attached.

        :param build: of the new secondary
        :param observer: of the new NBD link, while the mirror runs, too
        :raises MachineHung: the mirror does not get ready
        """
        for member in self.members:
            if member is not survivor:
                member.kill()  # fenced: two machines with one disk are worse than none
                self.former.append(member)
        await self.link.close()
        await self.channel.close()
        self.primary = survivor
        self._renew(build, observer, b"")
        await self.start_secondary()
        since = len(survivor.events)
        await survivor.qemu.execute(
            "drive-mirror",
            {
                "device": DISK,
                "job-id": "resync",
                "target": self.link.uri,
                "mode": "existing",
                "format": "raw",
                "sync": "full",
            },
        )
        await survivor.until_event("BLOCK_JOB_READY", since, "the mirror's first pass")
        await survivor.qemu.execute("stop")
        since = len(survivor.events)
        await survivor.qemu.execute("block-job-cancel", {"device": "resync"})
        await survivor.until_event("BLOCK_JOB_COMPLETED", since, "the mirror's end")
        await self.attach()

    # -- failover ---------------------------------------------------------------------------------

    async def promote_secondary(self) -> None:
        """The primary is gone: the secondary takes over ("Secondary Failover").

        Returns when hidden and active disk are committed into the secondary disk.
        """
        await self.secondary.qemu.execute("nbd-server-stop")
        if not self.spec.colo:
            await self.do(self.secondary, "failover")
        else:
            await self.secondary.qemu.execute("x-colo-lost-heartbeat")
        await self.until_promoted()

    async def until_promoted(self) -> None:
        """Wait until hidden and active disk are committed into the secondary disk."""
        qemu = self.secondary.qemu

        async def committed() -> bool:
            return await failed_over(qemu.execute, "filter", "secondary")

        await self.secondary.until(committed, "the failover of the disks")

    async def carry_on(self) -> None:
        """The secondary is gone: the primary goes on alone ("Primary Failover")."""
        await self.detach()
        if not self.spec.colo:
            await self.do(self.primary, "failover")
        else:
            await self.primary.qemu.execute("x-colo-lost-heartbeat")

    async def yank(self) -> bool:
        """Have the primary give up its NBD connection, out of band.

        :returns: False when this build has no such command (before 6.0)
        """
        commands = await self.primary.qemu.execute("query-commands")
        if not any(command["name"] == "yank" for command in commands):
            return False
        node = {"type": "block-node", "node-name": CLIENT}
        await self.primary.qemu.execute_oob("yank", {"instances": [node]})
        return True

    # -- ending -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all QEMUs and all wires."""
        self.channel.hold()
        self.channel.release()
        for member in self.everybody:
            member.qemu.kill()  # a pair does not end in good order: each side waits for the other
        for member in self.everybody:
            with contextlib.suppress(MachineHung):
                await member.close()
        self.link.mend()
        await self.link.close()
        await self.channel.close()


def _capabilities(member: ColoNode) -> list[dict[str, Any]]:
    wanted = ["x-colo", "events"]
    if features_of(member.version).colo_takes_return_path:
        wanted.append("return-path")
    return [{"capability": name, "state": True} for name in wanted]
