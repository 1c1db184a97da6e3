"""A COLO pair on real QEMUs: a primary and a secondary, wired as docs/COLO-FT.txt tells.

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
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.errors import BuildError, CommandFailed, HostError, InputError, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.colo.linux_guest import LinuxGuest
from qmpshim.machine.colo.migration_channel import MigrationChannel
from qmpshim.machine.colo.nbd_link import NbdLink, Observer
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.guest.boot_sector import BootGuest
from qmpshim.machine.host.process import COMMAND_LIMIT, escaped

log = logging.getLogger(__name__)

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
    """

    size: int = 16 << 20
    cluster: int = 64 << 10
    colo: bool = True
    guest: BootGuest | LinuxGuest | None = None
    machine: str = "pc"
    accel: str = "tcg"

    def __post_init__(self) -> None:
        if self.guest is not None and self.size < self.guest.end:
            raise InputError(f"the guest needs a disk of {self.guest.end} bytes, not {self.size}")

    def words(self, console: Path, terminal: bool = False) -> list[str]:
        """QEMU's options for the virtual machine.

        :param console: where what the guest says goes
        :param terminal: the guest takes input, too, if it is of that kind
        """
        if self.guest is None:
            return ["-m", "16"] if self.colo else []
        return [
            *("-accel", self.accel),
            *self.guest.words(console, terminal),
            *("-device", "virtio-blk-pci,id=disk,drive=colo-disk0"),
        ]

    def initial(self) -> bytes:
        """What both disks hold at first."""
        first = self.guest.sector() if self.guest is not None else b""
        return first.ljust(self.size, b"\0")


