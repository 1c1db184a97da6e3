"""Holds a watched chain against its model now: contents of the disks, allocation of overlays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from qmpshim.conformance.compare.crosscheck import pages_of, pieces
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import Evidence, Returned, Unsound, owner_runs
from qmpshim.conformance.compare.oracle import Oracle, View
from qmpshim.conformance.compare.overlay import wrong_allocation
from qmpshim.errors import ImageError, IOFailed, MachineError, UnsupportedFeature
from qmpshim.machine.chain.replication import failed_over
from qmpshim.machine.host.process import wait_until
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import check
from qmpshim.machine.nbd.client import NbdClient, dirty_bitmap
from qmpshim.model.chain.secondary import Stage
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Owners
from qmpshim.model.disks.image import Qcow2Image as ModelQcow2
from qmpshim.model.operations import Verb
from qmpshim.model.units import SECTOR
from qmpshim.shim.tracking.baseline import flush
from qmpshim.shim.tracking.chains import TrackedChains
from qmpshim.shim.tracking.tracker import ModelTracker, Unobserved

_FAILOVER_LIMIT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification of one chain found.

    :ivar compared: bytes whose contents were compared
    :ivar doubts: what the model cannot predict, and why; when all of it, nothing was compared
    :ivar bitmaps: the names of the exported dirty bitmaps that were compared
    """

    tracker: ModelTracker
    divergences: tuple[Divergence, ...]
    compared: int
    doubts: tuple[str, ...]
    bitmaps: tuple[str, ...] = ()

    @property
    def as_predicted(self) -> bool:
        """Whether everything is."""
        return not (self.divergences or self.doubts)


async def verify(chains: TrackedChains, trackers: Sequence[ModelTracker]) -> list[Verified]:
    """Compare everything of these chains; no client's command may run meanwhile.

    :raises MachineError: QEMU cannot be queried
    """
    if all(tracker.doubts for tracker in trackers):
        return [Verified(tracker, (), 0, tuple(tracker.doubts)) for tracker in trackers]
    verified = []
    async with chains.still():
        for tracker in trackers:
            if tracker.oracle.chain.failed_over:
                await _until_failed_over(chains, tracker)
        await chains.survey()
        for tracker in trackers:
            verified.append(await _verify_one(chains, tracker))
    for one in verified:
        one.tracker.applied.command(Verb.CHECK)
        for divergence in one.divergences:
            one.tracker.record(divergence)
    return verified


async def _verify_one(chains: TrackedChains, tracker: ModelTracker) -> Verified:
    if tracker.doubts:
        return Verified(tracker, (), 0, tuple(tracker.doubts))
    found, oracle = tracker.found, tracker.oracle
    compared = 0
    seen: list[tuple[str, Divergence]] = []  # with the disk's role
    doubts: list[str] = []
    for role in oracle.spec.topology.overlays:
        await flush(chains.shim.execute, found.nodes[role])
        there, untold = _allocation(tracker, role)
        seen += [(role, wrong) for wrong in there]
        doubts += untold
    for role, view, verdict in _views(oracle):
        async with chains.nbd_exports.view(found.nodes[role]) as uri:
            try:
                difference, count = await asyncio.to_thread(_compare, tracker, uri, view)
            except IOFailed as error:
                difference, count = _Difference("a read that succeeds", str(error)), 0
                verdict = Verdict.ERROR_CONTRACT
        compared += count
        if difference is not None:
            seen.append((role, difference.divergence(verdict, role, tracker)))
    divergences = []
    for role, wrong in seen:
        if suspects := tracker.suspects(role, wrong.verdict):
            doubts.append(_unexplained(wrong, suspects))
        else:
            divergences.append(wrong)
    lost, bitmaps = await _bitmaps(chains, tracker)
    return Verified(tracker, (*divergences, *lost), compared, tuple(doubts), bitmaps)


async def _bitmaps(
    chains: TrackedChains, tracker: ModelTracker
) -> tuple[list[Divergence], tuple[str, ...]]:
    """What is wrong with the bitmaps that the overlay's exports have, and those that are followed.

    A writer that was not observed can only have more named.
    """
    lost, compared = [], []
    for uri, key in await chains.nbd_exports.bitmaps(tracker.found.nodes["hidden"]):
        if not chains.bitmaps.follows(key):
            continue
        compared.append(key[1])
        named = await asyncio.to_thread(_dirty_extents, uri, key[1])
        missing = chains.bitmaps.missing(key, named, tracker.found.size)
        if missing is not None:
            where = f"bitmap '{key[1]}' of '{key[0]}'"
            wanted = f"the granule at byte {missing} is dirty"
            lost.append(tracker.divergence(Verdict.LOST_WRITE, where, wanted, "it is clean"))
    return lost, tuple(compared)


