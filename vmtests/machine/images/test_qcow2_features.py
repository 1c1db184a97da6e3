"""Images with subclusters, external data files and preallocation, against QEMU's own tools."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images import image_view, qcow2
from qmpshim.machine.images.agreement import agree, consult
from qmpshim.machine.images.image_view import ImageView, RawFile, through
from qmpshim.machine.images.libqcow import QcowReader
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import Severity, check
from qmpshim.model.disks.image import Alloc
from vmtests.support.qcow2_images import (
    KiB,
    MiB,
    Tables,
    check_fails,
    converted,
    flat,
    make_image,
    make_raw,
    qcow2_node,
    run_tool,
)

DATA, ZERO = Alloc.DATA, Alloc.ZERO
pytestmark = pytest.mark.usefixtures("qemu_on_path")

FEATURES = {
    "extended": {"extended_l2": "on"},
    "data file": {"data_file": "external"},
    "raw data file": {"data_file": "external", "data_file_raw": "on"},
    "both": {"extended_l2": "on", "data_file": "external"},
    "preallocated": {"preallocation": "metadata"},
    "falloc": {"preallocation": "falloc"},
    "extended and preallocated": {"extended_l2": "on", "preallocation": "metadata"},
    "data file and preallocated": {"data_file": "external", "preallocation": "full"},
}


def made(directory: Path, seed: int, name: str, cluster: int | None = None) -> Path:
    """A random image with the features of that *name*."""
    dice = random.Random(f"{seed} {name}")
    options: dict[str, object] = dict(FEATURES[name])
    cluster = cluster or dice.choice([16 * KiB, 64 * KiB, 128 * KiB])
    if "extended_l2" not in options:
        cluster = dice.choice([4 * KiB, cluster])
    if "data_file" in options:
        options["data_file"] = directory / f"{seed}.raw"
    size = dice.randrange(3, 20) * cluster + dice.choice([0, 512, cluster - 512])
    commands = []
    for _ in range(dice.randrange(3, 16)):
        start = dice.randrange(size // 512) * 512
        if dice.random() < 0.4:
            start -= start % cluster
        wanted = (
            512,
            cluster // 32,
            cluster,
            2 * cluster,
            dice.randrange(1, 3 * cluster // 512) * 512,
        )
        length = min(size - start, max(512, dice.choice(wanted)))
        verb = dice.choice(["write -P 5", "write -P 6", "write -z", "write -z -u", "discard"])
        commands.append(f"{verb} {start} {length}")
    return make_image(directory / f"{seed}.qcow2", size, *commands, cluster_size=cluster, **options)


def differs(path: Path) -> list[str]:
    """What our reader says otherwise than ``qemu-img map``, ``check`` and ``convert``."""
    found = agree(path)
    view = ImageView.open(path)
    expected = converted(qcow2_node(path), path.with_suffix(".converted"))
    if b"".join(p.data or bytes(p.length) for p in view.pieces()) != expected:
        found.append("pieces")
    if view.read(0, view.virtual_size).tobytes() != expected:
        found.append("read")
    below = make_raw(path.with_suffix(".below"), view.virtual_size, 99)
    base = {"driver": "raw", "file": {"driver": "file", "filename": str(below)}}
    if flat(through([view, RawFile(below)])) != converted(
        qcow2_node(path, base), path.with_suffix(".converted")
    ):
        found.append("through")
    return found


@pytest.mark.parametrize("name", FEATURES)
def test_reads_what_qemu_reads(tmp_path: Path, name: str) -> None:
    for seed in range(4):
        assert differs(made(tmp_path, seed, name)) == [], f"seed {seed}"


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10, 60))
@pytest.mark.parametrize("name", FEATURES)
def test_reads_what_qemu_reads_long(tmp_path: Path, name: str, seed: int) -> None:
    assert differs(made(tmp_path, seed, name)) == []


# -- what each witness says --------------------------------------------------------------------


def test_a_reader_that_is_not_consulted_is_named(tmp_path: Path) -> None:
    path = made(tmp_path, 1, "extended")
    assert consult(path) == ([], ["libqcow: extended L2 entries"])
    path = made(tmp_path, 2, "data file")
    assert consult(path) == ([], ["libqcow: an external data file"])
    with pytest.raises(UnsupportedFeature, match="external data file that is out of reach"):
        ImageView(map_file(path))
    with pytest.raises(UnsupportedFeature, match="an external data file"):
        QcowReader(map_file(path))
    path = make_image(tmp_path / "plain.qcow2", MiB, "write -P 1 0 64k")
    assert consult(path) == ([], [])
    run_tool("qemu-img", "snapshot", "-c", "once", path)
    assert consult(path) == ([], ["the independent check: internal snapshots"])
    packed = tmp_path / "packed.qcow2"
    run_tool("qemu-img", "convert", "-c", "-O", "qcow2", path, packed)
    assert consult(packed) == ([], ["libqcow: compressed clusters"])


# -- broken images -----------------------------------------------------------------------------


@pytest.fixture
def extended(tmp_path: Path) -> bytearray:
    """Clusters of 64 KiB: 0 has subclusters 0 to 3 DATA and 8 and 9 ZERO, 2 ZERO without host."""
    path = make_image(
        tmp_path / "extended.qcow2",
        MiB,
        "write -P 1 0 8k",
        "write -z 16k 4k",
        "write -z -u 128k 64k",
        extended_l2="on",
    )
    return bytearray(path.read_bytes())


def test_subclusters(extended: bytearray) -> None:
    image = Qcow2Reader.parse(extended)
    assert image.unit_size == 2 * KiB
    assert image.allocation() == {
        **dict.fromkeys(range(4), DATA),
        **dict.fromkeys((8, 9), ZERO),
        **dict.fromkeys(range(64, 96), ZERO),
    }
    assert image.host_clusters() == [0]
    assert check(image) == []


BROKEN: dict[str, tuple[Callable[[Tables], None], str]] = {
    "allocated and zero": (lambda t: t.flip(t.l2 + 8, 1 << 32), "allocated and zero"),
    "zero and allocated": (lambda t: t.flip(t.l2 + 8, 1 << 8), "allocated and zero"),
    "allocated without a cluster": (lambda t: t.flip(t.l2 + 24, 1), "without an offset"),
    "another cluster's": (lambda t: t.put(t.l2 + 32, 0x0000_FFFF), "points inside|reserved|offset"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_bitmaps_are_found(
    extended: bytearray, tmp_path: Path, name: str, qemu_build: Build
) -> None:
    spoil, text = BROKEN[name]
    spoil(Tables(extended))
    findings = check(Qcow2Reader.parse(extended))
    assert [f.severity for f in findings][:1] == [Severity.CORRUPTION]
    with pytest.raises(ImageError, match=text):
        Qcow2Reader.parse(extended).allocation()
    (tmp_path / "bad.qcow2").write_bytes(extended)
    if read_version(qemu_build)[0] >= (6, 2, 0):  # `qemu-img check` looks at bitmaps since then
        assert check_fails(tmp_path / "bad.qcow2")


def test_bits_that_flip_in_bitmaps(extended: bytearray, tmp_path: Path) -> None:
    """What qemu-img check calls corrupt is corrupt; what passes both is read as QEMU reads it."""
    dice, tables, path = random.Random(1), Tables(extended), tmp_path / "flip.qcow2"
    for _ in range(40):
        bad = bytearray(extended)
        bad[tables.l2 + dice.randrange(16 * 4)] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        try:
            refused = bool(check(Qcow2Reader.parse(bad)))
        except (ImageError, UnsupportedFeature):
            refused = True
        assert refused or not check_fails(path)
        assert refused or agree(path) == []


def test_an_external_cluster_in_the_wrong_place(tmp_path: Path) -> None:
    data = tmp_path / "external.raw"
    path = make_image(tmp_path / "i.qcow2", MiB, "write -P 1 0 192k", data_file=data)
    image = bytearray(path.read_bytes())
    assert (check(Qcow2Reader.parse(image)), len(Qcow2Reader.parse(image).allocation())) == ([], 3)
    tables = Tables(image)
    tables.put(tables.l2 + 8, tables.word(tables.l2 + 16))
    assert "not at its own offset" in check(Qcow2Reader.parse(image))[0].text
    tables.put(tables.l2 + 8, 64 * KiB)
    assert "lacks COPIED" in check(Qcow2Reader.parse(image))[0].text


# -- mutants -----------------------------------------------------------------------------------


def _zero_bits_ignored(
    l2: qcow2.Entries, host: qcow2.Ints, size: int
) -> tuple[qcow2.Ints, object, qcow2.Ints]:
    index, kind, place = subclusters(l2, host, size)
    return index, (kind == DATA).astype("u1") * int(DATA), place


def _subclusters_all_alike(
    l2: qcow2.Entries, host: qcow2.Ints, size: int
) -> tuple[qcow2.Ints, object, qcow2.Ints]:
    index, kind, place = subclusters(l2, host, size)
    kind[place >= 0] = DATA
    return index, kind, place


def _one_offset_a_cluster(
    l2: qcow2.Entries, host: qcow2.Ints, size: int
) -> tuple[qcow2.Ints, object, qcow2.Ints]:
    return subclusters(l2, host, 0)


def _offset_zero_is_none(image: Qcow2Reader, l2: qcow2.Entries) -> object:
    return l2.host != 0


subclusters = qcow2.subclusters
MUTANTS: dict[str, tuple[object, str, object, str]] = {
    "zero bits are ignored": (qcow2, "subclusters", _zero_bits_ignored, "extended"),
    "a cluster is allocated as a whole": (
        qcow2,
        "subclusters",
        _subclusters_all_alike,
        "extended",
    ),
    "all subclusters are the first": (qcow2, "subclusters", _one_offset_a_cluster, "extended"),
    "offset 0 is no offset": (Qcow2Reader, "has_host", _offset_zero_is_none, "data file"),
    "data is in the image": (
        image_view,
        "external_data",
        lambda path, qcow2: map_file(path),
        "data file",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_reader_are_killed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, attribute, mutant, feature = MUTANTS[name]
    paths = [made(tmp_path, seed, feature) for seed in range(4)]
    monkeypatch.setattr(place, attribute, mutant)
    assert any(differs(path) for path in paths)
