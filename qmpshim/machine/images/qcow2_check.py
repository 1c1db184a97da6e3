"""The health of a qcow2 image: its tables and its refcounts, compared with each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmpshim.errors import UnsupportedFeature
from qmpshim.machine.images.qcow2 import COPIED, Entries, Ints, Mask, Qcow2Reader, Words
from qmpshim.machine.images.qcow2_header import Incompatible

_REFTABLE_RESERVED = np.uint64(0x1FF)
_PACKED = "compressed data"  # the one use of a host cluster that others of its kind may share


class Severity(StrEnum):
    """How bad a :class:`Inconsistency` is; the first two are the ones ``qemu-img check`` counts."""

    CORRUPTION = "corruption"  # data is wrong, or the next write may make it wrong
    LEAK = "leak"  # space is lost, nothing else
    NOTICE = "notice"  # legal, but only after a crash


class Inconsistency(NamedTuple):
    """One inconsistency: its severity, and a sentence with its place."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


def check(image: Qcow2Reader) -> list[Inconsistency]:
    """All inconsistencies that the bytes alone show, worst first.

    Finds all that ``qemu-img check`` finds. Beyond it: the corrupt and dirty bits,
    a host cluster with two uses and a refcount to match (without internal snapshots nothing
    explains that), a COPIED flag without an offset, and a guest cluster that has another place
    in an external data file than its own. As there, a refcount for a cluster past the end of
    the file is no leak: it holds no space.

    :raises UnsupportedFeature: internal snapshots or persistent bitmaps, whose references are not
        followed
    """
    if image.header.snapshots:
        raise UnsupportedFeature("internal snapshots")
    if image.header.has_bitmaps:
        raise UnsupportedFeature("persistent bitmaps")
    return sorted(_findings(image), key=lambda finding: list(Severity).index(finding.severity))


