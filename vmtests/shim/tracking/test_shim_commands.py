"""The shim answers for the model, on chains it built itself and chains that a client built."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.known.draft import draft_text
from qmpshim.conformance.known.folder import read
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.endpoint.server import OWN_EXPORT
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.endpoint.window import WINDOW
from qmpshim.shim.tracking.shim_command_schema import COMMANDS
from vmtests.support.bundles import draft_of
from vmtests.support.drafts import filled
from vmtests.support.qmp_arguments import Schema
from vmtests.support.shim_harness import Loop
from vmtests.support.tracking_service import CLUSTER, SIZE, Service, export_uris, verify, write_once
from vmtests.support.waiting import wait_until


@pytest.fixture
def service(each_build: Build, loop: Loop) -> Iterator[Service]:
    spec = ChainSpec(Workflow.REPLICATION, SIZE, CLUSTER)
    made = Service(loop, Options(build=each_build, chain=spec))
    yield made
    made.close()


def test_replication(service: Service) -> None:
    wire = service.client()
    uris = export_uris(wire)
    assert set(uris) == {"primary", "guest"}
    assert "no chain" in wire.ask("x-shim-map")["return"]["not-modelled"]
    before = os.urandom(3 * CLUSTER)
    write_once(uris["primary"], before, CLUSTER)  # what the secondary disk starts from
    assert wire.ask("xen-set-replication", {"enable": True, "primary": False}) == {"return": {}}
    with closing(NbdClient(uris["primary"])) as primary, closing(NbdClient(uris["guest"])) as guest:
        new, odd = os.urandom(2 * CLUSTER), os.urandom(1000)
        primary.wait(primary.submit_write(new, 2 * CLUSTER))
        primary.wait(primary.submit_write(odd, CLUSTER + 100))
        guest.wait(guest.submit_write(b"g" * 512, 0))
        guest.wait(guest.submit_zero(1 << 16, 1 << 20))
        primary.wait(primary.submit_discard(1 << 16, 2 << 20))
        assert guest.read(3 * CLUSTER, CLUSTER) == before
        predicted = wire.ask(
            "x-shim-predict", {"node": "secondary", "offset": CLUSTER, "length": 2000, "data": True}
        )["return"]
        seen = bytes(primary.read(2000, CLUSTER))
        assert base64.b64decode(predicted["data"]) == seen
        assert predicted["sha256"] == hashlib.sha256(seen).hexdigest()
        predicted = wire.ask("x-shim-predict", {"node": "hidden", "offset": CLUSTER, "length": 512})
        assert predicted["return"]["extents"][0]["allocation"] == "data"
        verified = verify(wire)
        assert verified["as-predicted"], verified
        assert verified["compared"] >= 3 * len(before)
        drawn = wire.ask("x-shim-map")["return"]
        assert drawn["clusters"] == SIZE // CLUSTER
        hidden = next(d for d in drawn["disks"] if d["disk"] == "hidden")
        assert hidden["runs"][1] == {"start": 1, "count": 3, "allocation": "data"}
        assert wire.ask("x-shim-checkpoint") == {"return": {}}
        assert guest.read(2 * CLUSTER, 2 * CLUSTER) == new
        assert verify(wire)["as-predicted"]
        guest.wait(guest.submit_write(b"f" * CLUSTER, 3 << 20))
        done = wire.ask(
            "xen-set-replication", {"enable": False, "primary": False, "failover": True}
        )
        assert done == {"return": {}}
        assert verify(wire)["as-predicted"], wire.ask("x-shim-status")
        assert primary.read(10, 3 << 20) == b"f" * 10
    status = wire.ask("x-shim-status")["return"]
    assert status["chain"]["stage"] == "done"
    assert (status["divergences"], status["doubts"]) == (0, [])


def test_a_write_past_the_shim_is_a_divergence_and_all_hear_of_it(service: Service) -> None:
    wire, other = service.client(), service.client()
    uris = export_uris(wire)
    wire.ask("xen-set-replication", {"enable": True, "primary": False})
    write_once(uris["primary"], b"a" * CLUSTER, 0)
    assert verify(wire)["as-predicted"]
    behind = service.served.chain
    assert behind is not None
    write_once(behind.uri("primary"), b"b" * 512, 5 * CLUSTER)
    verified = verify(wire)
    assert not verified["as-predicted"]
    kinds = {verdict["verdict"] for verdict in verified["verdicts"]}
    assert kinds == {"content", "allocation"}
    events = [m for m in other.until_quiet() if m.get("event") == "X_SHIM_DIVERGENCE"]
    assert {event["data"]["verdict"] for event in events} == kinds


def test_a_command_that_answers_otherwise_than_the_model(service: Service) -> None:
    wire = service.client()
    reply = wire.ask("xen-set-replication", {"enable": True, "primary": False})
    assert reply == {"return": {}}
    reply = wire.ask("xen-set-replication", {"enable": True, "primary": False})
    assert reply["error"]["desc"] == "Block replication is running or done"
    assert wire.ask("x-shim-status")["return"]["divergences"] == 0
    service.served.chains.one().oracle.chain.job = None  # the model now thinks that no job runs
    assert wire.ask("xen-colo-do-checkpoint") == {"return": {}}
    status = wire.ask("x-shim-status")["return"]
    assert status["divergences"] == 1
    assert service.served.chains.divergences[0].verdict == "error-contract"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("xen-set-replication", {"enable": True, "primary": False, "failover": True}),
        ("xen-set-replication", {"enable": False}),
        ("xen-set-replication", {"enable": True, "primary": False, "more": 1}),
        ("xen-set-replication", {"enable": True, "primary": 0}),
        ("xen-colo-do-checkpoint", {"more": 1}),
    ],
)
def test_a_command_whose_arguments_qemu_refuses_never_reaches_the_chain(
    service: Service, command: str, arguments: dict[str, Any]
) -> None:
    wire = service.client()
    wire.ask("xen-set-replication", {"enable": True, "primary": False})
    assert "error" in wire.ask(command, arguments)
    assert wire.ask("x-shim-status")["return"]["divergences"] == 0


def test_what_was_done_is_a_bundle_that_replays(service: Service, tmp_path: Path) -> None:
    wire = service.client()
    uris = export_uris(wire)
    write_once(
        uris["primary"], os.urandom(CLUSTER), CLUSTER
    )  # before anything: the bundle has it, too
    wire.ask("xen-set-replication", {"enable": True, "primary": False})
    write_once(uris["primary"], os.urandom(1000), CLUSTER + 100)
    write_once(uris["guest"], os.urandom(512), 0)
    wire.ask("x-shim-checkpoint")
    recorded = wire.ask("x-shim-record")["return"]
    assert (recorded["kind"], recorded["shows"]) == ("operations", "as predicted")
    kinds = [(side, kind) for _, side, kind, _, _ in recorded["case"]["operations"]]
    assert kinds == [
        ("primary", "write"),
        ("chain", "start"),
        ("primary", "write"),
        ("guest", "write"),
        ("chain", "checkpoint"),
    ]
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(recorded["case"]))
    again = wire.ask("x-shim-replay", {"bundle": str(path)})["return"]
    assert again == {"reproduced": True, "operations": 5}


def test_a_replay_that_shows_a_divergence(service: Service, tmp_path: Path) -> None:
    """QEMU's stop without failover fails always; a model that knows no defects is surprised."""
    wire = service.client()
    wire.ask("xen-set-replication", {"enable": True, "primary": False})
    stop = {"enable": False, "primary": False, "failover": False}
    assert "error" in wire.ask("xen-set-replication", stop)
    case = wire.ask("x-shim-record")["return"]["case"]
    case["model"]["known"] = []
    case["divergence"] = {
        "verdict": "error-contract",
        "where": "stop",
        "operation": 2,
        "predicted": "no error",
        "observed": "an error",
    }
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(case))
    again = wire.ask("x-shim-replay", {"bundle": str(path)})["return"]
    assert again["reproduced"] is True
    assert again["verdict"]["observed"].endswith("'Backup job was cancelled unexpectedly'")
    draft = tmp_path / "draft.json"
    draft.write_text(draft_text(draft_of(path)))
    written = read(filled(draft))
    assert written.verdicts == ("error-contract",) and written.meaning.affects
    case["divergence"]["where"] = "start"
    path.write_text(json.dumps(case))
    assert wire.ask("x-shim-replay", {"bundle": str(path)})["return"]["reproduced"] is False
    assert "error" in wire.ask("x-shim-replay", {"bundle": str(tmp_path)})


