"""The directed cases kill mutants: storage that fails where all is well, and I/O that never comes.

QEMU is not changed here; its storage is. Whatever happens is a finding with its verdict, and
never an error of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qmpshim.conformance.explore.directed.cases import run_directed
from qmpshim.conformance.explore.directed.machine import CaseMachine
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import CASES, Mutant, sees
from vmtests.support.mutants.disks import nothing_held
from vmtests.support.timers import call_later


def at_once(machine: GatedMachine, hit: Callable[[HeldIO], bool]) -> None:
    """From now on, and whatever a case holds, fail each I/O that *hit* names."""

    def hold(io: HeldIO) -> bool:
        if hit(io):
            call_later(machine.event_loop, 0.0, lambda: machine.gate.fail(io, 5))
        return hit(io)

    machine.gate.hold(hold)
    nothing_held(machine)


def failing(image: str) -> Mutant:
    """Each data write to an image fails, once replication was started."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def hit(io: HeldIO) -> bool:
            return io.image == image and io.op is NbdCommand.WRITE and io.length >= 4096

        def then(command: str, arguments: Mapping[str, Any] | None = None) -> Any:
            value = call(command, arguments)
            machine.call = call  # type: ignore[method-assign]
            at_once(machine, hit)
            return value

        machine.call = then  # type: ignore[method-assign]

    return mutant


def deaf_primary(machine: GatedMachine) -> None:
    """QEMU hangs up on the primary's client, and lives; replication cannot be started then."""
    machine.call("block-export-del", {"id": "primary", "mode": "hard"})

    def gone() -> bool:
        return all(one["id"] != "primary" for one in machine.call("query-block-exports"))

    assert machine.event_loop.until(gone, 20.0)


def dead(machine: GatedMachine) -> None:
    machine.process.kill()  # type: ignore[union-attr]


test_what_goes_wrong_is_a_finding = sees(
    ("empty-fails", failing("secondary"), Verdict.ERROR_CONTRACT, "primary write fails"),
    ("quit-running", failing("secondary"), Verdict.ERROR_CONTRACT, "primary write fails"),
    ("failover-fails", failing("secondary"), Verdict.ERROR_CONTRACT, "primary write fails"),
    ("failover-fails", failing("active"), Verdict.ERROR_CONTRACT, "guest write fails"),
    ("stop-leaves-nodes-unflushed", failing("active"), Verdict.ERROR_CONTRACT, "guest write"),
    ("snapshot-after-checkpoint", failing("secondary"), Verdict.ERROR_CONTRACT, "primary"),
    ("nbd-answer-waits", nothing_held, Verdict.ORDER, "two primary reads: other I/O"),
    ("snapshot-after-checkpoint", nothing_held, Verdict.ORDER, "a read of the snapshot: other"),
    ("copy-fails", nothing_held, Verdict.ORDER, "a primary write: other I/O than predicted"),
    ("empty-fails", nothing_held, Verdict.ORDER, "xen-colo-do-checkpoint: other I/O"),
    ("failover-fails", nothing_held, Verdict.ORDER, "failover: other I/O than predicted"),
    ("disk-back-in-time", nothing_held, Verdict.ORDER, "a primary write: other I/O"),
    ("quit-running", deaf_primary, Verdict.ERROR_CONTRACT, "quit-running: error-contract"),
    ("quit-running", dead, Verdict.CRASH, "quit-running: crash"),
)  # fmt: skip


def test_an_answer_that_is_late_is_no_hang(qemu_build: Build) -> None:
    """A busy host: what must come comes late. (7.2's own defect is out of the way.)"""
    case = CASES["nbd-answer-waits"]

    def run(machine: CaseMachine) -> None:
        release = machine.gate.release

        def late(one: HeldIO) -> None:
            if machine.gate.holds(one):
                release(one)

        def both(io: HeldIO) -> None:
            # The other answer comes, too, so that QEMU has no reason to keep the first.
            for one in machine.gate.held:
                call_later(machine.event_loop, 2.0, partial(late, one))

        machine.gate.release = both  # type: ignore[method-assign]
        case.run(machine)

    assert run_directed(replace(case, run=run), qemu_build) is None
