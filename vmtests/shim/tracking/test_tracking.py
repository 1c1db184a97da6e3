"""Several chains, the ways their jobs are started, and writers that the shim does not see."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.shim.emulator.serve import Options
from vmtests.support.shim_harness import Loop, Wire
from vmtests.support.tracking_service import CLUSTER, SIZE, Service
from vmtests.support.waiting import wait_until

NO_MACHINE = ("-machine", "none", "-nodefaults", "-display", "none")
#: Writes 512 zero bytes to sector 128 for ever (BIOS, int 13h, function 43h).
_CODE = bytes.fromhex("fa31c08ed88ed0bc007cfbbe807cb80043cd13f4eb")
WRITTEN = 128 * 512


def _boot_disk() -> bytes:
    """A disk whose boot sector is a guest that writes."""
    code = _CODE + bytes([(10 - len(_CODE)) & 0xFF])
    sector = bytearray(512)
    sector[: len(code)] = code
    sector[0x80:0x90] = bytes([16, 0, 1, 0, 0, 0x7E, 0, 0]) + (128).to_bytes(8, "little")
    sector[510:] = b"\x55\xaa"
    return bytes(sector) + b"\x11" * (SIZE - 512)


class Disks:
    """A service, and what a test does to its QEMU."""

    def __init__(self, loop: Loop, place: Path, options: Options) -> None:
        self.place = place
        self.service = Service(loop, options)
        self.wire: Wire = self.service.client()

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        reply = self.wire.ask(command, named)
        assert "return" in reply, (command, named, reply)
        return reply["return"]

    def fails(self, command: str, **arguments: Any) -> str:
        """What a command's error says."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return str(self.wire.ask(command, named)["error"]["desc"])

    def add(self, node: str, driver: str = "qcow2", **more: Any) -> None:
        """A node on a file of its own."""
        path = self.place / node
        if not path.exists():
            command = ("qemu-img", "create", "-q", "-f", driver, str(path), str(SIZE))
            subprocess.run(command, check=True)
        file = {"driver": "file", "filename": str(path)}
        self.ask("blockdev-add", driver=driver, node_name=node, file=file, **more)

    def server(self) -> None:
        """An NBD server."""
        unix = {"type": "unix", "data": {"path": str(self.place / "nbd")}}
        self.ask("nbd-server-start", addr=unix)

    def export(self, node: str, **more: Any) -> None:
        """A writable NBD export of the node's name."""
        self.ask("block-export-add", type="nbd", id=node, node_name=node, writable=True, **more)

    def backup(self, source: str, target: str, **more: Any) -> None:
        """Start a job whose name is the source's."""
        arguments = {"device": source, "target": target, "job-id": f"j-{source}", "sync": "none"}
        self.ask("blockdev-backup", **arguments, **more)

    def cancel(self, job: str) -> None:
        """End a job."""
        self.ask("block-job-cancel", device=job)
        wait_until(lambda: job not in {j["id"] for j in self.ask("query-jobs")})

    def write(self, export: str, data: bytes, offset: int) -> None:
        """Write through the endpoint."""
        uris = {e["export"]: e["uri"] for e in self.status()["endpoints"]}
        with closing(NbdClient(uris[export])) as client:
            client.wait(client.submit_write(data, offset))

    def status(self, **more: Any) -> dict[str, Any]:
        return dict(self.ask("x-shim-status", **more))

    def verify(self, **more: Any) -> dict[str, Any]:
        return dict(self.ask("x-shim-verify", **more))

    def unobserved(self) -> list[tuple[str, str, str]]:
        """Kind, name, and the node that may be changed."""
        return [(u["writer"], u["name"], u["node"]) for u in self.status()["unobserved"]]


@contextmanager
def _two_pairs(loop: Loop, place: Path, build: Build) -> Iterator[Disks]:
    """Two pairs of disks (a and b, with sa and sb above them), exported, nothing running."""
    made = Disks(loop, place, Options(build=build, arguments=NO_MACHINE))
    made.server()
    for name in "ab":
        (place / name).write_bytes(os.urandom(SIZE))
        made.add(name, "raw")
        made.add(f"s{name}", backing=name)
        made.export(name)
    try:
        yield made
    finally:
        made.service.close()


@pytest.fixture
def disks(loop: Loop, tmp_path: Path, qemu_build: Build) -> Iterator[Disks]:
    with _two_pairs(loop, tmp_path, qemu_build) as made:
        yield made


