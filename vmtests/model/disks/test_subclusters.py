"""The model of an image with subclusters against qemu-io: allocation, host clusters, contents."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.images.qcow2 import Qcow2Reader as Tables
from qmpshim.model.disks.image import Alloc, Fill, Owners, Qcow2Image, owned
from qmpshim.model.disks.subclusters import SUBCLUSTERS, ExtendedQcow2
from qmpshim.model.runtime.coroutines import Co, run_sequentially
from qmpshim.model.units import SECTOR
from vmtests.support.qcow2_images import KiB, make_image, make_raw

CLUSTER = 64 * KiB // SECTOR
BELOW = 99  # what the backing file holds
pytestmark = pytest.mark.usefixtures("qemu_on_path")


class Backing(Fill):
    def read(self, start: int, count: int) -> Co[Owners]:
        return owned(BELOW, count)
        yield


def differs(directory: Path, seed: int, backed: bool) -> list[str]:
    """What random operations leave in a real image otherwise than in the model."""
    dice = random.Random(seed)
    size = dice.randrange(3, 8) * CLUSTER + dice.choice([0, 1, 5, CLUSTER - 3])
    model = ExtendedQcow2("hidden", size, CLUSTER, backed)
    unit = model.cluster
    commands = []
    for number in range(1, dice.randrange(4, 14)):
        start = dice.randrange(size)
        if dice.random() < 0.5:
            start -= start % dice.choice([unit, CLUSTER])
        wanted = [1, unit, 3 * unit, CLUSTER, 2 * CLUSTER, dice.randrange(1, 3 * CLUSTER)]
        count = min(size - start, dice.choice(wanted))
        verb = dice.choice(["write", "write", "zero", "unmap", "discard"])
        if backed and verb in ("zero", "unmap"):
            # Nothing writes zeroes to a part of an overlay's cluster: the model does not fill it.
            start -= start % unit
            count = min(size - start, -(-count // unit) * unit)
        words = {"write": f"write -P {number}", "zero": "write -z", "unmap": "write -z -u"}
        commands.append(f"{words.get(verb, verb)} {start * SECTOR} {count * SECTOR}")
        if verb == "write":
            run_sequentially(model.write(start, owned(number, count), Backing()))
        elif verb == "discard":
            run_sequentially(model.discard(start, count, -number))
        else:
            run_sequentially(model.zero(start, count, -number, verb == "unmap"))
    options: dict[str, Any] = {"extended_l2": "on"}
    if backed:
        options |= {"backing_file": make_raw(directory / "below", size * SECTOR, BELOW)}
        options |= {"backing_fmt": "raw"}
    path = make_image(directory / "image", size * SECTOR, *commands, **options)
    real, view = Tables.parse(map_file(path)), ImageView.open(path)
    found = []
    if real.allocation() != {i: kind for i, kind in model.alloc.items() if kind}:
        found.append("allocation")
    if set(real.host_clusters()) != model.hosts:
        found.append("host clusters")
    for run in view.runs():
        if run.alloc is Alloc.DATA:
            owners = model.contents.read(run.offset // SECTOR, run.length // SECTOR)
            data = view.read(run.offset, run.length).tobytes()
            if data != b"".join(bytes([max(0, owner)]) * SECTOR for owner in owners):
                found.append("contents")
                break
    return found


@pytest.mark.parametrize("backed", [True, False])
def test_the_model_does_what_qemu_does(tmp_path: Path, backed: bool) -> None:
    for seed in range(30):
        assert differs(tmp_path, seed, backed) == [], f"seed {seed}"


def _whole_cluster_copied(self: Qcow2Image, start: int, count: int) -> tuple[int, int]:
    size = self.info_cluster
    return start - start % size, min(-(-(start + count) // size) * size, self.size)


def _subclusters_discarded(self: ExtendedQcow2, *args: Any) -> None:
    Qcow2Image.apply_discard(self, *args)


def _nothing_freed(self: ExtendedQcow2, start: int, count: int, owner: int, unmap: bool) -> None:
    Qcow2Image.apply_zero(self, start, count, owner, unmap)


def _parts_freed(self: ExtendedQcow2, start: int, count: int) -> list[tuple[int, int, int]]:
    """A cluster counts as covered where only a part of it is."""
    first, last = start // CLUSTER, (start + count - 1) // CLUSTER
    size = self.size
    return [(n, n * CLUSTER, min(CLUSTER, size - n * CLUSTER)) for n in range(first, last + 1)]


MUTANTS: dict[str, tuple[str, Any]] = {
    "a write copies the whole cluster": ("edges", _whole_cluster_copied),
    "a discard is of subclusters": ("apply_discard", _subclusters_discarded),
    "zeroes free nothing": ("apply_zero", _nothing_freed),
    "a part of a cluster counts as all of it": ("whole_clusters", _parts_freed),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_killed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(ExtendedQcow2, attribute, mutant)
    assert any(differs(tmp_path, seed, True) for seed in range(30))


def test_block_status_ends_where_the_type_of_subcluster_changes() -> None:
    """qcow2_get_host_offset(): a subcluster of zeroes with a host cluster is another type."""
    model = ExtendedQcow2("hidden", 4 * CLUSTER, CLUSTER, False)
    unit, zero, data = model.cluster, Alloc.ZERO, Alloc.DATA
    assert model.status_zero(0, 4 * CLUSTER) is zero  # not allocated, nothing below
    run_sequentially(model.zero(0, CLUSTER, -1, False))
    assert model.status_zero(0, CLUSTER) is zero
    assert model.status_zero(0, CLUSTER + unit) is data
    run_sequentially(model.write(CLUSTER, owned(2, unit)))
    assert model.status_zero(CLUSTER + unit, CLUSTER - unit) is zero
    assert model.status_zero(CLUSTER + unit, CLUSTER) is data  # UNALLOCATED_ALLOC, then _PLAIN
    model.alloc[0] = Alloc.UNKNOWN  # it reads as zeroes
    assert model.status_zero(0, unit) is Alloc.ALLOCATED
    run_sequentially(model.zero(0, unit, -3, False))
    assert model.alloc[0] is Alloc.UNKNOWN  # whether its cluster has a host cluster stays open
    assert all(Alloc.UNKNOWN.admits(kind) for kind in Alloc)
    run_sequentially(model.write(0, owned(4, 1)))
    assert (model.alloc[0], model.status_zero(0, unit)) == (data, data)
    assert SUBCLUSTERS * unit == CLUSTER == model.info_cluster
