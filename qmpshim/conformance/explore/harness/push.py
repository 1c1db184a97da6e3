"""What a backup job and the dirty bitmaps of a disk left, as QEMU and the gate have it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any

from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.overlays import read_overlay
from qmpshim.conformance.explore.outcome import BackupLeft, BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import on_disk
from qmpshim.model.answers import OK
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.jobs import Ending, OnError
from qmpshim.model.pointintime.push import GRANULARITY
from qmpshim.model.units import SECTOR

_MOST = 1 << 20  # sets of granules that are tried: a second's work
_WORD = 64  # granules of a word of an HBitmap's last level
_ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


def left_by_backup(machine: GatedMachine, scenario: RealScenario) -> BackupLeft:
    """Everything there is to see; the job has to be over, and the target flushed."""
    target = read_overlay(machine, scenario, "hidden").content
    return BackupLeft(target, ending_of_job(machine), bitmaps_left(machine, scenario))


def bitmaps_left(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
    """The dirty bitmaps of the secondary disk, by name; those without one are a job's own.

    Of two disks those of the same name that record, or do not, are one, with the granules of both.
    """
    named = machine.call("query-named-block-nodes")
    nodes = {one["node-name"]: one.get("dirty-bitmaps", ()) for one in named}
    by_disk = [
        [_bitmap(machine, name, one, scenario.disk_size) for one in nodes[name]]
        for name in (on_disk("secondary", disk) for disk in range(scenario.disks))
    ]
    found = by_disk[0] if scenario.disks == 1 else _joined(by_disk, scenario.apart // GRANULARITY)
    return tuple(sorted(found, key=lambda one: one.name))


def _joined(by_disk: Sequence[Iterable[BitmapLeft]], shift: int) -> list[BitmapLeft]:
    """The bitmaps of two disks; one that is not on both, recording or not, has its disk's name.

    It is in use where it is on one of them.

    :param shift: the number of the second disk's first granule
    """
    kinds = [{(one.name, one.recording): one for one in own} for own in by_disk]
    both = kinds[0].keys() & kinds[1].keys()
    joined = [
        replace(
            one,
            granules=_either(_numbers(kinds[0][kind], 0), _numbers(one, shift)),
            busy=one.busy or kinds[0][kind].busy,
        )
        for kind, one in kinds[1].items()
        if kind in both
    ]
    apart = [
        replace(
            one,
            name=f"{one.name} of {on_disk('secondary', disk)}",
            granules=_numbers(one, disk * shift),
        )
        for disk, own in enumerate(kinds)
        for kind, one in own.items()
        if kind not in both
    ]
    return joined + apart


def _numbers(bitmap: BitmapLeft, first: int) -> frozenset[int] | None:
    """The granules that a bitmap names, counted from *first* on."""
    if bitmap.granules is None:
        return None
    return frozenset(first + granule for granule in bitmap.granules)


def _either(one: frozenset[int] | None, other: frozenset[int] | None) -> frozenset[int] | None:
    return None if one is None or other is None else one | other


def ending_of_job(machine: GatedMachine) -> Ending | None:
    """How the backup job ended, by its event; None: it did not."""
    for event in machine.qmp.events:
        if event["event"] in _ENDS:
            if event["event"] == "BLOCK_JOB_CANCELLED":
                return Ending.CANCELLED
            return Ending.FAILED if "error" in event["data"] else Ending.COMPLETED
    return None


@dataclass(frozen=True, slots=True)
class JobError:
    """An error that a backup job has reported, as its event has it.

    :ivar disk: ``source`` or ``target``
    :ivar action: what it does then: ignore the error, stop until it is resumed, or report it, and
        fail
    """

    disk: str
    action: OnError


def errors_of_job(machine: GatedMachine) -> list[JobError]:
    """The errors that the backup job has reported (``BLOCK_JOB_ERROR``), in order."""
    return [
        JobError(
            "source" if event["data"]["operation"] == "read" else "target",
            OnError(event["data"]["action"]),
        )
        for event in machine.qmp.events
        if event["event"] == "BLOCK_JOB_ERROR"
    ]


def paused_by_error(machine: GatedMachine, scenario: RealScenario, now: History) -> bool:
    """Whether an error has paused the backup job, and nothing has resumed or cancelled it since.

    One that was cancelled is not paused any more: 5.2's ``backup_loop`` (block/backup.c) reports an
    error that it meets then, and ends. A job that ended although it is paused is still paused here.
    """
    done = [op.verb for op, answer in zip(scenario.ops, now.answers, strict=True) if answer == OK]
    if Verb.STOP in done or Verb.JOB_CANCEL in done:
        return False
    stops = sum(error.action is OnError.STOP for error in errors_of_job(machine))
    return stops > done.count(Verb.JOB_RESUME)


def _bitmap(machine: GatedMachine, node: str, found: Mapping[str, Any], size: int) -> BitmapLeft:
    name = str(found.get("name", ""))
    granules = None
    granule = int(found["granularity"])
    if name and granule == GRANULARITY * SECTOR:
        digest = machine.call("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name})[
            "sha256"
        ]
        total = -(-size * SECTOR // granule)
        granules = granules_of(digest, total, int(found["count"]) // granule)
        if granules is None:  # the last granule is counted in full, or is not
            granules = granules_of(digest, total, -(-int(found["count"]) // granule))
    return BitmapLeft(name, granules, bool(found["recording"]), bool(found["busy"]))


@functools.lru_cache(maxsize=1024)
def granules_of(digest: str, total: int, count: int) -> frozenset[int] | None:
    """The granules of a bitmap with this checksum (``hbitmap_sha256``, util/hbitmap.c).

    The last level of an HBitmap has a bit a granule, in words of 64 bits, the first one lowest.
    Other than by NBD it can be read while a job uses it, and by every build.

    :param total: granules of the disk
    :param count: granules that it names
    :returns: None: no set of so many granules has this checksum, or there are too many to try
    """
    if comb(total, count) > _MOST:
        return None
    words = -(-total // _WORD)
    for chosen in combinations(range(total), count):
        bits = sum(1 << n for n in chosen)
        if hashlib.sha256(bits.to_bytes(8 * words, "little")).hexdigest() == digest:
            return frozenset(chosen)
    return None