@pytest.fixture
def disks_of_each(loop: Loop, tmp_path: Path, each_build: Build) -> Iterator[Disks]:
    with _two_pairs(loop, tmp_path, each_build) as made:
        yield made


def test_several_chains_are_followed_and_one_can_be_chosen(disks: Disks) -> None:
    disks.backup("a", "sa")
    disks.write("a", b"1" * CLUSTER, 0)
    disks.backup("b", "sb")
    disks.write("b", b"2" * 100, 100)
    verified = disks.verify()
    assert verified["as-predicted"], verified
    assert [chain["name"] for chain in verified["chains"]] == ["sa", "sb"]
    assert [chain["job"] for chain in disks.status()["chains"]] == ["j-a", "j-b"]
    for name in ("j-b", "sb", "b"):
        reported = disks.verify(chain=name)
        assert [chain["name"] for chain in reported["chains"]] == ["sb"] and reported[
            "as-predicted"
        ]
        assert disks.status(chain=name)["chain"]["name"] == "sb"
        assert disks.ask("x-shim-map", chain=name)["disks"][0]["node"] == "b"
    assert disks.ask("x-shim-predict", node="sb")["extents"][0]["allocation"] == "data"
    assert disks.ask("x-shim-predict", node="secondary", chain="sb")["node"] == "b"
    assert len(disks.ask("x-shim-record", chain="sa")["case"]["operations"]) == 4
    for question in ("x-shim-map", "x-shim-record"):
        assert disks.fails(question) == "several chains are modelled, say which: sa, sb"
    assert "sa, sb" in disks.fails("x-shim-predict", node="secondary")
    assert "no chain goes by the name 'c'" in disks.fails("x-shim-verify", chain="c")
    (disks.place / "b").write_bytes(bytes(SIZE))  # past QEMU: of this chain only
    reported = disks.verify()
    assert [chain["as-predicted"] for chain in reported["chains"]] == [True, False]
    assert {verdict["where"] for verdict in reported["verdicts"]} == {
        "secondary disk",
        "hidden disk",
    }
    assert [chain["divergences"] for chain in disks.status()["chains"]] == [0, 2]


def test_a_chain_whose_disks_are_taken_away_and_made_again(disks: Disks) -> None:
    disks.backup("a", "sa")
    disks.write("a", b"1" * CLUSTER, 0)
    disks.cancel("j-a")
    disks.backup("a", "sa")  # the same chain goes on
    disks.write("a", b"2" * CLUSTER, CLUSTER)
    assert disks.verify()["as-predicted"]
    disks.cancel("j-a")
    disks.ask("blockdev-del", node_name="sa")
    (disks.place / "sa").unlink()
    assert disks.status()["chains"] == []
    assert "no chain is modelled yet" in disks.verify()["doubts"][0]
    disks.add("sa", backing="a")
    disks.backup("a", "sa")
    disks.write("a", b"3" * CLUSTER, 0)
    assert disks.verify()["as-predicted"]


@pytest.mark.parametrize("grouped", [False, True])
def test_jobs_that_make_their_targets_themselves(disks_of_each: Disks, grouped: bool) -> None:
    """``drive-backup`` names a file: which node that is, is known once the job runs."""
    disks = disks_of_each
    actions = [
        {
            "type": "drive-backup",
            "data": {
                **{"device": name, "job-id": f"j-{name}", "sync": "none", "format": "qcow2"},
                **{"target": str(disks.place / f"made-{name}")},
            },
        }
        for name in "ab"
    ]
    properties = {"completion-mode": "grouped" if grouped else "individual"}
    disks.ask("transaction", actions=actions, properties=properties)
    disks.write("a", b"1" * 5000, 70_000)
    disks.write("b", b"2" * CLUSTER, 0)
    verified = disks.verify()
    assert verified["as-predicted"] and len(verified["chains"]) == 2, verified
    disks.ask("block-job-cancel", device="j-a")
    left = {"j-a", "j-b"} if grouped else {"j-a"}
    wait_until(lambda: not left & {job["id"] for job in disks.ask("query-jobs")})
    running = [chain["stage"] for chain in disks.status()["chains"]]
    assert running in (["none", "none"], []) if grouped else running[-1:] == ["running"]


