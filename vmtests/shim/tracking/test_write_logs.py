"""I/O that goes past the shim's endpoints is seen in QEMU's own write log, and feeds the model."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options, endpoint
from vmtests.support.shim_harness import Loop
from vmtests.support.tracking_service import CLUSTER, SIZE, Service

PLAIN = {"enable": True, "primary": False}


@pytest.fixture
def service(each_build: Build, loop: Loop) -> Iterator[Service]:
    spec = ChainSpec(Workflow.REPLICATION, SIZE, CLUSTER)
    made = Service(loop, Options(build=each_build, chain=spec, log_writes=True))
    yield made
    made.close()


def _behind(service: Service, export: str) -> NbdClient:
    """A client of QEMU's own NBD server, which the shim does not see."""
    chain = service.served.chain
    assert chain is not None
    return NbdClient(chain.uri(export), 20.0, plain=True)


def _verified(service: Service, wire: Any) -> dict[str, Any]:
    reply = wire.ask("x-shim-verify")
    assert "return" in reply, reply
    return dict(reply["return"])


def test_io_past_the_shim_is_followed(service: Service) -> None:
    wire = service.client()
    wire.ask("xen-set-replication", PLAIN)
    chance = random.Random(5)
    with closing(_behind(service, "primary")) as primary, closing(_behind(service, "guest")) as top:
        for client in (primary, top, primary):
            for _ in range(30):
                at = 512 * chance.randrange(SIZE // 512 - 64)
                length = 512 * chance.randrange(1, 64)
                match chance.randrange(4):
                    case 0:
                        client.wait(client.submit_zero(length, at))
                    case 1:
                        client.wait(client.submit_write(bytes(length), at))  # zeroes, as data
                    case _:
                        client.wait(client.submit_write(chance.randbytes(length), at))
            client.wait(client.submit_discard(CLUSTER, CLUSTER * chance.randrange(60)))
            client.wait(client.submit_flush())
            verified = _verified(service, wire)
            assert verified["as-predicted"], verified
            assert wire.ask("x-shim-checkpoint") == {"return": {}}
            assert _verified(service, wire)["as-predicted"]
    status = wire.ask("x-shim-status")["return"]
    assert status["doubts"] == [] and status["divergences"] == 0
    assert status["operations"] > 90


def test_what_comes_through_the_shim_is_followed_once(service: Service) -> None:
    wire = service.client()
    status = wire.ask("x-shim-status")["return"]
    uris = {entry["export"]: entry["uri"] for entry in status["endpoints"]}
    assert {entry["node"] for entry in status["endpoints"]} == {"secondary", "top"}
    wire.ask("xen-set-replication", PLAIN)
    before = wire.ask("x-shim-status")["return"]["operations"]
    with closing(NbdClient(uris["primary"])) as client:
        client.wait(client.submit_write(os.urandom(CLUSTER), 0))
    assert wire.ask("x-shim-status")["return"]["operations"] == before + 1
    assert _verified(service, wire)["as-predicted"]


def test_a_command_during_io_raises_doubt_and_a_wrong_disk_is_noticed(service: Service) -> None:
    wire = service.client()
    wire.ask("xen-set-replication", PLAIN)
    with closing(_behind(service, "primary")) as primary:
        primary.wait(primary.submit_write(os.urandom(512), 0))
    chain = service.served.chain
    assert chain is not None
    with chain.image("secondary").open("r+b") as file:  # past QEMU itself
        file.seek(10 * CLUSTER)
        file.write(b"spoilt" * 100)
    verified = _verified(service, wire)
    assert not verified["as-predicted"]
    assert verified["verdicts"][0]["verdict"] == "content"


def test_a_node_of_a_client_is_watched_when_asked(
    loop: Loop, tmp_path: Path, qemu_build: Build
) -> None:
    service = Service(loop, Options(build=qemu_build))
    try:
        wire = service.client()
        (tmp_path / "disk").write_bytes(os.urandom(SIZE))
        os.system(f"qemu-img create -q -f qcow2 {tmp_path}/hidden.qcow2 {SIZE}")
        file = {"driver": "file", "filename": f"{tmp_path}/disk"}
        wire.ask("blockdev-add", {"driver": "raw", "node-name": "d", "file": file})
        file = {"driver": "file", "filename": f"{tmp_path}/hidden.qcow2"}
        hidden = {"driver": "qcow2", "node-name": "h", "backing": "d", "file": file}
        assert wire.ask("blockdev-add", hidden) == {"return": {}}
        reported = wire.ask("x-shim-watch-node", {"node": "d"})["return"]
        assert reported == {"node": "x-shim-log-d"}
        assert wire.ask("x-shim-watch-node", {"node": "d"})["return"] == reported
        assert "error" in wire.ask("x-shim-watch-node", {"node": "missing"})
        addr = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        wire.ask("nbd-server-start", {"addr": addr})
        export = {"type": "nbd", "id": "e", "name": "e", "writable": True}
        done = wire.ask("block-export-add", {**export, "node-name": "x-shim-log-d"})
        assert done == {"return": {}}
        job = {"job-id": "j", "device": "d", "target": "h", "sync": "none"}
        assert wire.ask("blockdev-backup", job) == {"return": {}}
        with closing(NbdClient(f"nbd+unix:///e?socket={tmp_path}/nbd")) as client:
            client.wait(client.submit_write(os.urandom(5120), 70_144))
        verified = _verified(service, wire)
        assert verified["as-predicted"], verified
        assert wire.ask("x-shim-status")["return"]["operations"] > 1
    finally:
        service.close()


def test_a_writable_export_is_put_on_a_log(loop: Loop, tmp_path: Path, qemu_build: Build) -> None:
    service = Service(loop, Options(build=qemu_build, log_writes=True))
    try:
        wire = service.client()
        wire.ask("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
        addr = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        wire.ask("nbd-server-start", {"addr": addr})
        for name, writable in (("r", False), ("w", True)):
            export = {"type": "nbd", "id": name, "name": name, "node-name": "n"}
            done = wire.ask("block-export-add", {**export, "writable": writable})
            assert done == {"return": {}}
        exports = {e["id"]: e["node-name"] for e in wire.ask("query-block-exports")["return"]}
        assert exports.pop("x-shim-keep-0") == "n"
        assert exports == {"r": "n", "w": "x-shim-log-n"}
        bad = {"type": "nbd", "id": "x", "node-name": "missing", "writable": True}
        assert "missing" in wire.ask("block-export-add", bad)["error"]["desc"]
    finally:
        service.close()


def test_not_on_a_gated_chain(loop: Loop, qemu_build: Build) -> None:
    spec = ChainSpec(Workflow.BACKUP, SIZE, CLUSTER)
    with pytest.raises(InputError, match="leave out --log-writes"):
        loop.run(
            endpoint(
                Options(build=qemu_build, chain=spec, gated=True, log_writes=True)
            ).__aenter__()
        )