def test_introspection(each_build: Build, loop: Loop) -> None:
    service = Service(loop, Options(build=each_build))
    try:
        wire = service.client()
        names = [c["name"] for c in wire.ask("query-commands")["return"]]
        entities = wire.ask("query-qmp-schema")["return"]
        by_name = {entity["name"]: entity for entity in entities}
        assert len(by_name) == len(entities)
        for entity in entities:  # no type is missing
            types = [entity.get(k) for k in ("arg-type", "ret-type", "element-type")]
            types += [member["type"] for member in entity.get("members", []) if "type" in member]
            assert all(type_ is None or type_ in by_name for type_ in types), entity
        schema = Schema(entities)
        own = [name for name in schema.commands if name.startswith("x-shim-")]
        assert set(own) == set(COMMANDS) and set(own) <= set(names)
        assert [n for n in by_name if n.startswith("X_SHIM")]
        for name in own:
            for case in schema.cases(name):
                wire.send(json.dumps(case).encode())
                answers = COMMANDS[name].empty is not None and not case.get("arguments")
                error = "error" in wire.reply()
                assert error != answers or name in ("x-shim-status", "x-shim-verify")
        text = wire.ask("x-shim-predict", {"node": 5})["error"]["desc"]
        assert text == "Invalid parameter type for 'node', expected: string"
        assert wire.ask("x-shim-predict")["error"]["desc"] == "Parameter 'node' is missing"
    finally:
        service.close()