def test_a_transaction_that_fails_leaves_nothing_followed(disks: Disks) -> None:
    jobs = [
        {
            "type": "blockdev-backup",
            "data": {"device": device, "target": target, "job-id": "j", "sync": "none"},
        }
        for device, target in (("a", "sa"), ("b", "missing"))
    ]
    assert "missing" in disks.fails("transaction", actions=jobs)
    assert disks.status()["chains"] == []
    disks.write("a", b"1" * 100, 0)
    disks.backup("a", "sa")
    assert disks.verify()["as-predicted"]


def test_two_replication_filters_are_followed(
    loop: Loop, tmp_path: Path, qemu_build: Build
) -> None:
    """COLO with two disks: the commands act on all filters."""
    disks = Disks(loop, tmp_path, Options(build=qemu_build, arguments=NO_MACHINE))
    try:
        disks.server()
        for n in "12":
            disks.add(f"d{n}", "raw")
            disks.export(f"d{n}")
            disks.add(f"h{n}", backing=f"d{n}")
            disks.add(f"a{n}", backing=f"h{n}")
            mode = {"mode": "secondary", "top-id": f"t{n}", "file": f"a{n}"}
            disks.ask("blockdev-add", driver="replication", node_name=f"t{n}", **mode)
            disks.export(f"t{n}")
        disks.ask("xen-set-replication", enable=True, primary=False)
        for n in "12":
            disks.write(f"d{n}", n.encode() * CLUSTER, CLUSTER)
            disks.write(f"t{n}", n.encode() * 512, 0)
        verified = disks.verify()
        assert verified["as-predicted"] and len(verified["chains"]) == 2, verified
        disks.ask("x-shim-checkpoint")
        disks.ask("xen-set-replication", enable=False, primary=False, failover=True)
        verified = disks.verify()
        assert verified["as-predicted"], verified
        assert [chain["stage"] for chain in disks.status()["chains"]] == ["done", "done"]
        disks.add("over")
        disks.ask("blockdev-snapshot", node="t1", overlay="over")
        disks.write("t1", b"3" * CLUSTER, 0)  # the export is another disk's now
        assert disks.verify()["as-predicted"]
    finally:
        disks.service.close()


# -- writers that are not seen ------------------------------------------------------------


def test_another_job_that_writes_to_a_followed_disk(disks_of_each: Disks) -> None:
    disks = disks_of_each
    disks.backup("a", "sa")
    disks.backup("b", "sb")
    disks.cancel("j-a")
    full = {"device": "b", "target": "sb", "job-id": "full", "sync": "full"}
    assert "error" in disks.wire.ask("blockdev-backup", full)  # what fails writes nothing
    assert disks.unobserved() == []
    disks.add("x", "raw")
    disks.ask("blockdev-backup", device="x", target="a", job_id="onto", sync="full")
    wait_until(lambda: "onto" not in {j["id"] for j in disks.ask("query-jobs")})
    assert ("command", "blockdev-backup", "a") in disks.unobserved()
    assert {node for _, _, node in disks.unobserved()} == {"a"}
    reported = disks.verify()
    assert not reported["as-predicted"] and reported["verdicts"] == [], reported
    assert "blockdev-backup" in reported["doubts"][0]
    assert [chain["as-predicted"] for chain in reported["chains"]] == [False, True]


def test_an_export_of_another_node_above_a_followed_disk(disks_of_each: Disks) -> None:
    """What is relayed to it is not what is done to the disk: the node may do something else."""
    disks = disks_of_each
    children = {"children": ["a"], "vote-threshold": 1}
    disks.ask("block-export-del", id="a", mode="hard")
    wait_until(lambda: len(disks.ask("query-block-exports")) == 1)
    disks.ask("blockdev-add", driver="quorum", node_name="q", **children)
    disks.export("q")
    disks.backup("a", "sa")
    assert disks.unobserved() == [("export", "q", "a")]
    disks.write("q", b"1" * CLUSTER, 0)
    reported = disks.verify()
    assert reported["verdicts"] == [] and "export 'q'" in reported["doubts"][0], reported


def test_an_export_over_vhost_user(disks_of_each: Disks) -> None:
    """No relay can stand before it: what is written through it is unseen."""
    disks = disks_of_each
    if "vhost-user-blk" not in _export_types(disks):
        pytest.skip("this QEMU has none")
    words = {"node-name": "a", "writable": True}
    addr = {"type": "unix", "path": f"{disks.place}/vhost"}
    disks.ask("block-export-add", type="vhost-user-blk", id="v", addr=addr, **words)
    disks.backup("a", "sa")
    assert disks.unobserved() == [("export", "v", "a")]
    assert disks.verify()["as-predicted"]  # it may have written, and has not


