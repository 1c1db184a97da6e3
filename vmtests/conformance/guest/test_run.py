"""The runner of guest cases, and `qmpshim guest` as a stranger would use it."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.check.runners.guest import guest as run
from qmpshim.conformance.check.runners.known import directed
from qmpshim.conformance.guest.rig import ProgramChain
from qmpshim.conformance.guest.run import run_scenario
from qmpshim.conformance.guest.scenarios import GuestScenario
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.images import FileImages
from qmpshim.machine.chain.parts import Node
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.guest.image import GuestImage
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb


def qmpshim(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qmpshim", "guest", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_case_of_kind_guest(image: GuestImage, tmp_path: Path, qemu_build: Build) -> None:
    outcome = run(qemu_build, Case("guest", "g", {"scenario": "both-sides"}), tmp_path)
    assert outcome.status is Status.OK, outcome
    assert outcome.figures["operations"] > 100
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no guest scenario 'dance': mixed,"):
        run(qemu_build, Case("guest", "g", {"scenario": "dance"}), tmp_path)
    with pytest.raises(InputError, match="unexpected keyword"):
        run(qemu_build, Case("guest", "g", {"colour": "red"}), tmp_path)


def test_a_known_crash_is_named_with_its_evidence(
    image: GuestImage, tmp_path: Path, qemu_build: Build
) -> None:
    case = Case("guest", "g", {"scenario": "mixed", "iothread": True})
    try:
        outcome = run(qemu_build, case, tmp_path)
    except BuildError as error:
        pytest.skip(str(error))
    assert outcome.status is Status.OK, outcome
    if (7, 2, 14) <= read_version(qemu_build)[0] < (7, 3):
        (found,) = outcome.findings
        assert (found.verdict, found.known) == (Verdict.CRASH, "directed/iothread-client-leaves")
        assert "CVE-2024-7409" in found.details["written"]["reason"]
        # The directed case's own finding has the same key: two sights of one defect.
        case = Case("directed", "d", {"case": "iothread-client-leaves"})
        [same] = directed(qemu_build, case, tmp_path).findings
        assert same.key == found.key
        assert "guest check mixed --iothread --seed 1" in found.replay
        kept = {path.name for path in (tmp_path / "guest").iterdir()}
        assert {"console.log", "qmp.log", "stderr", "images"} <= kept


async def _kills(work: GuestWork, _seed: int) -> None:
    work.rig.machine.send("sleep 100")
    work.rig.qemu.kill()
    work.rig.machine.finish()


async def _panics(work: GuestWork, _seed: int) -> None:
    work.rig.machine.run("echo c >/proc/sysrq-trigger")


async def _hangs(work: GuestWork, _seed: int) -> None:
    work.rig.machine.run("sleep 100", limit=0.3)


@pytest.mark.parametrize(
    ("does", "verdict", "text"),
    [
        (_kills, Verdict.CRASH, "killed by SIGKILL during 'sleep 100' in the guest"),
        (_panics, Verdict.CRASH, "the guest's kernel gave up"),
        (_hangs, Verdict.HANG, "did not end in 0.3 s"),
    ],
)
def test_what_goes_wrong_with_the_machine_is_a_verdict(
    does: object, verdict: Verdict, text: str, image: GuestImage, qemu_build: Build
) -> None:
    scenario = GuestScenario("made", "", does)  # type: ignore[arg-type]
    outcome = asyncio.run(run_scenario(scenario, qemu_build, image, Attachment(), known={}))
    assert outcome.divergence is not None
    assert outcome.divergence.verdict is verdict
    assert text in outcome.divergence.observed
    assert not outcome.known


class Full(FileImages):
    """The file of the secondary disk takes no write: there is no room for it."""

    def storage(self, node: Node) -> dict[str, Any]:
        file = super().storage(node)
        if node.name != "secondary":
            return file
        full = {"event": "pwritev", "iotype": "write", "errno": errno.ENOSPC}
        return {"driver": "blkdebug", "image": file, "inject-error": [full]}


class NoRoom(ProgramChain):
    """A chain on such images."""

    async def build(self) -> None:
        files = self.files
        self.images = Full(*(getattr(files, one.name) for one in dataclasses.fields(files)))
        await super().build()


async def _writes(work: GuestWork, _seed: int) -> None:
    work.primary(Verb.WRITE, 0, 8)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("does", "chain", "verdict"),
    [(_writes, NoRoom, Verdict.ERROR_CONTRACT), (_hangs, ProgramChain, Verdict.HANG)],
)
def test_a_full_host_disk_is_no_finding(
    does: Any,
    chain: type[ProgramChain],
    verdict: Verdict,
    full: bool,
    image: GuestImage,
    qemu_build: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room on the host's disk what goes wrong is QEMU's."""
    room = 0 if full else 1 << 20
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=room, f_frsize=4096))
    scenario = GuestScenario("made", "", does)
    running = run_scenario(scenario, qemu_build, image, Attachment(), known={}, chain=chain)
    if full:
        with pytest.raises(HostError, match="is full: free some space"):
            asyncio.run(running)
    else:
        outcome = asyncio.run(running)
        assert outcome.divergence is not None
        assert outcome.divergence.verdict is verdict, str(outcome.divergence)


@pytest.mark.usefixtures("qemu_on_path")
def test_the_command_says_how_it_went(image: GuestImage) -> None:
    ran = qmpshim("check", "both-sides", "--device", "virtio-scsi")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "both-sides       as predicted: " in ran.stdout
    for words, error in (
        (("check", "dance"), "no guest scenario 'dance'; there are mixed"),
        (("check", "--aio", "native"), "--aio native needs --cache none"),
    ):
        wrong = qmpshim(*words)
        assert wrong.returncode == 2
        assert error in wrong.stderr and wrong.stderr.count("\n") == 1


def test_build_says_what_is_in_the_image(image: GuestImage) -> None:
    ran = qmpshim("build")
    assert ran.returncode == 0
    assert "busybox-static" in ran.stdout
    assert str(image.directory) in ran.stdout
