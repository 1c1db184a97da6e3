"""What goes wrong with a guest is found, each by the right check."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.guest.program import GuestMisreported, random_operations, read_lines
from qmpshim.conformance.guest.rig import ProgramChain
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.parts import QemuDevice
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.guest import saved_state
from qmpshim.machine.guest.chain import Attachment, GuestChain
from qmpshim.machine.guest.guest import GuestSpec
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.guest.saved_state import StaleState
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from vmtests.support.guest_rigs import at_work, run_workload


class Bypassed(ProgramChain):
    """The guest's disk is the secondary disk itself, past active and hidden disk and the filter."""

    @property
    def topology(self) -> Topology:
        topology = super().topology
        disk = topology.parts[-1]
        assert isinstance(disk, QemuDevice)
        disk = replace(disk, options={**disk.options, "drive": "secondary"})
        return replace(topology, parts=(*topology.parts[:-1], disk))


class Forgetful(ProgramChain):
    """Checkpoints are not sent."""

    async def checkpoint(self) -> None:
        await self.qemu.execute("stop")
        await self.qemu.execute("cont")


def _replace_program(chain: GuestChain, case: str) -> None:
    """Put a script that treats one operation (``$2``) its own way before the reference program."""
    lines = ["#!/bin/sh", f"case $2 in {case} *) exec /bin/reference", "esac"]
    lines[1] += ' "$@";;'
    chain.machine.run("mv /bin/workload /bin/reference")
    for line in lines:
        chain.machine.run(f"echo '{line}' >>/bin/workload")
    chain.machine.run("chmod +x /bin/workload")


class SaysItWrote(ProgramChain):
    """A guest's program that reports writes that it did not do."""

    async def build(self) -> None:
        await super().build()
        _replace_program(self, 'write) echo "$3 write $4 $5 ok";;')


class SaysItRead(ProgramChain):
    """A guest's program that reads nothing and reports zeroes."""

    async def build(self) -> None:
        await super().build()
        _replace_program(self, 'read) echo "$3 read $4 $5 0x$5";;')


class SaysItDidAnother(ProgramChain):
    """A guest's program that reports a write that was not requested, and does none."""

    async def build(self) -> None:
        await super().build()
        _replace_program(self, 'write) echo "9 write 4000 1 ok";;')