def test_an_export_by_fuse(disks_of_each: Disks) -> None:
    """It shares no resizing, so that QEMU lets the shim have no export for itself: the chain cannot
    be read, and what is verified beside it is not everything."""
    disks = disks_of_each
    if "fuse" not in _export_types(disks) or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this QEMU or this machine has none")
    mounted = disks.place / "fuse"
    mounted.touch()
    disks.ask("block-export-del", id="b", mode="hard")
    wait_until(lambda: "b" not in {e["id"] for e in disks.ask("query-block-exports")})
    words = {"node-name": "b", "writable": True, "mountpoint": str(mounted)}
    disks.ask("block-export-add", type="fuse", id="f", **words)
    disks.backup("b", "sb")
    with mounted.open("r+b", buffering=0) as file:
        file.write(b"1" * CLUSTER)
    for followed in ([], ["sa"]):
        for name in followed:
            disks.backup(name[1:], name)
        reported = disks.verify()
        assert [chain["name"] for chain in reported["chains"]] == followed
        assert (reported["as-predicted"], reported["verdicts"]) == (False, []), reported
        assert "Permission conflict on node 'b'" in reported["doubts"][0], reported
        assert "Permission conflict on node 'b'" in disks.status()["not-modelled"]
    assert disks.verify(chain="sa")["as-predicted"]
    disks.cancel("j-b")
    assert disks.verify()["as-predicted"]
    assert "not-modelled" not in disks.status()


def test_a_transaction_of_which_a_part_is_not_modelled(disks: Disks) -> None:
    """Whatever the order: what is verified is not everything as long as that job runs."""
    disks.add("x", "raw")  # no overlay
    jobs = [
        {"job-id": f"j{name}", "device": name, "target": target, "sync": "none"}
        for name, target in (("b", "x"), ("a", "sa"))
    ]
    disks.ask("transaction", actions=[{"type": "blockdev-backup", "data": one} for one in jobs])
    reported = disks.verify()
    assert [chain["name"] for chain in reported["chains"]] == ["sa"]
    assert not reported["as-predicted"] and reported["doubts"][0].startswith(
        "job 'jb' is not modelled: "
    )
    assert disks.status()["not-modelled"] == reported["doubts"][0]
    assert disks.verify(chain="ja")["as-predicted"]
    disks.cancel("jb")
    assert disks.verify()["as-predicted"]


def _export_types(disks: Disks) -> set[str]:
    """What `block-export-add` takes as a type."""
    schema = {one["name"]: one for one in disks.ask("query-qmp-schema")}
    add = schema[schema["block-export-add"]["arg-type"]]
    return {variant["case"] for variant in add["variants"]}


