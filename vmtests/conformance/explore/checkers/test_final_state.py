"""What is looked at besides in vanishing clients' scenarios and with a qcow2 secondary disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers import liveness
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Verb
from vmtests.support.failing import found
from vmtests.support.gate import REFCOUNTS, Early, drop_guest, drop_new, never, new_for_old


def spoil(machine: GatedMachine, named: NamedIo) -> None:
    """A write to the secondary disk takes its refcounts with it."""
    machine.gate.release(named.io)
    if named.io.image == "secondary" and named.verb == "write":
        machine.stores["secondary"].write(REFCOUNTS, bytes(65536))


@pytest.mark.kills("final_state")
@pytest.mark.parametrize(
    ("name", "misbehaviour", "verdict"),
    [
        ("WK", lambda: drop_new, Verdict.LOST_WRITE),
        ("WK", lambda: never, Verdict.ORDER),
        ("WK", lambda: new_for_old, Verdict.CONTENT),
        ("VK", Early, Verdict.ORDER),
        ("PL", lambda: drop_guest, Verdict.LOST_WRITE),
        ("GL", lambda: drop_guest, Verdict.LOST_WRITE),
        ("qcow2-WR", lambda: drop_new, Verdict.LOST_WRITE),
        ("qcow2-WR", lambda: never, Verdict.ORDER),
        ("qcow2-WR", lambda: new_for_old, Verdict.CONTENT),
        ("qcow2-WR", Early, Verdict.ORDER),
        ("qcow2-PO", lambda: drop_new, Verdict.LOST_WRITE),
        ("qcow2-WR", lambda: spoil, Verdict.CORRUPTION),
    ],
)
def test_a_misbehaving_disk_is_found_out(
    pool: QemuPool, name: str, misbehaviour: Callable[[], Release], verdict: Verdict
) -> None:
    assert verdict in found(pool, name, misbehaviour())
    pool.discard()
    assert found(pool, name, faithfully) == {}


@pytest.mark.parametrize(("name", "side"), [("WK", "primary"), ("PL", "guest")])
def test_an_export_that_goes_with_its_client_is_missed(
    pool: QemuPool, name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client has to be served, whatever the one before did."""
    begin = real_ops.begin

    def take_along(machine: GatedMachine, op: Operation, number: int) -> RunningOperation:
        running = begin(machine, op, number)
        if op.name == f"{side}_vanish":
            machine.qmp.send("block-export-del", {"id": side, "mode": "hard"})
        return running

    monkeypatch.setattr(real_ops, "begin", take_along)
    causes = found(pool, name, faithfully, most=3)
    pool.discard()
    assert set(causes) == {Verdict.HANG}, causes


@pytest.mark.kills("liveness")
@pytest.mark.parametrize(
    ("do", "name", "verdict", "cause"),
    [
        ("stop", "backup-SQ", Verdict.HANG, "the backup job does not go"),
        ("stop", "backup-RS", Verdict.HANG, "the backup job does not go"),
        ("unexport", "QX", Verdict.HANG, "the primary's export does not go"),
        ("unexport", "backup-RX", Verdict.HANG, "the primary's export does not go"),
        ("status", "backup-WQ", Verdict.ERROR_CONTRACT, "status answers no job"),
        ("status", "backup-QX", Verdict.ERROR_CONTRACT, "status answers no job"),
    ],
)
def test_a_command_that_does_nothing_is_missed(
    pool: QemuPool,
    do: str,
    name: str,
    verdict: Verdict,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers well: the job has to end, the export to go, the job to be reported."""
    command = real_ops.command

    def swallow(machine: GatedMachine, what: Verb) -> tuple[str, Mapping[str, Any]]:
        return ("query-iothreads", {}) if what == do else command(machine, what)

    monkeypatch.setattr(liveness, "REMOVAL_LIMIT", 0.5)
    assert found(pool, name, faithfully) == {}
    with monkeypatch.context() as patch:
        patch.setattr(real_ops, "command", swallow)
        assert found(pool, name, faithfully, most=2) == {verdict: {cause}}
    pool.discard()


@pytest.mark.kills("liveness")
def test_a_job_that_ends_by_itself_is_missed(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = real_ops.begin

    def cancel_too(machine: GatedMachine, op: Operation, number: int) -> RunningOperation:
        machine.qmp.send("block-job-cancel", {"device": "backup"})
        return begin(machine, op, number)

    monkeypatch.setattr(real_ops, "begin", cancel_too)
    causes = found(pool, "backup-RH", faithfully, most=2)
    pool.discard()
    assert causes == {Verdict.ERROR_CONTRACT: {"the backup job is gone"}}
