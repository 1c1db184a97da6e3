"""Every witness of the cross-check counts: each is lied to alone, and each is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload.session import run_case
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.errors import CommandFailed, IOFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR
from vmtests.support.chains import Data, Meddled, Meddler, flip, l2_entry, misbehaving, word

MiB, PAGE = 1 << 20, 128
P, G, C = Side.PRIMARY, Side.GUEST, Side.CHAIN
B, R = Workflow.BACKUP, Workflow.REPLICATION

#: An old cluster, replication started, the cluster overwritten on both sides; a check in between.
STORY = [
    Operation(P, Verb.WRITE, 0, 3 * PAGE, number=1),
    Operation(C, Verb.START, number=2),
    Operation(P, Verb.WRITE, 0, 2 * PAGE, number=3),
    Operation(G, Verb.WRITE, PAGE, 2 * PAGE, number=4),
    Operation(C, Verb.CHECK, number=5),
    Operation(C, Verb.CHECKPOINT, number=6),
    Operation(C, Verb.CHECK, number=7),
    Operation(C, Verb.STATUS, number=8),
]
WITHOUT_CHECKS = [operation for operation in STORY if operation.verb is not Verb.CHECK]
BACKUP = [operation for operation in STORY if operation.verb is Verb.START or operation.side is P]


class MisbehavingClient(NbdClient):
    """Flips a bit of whatever is read from one sector."""

    sector = 0

    def wait(self, cookie: int) -> None:
        super().wait(cookie)
        for buffer, offset in self.reading.pop(cookie, ()):
            at = self.sector * SECTOR - offset
            if 0 <= at < len(buffer):
                buffer[at] ^= 1

    def submit_read(self, buffer: bytearray | memoryview, offset: int) -> int:
        cookie = super().submit_read(buffer, offset)
        self.reading.setdefault(cookie, []).append((buffer, offset))
        return cookie

    def __init__(self, uri: str, limit: float, sector: int) -> None:
        super().__init__(uri, limit)
        self.sector = sector
        self.reading: dict[int, list[tuple[bytearray | memoryview, int]]] = {}


def misbehaving_about(export: str, sector: int = 0) -> type[Meddled]:
    """A chain whose cross-check reads something wrong through one export."""

    class Misbehaving(Meddled):
        def inspect(self, name: str) -> NbdClient:
            if name != export:
                return super().inspect(name)
            return MisbehavingClient(self.uri(name), self.qemu.limit, sector)

    return Misbehaving


def spoils(node: str) -> type[Meddled]:
    """A chain on which a byte of an image's first data is flipped before the last check."""

    class Spoils(Meddled):
        checks = 0

        def spoil(self) -> None:
            self.checks += 1
            if self.checks == self.last:
                path = self.image(node)
                at = 0 if path.suffix == ".raw" else word(path, l2_entry(path, 0)) & ~(1 << 63)
                flip(path, at + 9, 0x40)

        last = 1

    return Spoils


class LeftOver(Meddled):
    """There is data in the secondary's file that was not written, in a place that is not used."""

    async def start(self) -> None:
        await super().start()
        with self.image("secondary").open("r+b") as file:
            file.seek(2 * MiB)
            file.write(b"left over")


class LaterLeftOver(LeftOver):
    """The same, in what QEMU reads through its own tables: it says there is data."""

    async def start(self) -> None:
        self.primary.wait(self.primary.submit_write(b"\1" * SECTOR, 2 * MiB))
        await super(LeftOver, self).start()


def diverged(
    build: Build,
    chain: type[Meddled],
    operations: Sequence[Operation],
    workspace: Workspace,
    workflow: Workflow = R,
    secondary: str = "raw",
    tools: Callable[[Sequence[str]], tuple[str, ...]] = tuple,
) -> Divergence | None:
    reference = setup_for(build, ChainSpec(workflow, 4 * MiB, secondary=secondary))
    setup = replace(reference, chain=chain, qemu_img=tools(reference.qemu_img))
    return asyncio.run(run_case(setup, operations, workspace.subdirectory("c"))).divergence


def test_the_story_is_true(workspace: Workspace, qemu_build: Build) -> None:
    assert diverged(qemu_build, Meddled, STORY, workspace) is None
    assert diverged(qemu_build, Meddled, WITHOUT_CHECKS, workspace, secondary="qcow2") is None
    assert diverged(qemu_build, Meddled, BACKUP, workspace, B) is None