def test_a_server_that_others_reach_past_the_shim(disks: Disks) -> None:
    """A client of a TCP port of QEMU's is not known: the export is unobserved from the start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    disks.ask("nbd-server-stop")
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": port}}
    disks.ask("nbd-server-start", addr=inet)
    disks.export("a")
    disks.backup("a", "sa")
    assert disks.unobserved() == [("export", "a", "a")]
    disks.write("a", b"1" * CLUSTER, 0)
    assert disks.verify()["as-predicted"]


def test_readers_raise_no_doubt(disks: Disks) -> None:
    read_only = {"type": "nbd", "id": "r", "name": "r", "node-name": "sa"}
    disks.ask("block-export-add", **read_only)
    disks.backup("a", "sa")
    for name in ("r", "r"):
        with closing(NbdClient(f"nbd+unix:///{name}?socket={disks.place}/nbd")) as client:
            client.read(CLUSTER, 0)
    disks.ask("human-monitor-command", command_line='qemu-io sa "read 0 64k"')
    disks.ask("human-monitor-command", command_line="info block")
    assert disks.unobserved() == []
    with closing(NbdClient(f"nbd+unix:///a?socket={disks.place}/nbd")) as client:
        client.read(CLUSTER, 0)  # this one might have written
    assert disks.unobserved() == [("export", "a", "a")]
    assert disks.verify()["as-predicted"]


def test_an_endpoint_beside_a_log(disks: Disks) -> None:
    """Their order is known where somebody waited in between, and where it does not matter."""
    log = disks.ask("x-shim-watch-node", node="a")["node"]
    disks.ask("block-export-add", type="nbd", id="l", node_name=log, writable=True, name="l")
    disks.backup("a", "sa")
    disks.write("a", b"1" * CLUSTER, 0)
    disks.write("l", b"2" * CLUSTER, CLUSTER)
    assert disks.verify()["as-predicted"]
    disks.write("l", b"3" * CLUSTER, 0)
    assert disks.verify()["as-predicted"]
    disks.write("a", b"4" * CLUSTER, 0)
    disks.write("l", b"5" * CLUSTER, 512)
    assert "what came first" in disks.verify()["doubts"][0]


class _Guest(Disks):
    """A machine that boots from disk ``a``, whose guest writes as soon as it runs."""

    def __init__(self, loop: Loop, place: Path, build: Build, log_writes: bool) -> None:
        (place / "a").write_bytes(_boot_disk())
        disk = f"driver=raw,node-name=a,file.driver=file,file.filename={place}/a"
        machine = ("-machine", "pc,accel=tcg", "-m", "32", "-S", "-nodefaults", "-display", "none")
        device = ("-blockdev", disk, "-device", "virtio-blk-pci,id=v,drive=a,bootindex=0")
        arguments = (*machine, *device)
        options = Options(build=build, arguments=arguments, log_writes=log_writes)
        super().__init__(loop, place, options)
        self.add("h", backing="a")

    def run(self) -> None:
        """Until the guest has written."""
        self.ask("cont")
        wait_until(lambda: not any((self.place / "a").read_bytes()[WRITTEN : WRITTEN + 512]))
        self.ask("stop")


DEVICE = ("device", "/machine/peripheral/v/virtio-backend", "a")


@pytest.mark.parametrize("log_writes", [False, True])
def test_a_guest_writes(loop: Loop, tmp_path: Path, each_build: Build, log_writes: bool) -> None:
    guest = _Guest(loop, tmp_path, each_build, log_writes)
    try:
        guest.backup("a", "h")
        assert guest.unobserved() == []  # it does not run
        assert guest.verify()["as-predicted"]
        guest.run()
        reported = guest.verify()
        seen = log_writes and each_build.name != "debian:bullseye"  # no other node since 6.2 only
        assert guest.unobserved() == ([] if seen else [DEVICE])
        assert reported["verdicts"] == [] and reported["as-predicted"] is seen, reported
        if seen:
            return
        assert {"hidden disk (file)", "secondary disk"} == {
            d.split(":")[0] for d in reported["doubts"]
        }
        # What is read through the hidden disk is promised all the same.
        with (tmp_path / "a").open("r+b") as file:
            file.seek(20 * CLUSTER)
            file.write(b"spoilt")
        reported = guest.verify()
        assert [verdict["verdict"] for verdict in reported["verdicts"]] == ["isolation"]
    finally:
        guest.service.close()


def test_a_job_that_starts_while_the_guest_writes(
    loop: Loop, tmp_path: Path, qemu_build: Build
) -> None:
    """What the disk held when the job started is not known."""
    guest = _Guest(loop, tmp_path, qemu_build, log_writes=False)
    try:
        guest.ask("cont")
        guest.backup("a", "h")
        guest.run()
        assert guest.unobserved() == [DEVICE]
        with (tmp_path / "a").open("r+b") as file:
            file.seek(20 * CLUSTER)
            file.write(b"spoilt")  # or the guest, before the job
        reported = guest.verify()
        assert reported["verdicts"] == [] and not reported["as-predicted"], reported
        assert any(doubt.startswith("hidden disk:") for doubt in reported["doubts"])
    finally:
        guest.service.close()


def test_a_device_that_is_added_is_put_on_a_log(
    loop: Loop, tmp_path: Path, each_build: Build
) -> None:
    guest = _Guest(loop, tmp_path, each_build, log_writes=True)
    try:
        guest.add("d", "raw")
        guest.add("hd", backing="d")
        guest.ask("device_add", driver="virtio-blk-pci", id="w", drive="d")
        guest.backup("d", "hd")
        line = 'qemu-io -d /machine/peripheral/w/virtio-backend "write -P 5 0 70k"'
        guest.ask("human-monitor-command", command_line=line)
        assert guest.unobserved() == []
        reported = guest.verify()
        assert reported["as-predicted"], reported
        assert guest.status()["operations"] > 2
        bad = {"driver": "virtio-blk-pci", "id": "x", "drive": "missing"}
        assert "missing" in guest.fails("device_add", **bad)
    finally:
        guest.service.close()
