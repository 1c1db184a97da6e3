"""The disks' clusters as predicted and as observed, side by side: whose they are, what differs.

A *map* is JSON, made for reports: for each disk its clusters, each with what was predicted and
what was observed there, as runs of bytes that have one owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import AnyCase
from qmpshim.conformance.bundles.chain import load_prediction
from qmpshim.conformance.explore.checkers.probe import PROBE
from qmpshim.conformance.explore.harness.io_naming import GARBAGE, owners
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import follow, system_of
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.errors import ImageError, InputError, UnsupportedFeature
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.model.check.observables import MARKED, NOT_ZEROES, UNMARKED
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR, runs_of, touched

Owner = int | None  # None: the image has nothing here
Whose = Callable[[Owner], str]
_MOST = 48  # clusters of a disk that are shown
_NO_OPERATIONS = {
    GARBAGE: "bytes nobody wrote",
    0: "zeroes",
    BASE: "old data",
    PROBE: "a later probe",
    NOT_ZEROES: "reported as what may be data",
    MARKED: "named by the bitmap",
    UNMARKED: "not named by the bitmap",
}


def maps_of_schedule(finding: Finding, build: Build) -> dict[str, Any] | None:
    """Take a finding's schedule once more, on a fresh QEMU, and look at the disks.

    :returns: None where the schedule cannot be followed, or nothing ever began
    :raises BuildError: the build cannot do the scenario
    """
    stage = QemuPool(build, reuse=False)
    try:
        system = system_of(finding, stage, keeping=True)
        system.reset()
        followed = follow(system, finding.schedule)
        if not followed or system.now.lost or not system.now.started:
            return None
        seen = system.now.outcome or system.disks()
        return _compare(finding.scenario, seen, [] if system.now.failed else system.predictions())
    finally:
        stage.close()


def _compare(scenario: RealScenario, seen: Outcome, possible: Sequence[Outcome]) -> dict[str, Any]:
    """The maps of what was seen and of the prediction that comes nearest."""
    want = min(possible, key=lambda one: _distance(one, seen), default=None)
    whose = _namer(scenario)
    disks = []
    for name in TOPOLOGIES[scenario.form].images:
        if name == "hidden" and seen.backup is not None:  # many points in time may be predicted
            target = seen.backup.target
            unit = scenario.unit_of(name)
            disks.append(_disk("the target", unit, None, target, whose))
            continue
        kinds: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None)
        if name in ("hidden", "active") and seen.alloc:
            layer = ("hidden", "active").index(name)
            kinds = (want.alloc[layer] if want else None, seen.alloc[layer])
        disks.append(
            _disk(
                name,
                scenario.unit_of(name),
                getattr(want, name) if want else None,
                getattr(seen, name),
                whose,
                kinds=kinds,
            )
        )
    if seen.view is not None:
        wanted = want.view if want else None
        disks.append(_disk("the guest's view", scenario.cluster, wanted, seen.view, whose))
    for index, op in enumerate(scenario.ops):
        data = seen.data[index]
        if data is not None:
            wanted = want.data[index] if want else None
            title = f"what op {index} ({op}) returned"
            disks.append(_disk(title, scenario.cluster, wanted, data, whose, op.start))
    return _map(scenario.cluster, disks)


def _map(cluster: int, disks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The map of *disks*, in bytes as all documents are; *cluster* is in sectors, as they are."""
    wrong = _wrong(disks)
    for disk in disks:
        for cell in disk["clusters"]:
            for side in filter(None, (cell["predicted"], cell["observed"])):
                side["runs"] = [
                    {"offset_bytes": at * SECTOR, "length_bytes": count * SECTOR, "owner": whose}
                    for at, count, whose in side["runs"]
                ]
    return {"cluster_bytes": cluster * SECTOR, "disks": list(disks), "wrong": wrong}