@pytest.mark.parametrize(
    ("export", "sector", "where", "after", "verdict"),
    [
        ("guest", 0, "guest's view", 5, Verdict.CONTENT),
        ("guest", 3 * PAGE - 1, "guest's view", 5, Verdict.LOST_WRITE),  # the last page of a write
        ("hidden", 0, "hidden disk (export)", 5, Verdict.CONTENT),
        ("hidden", 2 * PAGE - 1, "hidden disk (export)", 5, Verdict.CONTENT),
        (
            "primary",
            0,
            "secondary disk (export)",
            8,
            Verdict.LOST_WRITE,
        ),  # that one is read in the end only
    ],
)
def test_a_view_is_compared(
    export: str,
    sector: int,
    where: str,
    after: int,
    verdict: Verdict,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    found = diverged(qemu_build, misbehaving_about(export, sector), STORY, workspace)
    assert found is not None
    assert (found.where, found.operation, found.verdict) == (where, after, verdict)


def test_what_qemu_says_is_there_is_read_in_the_end(
    workspace: Workspace, qemu_build: Build
) -> None:
    """Also where nothing was ever written."""

    class Full(MisbehavingClient):
        def data_extents(self) -> list[tuple[int, int]]:
            return [(2 * MiB, MiB)]

    class SaysMore(Meddled):
        def inspect(self, name: str) -> NbdClient:
            if name != "guest":
                return super().inspect(name)
            return Full(self.uri(name), self.qemu.limit, 2 * MiB // SECTOR + 7)

    found = diverged(qemu_build, SaysMore, STORY, workspace)
    assert found is not None
    assert (found.where, found.operation) == ("guest's view", 8)


def test_a_checkpoint_changes_what_was_written_before_the_check_before_it(
    workspace: Workspace, qemu_build: Build
) -> None:
    """The guest goes on seeing what it wrote before a checkpoint."""

    class AfterCheckpoint(Meddled):
        taken = False

        async def checkpoint(self) -> None:
            await super().checkpoint()
            self.taken = True

        def inspect(self, name: str) -> NbdClient:
            if name == "guest" and self.taken:
                return MisbehavingClient(self.uri(name), self.qemu.limit, PAGE)
            return super().inspect(name)

    found = diverged(qemu_build, AfterCheckpoint, STORY, workspace)
    assert found is not None
    assert (found.where, found.operation) == ("guest's view", 7)


@pytest.mark.parametrize(
    ("node", "workflow", "secondary", "verdict"),
    [
        ("secondary", R, "raw", Verdict.LOST_WRITE),
        ("secondary", R, "qcow2", Verdict.LOST_WRITE),
        ("secondary", B, "raw", Verdict.LOST_WRITE),
        ("hidden", B, "raw", Verdict.CONTENT),
        ("hidden", R, "raw", Verdict.CONTENT),
        ("active", R, "raw", Verdict.LOST_WRITE),
    ],
)
def test_a_file_is_compared_in_the_end(
    node: str,
    workflow: Workflow,
    secondary: str,
    verdict: Verdict,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    guest = Operation(G, Verb.WRITE, 0, PAGE, number=4)
    operations = BACKUP if workflow is B else [*WITHOUT_CHECKS[:3], guest]
    found = diverged(qemu_build, spoils(node), operations, workspace, workflow, secondary)
    assert found is not None
    assert (found.where, found.verdict) == (f"{node} disk (file)", verdict)


def test_the_last_check_looks_everywhere(workspace: Workspace, qemu_build: Build) -> None:
    """What changed since two checks ago is not all there is."""
    quiet = [Operation(C, Verb.CHECK, number=number) for number in (9, 10, 11)]

    class Late(spoils("secondary")):  # type: ignore[misc]
        last = 6

    found = diverged(qemu_build, Late, [*STORY, *quiet], workspace)
    assert found is not None
    assert (found.where, found.operation) == ("secondary disk (file)", 11)


@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
def test_data_that_was_not_written_is_found(
    secondary: str, workspace: Workspace, qemu_build: Build
) -> None:
    chain = LeftOver if secondary == "raw" else LaterLeftOver
    found = diverged(qemu_build, chain, STORY, workspace, secondary=secondary)
    assert found is not None
    assert found.where == "secondary disk (file)"


@pytest.mark.parametrize("node", ["hidden", "active"])
@pytest.mark.parametrize("operations", [STORY, WITHOUT_CHECKS[:4]], ids=["asked", "in the end"])
def test_the_tools_are_asked_about_every_overlay(
    node: str, operations: list[Operation], workspace: Workspace, qemu_build: Build
) -> None:
    def without_data(qemu_img: Sequence[str]) -> tuple[str, ...]:
        return misbehaving(qemu_img, b'"data": true', b'"data": false', of=f"/{node}.")

    found = diverged(qemu_build, Meddled, operations, workspace, tools=without_data)
    assert found is not None
    assert (found.where, found.verdict) == (f"{node} disk (tools)", Verdict.CORRUPTION)


# -- answers -----------------------------------------------------------------------------------


def test_another_error_number_is_noticed(workspace: Workspace, qemu_build: Build) -> None:
    class OtherNumber(Meddled):
        class meddler(Meddler):
            def wait(self, cookie: int) -> None:
                try:
                    super().wait(cookie)
                except IOFailed:
                    raise IOFailed("NBD request", 1) from None

    found = diverged(qemu_build, OtherNumber, [Operation(G, Verb.READ, 0, 8, number=1)], workspace)
    assert found is not None
    assert (found.verdict, found.where) == (Verdict.ERROR_CONTRACT, "guest read")
    assert (found.predicted, found.observed) == (
        "EIO: Input/output error",
        "EPERM: Operation not permitted",
    )


def test_another_error_text_is_noticed(workspace: Workspace, qemu_build: Build) -> None:
    class OtherText(Meddled):
        async def stop(self) -> None:
            try:
                await super().stop()
            except CommandFailed as error:
                raise CommandFailed(error.command, error.error_class, "Something else") from error

    found = diverged(qemu_build, OtherText, [Operation(C, Verb.STOP, number=1)], workspace)
    assert found is not None
    assert (found.verdict, found.where) == (Verdict.ERROR_CONTRACT, "stop")


def test_an_error_where_none_is_predicted_is_noticed(
    workspace: Workspace, qemu_build: Build
) -> None:
    class Fails(Meddled):
        class meddler(Meddler):
            def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
                self.failing = True
                return super().submit_write(data, offset, fua)

            def wait(self, cookie: int) -> None:
                super().wait(cookie)
                if getattr(self, "failing", False):
                    raise IOFailed("NBD request", 5)

    found = diverged(qemu_build, Fails, STORY, workspace)
    assert found is not None
    assert (found.verdict, found.where, found.operation) == (
        Verdict.ERROR_CONTRACT, "primary write", 1)  # fmt: skip
