"""What becomes of an operation when qcow2's own I/O fails: no model does that."""

from __future__ import annotations

from errno import EINVAL, EIO

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import io_error
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from vmtests.support import misbehaving_gate
from vmtests.support.failing import (
    Refusing,
    Swallowing,
    answering,
    causes,
    explored,
    meta_write,
    one,
    unmapping,
    verdicts,
)

C = scenarios.C


def test_a_discard_of_free_clusters_may_fail(pool: QemuPool) -> None:
    """qcow2 ignores that; what asks for a discard of a raw disk gets the error."""
    unmapping(pool)
    ops = (operation("primary_zero", C, 2 * C),)
    scenario = scenarios.RealScenario("Z", ops, form="backup", size=4 * C, secondary="qcow2")
    failing = explored(pool, scenario, fails="secondary discard 128+256", all_io=True)
    assert not failing.found and not failing.in_part
    refusing = explored(pool, scenario, Refusing, "secondary discard 128+256", all_io=True)
    assert verdicts(refusing) == {Verdict.ERROR_CONTRACT}


def test_beside_a_failed_write_of_tables_the_others_are_judged(pool: QemuPool) -> None:
    """And the rest is counted as not judged."""
    scenario = one("WR")
    fails = meta_write(pool, scenario)

    def new_for_old(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "read" and named.op == 1:
            data = bytes(pattern.data_of(scenario.number(0), named.start, named.count))
            misbehaving_gate.corrupt(machine.gate, named.io, data)
            return
        faithfully(machine, named)

    reference = explored(pool, scenario, fails=fails, all_io=True)
    assert reference.in_part and not causes(reference) - {
        "case 3. backup failed: not in the status"
    }
    spoilt = explored(pool, scenario, fails=fails, all_io=True, release=new_for_old)
    assert verdicts(spoilt) >= {Verdict.ISOLATION}


def test_after_a_failed_write_of_tables_success_is_taken_at_its_word(pool: QemuPool) -> None:
    """A request that reports success must have done it, whatever of qcow2's own failed."""
    fails = meta_write(pool, one("WR"))
    found = explored(pool, one("WR"), Swallowing, fails, all_io=True).found
    assert {verdict for verdict, _ in found} == {Verdict.LOST_WRITE}


def test_a_failed_write_of_tables_is_reported_with_its_own_error(pool: QemuPool) -> None:
    mixing = answering(lambda op, answer: io_error(EINVAL) if answer == io_error(EIO) else None)
    fails = meta_write(pool, one("WR"))
    cause = "primary_write answers errno 22, after a failed hidden metadata"
    assert causes(explored(pool, one("WR"), mixing, fails, all_io=True)) == {cause}