@pytest.mark.parametrize(
    ("mutant", "verdicts"),
    [
        (Bypassed, {Verdict.LOST_WRITE, Verdict.CONTENT, Verdict.ALLOCATION}),
        (Forgetful, {Verdict.ALLOCATION}),
    ],
)
def test_a_mutant_of_the_chain_is_killed(
    mutant: type[ProgramChain],
    verdicts: set[Verdict],
    image: GuestImage,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    async def scenario(work: GuestWork) -> None:
        work.primary(Verb.WRITE, 0, 2048)
        await work.command(Verb.START)
        for seed in range(3):
            work.random(seed, 20, 2048)
            await work.check()
            work.primary(Verb.WRITE, 256 * seed, 128)
            await work.command(Verb.CHECKPOINT)
            await work.check()

    found = at_work(qemu_build, image, workspace, scenario, chain=mutant)
    assert found is not None
    assert found.verdict in verdicts, str(found)


@pytest.mark.parametrize(
    ("mutant", "verdict", "where"),
    [
        (SaysItWrote, Verdict.ALLOCATION, "active disk (file)"),
        (SaysItRead, Verdict.CONTENT, "guest read"),
    ],
)
def test_a_guests_program_that_misreports_is_found_out(
    mutant: type[ProgramChain],
    verdict: Verdict,
    where: str,
    image: GuestImage,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    operations = [
        Operation(Side.PRIMARY, Verb.WRITE, 0, 256, number=1),
        Operation(Side.CHAIN, Verb.START, number=2),
        Operation(Side.GUEST, Verb.WRITE, 8, 8, number=3),
        Operation(Side.CHAIN, Verb.CHECK, number=4),
        Operation(Side.GUEST, Verb.READ, 0, 64, number=5),
    ]
    found = run_workload(
        qemu_build, image, workspace, operations=operations, chain=mutant
    ).divergence
    assert found is not None
    assert (found.verdict, found.where) == (verdict, where), str(found)


def test_a_program_that_reports_another_operation_is_refused(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    operations = [
        Operation(Side.CHAIN, Verb.START, number=1),
        Operation(Side.GUEST, Verb.WRITE, 0, 8, number=2),
    ]
    with pytest.raises(
        GuestMisreported, match=r"to do 2: guest write 0x0\+0x1000, and said '9 write"
    ):
        run_workload(qemu_build, image, workspace, operations=operations, chain=SaysItDidAnother)


@pytest.mark.parametrize(
    ("does", "observed"),
    [(9, "nothing"), (11, str(list(random_operations(1, 11, 2, 4096))[-1]))],
)
def test_a_program_that_does_too_few_or_too_many_operations_is_found_out(
    does: int, observed: str, image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    async def scenario(work: GuestWork) -> None:
        wrong = f'random) exec /bin/reference "$1" random "$3" {does} "$5" "$6" "$7";;'
        _replace_program(work.chain, wrong)
        await work.command(Verb.START)
        work.random(1, 10, 4096)

    found = at_work(qemu_build, image, workspace, scenario, chain=ProgramChain)
    assert found is not None
    assert (found.verdict, found.observed) == (Verdict.PROTOCOL, observed), str(found)


def test_a_write_that_was_not_observed_is_found_out(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    async def scenario(work: GuestWork) -> None:
        await work.command(Verb.START)
        work.rig.machine.run(f"/sbin/mke2fs -q {work.chain.disk}")
        await work.chain.hold()
        assert work.observe() > 5
        await work.check()
        reached.append("the second write")
        await work.chain.release()
        # Into a cluster that holds other data: only the bytes show it.
        work.rig.machine.run(
            f"dd if=/dev/urandom of={work.chain.disk} bs=512 seek=2 count=1 oflag=direct"
        )
        await work.chain.hold()
        await work.check()

    reached: list[str] = []
    found = at_work(qemu_build, image, workspace, scenario, Attachment(log=True))
    assert reached
    assert found is not None
    assert found.verdict is Verdict.LOST_WRITE, str(found)
    assert found.where == "active disk (file)"


class DamagesOnUmount(ProgramChain):
    """A guest that empties its file system's group descriptors after each umount."""

    async def build(self) -> None:
        await super().build()
        empty = f"dd if=/dev/zero of={self.disk} bs=1k seek=2 count=1 oflag=direct 2>/dev/null"
        self.machine.run(f'umount() {{ /bin/busybox umount "$@" && {empty}; }}')


class WritesOnSync(ProgramChain):
    """A guest whose every sync makes a file longer."""

    async def build(self) -> None:
        await super().build()
        self.machine.run("sync() { echo more >>/mnt/d1/f1; /bin/busybox sync; }")


class MountsAnother(ProgramChain):
    """A guest that mounts its own disk when the chain's is meant."""

    async def add_source(self, size: int) -> tuple[str, Path]:
        source, log = await super().add_source(size)
        original = "/bin/busybox mount"
        swapped = f'*"-o ro"*) {original} -t ext4 -o ro {source} /mnt;; *) {original} "$@";;'
        self.machine.run(f'mount() {{ case "$*" in {swapped} esac; }}')
        return source, log


class LogsNothing(ProgramChain):
    """Where the write log should be there is a node that passes everything on."""

    async def build(self) -> None:
        execute = self.qemu.execute

        async def raw(command: str, arguments: Any = None) -> Any:
            if arguments and arguments.get("driver") == "blklogwrites":
                names = {name: arguments[name] for name in ("node-name", "file")}
                arguments = {"driver": "raw", **names}
            return await execute(command, arguments)

        self.qemu.execute = raw  # type: ignore[method-assign]
        await super().build()


class SecondChanged(ProgramChain):
    """After a checkpoint somebody writes to the second disk's chain, past QEMU."""

    async def checkpoint(self) -> None:
        await super().checkpoint()
        with (self.directory / "next" / self.image("secondary").name).open("r+b") as file:
            file.write(b"not the primary's")


@pytest.mark.parametrize(
    ("scenario", "mutant", "verdict", "where"),
    [
        ("ext4-failover", DamagesOnUmount, Verdict.CORRUPTION, "e2fsck"),
        ("ext4-failover", WritesOnSync, Verdict.CONTENT, "the guest's files"),
        ("ext4-failover", LogsNothing, Verdict.CONTENT, "the write log"),
        ("ext4-checkpoint", MountsAnother, Verdict.CONTENT, "a mount before the checkpoint"),
        ("two-disks", SecondChanged, Verdict.LOST_WRITE, "secondary disk (file)"),
    ],
)
def test_a_scenarios_own_check_kills(
    scenario: str,
    mutant: type[ProgramChain],
    verdict: Verdict,
    where: str,
    image: GuestImage,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    tried = SCENARIOS[scenario]
    found = at_work(
        *(qemu_build, image, workspace, lambda work: tried.run(work, 1), Attachment(log=tried.log)),
        spec=ChainSpec(Workflow.REPLICATION, tried.size),
        chain=mutant,
    )
    assert found is not None
    assert (found.verdict, found.where) == (verdict, where), str(found)


async def test_a_saved_state_of_another_guest_is_refused(
    image: GuestImage, workspace: Workspace, qemu_build: Build
) -> None:
    directory = workspace.subdirectory("a")
    saved, other = GuestSpec(), GuestSpec(words=("qmpshim.another",))
    guest = await saved_state.ready(qemu_build, image, directory, saved)
    await guest.close()
    stale = saved_state.state_file(saved_state.key(qemu_build, image, saved))
    copy = workspace.path / "copy"
    shutil.copyfile(stale, copy)
    with pytest.raises(StaleState, match="remove that file"):
        guest = await saved_state.restore(qemu_build, image, directory, other, copy)


async def test_a_damaged_saved_state_is_made_anew(
    image: GuestImage,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    qemu_build: Build,
) -> None:
    monkeypatch.setattr(saved_state, "guests_directory", lambda: workspace.path)
    spec = GuestSpec()
    path = saved_state.state_file(saved_state.key(qemu_build, image, spec))
    for name, boots in (("a", True), ("b", False), ("c", True)):
        directory = workspace.subdirectory(name)
        guest = await saved_state.ready(qemu_build, image, directory, spec)
        assert guest.run("echo well").output == "well\n"
        await guest.close()
        assert ("[ready]" in (directory / "console.log").read_text()) == boots
        if name == "a":
            continue
        with path.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"spoiled")


@pytest.mark.parametrize(
    "line", ["1 read 0 8 0x7", "1 read 0 8 hello", "1 dance 0 8 ok", "1 read 0 8 1x4+"]
)
def test_what_cannot_be_is_no_answer(line: str) -> None:
    with pytest.raises(GuestMisreported):
        list(read_lines(line + "\n"))


def test_the_kernels_own_words_are_passed_over() -> None:
    lines: Any = list(read_lines("[ 1.5] I/O error, dev vda\n7 read 0 2 0x1+5x1\n8 flush 0 0 5\n"))
    assert [line.operation.number for line in lines] == [7, 8]
    assert lines[1].errno == 5
    assert lines[0].data[:512] == bytes(512)
