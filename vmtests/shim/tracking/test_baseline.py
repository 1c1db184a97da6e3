"""Disks that hold data, and images with features, before the shim looks: real QEMUs, no verdict."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.images.qcow2 import Qcow2Reader as Tables
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.disks.image import Qcow2Image
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.tracking.baseline import Baseline
from vmtests.support.qcow2_images import SECRET, make_luks
from vmtests.support.shim_harness import Loop, Process, Wire
from vmtests.support.stand_in import ARGS
from vmtests.support.tracking_service import SIZE, Service, export_uris, verify, write_once
from vmtests.support.waiting import wait_until

KiB = 1 << 10


@dataclass(frozen=True)
class Image:
    """How an image is made: its format, ``qemu-img create -o``, and ``qemu-io`` commands.

    :ivar below: a driver between its file and the format
    :ivar encrypted: with LUKS
    :ivar tools: ``qemu-img`` with these words before the image's path and one after it, in the end
    """

    format: str = "qcow2"
    options: str = ""
    commands: tuple[str, ...] = ()
    below: str = ""
    encrypted: bool = False
    tools: tuple[tuple[str, ...], ...] = ()

    def make(self, build: Build, path: Path) -> None:
        options = self.options.replace("EXTERNAL", f"{path}.raw")
        words = ["-o", options] if options else []
        if "backing_file" in options:
            Path(f"{path}.raw").write_bytes(b"\7" * (SIZE // 2) + bytes(SIZE // 2))
        if self.encrypted:
            make_luks(path, SIZE, build.tool("qemu-img"), build.environment())
        else:
            _tool(build, "qemu-img", "create", "-q", "-f", self.format, *words, path, SIZE)
        for command in self.commands:
            _tool(build, "qemu-io", "-d", "unmap", "-f", self.format, "-c", command, path)
        for *words, last in self.tools:
            _tool(build, "qemu-img", *words, path, *([last] if last else []))

    @property
    def how(self) -> dict[str, Any]:
        """How a node of it is opened."""
        if self.encrypted:
            return {"encrypt": {"format": "luks", "key-secret": "key"}}
        return {}


def _tool(build: Build, name: str, *words: object) -> None:
    command = [*build.tool(name), *map(str, words)]
    subprocess.run(
        command, check=True, env=build.environment(), stdout=subprocess.DEVNULL, timeout=60
    )


EMPTY = Image()
DATA = ("write -P 17 0 1M", "write -P 3 1500k 3k")
MIXED = (
    *DATA,
    "write -z -u 256k 192k",
    "write -z 640k 64k",
    "write -P 0 2M 128k",
    "discard 128k 64k",
)
EXTENDED = "extended_l2=on,cluster_size=64k"

#: The secondary disk and the overlays.
QUICK: dict[str, tuple[Image, Image]] = {
    "data": (Image(commands=DATA), EMPTY),
    "all kinds of clusters": (Image(commands=MIXED), EMPTY),
    "a raw disk": (Image("raw", commands=DATA), Image(options=EXTENDED)),
    "extended_l2": (Image(commands=MIXED), Image(options=EXTENDED)),
    "data_file": (EMPTY, Image(options="data_file=EXTERNAL")),
    "preallocation=metadata": (Image(commands=DATA), Image(options="preallocation=metadata")),
}
FULL: dict[str, tuple[Image, Image]] = {
    "clusters of 4k": (Image(options="cluster_size=4k", commands=MIXED), EMPTY),
    "clusters of 256k": (Image(options="cluster_size=256k", commands=MIXED), EMPTY),
    "a preallocated disk": (Image(options="preallocation=metadata", commands=DATA), EMPTY),
    "a disk with subclusters": (Image(options=EXTENDED, commands=MIXED), EMPTY),
    "a disk with a data file": (Image(options="data_file=EXTERNAL", commands=MIXED), EMPTY),
    "large subclusters": (
        Image(commands=MIXED),
        Image(options="extended_l2=on,cluster_size=256k"),
    ),
    "preallocation=falloc": (Image(commands=DATA), Image(options="preallocation=falloc")),
    "preallocation=full": (Image(commands=DATA), Image(options="preallocation=full")),
    "preallocated subclusters": (
        Image(commands=DATA),
        Image(options=EXTENDED + ",preallocation=metadata"),
    ),
    "overlays with data": (Image(commands=DATA), Image(commands=MIXED)),
    "overlays with subclusters": (Image(commands=DATA), Image(options=EXTENDED, commands=MIXED)),
    "a disk with a backing file": (
        Image(options="backing_file=EXTERNAL,backing_fmt=raw", commands=MIXED),
        EMPTY,
    ),
    "a compressed disk": (Image(commands=(*DATA, "write -c -P 9 3M 64k")), EMPTY),
}


class Chain:
    """A chain that a client builds in front of the shim."""

    def __init__(
        self, wire: Wire, directory: Path, build: Build, workflow: Workflow, *images: Image
    ) -> None:
        self.wire = wire
        self._workflow = workflow
        names = ["d", "h"] if workflow is Workflow.BACKUP else ["d", "h", "a"]
        below: dict[str, Any] = {"discard": "unmap"}
        for name, image in zip(names, [images[0], images[1], images[1]], strict=False):
            path = directory / name
            image.make(build, path)
            file: dict[str, Any] = {"driver": "file", "filename": str(path), "discard": "unmap"}
            if image.below:
                file = {"driver": image.below, "image": file, "discard": "unmap"}
            self._ask(
                "blockdev-add",
                driver=image.format,
                file=file,
                **below,
                **image.how,
                **{"node-name": name},
            )
            below = {"backing": name}
        addr = {"type": "unix", "data": {"path": str(directory / "nbd")}}
        self._ask("nbd-server-start", addr=addr)
        self.export("primary", "d", True)
        if workflow is Workflow.REPLICATION:
            top = {"node-name": "t", "top-id": "t"}
            self._ask("blockdev-add", driver="replication", mode="secondary", file="a", **top)
            self.export("guest", "t", True)

    def _ask(self, command: str, **arguments: Any) -> None:
        reply = self.wire.ask(command, arguments)
        assert "return" in reply, (command, arguments, reply)

    def export(self, name: str, node: str, writable: bool) -> None:
        more = {"node-name": node, "writable": writable}
        self._ask("block-export-add", type="nbd", id=name, name=name, **more)

    def start(self) -> None:
        if self._workflow is Workflow.REPLICATION:
            self._ask("xen-set-replication", enable=True, primary=False)
        else:
            job = {"job-id": "j", "device": "d", "target": "h", "sync": "none"}
            self._ask("blockdev-backup", **job)

    def work(self, seed: int) -> None:
        """Random operations of both sides, verified now and then."""
        dice = random.Random(seed)
        uris = export_uris(self.wire)
        for round_ in range(3):
            for _ in range(6):
                side = dice.choice([name for name in ("primary", "guest") if name in uris])
                start = dice.randrange(SIZE // 512) * 512
                if dice.random() < 0.5:
                    start -= start % (64 * KiB)
                length = dice.choice([512, 2 * KiB, 5 * KiB, 64 * KiB, 70 * KiB, 200 * KiB])
                length = min(length, SIZE - start)
                with closing(NbdClient(uris[side])) as client:
                    kind = dice.choice(["write", "write", "zero", "discard"])
                    if kind == "write":
                        client.wait(client.submit_write(os.urandom(length), start))
                    elif kind == "zero":
                        client.wait(client.submit_zero(length, start))
                    else:
                        client.wait(client.submit_discard(length, start))
            verified = verify(self.wire)
            assert verified["as-predicted"], verified
            if round_ == 1 and self._workflow is Workflow.REPLICATION:
                assert self.wire.ask("x-shim-checkpoint") == {"return": {}}
                assert verify(self.wire)["as-predicted"]


@contextmanager
def chain(
    loop: Loop, build: Build, directory: Path, workflow: Workflow, /, *images: Image, **more: Any
) -> Iterator[Chain]:
    directory.mkdir(exist_ok=True)
    service = Service(loop, Options(**{"build": build, **more}))
    try:
        yield Chain(service.client(), directory, build, workflow, *images)
    finally:
        service.close()


def check_chain(made: Chain, workflow: Workflow, seed: int) -> None:
    made.start()
    before = verify(made.wire)
    assert before["as-predicted"], before
    made.work(seed)
    if workflow is Workflow.REPLICATION:
        done = {"enable": False, "primary": False, "failover": True}
        assert made.wire.ask("xen-set-replication", done) == {"return": {}}
        assert verify(made.wire)["as-predicted"]
    status = made.wire.ask("x-shim-status")["return"]
    assert (status["divergences"], status["doubts"]) == (0, [])


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in FULL)]
)
def test_nothing_is_wrong(loop: Loop, tmp_path: Path, each_build: Build, name: str) -> None:
    for seed, workflow in enumerate(Workflow):
        images = {**QUICK, **FULL}[name]
        with chain(loop, each_build, tmp_path / workflow, workflow, *images) as made:
            check_chain(made, workflow, seed)


@pytest.mark.parametrize("name", ["all kinds of clusters", "extended_l2"])
@pytest.mark.parametrize("workflow", Workflow)
def test_nothing_is_wrong_where_the_shim_is_attached(
    loop: Loop, tmp_path: Path, qemu_build: Build, workflow: Workflow, name: str
) -> None:
    monitor = tmp_path / "monitor"
    qemu = Process(qemu_build, (*ARGS, "-qmp", f"unix:{monitor},server=on,wait=off"))
    try:
        wait_until(monitor.exists)
        address = Address(path=monitor)
        with chain(
            loop, qemu_build, tmp_path, workflow, *QUICK[name], build=None, qmp=address
        ) as made:
            check_chain(made, workflow, 1)
    finally:
        qemu.close()


# -- what cannot be judged -----------------------------------------------------------------------


def test_what_our_reader_does_not_support_is_named(
    loop: Loop, tmp_path: Path, each_build: Build
) -> None:
    for number, (overlay, feature) in enumerate(
        (
            (Image(commands=("write -c -P 9 0 64k",)), "compressed clusters"),
            (Image(options="compat=0.10"), "qcow2 version 2"),
        )
    ):
        directory = tmp_path / str(number)
        with chain(loop, each_build, directory, Workflow.BACKUP, EMPTY, overlay) as made:
            made.start()
            verified = verify(made.wire)
            assert not verified["as-predicted"]
            assert verified["verdicts"] == []
            assert [why.endswith(f"cannot judge: {feature}") for why in verified["doubts"]] == [
                True
            ]


def test_an_encrypted_overlay(loop: Loop, tmp_path: Path, qemu_build: Build) -> None:
    images = (EMPTY, Image(encrypted=True))
    more = {"arguments": (*ARGS, "-object", SECRET)}
    with chain(loop, qemu_build, tmp_path, Workflow.BACKUP, *images, **more) as made:
        made.start()
        verified = verify(made.wire)
        assert (verified["as-predicted"], verified["verdicts"]) == (False, [])
        assert verified["doubts"] == ["hidden disk: cannot judge: LUKS encryption"]


@pytest.mark.parametrize(
    ("tool", "feature"),
    [
        (("bitmap", "--add", "b"), "persistent bitmaps"),
        (("snapshot", "-c", "s", ""), "internal snapshots"),
    ],
)
def test_what_holds_clusters_besides_hides_the_health_and_nothing_else(
    loop: Loop, tmp_path: Path, qemu_build: Build, tool: tuple[str, ...], feature: str
) -> None:
    overlay = Image(tools=(tool,))
    with chain(loop, qemu_build, tmp_path, Workflow.BACKUP, Image(commands=DATA), overlay) as made:
        made.start()
        write_once(export_uris(made.wire)["primary"], b"n" * 512, 0)
        verified = verify(made.wire)
        assert verified["verdicts"] == []
        assert verified["compared"] >= 1 << 20
        assert verified["doubts"] == [f"hidden disk (file): cannot judge: {feature}"]
        made.export("past", "h", True)
        with closing(NbdClient(f"nbd+unix:///past?socket={tmp_path / 'nbd'}")) as client:
            client.wait(client.submit_write(b"x" * 512, 3 << 20))
        # What is different is found; as somebody wrote there unseen, it is not called a defect.
        verified = verify(made.wire)
        assert verified["verdicts"] == []
        assert any("may have written unobserved" in doubt for doubt in verified["doubts"])


def test_an_overlay_whose_file_is_out_of_reach(
    loop: Loop, tmp_path: Path, qemu_build: Build
) -> None:
    overlay = Image(below="blkdebug")
    for workflow, doubts in (
        (Workflow.BACKUP, ["cannot judge: the hidden disk's file is out of reach"]),
        (Workflow.REPLICATION, []),  # it empties its overlays first
    ):
        images = (Image(commands=DATA), overlay)
        with chain(loop, qemu_build, tmp_path / workflow, workflow, *images) as made:
            made.start()
            write_once(export_uris(made.wire)["primary"], b"n" * 512, 0)
            verified = verify(made.wire)
            assert (verified["verdicts"], verified["doubts"]) == ([], doubts)


def test_a_disk_whose_allocation_is_unknown(loop: Loop, tmp_path: Path, each_build: Build) -> None:
    """Its contents are judged, and the overlays' allocation as far as it follows from them."""
    disk = Image(commands=MIXED, below="blkdebug")
    with chain(loop, each_build, tmp_path, Workflow.BACKUP, disk, EMPTY) as made:
        check_chain(made, Workflow.BACKUP, 3)
        drawn = {entry["disk"]: entry for entry in made.wire.ask("x-shim-map")["return"]["disks"]}
        assert "unknown" in {run["allocation"] for run in drawn["secondary"]["runs"]}