def test_a_chain_that_a_client_builds_for_plain_backup(
    loop: Loop, tmp_path: Path, qemu_build: Build
) -> None:
    service = Service(loop, Options(build=qemu_build))
    try:
        wire = service.client()
        old = os.urandom(SIZE)
        (tmp_path / "disk").write_bytes(old)
        os.system(f"qemu-img create -q -f qcow2 {tmp_path}/hidden.qcow2 {SIZE}")
        for arguments in (
            {
                "driver": "raw",
                "node-name": "d",
                "file": {"driver": "file", "filename": f"{tmp_path}/disk"},
            },
            {
                "driver": "qcow2",
                "node-name": "h",
                "backing": "d",
                "file": {"driver": "file", "filename": f"{tmp_path}/hidden.qcow2"},
            },
        ):
            assert wire.ask("blockdev-add", arguments) == {"return": {}}
        addr = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        wire.ask("nbd-server-start", {"addr": addr})
        export = {"type": "nbd", "id": "e", "name": "e", "node-name": "d", "writable": True}
        assert wire.ask("block-export-add", export) == {"return": {}}
        job = {"job-id": "j", "device": "d", "target": "h", "sync": "none"}
        assert wire.ask("blockdev-backup", job) == {"return": {}}
        uri = export_uris(wire)["e"]
        write_once(uri, b"n" * 5000, 70_000)
        verified = verify(wire)
        assert verified["as-predicted"], verified
        predicted = wire.ask("x-shim-predict", {"node": "h", "offset": 69_632, "length": 8192})
        want = hashlib.sha256(old[69_632 : 69_632 + 8192]).hexdigest()
        assert predicted["return"]["sha256"] == want
        wire.ask("block-job-cancel", {"device": "j"})
        for _ in range(200):
            if not wire.ask("query-jobs")["return"]:
                break
        write_once(uri, b"m" * 512, 0)
        assert verify(wire)["as-predicted"]
    finally:
        service.close()


@pytest.mark.parametrize("workflow", [Workflow.BACKUP, Workflow.REPLICATION])
def test_why_a_chain_is_not_modelled(
    loop: Loop, tmp_path: Path, qemu_build: Build, workflow: Workflow
) -> None:
    """Its client gets an error, and may try again."""
    service = Service(loop, Options(build=qemu_build))
    try:
        wire = service.client()
        for name in ("h", "a"):
            os.system(f"qemu-img create -q -f qcow2 {tmp_path}/{name} {SIZE}")
        (tmp_path / "d").write_bytes(bytes(SIZE))
        replication = workflow is Workflow.REPLICATION

        def add(driver: str, name: str, **more: Any) -> None:
            file = {"driver": "file", "filename": f"{tmp_path}/{name}"}
            arguments = {"driver": driver, "node-name": name, "file": file, **more}
            assert wire.ask("blockdev-add", arguments) == {"return": {}}

        def export(name: str, node: str, writable: bool) -> None:
            more = {"node-name": node, "writable": writable}
            arguments = {"type": "nbd", "id": name, "name": name, **more}
            assert wire.ask("block-export-add", arguments) == {"return": {}}

        add("raw", "d")
        addr = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        wire.ask("nbd-server-start", {"addr": addr})
        export("e", "d", True)
        export(OWN_EXPORT, "d", False)  # what the shim reads the disk by
        add("qcow2", "h", backing="d")
        commands: tuple[tuple[str, dict[str, Any]], ...] = (
            ("blockdev-backup", {"job-id": "j", "device": "d", "target": "h", "sync": "none"}),
            ("block-job-cancel", {"device": "j"}),
        )
        if replication:
            add("qcow2", "a", backing="h")
            add("replication", "t", mode="secondary", **{"top-id": "t"}, file="a")
            commands = (
                ("xen-set-replication", {"enable": True, "primary": False}),
                ("xen-set-replication", {"enable": False, "primary": False}),
            )
        start, stop = commands
        assert wire.ask(*start) == {"return": {}}
        status = wire.ask("x-shim-status")["return"]
        assert "chain" not in status and OWN_EXPORT in status["not-modelled"], status
        why = f"the chain is not modelled: {status['not-modelled']}"
        for question in ("x-shim-map", "x-shim-record"):
            assert wire.ask(question)["return"]["not-modelled"] == why
        assert verify(wire) == {
            **{"as-predicted": False, "verdicts": [], "compared": 0, "doubts": [why]},
            "chains": [],
        }
        wire.ask(*stop)
        wait_until(lambda: not wire.ask("query-jobs")["return"])
        wire.ask("block-export-del", {"id": OWN_EXPORT})
        wait_until(lambda: len(wire.ask("query-block-exports")["return"]) == 1)
        start, stop = commands
        assert wire.ask(*start) == {"return": {}}
        status = wire.ask("x-shim-status")["return"]
        assert status["chain"]["workflow"] == workflow.value and "not-modelled" not in status
        assert verify(wire)["as-predicted"]
    finally:
        service.close()


