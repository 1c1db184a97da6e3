"""Compressed clusters: read and checked as QEMU's own tools and libqcow do it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.images.agreement import consult
from qmpshim.machine.images.image_view import ImageView, RawFile, through
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
)

pytestmark = pytest.mark.usefixtures("qemu_on_path")


def made(directory: Path, seed: int, **options: object) -> Path:
    """A random image in which clusters are compressed, written in part, zeroed and discarded."""
    dice = random.Random(seed)
    sizes = [16 * KiB, 64 * KiB] if options else [512, 4 * KiB, 64 * KiB, 2 * MiB]
    cluster = sizes[seed % len(sizes)]
    count = dice.randrange(4, 24)
    size = count * cluster - dice.choice([0, 512, cluster - 512])
    commands = []
    for index in dice.sample(range(count), count // 2):  # only what is not there is compressed
        start = index * cluster
        length = min(cluster, size - start)
        half = directory / f"{seed}-{index}"  # it compresses to half of its size, or a little more
        half.write_bytes(dice.randbytes(cluster // 2) + bytes(cluster - cluster // 2))
        data = dice.choice([f"-s {half}", f"-P {dice.randrange(1, 200)}"])
        commands.append(f"write -c {data} {start} {length}")
    for _ in range(dice.randrange(8)):
        start = dice.randrange(count) * cluster
        length = min(cluster, size - start, dice.choice([512, cluster]))
        verb = dice.choice(["write -P 5", "write -z", "write -z -u", "discard"])
        commands.append(f"{verb} {start} {length}")
    path = directory / f"{seed}.qcow2"
    return make_image(path, size, *commands, cluster_size=cluster, **options)


@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}], ids=["plain", "extended"])
@pytest.mark.parametrize("seed", range(8))
def test_reads_what_qemu_reads(tmp_path: Path, seed: int, options: dict[str, object]) -> None:
    path = made(tmp_path, seed, **options)
    view = ImageView.open(path)
    feature = "extended L2 entries" if options else "compressed clusters"
    assert consult(path) == ([], [f"libqcow: {feature}"])
    expected = converted(qcow2_node(path), path.with_suffix(".converted"))
    assert b"".join(p.data or bytes(p.length) for p in view.pieces()) == expected
    assert view.read(0, view.virtual_size).tobytes() == expected
    below = make_raw(path.with_suffix(".below"), view.virtual_size, 99)
    base = {"driver": "raw", "file": {"driver": "file", "filename": str(below)}}
    assert flat(through([view, RawFile(below)])) == converted(
        qcow2_node(path, base), path.with_suffix(".converted")
    )


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Clusters of 64 KiB: 0 to 3 are compressed to a little more than half; so some are in two."""
    data = tmp_path / "data"
    data.write_bytes(random.Random(1).randbytes(36 * KiB) + bytes(28 * KiB))
    commands = [f"write -c -s {data} {number * 64}k 64k" for number in range(4)]
    return make_image(tmp_path / "wide.qcow2", MiB, *commands)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Clusters of 64 KiB: 0 to 2 are compressed, in one host cluster."""
    commands = [f"write -c -P {number} {number * 64}k 64k" for number in range(3)]
    return make_image(tmp_path / "packed.qcow2", MiB, *commands)


def test_what_it_is(packed: Path) -> None:
    reader = Qcow2Reader.parse(packed.read_bytes())
    assert reader.has_compressed()
    assert reader.allocation() == dict.fromkeys(range(3), Alloc.DATA)
    assert reader.host_clusters() == []
    assert check(reader) == []
    assert reader.clusters().decompressed == bytes(64 * KiB) + b"\1" * 64 * KiB + b"\2" * 64 * KiB


def test_refcounts_are_those_of_all_that_share_a_cluster(packed: Path) -> None:
    image = bytearray(packed.read_bytes())
    tables = Tables(image)
    for count, severity in ((2, Severity.CORRUPTION), (4, Severity.LEAK)):
        tables.refcount(tables.data(0) & ~0xFFFF, count)
        assert [one.severity for one in check(Qcow2Reader.parse(image))] == [severity]
        packed.write_bytes(image)
        assert consult(packed).disagreements == []


def test_what_ends_in_the_next_cluster_counts_there_too(wide: Path) -> None:
    image = bytearray(wide.read_bytes())
    reader = Qcow2Reader.parse(image)
    starts, ends = reader.compressed_extents(reader.walk()[1])
    last = next(end for start, end in zip(starts, ends, strict=True) if start >> 16 < end - 1 >> 16)
    assert check(reader) == [] and consult(wide).disagreements == []
    Tables(image).refcount(int(last - 1) & ~0xFFFF, 0)
    assert Severity.CORRUPTION in {one.severity for one in check(Qcow2Reader.parse(image))}
    wide.write_bytes(image)
    assert consult(wide).disagreements == []


@pytest.mark.parametrize("place", ["header", "beyond the end"])
def test_data_where_none_can_be(packed: Path, place: str) -> None:
    """In the header's cluster; in one that begins in the file and ends past its last cluster."""
    image = bytearray(packed.read_bytes())
    tables, end = Tables(image), -(-len(image) // (64 * KiB)) * 64 * KiB
    offset = 512 if place == "header" else end - 512
    more = 0 if place == "header" else 1  # sectors after the first
    tables.put(tables.l2, 1 << 62 | more << 54 | offset)
    found = check(Qcow2Reader.parse(image))
    assert Severity.CORRUPTION in {one.severity for one in found}
    packed.write_bytes(image)
    assert check_fails(packed)


def test_another_use_of_the_cluster_is_reported(packed: Path) -> None:
    image = bytearray(packed.read_bytes())
    tables = Tables(image)
    tables.put(tables.l2 + 3 * 8, tables.data(0) & ~0xFFFF)  # cluster 3 is there, too
    found = [str(one) for one in check(Qcow2Reader.parse(image))]
    assert any(one.endswith("is used twice: guest data, compressed data") for one in found), found


def test_data_that_does_not_expand_is_an_error(packed: Path) -> None:
    image = bytearray(packed.read_bytes())
    reader = Qcow2Reader.parse(image)
    start = int(reader.compressed_extents(reader.walk()[1])[0][1])
    image[start : start + 64] = bytes(64)
    with pytest.raises(ImageError, match="guest cluster 1: compressed data that does not"):
        Qcow2Reader.parse(image).clusters()


def test_data_outside_the_file(packed: Path) -> None:
    image = packed.read_bytes()
    reader = Qcow2Reader.parse(image)
    start = int(reader.compressed_extents(reader.walk()[1])[0][0])
    cut = image[: start // (64 * KiB) * (64 * KiB)]
    with pytest.raises(ImageError, match=r"guest cluster 0 .* points outside the file"):
        Qcow2Reader.parse(cut).clusters()


def test_zstd_is_not_read(tmp_path: Path) -> None:
    path = make_image(tmp_path / "zstd.qcow2", MiB, "write -c -P 1 0 64k", compression_type="zstd")
    with pytest.raises(UnsupportedFeature, match="compressed by zstd"):
        ImageView.open(path)
    assert consult(path).unconsulted[0] == "the independent reader: clusters compressed by zstd"