def _distance(want: Outcome, seen: Outcome) -> int:
    """How many sectors and clusters differ."""
    pairs = [
        *((want.secondary, seen.secondary), (want.hidden, seen.hidden), (want.active, seen.active)),
        *((want.primary, seen.primary), (want.view, seen.view)),
        *zip(want.data, seen.data, strict=True),
    ]
    differs = sum(
        a != b
        for wants, haves in pairs
        if wants is not None and haves is not None
        for a, b in zip(wants, haves, strict=True)
        if a is not None and b is not None
    )
    return differs + sum(
        kind != -1 and not Alloc(kind).admits(Alloc(found))
        for kinds, founds in zip(want.alloc, seen.alloc, strict=True)
        for kind, found in zip(kinds, founds, strict=True)
    )


def _namer(scenario: RealScenario) -> Whose:
    def whose(owner: Owner) -> str:
        if owner is None:
            return "nothing"
        if owner in _NO_OPERATIONS:
            return _NO_OPERATIONS[owner]
        index = owner - BASE - 1
        if index < len(scenario.setup):
            return f"setup: {scenario.setup[index]}"
        index -= len(scenario.setup)
        if index < len(scenario.ops):
            return f"op {index}: {scenario.ops[index]}"
        return f"operation {owner}"

    return whose


