"""Final state: what there is to see when all is over; the images are sound, the rest is explained.

How it is explained is in :mod:`.linearizability`, and where I/Os failed in :mod:`.failures`.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EINVAL

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.conformance.explore.harness.overlays import OverlayState, read_overlay
from qmpshim.conformance.explore.harness.push import bitmaps_left, left_by_backup
from qmpshim.conformance.explore.outcome import GAP, NO_CLUSTER, UNREADABLE, Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import on_disk
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.units import SECTOR


def images_are_sound(end: End) -> RealViolation | None:
    """Whether our own reader finds nothing broken in the images."""
    return end.broken


def outcome_is_explained(end: End) -> RealViolation | None:
    """Whether some order of the operations gives what there is to see."""
    assert end.outcome is not None
    return end.explain(end.outcome)


def look(
    machine: GatedMachine, scenario: RealScenario, now: History
) -> tuple[Outcome, RealViolation | None]:
    """Everything that can be seen at the end, and what is broken in the images themselves."""
    for op in scenario.ops:
        if op.disconnects:  # the export must serve the next client
            machine.connect(op.side)
    view = read_view(machine, scenario) if "guest" in machine.clients else None
    _flush(machine, now)
    status: str | None = None
    if scenario.replicates:
        reported = machine.call("query-xen-replication-status")
        status = reported.get("desc", "") if reported["error"] else None
    seen, unsound = _read(machine, scenario, now, view, status)
    if scenario.backs_up:
        seen = replace(seen, backup=left_by_backup(machine, scenario))
    if scenario.topology.frozen:
        seen = replace(seen, bitmaps=bitmaps_left(machine, scenario))
    return seen, unsound


def read_view(machine: GatedMachine, scenario: RealScenario) -> tuple[int | None, ...] | None:
    """What is read at the guest's end of each disk; ``None``: it cannot be read."""
    disks = range(scenario.disks)
    return scenario.views_laid_out([_read_disk(machine, scenario, disk) for disk in disks])


def _read_disk(machine: GatedMachine, scenario: RealScenario, disk: int) -> list[int] | None:
    """What is read of one disk, in parts where it has gaps.

    A gap is what the snapshot has not (EACCES, for which the NBD server has EINVAL); with any other
    error nothing is looked at.
    """
    client = machine.clients[on_disk("guest", disk)]
    found: list[int] = []
    for start, count in scenario.view_parts:
        answer = client.call(Nbd.READ, start * SECTOR, count * SECTOR)
        if answer.errno not in (0, EINVAL):
            return None
        unreadable = [UNREADABLE] * count
        found += unreadable if answer.errno else owners(answer.data, disk * scenario.apart + start)
    return None if set(found) == {UNREADABLE} else found


def disks(machine: GatedMachine, scenario: RealScenario, now: History) -> Outcome:
    """What is on the disks at this moment, QEMU alive or not; half-written metadata is no news."""
    return _read(machine, scenario, now, None, None)[0]


def _read(
    machine: GatedMachine,
    scenario: RealScenario,
    now: History,
    view: tuple[int | None, ...] | None,
    status: str | None,
) -> tuple[Outcome, RealViolation | None]:
    secondary, unsound = _secondary(machine, scenario)
    hidden, active = (
        _overlay(machine, scenario, name) if name in machine.images else _empty(scenario)
        for name in ("hidden", "active")
    )
    if scenario.backs_up:  # that is the target, which has a checker of its own
        hidden = replace(_empty(scenario), violation=hidden.violation)
    primary, tertiary = (
        tuple(owners(machine.gate.snapshot(name), 0)) if name in machine.images else None
        for name in ("primary", "tertiary")
    )
    seen = Outcome(
        tuple(now.answers),
        tuple(now.data),
        secondary,
        hidden.content,
        active.content,
        view,
        () if scenario.has("quorum") or scenario.backs_up else (hidden.kinds, active.kinds),
        status,
        primary,
        tertiary,
    )
    return seen, unsound or hidden.violation or active.violation


def _overlay(machine: GatedMachine, scenario: RealScenario, name: str) -> OverlayState:
    """The state of an overlay; of that of each disk, where there are two."""
    parts = [read_overlay(machine, scenario, on_disk(name, disk)) for disk in range(scenario.disks)]
    if len(parts) == 1:
        return parts[0]
    return OverlayState(
        scenario.laid_out((part.content for part in parts), None),
        scenario.laid_out((part.kinds for part in parts), NO_CLUSTER, scenario.unit_of(name)),
        next((part.violation for part in parts if part.violation is not None), None),
    )


def _empty(scenario: RealScenario) -> OverlayState:
    """An overlay that the chain does without."""
    kinds = (0,) * -(-scenario.disk_size // scenario.cluster)
    return OverlayState(
        (None,) * scenario.size,
        scenario.laid_out([kinds] * scenario.disks, NO_CLUSTER, scenario.cluster),
    )


def _secondary(
    machine: GatedMachine, scenario: RealScenario
) -> tuple[tuple[int, ...], RealViolation | None]:
    """Whose the sectors of the secondary disk are."""
    if scenario.secondary == "raw":
        return raw_disks(machine, scenario, "secondary"), None
    overlay = _overlay(machine, scenario, "secondary")
    return tuple(owner or GAP for owner in overlay.content), overlay.violation


def raw_disks(machine: GatedMachine, scenario: RealScenario, name: str) -> tuple[int, ...]:
    """Whose the sectors of a raw disk are; of both, where there are two."""
    snapshots = (machine.gate.snapshot(on_disk(name, disk)) for disk in range(scenario.disks))
    by_disk = (owners(image, disk * scenario.apart) for disk, image in enumerate(snapshots))
    return scenario.laid_out(by_disk, GAP)


def _flush(machine: GatedMachine, now: History) -> None:
    """Put qcow2's tables where we can read them; only a flush of the very node does it.

    The filter of replication flushes all its disks. Copy-before-write flushes its source only, and
    QEMU 10.0's ``stop`` does not reach a target that nothing else uses.
    """
    through = machine.topology.replication_mode == "secondary"
    through = through and not machine.clients["guest"].lost
    through = through and not now.faults  # a broken image keeps no other from its flush
    if through and behaviour_of(machine.version).filter_flushes_all:
        machine.clients["guest"].call(Nbd.FLUSH)
        return
    for name in machine.qcow2_images:
        machine.flush(name)