def _findings(image: Qcow2Reader) -> Iterator[Inconsistency]:
    if Incompatible.CORRUPT in image.header.flags:
        yield Inconsistency(Severity.CORRUPTION, "QEMU marked the image corrupt")
    if Incompatible.DIRTY in image.header.flags:
        yield Inconsistency(Severity.NOTICE, "the image is marked dirty: refcounts may be behind")
    l1, l2 = image.walk()
    reftable = Entries.nonzero(
        image.words(
            image.header.reftable_offset, image.header.reftable_clusters * image.cluster_size // 8
        )
    )
    # A refcount table entry's offset goes up to bit 63; past bit 62 no file can reach.
    blocks = (reftable.raw & ~_REFTABLE_RESERVED).clip(max=2**63 - 1).astype(np.int64)
    reftable_faults = reftable.describe(
        "refcount table entry {index}",
        {
            "has reserved bits set": (reftable.raw & _REFTABLE_RESERVED) != 0,
            "points inside a cluster": image.unaligned(blocks),
            "points outside the file": image.outside(blocks),
        },
    )
    for fault in (*image.l1_faults(l1), *image.l2_faults(l2), *reftable_faults):
        yield Inconsistency(Severity.CORRUPTION, fault)

    sound = ~image.unaligned(blocks) & ~image.outside(blocks)
    stored = _stored_refcounts(image, reftable.index[sound], blocks[sound])
    yield from _compare_refcounts(image, _references(image, l1, l2, blocks[sound]), stored)
    once = stored.at(l1.host // image.cluster_size) == 1
    yield from _check_copied("L1 entry {index}", l1, l1.host != 0, once)
    if image.header.external_data:  # no refcounts: each cluster of that file has one user
        once = np.ones(len(l2.raw), np.bool_)
    else:
        once = stored.at(l2.host // image.cluster_size) == 1
    where = "L2 entry of guest cluster {index}"
    yield from _check_copied(where, l2, image.has_host(l2), once)


def _stored_refcounts(image: Qcow2Reader, numbers: Ints, blocks: Ints) -> _Counts:
    """The non-zero refcounts of every host cluster, as the image keeps them."""
    bits = image.header.refcount_bits
    per_block = image.cluster_size * 8 // bits
    keys, values = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for number, block in zip(numbers.tolist(), blocks.tolist(), strict=True):
        raw = image.bytes_at(block, image.cluster_size)
        if bits < 8:
            octets = np.frombuffer(raw, np.uint8)
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            counts = ((octets[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
        else:
            counts = np.frombuffer(raw, f">u{bits // 8}")
        at = np.flatnonzero(counts)
        keys.append(number * per_block + at)
        values.append(counts[at].astype(np.uint64))
    return _Counts(np.concatenate(keys), np.concatenate(values))


def _references(image: Qcow2Reader, l1: Entries, l2: Entries, blocks: Ints) -> dict[str, Ints]:
    """Which host clusters each structure uses, one number for each time it is used."""

    def span(offset: int, length: int) -> Ints:
        return np.arange(offset // image.cluster_size, -(-(offset + length) // image.cluster_size))

    def pointed(host: Ints) -> Ints:
        inside: Ints = host[(host != 0) & ~image.outside(host)]
        return np.asarray(inside // image.cluster_size)

    head = image.header
    own_data = ~l2.compressed & (not head.external_data)
    start, end = image.compressed_extents(l2)
    first, last = start // image.cluster_size, (end - 1) // image.cluster_size
    return {
        "the header": span(0, 1),
        "the refcount table": span(
            head.reftable_offset, head.reftable_clusters * image.cluster_size
        ),
        "a refcount block": pointed(blocks),
        "the L1 table": span(head.l1_offset, head.l1_entries * 8),
        "an L2 table": pointed(l1.host),
        "guest data": pointed(l2.host[own_data]),
        _PACKED: np.concatenate((first, last[last != first])),
    }


def _compare_refcounts(
    image: Qcow2Reader, references: dict[str, Ints], stored: _Counts
) -> Iterator[Inconsistency]:
    every = np.concatenate(list(references.values()))
    used = _Counts(*np.unique(every, return_counts=True))
    alone = {**references, _PACKED: np.unique(references[_PACKED])}
    uses = _Counts(*np.unique(np.concatenate(list(alone.values())), return_counts=True))
    for cluster in uses.keys[uses.values > 1].tolist():
        users = [
            user for user, mine in alone.items() for _ in range(np.count_nonzero(mine == cluster))
        ]
        yield Inconsistency(
            Severity.CORRUPTION,
            f"host offset {cluster * image.cluster_size:#x} is used twice: " + ", ".join(users),
        )
    clusters = np.union1d(used.keys, stored.keys)
    counted, kept = used.at(clusters), stored.at(clusters)
    for at in np.flatnonzero(counted != kept):
        host = int(clusters[at]) * image.cluster_size
        text = f"host offset {host:#x}: refcount {kept[at]}, but {counted[at]} references"
        if kept[at] < counted[at]:
            yield Inconsistency(Severity.CORRUPTION, text)
        elif host < image.file_size:
            yield Inconsistency(Severity.LEAK, text)


@dataclass(frozen=True, slots=True)
class _Counts:
    """A count for each host cluster number in ``keys`` (sorted); zero for all others."""

    keys: Ints
    values: NDArray[np.uint64] | Ints

    def at(self, wanted: Ints) -> Words:
        if not len(self.keys):
            return np.zeros(len(wanted), np.uint64)
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.values[place], 0).astype(np.uint64)


def _check_copied(where: str, table: Entries, points: Mask, once: Mask) -> Iterator[Inconsistency]:
    """COPIED means "refcount exactly one: may be written in place".

    :param points: which entries have an offset
    :param once: the refcounts of which host clusters are 1
    """
    copied = (table.raw & COPIED) != 0
    faults = {
        "has COPIED set without an offset": ~table.compressed & ~points & copied,
        "has COPIED set, but its refcount is not 1": points & copied & ~once,
        "lacks COPIED, but its refcount is 1": points & ~copied & once,
    }
    for fault in table.describe(where, faults):
        yield Inconsistency(Severity.CORRUPTION, fault)