def _dirty_extents(uri: str, bitmap: str) -> list[tuple[int, int]]:
    with closing(NbdClient(uri, contexts=[dirty_bitmap(bitmap)])) as client:
        return client.dirty_extents(bitmap)


def _unexplained(wrong: Divergence, suspects: Sequence[Unobserved]) -> str:
    writers = ", ".join(f"{one.writer.describe()} (on '{one.node}')" for one in suspects)
    return (
        f"{wrong.where}: {writers} may have written unobserved; by what was observed, predicted "
        f"{wrong.predicted}, found {wrong.observed}"
    )


def _views(oracle: Oracle) -> list[tuple[str, View, Verdict]]:
    views = [
        ("secondary", oracle.primary_view, Verdict.CONTENT),
        ("hidden", oracle.hidden_view, Verdict.ISOLATION),
    ]
    if oracle.spec.topology.commits and oracle.chain.stage is not Stage.NONE:
        views.append(("top", oracle.guest_view, Verdict.ISOLATION))
    return views


async def _until_failed_over(chains: TrackedChains, tracker: ModelTracker) -> None:
    """Failover ends in the background: then the filter sits on the secondary disk."""
    found = tracker.found

    async def done() -> bool:
        return await failed_over(chains.shim.execute, found.nodes["top"], found.nodes["secondary"])

    await wait_until(done, "failover did not end", _FAILOVER_LIMIT)


def _allocation(tracker: ModelTracker, role: str) -> tuple[list[Divergence], list[str]]:
    """What is wrong with an overlay's file, and what of it cannot be judged."""
    model = tracker.image(role)
    assert isinstance(model, ModelQcow2)
    where = f"{role} disk (file)"
    untold: list[str] = []
    try:
        content = tracker.content(role)
        if content is None:
            return [], []
        qcow2 = Qcow2Reader.parse(content)
        try:
            faults = [str(finding) for finding in check(qcow2)]
        except UnsupportedFeature as error:
            faults = []
            untold.append(f"{where}: {error}")
        wrong = None
        if not faults:
            wrong = wrong_allocation(model.alloc, qcow2.allocation(), qcow2.unit_size)
    except UnsupportedFeature as error:
        return [], [f"{where}: {error}"]
    except (ImageError, OSError) as error:
        wanted = "a valid qcow2 image"
        return [tracker.divergence(Verdict.CORRUPTION, where, wanted, str(error))], untold
    if faults:
        predicted, observed = "consistent qcow2 metadata", "; ".join(faults[:3])
        evidence: Evidence = Unsound(role)
        verdict = Verdict.CORRUPTION
    elif wrong is not None:
        predicted, observed = wrong.predicted, wrong.observed
        evidence, verdict = wrong.evidence(role), Verdict.ALLOCATION
    else:
        return [], untold
    return [tracker.divergence(verdict, where, predicted, observed, evidence)], untold


@dataclass(frozen=True, slots=True)
class _Difference:
    """What is wrong with a disk: what was predicted, and what was observed, in words.

    :ivar sector: the first wrong one; :ivar owner: of what it has to hold
    """

    predicted: str
    observed: str
    sector: int | None = None
    owner: int = 0

    def divergence(self, verdict: Verdict, role: str, tracker: ModelTracker) -> Divergence:
        evidence = None
        if self.sector is not None:
            evidence = Returned(role, self.sector, owner_runs([self.owner]))
        where = f"{role} disk"
        return tracker.divergence(verdict, where, self.predicted, self.observed, evidence)


def _compare(tracker: ModelTracker, uri: str, view: View) -> tuple[_Difference | None, int]:
    """The first difference, and the bytes compared."""
    compared = 0
    with closing(NbdClient(uri)) as client:
        size = client.size
        pages = view.pages() | pages_of(client.data_extents())
        for at, length in pieces(pages, size):
            data = client.read(length, at)
            owners = view.read(at // SECTOR, length // SECTOR)
            wanted = tracker.payloads.data(owners, at // SECTOR)
            compared += length
            if data != wanted:
                return _difference(data, wanted, owners, at), compared
    return None, compared


def _difference(data: bytearray, wanted: bytes, owners: Owners, at: int) -> _Difference:
    for index, owner in enumerate(owners):
        low = index * SECTOR
        found, want = bytes(data[low : low + SECTOR]), wanted[low : low + SECTOR]
        if found != want:
            by = "zeroes" if owner <= 0 else f"the data of operation {owner}"
            sector = at // SECTOR + index
            seen = "zeroes" if not any(found) else f"bytes {found[:8].hex()}..."
            return _Difference(f"{by} in sector {sector}", f"{seen} there", sector, owner)
    raise MachineError("a difference was not there when it was looked for again")
