"""Random disks, jobs and writers behind a shim, and whether its verdict on them is right.

Right is: never a divergence on a QEMU that does what it should; "as predicted" when all writes were
observable; and a writer that was unobserved, to a chain that is followed, is named in the status.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.shim.emulator.serve import Options
from vmtests.support.shim_harness import Loop, Wire
from vmtests.support.tracking_service import SIZE, Service
from vmtests.support.waiting import wait_until

SECTOR = 512
SECTORS = SIZE // SECTOR
MACHINE = ("-machine", "pc,accel=tcg", "-m", "32", "-S", "-nodefaults", "-display", "none")
NO_MACHINE = ("-machine", "none", "-nodefaults", "-display", "none")


class Way(Enum):
    """How a write reaches a disk."""

    RELAY = "through the shim's endpoint"
    DIRECT = "through the same export, past the endpoint"
    MONITOR = "by the human monitor's qemu-io, to the node that is exported"
    DEVICE = "by the human monitor's qemu-io, to the device"


@dataclass(frozen=True)
class Disk:
    """A disk that is backed up.

    :ivar filled: it holds data before the job starts
    :ivar device: a device is attached to it
    """

    format: str
    filled: bool
    device: bool


@dataclass(frozen=True)
class Write:
    """A change of *count* sectors from sector *at*; *kind*: write, zero or discard."""

    way: Way
    disk: int
    kind: str
    at: int
    count: int


class Act(Enum):
    """What else happens."""

    VERIFY = "verify"
    READ_DIRECTLY = "a client reads the hidden disk past the endpoints"
    RUN = "the guest runs for a moment, and writes nothing"
    RESTART = "the first disk's job is cancelled and started again"


@dataclass(frozen=True)
class Scenario:
    """Disks, how their jobs are started, and what happens then.

    :ivar grouped: one transaction starts all jobs
    :ivar refused: a transaction that fails comes first
    """

    disks: tuple[Disk, ...]
    log_writes: bool
    grouped: bool
    refused: bool
    steps: tuple[Write | Act, ...]


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any scenario of one or two disks and up to eight steps."""
    disk = st.builds(Disk, st.sampled_from(("raw", "qcow2")), st.booleans(), st.booleans())
    disks = tuple(draw(st.lists(disk, min_size=1, max_size=2)))
    at = st.integers(0, SECTORS - 1)

    def write() -> st.SearchStrategy[Write]:
        return st.builds(
            lambda way, disk, kind, at, count: Write(way, disk, kind, at, min(count, SECTORS - at)),
            # Half of the scenarios have no unobserved way: the verdict must then be sharp.
            st.sampled_from(ways),
            st.integers(0, len(disks) - 1),
            st.sampled_from(("write", "write", "zero", "discard")),
            at,
            st.integers(1, 400),
        )

    ways = (Way.RELAY,) if draw(st.booleans()) else tuple(Way)
    steps = draw(st.lists(write() | write() | st.sampled_from(Act), max_size=8))
    log_writes, grouped, refused = (draw(st.booleans()) for _ in range(3))
    return Scenario(disks, log_writes, grouped, refused, tuple(steps))


class Wrong(AssertionError):
    """The shim's verdict, or what it says of writers, is wrong."""


def check(loop: Loop, build: Build, scenario: Scenario, place: Path) -> None:
    """Play a scenario.

    :raises Wrong: the shim reported what it must not, or did not report what it must
    """
    with _Stage(loop, build, scenario, place).running() as stage:
        for step in scenario.steps:
            stage.take(step)
        stage.verify()


