"""What a backup job and the dirty bitmaps of the push chain left, as QEMU and the gate have it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from qmpshim.conformance.explore.harness.overlays import read_overlay
from qmpshim.conformance.explore.outcome import BackupLeft, BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.pointintime.jobs import Ending
from qmpshim.model.units import SECTOR

_WORD = 64  # granules of a word of an HBitmap's last level
_ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


def left_by_backup(machine: GatedMachine, scenario: RealScenario) -> BackupLeft:
    """Everything there is to see; the job has to be over, and the target flushed."""
    (node,) = [
        one for one in machine.call("query-named-block-nodes") if one["node-name"] == "secondary"
    ]
    bitmaps = sorted(
        (_bitmap(machine, one, scenario.size) for one in node.get("dirty-bitmaps", ())),
        key=lambda one: one.name,
    )
    target = read_overlay(machine, scenario, "hidden").content
    return BackupLeft(target, ending_of_job(machine), tuple(bitmaps))


def ending_of_job(machine: GatedMachine) -> Ending | None:
    """How the backup job ended, by its event; None: it did not."""
    for event in machine.qmp.events:
        if event["event"] in _ENDS:
            if event["event"] == "BLOCK_JOB_CANCELLED":
                return Ending.CANCELLED
            return Ending.FAILED if "error" in event["data"] else Ending.COMPLETED
    return None


def ignored_errors(machine: GatedMachine) -> bool:
    """Whether the backup job reported an error that it goes on after."""
    return any(
        event["event"] == "BLOCK_JOB_ERROR" and event["data"]["action"] == "ignore"
        for event in machine.qmp.events
    )


def _bitmap(machine: GatedMachine, found: Mapping[str, Any], size: int) -> BitmapLeft:
    name = str(found.get("name", ""))
    granules = None
    if name:
        digest = machine.call(
            "x-debug-block-dirty-bitmap-sha256", {"node": "secondary", "name": name}
        )["sha256"]
        granule = int(found["granularity"])
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
    :returns: None: no set of so many granules has this checksum
    """
    words = -(-total // _WORD)
    for chosen in combinations(range(total), count):
        bits = sum(1 << n for n in chosen)
        if hashlib.sha256(bits.to_bytes(8 * words, "little")).hexdigest() == digest:
            return frozenset(chosen)
    return None