def test_two_clients_that_verify_at_once(service: Service) -> None:
    """Each waits until no command but its own is at QEMU: not for the other's."""
    wires = [service.client() for _ in range(5)]
    assert wires[0].ask("xen-set-replication", {"enable": True, "primary": False}) == {"return": {}}
    for wire in wires:
        wire.send(b"{'execute': 'x-shim-verify'} {'execute': 'query-name', 'id': 'after'}")
    for wire in wires:
        assert wire.reply()["return"]["as-predicted"]
        assert wire.reply() == {"return": {}, "id": "after"}


def test_qemu_dies_while_the_shim_asks_it(service: Service) -> None:
    """What the shim was asked itself is answered too, with what was sent behind it."""
    wire = service.client()
    assert wire.ask("xen-set-replication", {"enable": True, "primary": False}) == {"return": {}}
    assert service.served.emulator is not None
    pid = service.served.emulator.pid
    os.kill(pid, signal.SIGSTOP)
    wire.send(b"{'execute': 'x-shim-verify', 'id': 1} {'execute': 'x-shim-status', 'id': 2}")
    wait_until(lambda: service.served.shim.counters.commands > 2)
    os.kill(pid, signal.SIGKILL)
    replies = {m["id"]: m for m in wire.rest() if "event" not in m}
    assert "went away" in replies[1]["error"]["desc"]
    assert "went away" in replies[2]["error"]["desc"]


def test_a_defect_of_the_shim_is_answered(service: Service) -> None:
    """The client must not wait for ever, and the place at QEMU is free again."""

    async def broken(_: Command) -> Reply | None:
        raise ZeroDivisionError

    service.served.shim.intercepts["query-uuid"] = broken
    wire = service.client()
    for _ in range(WINDOW + 1):
        assert "defect" in wire.ask("query-uuid")["error"]["desc"]
    assert "return" in wire.ask("query-name")


def test_an_export_made_again_for_another_disk(service: Service) -> None:
    """A client that keeps an endpoint's URI writes to what the export is now."""
    wire = service.client()
    uris = export_uris(wire)
    for name in ("guest", "primary"):
        assert wire.ask("block-export-del", {"id": name, "mode": "hard"}) == {"return": {}}
    for name, node in (("guest", "secondary"), ("primary", "top")):
        export = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": True}
        assert wire.ask("block-export-add", export) == {"return": {}}
    assert wire.ask("xen-set-replication", {"enable": True, "primary": False}) == {"return": {}}
    write_once(uris["guest"], b"p" * CLUSTER, 0)
    write_once(uris["primary"], b"g" * CLUSTER, CLUSTER)
    assert verify(wire)["as-predicted"]


def test_names_that_mean_something_in_a_uri(loop: Loop, qemu_build: Build) -> None:
    """Spaces, percent signs, hashes: in TMPDIR, in an export's name, in QEMU's server's path."""
    odd = Path(tempfile.mkdtemp(prefix="a %#&?é,"))
    spec = ChainSpec(Workflow.REPLICATION, SIZE, CLUSTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(odd))
        patch.setattr(tempfile, "tempdir", str(odd))
        service = Service(loop, Options(build=qemu_build, chain=spec))
    try:
        wire = service.client()
        assert wire.ask("nbd-server-stop") == {"return": {}}
        address = {"type": "unix", "data": {"path": str(odd / "server #1")}}
        assert wire.ask("nbd-server-start", {"addr": address}) == {"return": {}}
        name = "50% of/it?"
        export = {"type": "nbd", "id": "odd", "node-name": "secondary", "name": name}
        assert wire.ask("block-export-add", {**export, "writable": True}) == {"return": {}}
        assert wire.ask("xen-set-replication", {"enable": True, "primary": False}) == {"return": {}}
        write_once(export_uris(wire)["odd"], b"p" * CLUSTER, 0)
        verified = verify(wire)
        assert verified["as-predicted"] and verified["compared"] >= CLUSTER
    finally:
        service.close()
        shutil.rmtree(odd)