class _Stage:
    """One scenario's QEMU, and what of it was not observable."""

    def __init__(self, loop: Loop, build: Build, scenario: Scenario, place: Path) -> None:
        self._loop = loop
        self._build = build
        self._scenario = scenario
        self._place = place
        self._number = 0
        self._grouped = scenario.grouped
        self._unseen: set[tuple[str, str]] = set()  # the writer, and the disk
        self._chance = random.Random(7)

    @contextmanager
    def running(self) -> Iterator[_Stage]:
        """While the context lasts."""
        machine = any(disk.device for disk in self._scenario.disks)
        arguments = MACHINE if machine else NO_MACHINE
        options = Options(
            build=self._build, arguments=arguments, log_writes=self._scenario.log_writes
        )
        service = Service(self._loop, options)
        try:
            self._wire = service.client()
            self._build_disks()
            self._start()
            self._uris = {entry["export"]: entry["uri"] for entry in self._status()["endpoints"]}
            yield self
        finally:
            service.close()

    def _ask(self, command: str, **arguments: Any) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        reply = self._wire.ask(command, named)
        assert "return" in reply, (command, named, reply)
        return reply["return"]

    def _status(self) -> dict[str, Any]:
        return dict(self._ask("x-shim-status"))

    # -- before ------------------------------------------------------------

    def _build_disks(self) -> None:
        unix = {"type": "unix", "data": {"path": str(self._place / "nbd")}}
        self._ask("nbd-server-start", addr=unix)
        for number, disk in enumerate(self._scenario.disks):
            path, hidden = self._place / f"d{number}", self._place / f"h{number}"
            _create(disk.format, path)
            _create("qcow2", hidden)
            if disk.filled:
                _fill(disk.format, path)
            for node, format_, file, more in (
                (f"d{number}", disk.format, path, {"discard": "unmap"}),
                (f"h{number}", "qcow2", hidden, {"backing": f"d{number}"}),
            ):
                at = {"driver": "file", "filename": str(file), "discard": "unmap"}
                self._ask("blockdev-add", driver=format_, node_name=node, file=at, **more)
            if disk.device:
                # The guest's firmware looks at each disk for a boot sector.
                drive = {"driver": "virtio-blk-pci", "id": f"v{number}", "drive": f"d{number}"}
                self._ask("device_add", **drive, **{"share-rw": True})
            for name, node, writable in ((f"e{number}", "d", True), (f"r{number}", "h", False)):
                export = {"type": "nbd", "id": name, "name": name, "writable": writable}
                self._ask("block-export-add", **export, node_name=f"{node}{number}")

    def _job(self, number: int) -> dict[str, str]:
        names = {"device": f"d{number}", "target": f"h{number}", "job-id": f"j{number}"}
        return {**names, "sync": "none"}

    def _start(self) -> None:
        jobs = [self._job(number) for number in range(len(self._scenario.disks))]
        actions: list[dict[str, Any]] = [{"type": "blockdev-backup", "data": job} for job in jobs]
        if self._scenario.refused:
            refused = {"actions": [*actions, {"type": "abort", "data": {}}]}
            assert "error" in self._wire.ask("transaction", refused)
            if self._status()["chains"]:
                raise Wrong("a transaction that failed is followed")
        if self._scenario.grouped:
            self._ask("transaction", actions=actions, properties={"completion-mode": "grouped"})
        else:
            for job in jobs:
                self._ask("blockdev-backup", **job)
        if [chain["job"] for chain in self._status()["chains"]] != [j["job-id"] for j in jobs]:
            raise Wrong("a chain is not followed")

    # -- steps ------------------------------------------------------------

    def take(self, step: Write | Act) -> None:
        """Do one step."""
        match step:
            case Write():
                self._write(step)
            case Act.VERIFY:
                self.verify()
            case Act.READ_DIRECTLY:
                with closing(self._direct("r0")) as client:
                    client.read(SIZE // 4, 0)
            case Act.RUN:
                if any(disk.device for disk in self._scenario.disks):
                    self._ask("cont")
                    self._ask("stop")
            case Act.RESTART:
                self._restart()

    def _restart(self) -> None:
        # Jobs of one transaction that are grouped are cancelled together.
        jobs = range(len(self._scenario.disks) if self._grouped else 1)
        self._grouped = False
        self._wire.ask("block-job-cancel", {"device": "j0"})
        there = {f"j{number}" for number in jobs}
        wait_until(lambda: not there & {job["id"] for job in self._ask("query-jobs")})
        for number in jobs:
            self._ask("blockdev-backup", **self._job(number))
        # A chain about which there was doubt is met again, with what its disks hold now.
        again = {f"d{number}" for number in jobs}
        self._unseen = {(writer, disk) for writer, disk in self._unseen if disk not in again}

    def _direct(self, export: str) -> NbdClient:
        return NbdClient(nbd_uri(export, self._place / "nbd"), plain=True)

    def _write(self, step: Write) -> None:
        disk = self._scenario.disks[step.disk]
        offset, length = step.at * SECTOR, step.count * SECTOR
        if step.way in (Way.RELAY, Way.DIRECT):
            export = f"e{step.disk}"
            direct = step.way is Way.DIRECT
            client = self._direct(export) if direct else NbdClient(self._uris[export])
            with closing(client):
                self._send(client, step.kind, offset, length)
            if direct:
                self._took_place("export", step.disk)
            return
        if step.way is Way.DEVICE and not disk.device:
            return
        self._number += 1
        where = f"-d /machine/peripheral/v{step.disk}/virtio-backend"
        if step.way is Way.MONITOR:
            exports = {e["id"]: e["node-name"] for e in self._ask("query-block-exports")}
            where = exports[f"e{step.disk}"]
        how = {"write": f"-P {self._number % 255 + 1} ", "zero": "-z ", "discard": ""}[step.kind]
        word = "discard" if step.kind == "discard" else "write"
        line = f'qemu-io {where} "{word} {how}{offset} {length}"'
        self._ask("human-monitor-command", command_line=line)
        self._took_place("command", step.disk)

    def _took_place(self, writer: str, disk: int) -> None:
        if not self._scenario.log_writes:
            self._unseen.add((writer, f"d{disk}"))

    def _send(self, client: NbdClient, kind: str, offset: int, length: int) -> None:
        match kind:
            case "write":
                client.wait(client.submit_write(self._chance.randbytes(length), offset))
            case "zero":
                client.wait(client.submit_zero(length, offset))
            case _:
                client.wait(client.submit_discard(length, offset))

    # -- what the shim says ------------------------------------------------------------

    def verify(self) -> None:
        """Hold the verdict, and the writers it names, against what was done."""
        status, reported = self._status(), self._ask("x-shim-verify")
        named = {(one["writer"], one["node"]) for one in status["unobserved"]}
        if missing := self._unseen - named:
            raise Wrong(f"{missing} wrote unobserved and is not named")
        if reported["verdicts"] or status["divergences"]:
            raise Wrong(f"a divergence where there is none: {reported}")
        if not self._unseen and not reported["as-predicted"]:
            raise Wrong(f"all was observable, and the shim cannot say: {reported}")
        if reported["as-predicted"] != (not reported["doubts"]):
            raise Wrong(f"neither as predicted nor a doubt: {reported}")


def _fill(format_: str, path: Path) -> None:
    for line in ("write -P 17 0 1M", "write -P 18 1500k 70k", "write -z 128k 64k"):
        command = ("qemu-io", "-f", format_, "-c", line, str(path))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _create(format_: str, path: Path) -> None:
    subprocess.run(("qemu-img", "create", "-q", "-f", format_, str(path), str(SIZE)), check=True)


__all__ = ["Act", "Disk", "Scenario", "Way", "Wire", "Write", "Wrong", "check", "scenarios"]