# -- recording -----------------------------------------------------------------------------------


def test_what_can_be_recorded_replays(loop: Loop, tmp_path: Path, each_build: Build) -> None:
    disk = Image(commands=(*DATA, "write -z -u 2M 128k"))
    with chain(loop, each_build, tmp_path, Workflow.BACKUP, disk, EMPTY) as made:
        made.start()
        write_once(export_uris(made.wire)["primary"], b"n" * 70 * KiB, (2 << 20) - 1024)
        assert verify(made.wire)["as-predicted"]
        recorded = made.wire.ask("x-shim-record")["return"]
        assert recorded["shows"] == "as predicted"
        begins = [tuple(operation[1:]) for operation in recorded["case"]["operations"]][:4]
        assert begins == [
            ("primary", "write", 0, 2048),
            ("primary", "write", 2944, 128),
            ("primary", "zero", 4096, 256),
            ("chain", "start", 0, 0),
        ]


def test_what_cannot_be_recorded_is_refused(loop: Loop, tmp_path: Path, qemu_build: Build) -> None:
    for number, (disk, overlay, why) in enumerate(
        (
            (Image(commands=DATA), Image(options=EXTENDED), "subclusters, or clusters of several"),
            (Image(options="cluster_size=4k"), EMPTY, "subclusters, or clusters of several sizes"),
            (Image(options="preallocation=metadata"), EMPTY, "clusters of zeroes that are alloc"),
            (EMPTY, Image(options="preallocation=metadata"), "a hidden disk that is not empty"),
            (Image(commands=("write -c -P 9 0 64k",)), EMPTY, "whose allocation is not known"),
        )
    ):
        directory = tmp_path / str(number)
        with chain(loop, qemu_build, directory, Workflow.BACKUP, disk, overlay) as made:
            made.start()
            assert verify(made.wire)["as-predicted"]
            text = made.wire.ask("x-shim-record")["error"]["desc"]
            assert text.startswith("a bundle cannot begin with ") and why in text, text


# -- mutants -------------------------------------------------------------------------------------


def _no_allocation(self: Baseline, image: Qcow2Image, tables: Tables) -> None:
    """The baseline of old: contents alone."""


def _no_subclusters(self: Baseline, image: Qcow2Image, tables: Tables) -> None:
    if image.name == "secondary":
        set_allocation(self, image, tables)


set_allocation = Baseline.set_allocation
MUTANTS: dict[str, tuple[type, str, Any, str]] = {
    "no allocation": (Baseline, "set_allocation", _no_allocation, "data"),
    "overlays are empty": (Baseline, "set_allocation", _no_subclusters, "preallocation=metadata"),
    "DATA of zeroes is data": (
        Baseline,
        "distrust_zeroes",
        lambda *_: None,
        "a preallocated disk",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_baseline_are_killed(
    loop: Loop, tmp_path: Path, qemu_build: Build, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, attribute, mutant, case = MUTANTS[name]
    monkeypatch.setattr(where, attribute, mutant)
    images = {**QUICK, **FULL}[case]
    with chain(loop, qemu_build, tmp_path, Workflow.BACKUP, *images) as made:
        made.start()
        with pytest.raises(AssertionError, match=r"as-predicted.: False"):
            for seed in range(3):
                made.work(seed)
