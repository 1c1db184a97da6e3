"""The scenario of a point of the space: where its operations are, how its chain is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.explore.space.grammar import DIMENSIONS
from qmpshim.conformance.explore.space.values import (
    BITMAP_OF,
    BITMAPS,
    CLUSTERS,
    DISKS,
    HISTORY,
    LARGE,
    NONE,
    OPTIONS,
    RELATIONS,
    SUBCLUSTERS,
    TARGETS,
    THIRD,
    UNPLACED,
    Size,
    copies_more,
)
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.variants import IMAGE_EXTENDED
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.units import SECTOR, outwards

_PART = 8  # sectors of an operation of the history that is smaller than a granule
#: The dimensions that are options of nodes.
_CHAIN_OPTIONS = {"options": OPTIONS, "target": TARGETS}


def granule(point: Mapping[str, str]) -> int:
    """Sectors of a granule."""
    least = LARGE if copies_more(point["target"]) else 0
    return backup_calculate_cluster_size(CLUSTERS[point["cluster"]], least)


def size(point: Mapping[str, str]) -> int:
    """Sectors of a disk."""
    unit = granule(point)
    return {"whole": 4 * unit, "half": 3 * unit + unit // 2, "odd": 3 * unit + 1}[point["disk"]]


def _boundaries(point: Mapping[str, str]) -> list[int]:
    """The four sectors between which operations can be placed."""
    unit, end = granule(point), size(point)
    place = point["place"]
    if place == "end":
        return [end - 3 * unit, end - 2 * unit, end - unit, end]
    step = unit // 16 if place == "small" else unit
    offset = {"granules": 0, "ragged": unit // 3, "small": unit // 8 + 1}[place]
    return [min(offset + n * step, end) for n in range(4)]


def _history(point: Mapping[str, str]) -> list[dict[str, Any]]:
    unit = granule(point)
    return [
        {"do": name, "at": [first * unit + beyond, many * unit or _PART]}
        if name not in UNPLACED
        else {"do": name}
        for name, first, beyond, many in HISTORY[point["history"]]
    ]


def _third(point: Mapping[str, str], low: int, high: int) -> dict[str, Any]:
    """The third operation; *low* to *high* is where the first is."""
    name, after = THIRD[point["third"]]
    op: dict[str, Any] = {"do": name}
    if name in ("guest_read", "guest_dirty_bitmap"):
        op["at"] = [0, size(point)]
    elif name not in UNPLACED:
        start = low if after == 0 else (low + high) // 2
        op["at"] = [start, min(high - low, size(point) - start)]
    if after is not None:
        op["after"] = after
    return op


def options_of(point: Mapping[str, str], dimension: str) -> tuple[tuple[str, str, Any], ...]:
    """What a dimension adds to the options of the chain's nodes: node, option, value."""
    if dimension == "bitmap":
        return _bitmap(point)
    if dimension == "subclusters":
        images = TOPOLOGIES[point["form"]].images
        return tuple(
            (name, IMAGE_EXTENDED, True)
            for name in SUBCLUSTERS[point["subclusters"]]
            if name in images
        )
    if dimension == "disks":
        return DISKS[point["disks"]]
    by_value = _CHAIN_OPTIONS.get(dimension)
    given = () if by_value is None else by_value[point[dimension]][point["form"]]
    bytes_ = granule(point) * SECTOR
    return tuple((node, key, bytes_ if what is Size.GRANULE else what) for node, key, what in given)


def _bitmap(point: Mapping[str, str]) -> tuple[tuple[str, str, Any], ...]:
    if point["bitmap"] == NONE:
        return ()
    unit, end = granule(point) * SECTOR, size(point) * SECTOR
    places = (
        (first * unit + beyond * SECTOR, many * unit or _PART * SECTOR)
        for first, beyond, many in BITMAPS[point["bitmap"]]
    )
    written = tuple((start, min(start + count, end)) for start, count in places)
    return ((*BITMAP_OF[point["form"]], written),)


def scenario_object(point: Mapping[str, str], name: str) -> dict[str, Any]:
    """The scenario of a point of the space, as JSON.

    Without a first operation the second is by itself. Where there are two disks, the second
    operation is on the other one, and a third one that does not come after the first.
    """
    edges = _boundaries(point)
    a, b, c, d = (edges[n] for n in RELATIONS[point["relation"]])
    other = outwards(0, size(point), granule(point))[1] if point["disks"] != "one" else 0
    placed = (("first", [a, b - a]), ("second", [other + c, d - c]))
    ops: list[dict[str, Any]] = [
        {"do": point[which]} | ({} if point[which] in UNPLACED else {"at": at})
        for which, at in placed
        if point[which] != NONE
    ]
    if point["third"] != NONE:
        ops.append(_third(point, a, b))
        if "at" in ops[2] and ops[2].get("after") != 0:
            ops[2]["at"][0] += other
    return {
        "name": name,
        "form": point["form"],
        "size": size(point) + other,
        "cluster": CLUSTERS[point["cluster"]],
        "contract": TOPOLOGIES[point["form"]].keeps_contract(
            [op["do"] for op in ops if op["do"] != "status"]
        ),
        "secondary": point["secondary"],
        "setup": _history(point),
        "ops": ops,
        "options": [list(one) for d in DIMENSIONS for one in options_of(point, d.name)],
    }
