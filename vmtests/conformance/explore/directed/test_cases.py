"""Each thing that a directed case looks at is looked at: QEMU's disks do something else.

The other half is in ``test_mutants.py``: whatever else goes wrong is a finding, too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qmpshim.conformance.explore.directed import storage
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.directed.machine import io_of
from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support import misbehaving_gate
from vmtests.support.directed import Mutant, run_mutant
from vmtests.support.mutants.disks import succeeding
from vmtests.support.mutants.qmp import asking
from vmtests.support.timers import call_later

CHECKPOINT = "xen-colo-do-checkpoint"


def test_what_a_case_is_about_is_understood_without_the_one_before() -> None:
    """It stands below a finding as what was promised, all by itself."""
    leaning = ("The same", "It is not:", "Neither", "Likewise")
    assert [case.name for case in DIRECTED if case.about.startswith(leaning)] == []


def forgets(what: Callable[[HeldIO], bool], at_once: bool = False) -> Mutant:
    """I/O is answered and forgotten.

    :param at_once: also what a case holds; else from when it holds no more
    """

    def mutant(machine: GatedMachine) -> None:
        hold = machine.gate.hold

        def forget(io: HeldIO) -> bool:
            if hit := what(io):
                call_later(machine.event_loop, 0.0, lambda: misbehaving_gate.drop(machine.gate, io))
            return hit

        machine.gate.open = lambda: hold(forget)  # type: ignore[method-assign]
        if at_once:
            machine.gate.open()

            def hold_others(policy: Callable[[HeldIO], bool]) -> None:
                hold(lambda io: forget(io) or policy(io))

            machine.gate.hold = hold_others  # type: ignore[method-assign, assignment]

    return mutant


def forgetting(image: str, at_once: bool) -> Mutant:
    """Data that is written to an image is forgotten."""
    return forgets(lambda io: io_of(image, Nbd.WRITE)(io) and io.length >= 4096, at_once)


def _zeroes(io: HeldIO) -> bool:
    zeroes = io.op is Nbd.WRITE_ZEROES or (io.op is Nbd.WRITE and not any(io.data))
    return io.image == "secondary" and zeroes


def patient_disk(machine: GatedMachine) -> None:
    """The disk that should refuse connections takes them."""
    machine.gate.refuse = lambda *what: None  # type: ignore[method-assign]


def disk_gone_for_good(machine: GatedMachine) -> None:
    """The disk that should be back is not."""
    refuse = machine.gate.refuse
    machine.gate.refuse = lambda name, refused=True: refuse(name)  # type: ignore[method-assign]


def new_data_early(machine: GatedMachine) -> None:
    """What is about to be written is on the secondary disk before the read in flight is done."""
    release = machine.gate.release_all

    def write_and_release() -> None:
        machine.gate.store("secondary").write(0, bytes(pattern.data_of(4, 0, 128)))
        release()

    machine.gate.release_all = write_and_release  # type: ignore[method-assign]


def nothing(machine: GatedMachine) -> None:
    """The reference."""


@pytest.mark.parametrize(
    ("name", "mutant", "reconnect", "verdict", "cause"),
    [
        ("empty-fails", succeeding, 0, Verdict.ERROR_CONTRACT,
         "make_empty's failure is silent"),
        ("empty-fails", forgetting("hidden", False), 0, Verdict.ISOLATION,
         "the next checkpoint does not make all well"),
        ("start-fails", succeeding, 0, Verdict.ERROR_CONTRACT,
         "make_empty's failure is silent at the start"),
        ("copy-fails", succeeding, 0, Verdict.ERROR_CONTRACT,
         "Backup failed (writing the hidden disk): no EIO"),
        ("snapshot-after-checkpoint", asking(CHECKPOINT), 0, Verdict.ISOLATION,
         "snapshot-access before a write"),
        ("snapshot-after-checkpoint", forgetting("hidden", True), 0, Verdict.ISOLATION,
         "snapshot-access after a write"),
        ("snapshot-after-checkpoint", new_data_early, 0, Verdict.ISOLATION,
         "snapshot-access while a write is under way"),
        ("disk-back-in-time", nothing, 0, Verdict.ERROR_CONTRACT, "reconnect-delay is not kept"),
        ("disk-back-in-time", disk_gone_for_good, 2, Verdict.ERROR_CONTRACT,
         "a write fails although its disk came back in time"),
        ("disk-back-in-time", forgetting("secondary", False), 10, Verdict.LOST_WRITE,
         "lost, its disk came back in time"),
        ("disk-back-in-time", forgetting("hidden", True), 10, Verdict.ISOLATION,
         "not the old data, its disk came back in time"),
        ("cancel-beside-lost-target", patient_disk, 0, Verdict.ERROR_CONTRACT,
         "reconnect-delay of a target is not kept"),
        ("disk-back-too-late", patient_disk, 1, Verdict.ERROR_CONTRACT,
         "no EIO after reconnect-delay"),
        ("disk-back-too-late", disk_gone_for_good, 1, Verdict.ERROR_CONTRACT,
         "a write fails although its disk is back"),
        ("disk-back-too-late", forgetting("secondary", False), 1, Verdict.LOST_WRITE,
         "lost, its disk is back"),
    ],
)  # fmt: skip
def test_a_directed_case_sees(
    name: str,
    mutant: Mutant,
    reconnect: int,
    verdict: Verdict,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    qemu_build: Build,
) -> None:
    monkeypatch.setattr(storage, "DELAYED_LIMIT", 5.0)
    found = run_mutant(name, mutant, qemu_build, reconnect=reconnect)
    assert found is not None
    assert (found.kind, str(found.cause)) == (verdict, cause), found.text


@pytest.mark.parametrize(
    ("mutant", "cause"),
    [
        (forgetting("secondary", False), "guest write after failed failover is lost"),
        (forgets(_zeroes), "guest zeroes after failed failover are lost"),
    ],
)
def test_what_is_written_after_a_failed_failover_is_missed(
    mutant: Mutant, cause: str, qemu_build: Build
) -> None:
    if read_version(qemu_build)[0] < (6, 1):
        pytest.skip("it aborts before that (failed-failover-write-aborts)")
    found = run_mutant("failover-fails", mutant, qemu_build)
    assert found is not None
    assert (found.kind, str(found.cause)) == (Verdict.LOST_WRITE, cause), found.text