class Pair:
    """Two QEMUs, started and wired by :meth:`build`.

    :param builds: of the primary and of the secondary
    :param directory: where everything goes; a short path, it holds unix sockets
    :param observer: told of each change that passed the NBD link
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
        self.primary = self._member("primary", builds[0])
        self.past: list[ColoNode] = []  # secondaries and primaries that were given up
        self._renew(builds[1], observer)

    def _member(self, name: str, build: Build) -> ColoNode:
        directory = self.directory / name
        directory.mkdir()
        machine = "none" if self.spec.guest is None else self.spec.machine
        return ColoNode(name, build, directory, machine, self.limit)

    def _renew(self, build: Build, observer: Observer) -> None:
        """A new secondary, and new wires to it."""
        self.generation += 1
        tag = "" if self.generation == 1 else str(self.generation)
        self.secondary = self._member(f"secondary{tag}", build)
        at = self.secondary.directory
        self.link = NbdLink(at / "nbd.sock", "parent0", at / "link.sock", observer)
        self.channel = MigrationChannel(at / "incoming.sock", at / "channel.sock")

    @property
    def members(self) -> tuple[ColoNode, ColoNode]:
        """Both sides, the primary first."""
        return self.primary, self.secondary

    @property
    def everybody(self) -> list[ColoNode]:
        """Both sides, and those that were given up."""
        return [*self.members, *self.past]

    def role(self, member: ColoNode) -> str:
        """What one of the two sides is now; its name says what it was when it was started."""
        return "primary" if member is self.primary else "secondary"

    # -- building -------------------------------------------------------------------------------

    async def build(self) -> None:
        """Make the disks, start both QEMUs and join them; nothing is replicated yet.

        :raises BuildError: a build has no replication driver, no quorum, or does not start
        :raises HostError: an image cannot be made
        """
        primary, initial = self.primary, self.spec.initial()
        _make_disk(primary.disk, initial)
        await primary.start(
            [
                "-drive",
                "if=none,id=colo-disk0,node-name=quorum,driver=quorum,read-pattern=fifo,"
                "vote-threshold=1,children.0.driver=raw,children.0.node-name=primary-disk,"
                "children.0.discard=unmap," + _file("children.0.file", primary.disk),
                "-S",
                *self.spec.words(primary.console, terminal=True),
            ]
        )
        if self.spec.guest is None:
            await primary.start_server(self.directory / "guest.sock")
            await primary.export("guest", "quorum")
        await self.start_secondary(initial)
        await self.attach()

    async def start_secondary(self, initial: bytes) -> None:
        """Start the secondary and the wires to it.

        :param initial: what the secondary disk holds
        """
        secondary = self.secondary
        _make_disk(secondary.disk, initial)
        for overlay in (secondary.hidden, secondary.active):
            secondary.create(overlay, self.spec.size, self.spec.cluster)
        words = [
            "-drive",
            "if=none,id=parent0,driver=raw,node-name=secondary,discard=unmap,"
            + _file("file", secondary.disk),
            "-drive",
            "if=none,id=childs0,driver=replication,mode=secondary,top-id=colo-disk0,"
            "node-name=filter,file.driver=qcow2,file.node-name=active,file.discard=unmap,"
            + _file("file.file", secondary.active)
            + ",file.backing.driver=qcow2,file.backing.node-name=hidden,"
            "file.backing.discard=unmap,"
            + _file("file.backing.file", secondary.hidden)
            + ",file.backing.backing=parent0",
            "-drive",
            "if=none,id=colo-disk0,node-name=quorum,driver=quorum,read-pattern=fifo,"
            f"vote-threshold=1,{self._top_child(secondary)}",
            *self.spec.words(secondary.console),
        ]
        if self.spec.colo:
            words += ["-incoming", f"unix:{secondary.directory / 'incoming.sock'}"]
        await secondary.start(words)
        await secondary.start_server(secondary.directory / "nbd.sock")
        await secondary.export("parent0", "secondary")
        if self.spec.guest is None:
            await secondary.export("guest", "quorum")
        await self.link.start()
        if self.spec.colo:
            await self.channel.start()

    @property
    def _observed(self) -> bool:
        """Whether the secondary's guest's writes are recorded."""
        return isinstance(self.spec.guest, LinuxGuest)

    def _top_child(self, secondary: ColoNode) -> str:
        """The secondary's quorum's child: the filter, or what records its guest's writes above."""
        if not self._observed:
            return "children.0=childs0"
        secondary.log.touch()
        return (
            "children.0.driver=blklogwrites,children.0.node-name=logged,children.0.file=childs0,"
            f"children.0.log.driver=file,children.0.log.filename={escaped(secondary.log)}"
        )

    async def attach(self) -> None:
        """Give the primary's quorum its second child, the way to the secondary.

        :raises BuildError: this build cannot
        """
        try:
            options = (
                "driver=replication,mode=primary,node-name=replication0,"
                f"file.driver=nbd,file.server.type=unix,file.server.path={escaped(self.link.path)},"
                "file.node-name=nbd0,file.export=parent0"
            )
            # The monitor takes a string with blanks in double quotes, as C does.
            quoted = options.replace("\\", "\\\\").replace('"', '\\"')
            await self.primary.human(f'drive_add -n buddy "{quoted}"')
            await self.primary.qemu.execute(
                "x-blockdev-change", {"parent": "quorum", "node": "replication0"}
            )
        except CommandFailed as error:
            raise BuildError(f"{self.primary.build.name} cannot join the pair: {error}") from error

    async def detach(self) -> None:
        """Take the way to the secondary away again ("Primary Failover")."""
        await self.primary.qemu.execute(
            "x-blockdev-change", {"parent": "quorum", "child": "children.1"}
        )
        with contextlib.suppress(CommandFailed):  # it may complain that the last flush failed
            await self.primary.human("drive_del replication0")
        nodes = await self.primary.qemu.execute("query-named-block-nodes")
        if any(node.get("node-name") == "replication0" for node in nodes):
            raise CommandFailed("drive_del", "GenericError", "replication0 is still there")

    # -- block replication alone ----------------------------------------------------------------

    async def start_replication(self) -> None:
        """Start block replication without COLO: the secondary first, then the primary."""
        for member in (self.secondary, self.primary):
            await member.qemu.execute(
                "xen-set-replication", {"enable": True, "primary": member is self.primary}
            )

    async def checkpoint_disks(self) -> None:
        """``xen-colo-do-checkpoint`` on both sides; both must be stopped."""
        for member in self.members:
            await member.qemu.execute("xen-colo-do-checkpoint")

    async def pause(self) -> None:
        """Stop both sides, the primary first, and let their I/O end."""
        await self.primary.qemu.execute("stop")
        await self.stop_secondary()
        await self.link.settled()

    async def stop_secondary(self) -> None:
        """Stop the secondary, and have all its tables in the files."""
        await self.secondary.qemu.execute("stop")
        if self.secondary.version < (6, 1, 50):
            # Until then the filter was no parent of the hidden disk, so that no flush went there.
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
                self.past.append(member)
        await self.link.close()
        await self.channel.close()
        self.primary = survivor
        self._renew(build, observer)
        await self.start_secondary(bytes(self.spec.size))
        since = len(survivor.events)
        await survivor.qemu.execute(
            "drive-mirror",
            {
                "device": "colo-disk0",
                "job-id": "resync",
                "target": self.link.uri,
                "mode": "existing",
                "format": "raw",
                "sync": "full",
            },
        )
        await survivor.hears("BLOCK_JOB_READY", since, "the mirror's first pass")
        await survivor.qemu.execute("stop")
        since = len(survivor.events)
        await survivor.qemu.execute("block-job-cancel", {"device": "resync"})
        await survivor.hears("BLOCK_JOB_COMPLETED", since, "the mirror's end")
        await self.attach()

    # -- failover ---------------------------------------------------------------------------------

    async def promote_secondary(self) -> None:
        """The primary is gone: the secondary takes over ("Secondary Failover").

        Returns when hidden and active disk are committed into the secondary disk.
        """
        await self.secondary.qemu.execute("nbd-server-stop")
        if not self.spec.colo:
            await self.secondary.qemu.execute(
                "xen-set-replication", {"enable": False, "primary": False, "failover": True}
            )
        else:
            await self.secondary.qemu.execute("x-colo-lost-heartbeat")
        await self.secondary.until(self.secondary.committed, "the failover of the disks")

    async def carry_on(self) -> None:
        """The secondary is gone: the primary goes on alone ("Primary Failover")."""
        await self.detach()
        if not self.spec.colo:
            await self.primary.qemu.execute(
                "xen-set-replication", {"enable": False, "primary": True, "failover": True}
            )
        else:
            await self.primary.qemu.execute("x-colo-lost-heartbeat")

    async def yank(self) -> bool:
        """Have the primary give up its NBD connection, out of band.

        :returns: False when this build has no such command (before 6.0)
        """
        commands = await self.primary.qemu.execute("query-commands")
        if not any(command["name"] == "yank" for command in commands):
            return False
        node = {"type": "block-node", "node-name": "nbd0"}
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


def _make_disk(path: Path, initial: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(initial.rstrip(b"\0"))
            file.truncate(len(initial))
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _file(where: str, path: Path) -> str:
    # no-flush: the host is not going to crash, so waiting for its disk proves nothing.
    return (
        f"{where}.driver=file,{where}.filename={escaped(path)},{where}.discard=unmap,"
        f"{where}.cache.no-flush=on"
    )


def _capabilities(member: ColoNode) -> list[dict[str, Any]]:
    wanted = ["x-colo", "events"]
    if member.version >= (10, 1, 50):
        # Since then COLO takes the return path; before, the thread that reads the return path
        # took COLO's messages for frames of its own ("Received invalid message 0x0000").
        wanted.append("return-path")
    return [{"capability": name, "state": True} for name in wanted]