def _disk(
    name: str,
    cluster: int,
    predicted: Sequence[Owner] | None,
    observed: Sequence[Owner],
    whose: Whose,
    start: int = 0,
    kinds: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> dict[str, Any]:
    """One disk's map; positions count from the disk's beginning.

    :param start: the sector that the first owner is of
    :param kinds: by cluster, how it is allocated: predicted and observed; -1: not compared
    """
    clusters = []
    end = start + len(observed)
    for index in touched(start, len(observed), cluster):
        low, high = max(index * cluster, start), min((index + 1) * cluster, end)
        have = _side(observed[low - start : high - start], low, _at(kinds[1], index), whose)
        want = None
        if predicted is not None:
            want = _side(predicted[low - start : high - start], low, _at(kinds[0], index), whose)
        clusters.append(_cell(index, want, have))
    return {"name": name, "clusters": clusters}


def _cell(index: int, want: dict[str, Any] | None, have: dict[str, Any]) -> dict[str, Any]:
    """A cluster with both its sides; *want* is None where nothing was predicted."""
    differs = want is not None and want["alloc"] != "any" and want != have
    if differs and want is not None and want["runs"] == have["runs"]:
        planned, there = _NAMES.get(want["alloc"]), _NAMES.get(have["alloc"])
        differs = planned is None or there is None or not planned.admits(there)
    return {"index": index, "predicted": want, "observed": have, "differs": differs}


_NAMES = {kind.name.lower(): kind for kind in Alloc}


def _at(kinds: Sequence[int] | None, index: int) -> int | None:
    return None if kinds is None else kinds[index]


def _side(owned: Sequence[Owner], start: int, kind: int | None, whose: Whose) -> dict[str, Any]:
    alloc = "" if kind is None else "any" if kind == -1 else Alloc(kind).name.lower()
    if alloc == "unallocated":
        return {"alloc": alloc, "runs": []}
    runs = [[at, end - at, whose(owner)] for at, end, owner in runs_of(owned, start)]
    return {"alloc": alloc, "runs": runs}


def _wrong(disks: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong and whose it is, a line for each run of sectors."""
    lines = []
    for disk in disks:
        if "problem" in disk:
            lines.append(f"{disk['name']}: {disk['problem']}")
        for cell in disk["clusters"]:
            if not cell["differs"]:
                continue
            want, have = cell["predicted"], cell["observed"]
            if want["alloc"] != have["alloc"]:
                lines.append(
                    f"{disk['name']}, cluster {cell['index']}: "
                    f"{have['alloc'] or 'data'}, predicted {want['alloc'] or 'data'}"
                )
                continue
            for at, count, whose in have["runs"]:
                predicted = _runs_at(want["runs"], at, count)
                if predicted != {whose}:
                    lines.append(
                        f"{disk['name']}, sectors {at}..{at + count - 1}: {whose}, "
                        f"predicted {' and '.join(sorted(predicted))}"
                    )
    return lines


def _runs_at(runs: Iterable[Sequence[Any]], start: int, count: int) -> set[str]:
    return {w for at, n, w in runs if at < start + count and start < at + n} or {"nothing"}


# -- of a bundle of verify ---------------------------------------------------------------------


def maps_of_bundle(case: AnyCase, directory: Path) -> dict[str, Any] | None:
    """The maps of a bundle of ``verify``, from the prediction and the images in it.

    :returns: None where it has no prediction: QEMU died before there was a chain, or there is none
    """
    try:
        prediction = load_prediction(directory)
    except InputError:
        return None
    cluster = case.spec.cluster // SECTOR
    numbers = {operation.number: str(operation) for operation in case.operations}

    def whose(owner: Owner) -> str:
        if owner is None:
            return "nothing"
        if owner == GARBAGE:
            return "bytes nobody wrote"
        return f"op {numbers.get(owner, owner)}" if owner > 0 else "zeroes"

    disks = []
    for name, predicted in prediction.items():
        path = next(iter((directory / "images").glob(f"{name}.*")), None)
        if path is None:
            continue
        disks.append(_bundled_disk(name, predicted, path, case.spec.size // SECTOR, cluster, whose))
    return _map(cluster, disks)


def _bundled_disk(
    name: str, predicted: Any, path: Path, size: int, cluster: int, whose: Whose
) -> dict[str, Any]:
    want: dict[int, int] = {}
    for start, count, owner in predicted["owners"]:
        want.update(dict.fromkeys(range(start, start + count), max(0, owner)))
    data = image = memoryview(map_file(path))
    clusters: list[dict[str, Any]] = []
    raw = predicted["allocation"] == "raw"
    found: dict[int, tuple[Alloc, int]] = {}
    if not raw:
        try:
            qcow2 = Qcow2Reader.parse(image)
            seen = qcow2.clusters()
            data = qcow2.with_decompressed(seen)
        except (ImageError, UnsupportedFeature) as error:
            return {"name": name, "clusters": [], "problem": str(error)}
        if (its := qcow2.cluster_size) != cluster * SECTOR:
            problem = f"the image has clusters of {its} bytes, not of {cluster * SECTOR}"
            return {"name": name, "clusters": [], "problem": problem}
        found = {
            index: (Alloc(kind), host)
            for index, kind, host in zip(
                seen.index.tolist(), seen.kind.tolist(), seen.host.tolist(), strict=True
            )
        }
        planned = {int(i): Alloc[kind.upper()] for i, kind in predicted["allocation"].items()}
        touched = sorted(planned.keys() | found.keys())
    else:
        touched = sorted({sector // cluster for sector in want})
        planned = {}
    for index in touched:
        low, high = index * cluster, min((index + 1) * cluster, size)
        have: list[Owner] = [0] * (high - low)
        kind, host = found.get(index, (Alloc.UNALLOCATED, 0))
        if raw or kind is Alloc.DATA:
            at = low * SECTOR if raw else host
            piece = bytes(data[at : at + (high - low) * SECTOR])
            have = list(owners(piece + bytes((high - low) * SECTOR - len(piece)), low))
        plan = None if raw else int(planned.get(index, Alloc.UNALLOCATED))
        wanted = _side([want.get(s, 0) for s in range(low, high)], low, plan, whose)
        clusters.append(_cell(index, wanted, _side(have, low, None if raw else int(kind), whose)))
    clusters.sort(key=lambda cell: (not cell["differs"], cell["index"]))
    shown = sorted(clusters[:_MOST], key=lambda cell: int(cell["index"]))
    return {"name": name, "clusters": shown, "left out": len(clusters) - len(shown)}
