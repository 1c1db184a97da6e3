"""The qcow2 walker against images that the real qemu-img and qemu-io made, healthy and broken."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.qcow2 import Qcow2Reader, Run
from qmpshim.machine.images.qcow2_check import Severity, check
from qmpshim.machine.images.qcow2_header import Incompatible
from qmpshim.model.disks.image import Alloc
from vmtests.support.qcow2_images import (
    SECRET,
    GiB,
    KiB,
    MiB,
    Tables,
    TiB,
    check_fails,
    five_stretches,
    make_image,
    make_luks,
    run_tool,
)

DATA, ZERO = Alloc.DATA, Alloc.ZERO
pytestmark = pytest.mark.usefixtures("qemu_on_path")


@pytest.fixture
def image(tmp_path: Path) -> bytearray:
    """64 clusters of 64 KiB: 0 and 1 DATA in a row, 3 ZERO, 5 ZERO with host bytes, 9 DATA."""
    return bytearray(five_stretches(tmp_path / "image.qcow2").read_bytes())


# -- healthy images ----------------------------------------------------------------------------


def test_header_fields(tmp_path: Path) -> None:
    make_image(tmp_path / "base.qcow2", MiB)
    path = make_image(
        tmp_path / "top.qcow2",
        3 * MiB + 512,
        backing_file="base.qcow2",
        backing_fmt="qcow2",
        cluster_size=4096,
        refcount_bits=64,
    )
    found = Qcow2Reader.parse(path.read_bytes())
    assert (found.virtual_size, found.cluster_size, found.header.version) == (
        3 * MiB + 512,
        4096,
        3,
    )
    assert (found.header.backing_file, found.header.backing_format) == ("base.qcow2", "qcow2")
    assert (found.header.flags, found.header.refcount_bits) == (Incompatible(0), 64)
    assert found.guest_units == 769
    assert (
        Qcow2Reader.parse(
            make_image(tmp_path / "v2.qcow2", MiB, compat="0.10").read_bytes()
        ).header.version
        == 2
    )


def test_runs_join_what_one_slice_can_hold(image: bytearray) -> None:
    tables = Tables(image)
    assert list(Qcow2Reader.parse(image).runs()) == [
        Run(0, 128 * KiB, DATA, tables.data(0)),
        Run(192 * KiB, 64 * KiB, ZERO, None),
        Run(320 * KiB, 64 * KiB, ZERO, None),
        Run(576 * KiB, 64 * KiB, DATA, tables.data(9)),
    ]
    found = Qcow2Reader.parse(image).clusters()
    assert found.index.tolist() == [0, 1, 3, 5, 9]
    assert found.kind.tolist() == [DATA, DATA, ZERO, ZERO, DATA]
    assert [host > 0 for host in found.host.tolist()] == [True, True, False, True, True]
    assert found.host[2] == -1
    assert not check(Qcow2Reader.parse(image))


def test_the_last_run_ends_with_the_disk(tmp_path: Path) -> None:
    path = make_image(tmp_path / "tail.qcow2", 100 * KiB + 512, "write -P 1 64k 37376")
    image = path.read_bytes()
    ((offset, length, alloc, host),) = Qcow2Reader.parse(image).runs()
    assert (offset, length, alloc) == (64 * KiB, 36 * KiB + 512, DATA)
    assert host is not None
    assert image[host : host + length] == b"\1" * length


def test_an_empty_image_has_no_runs(tmp_path: Path) -> None:
    for size in (0, GiB):
        found = Qcow2Reader.parse(make_image(tmp_path / f"{size}.qcow2", size).read_bytes())
        assert (list(found.runs()), found.allocation(), check(found)) == ([], {}, [])


def test_an_image_in_memory_may_be_longer_than_its_clusters(image: bytearray) -> None:
    expected = Qcow2Reader.parse(bytes(image)).allocation()
    image.extend(bytes(10 * MiB + 7))
    assert Qcow2Reader.parse(image).allocation() == expected
    assert check(Qcow2Reader.parse(memoryview(image))) == []
    image.extend(b"\0")  # nothing on it lives any more, so it can grow


@pytest.mark.parametrize("cluster", [4 * KiB, 64 * KiB, MiB, 2 * MiB])
def test_allocation_is_what_was_written(tmp_path: Path, cluster: int) -> None:
    dice = random.Random(cluster)
    count = 24
    expected: dict[int, Alloc] = {}
    commands = []
    for _ in range(20):
        first = dice.randrange(count)
        length = dice.randrange(1, min(6, count - first) + 1)
        verb, alloc = dice.choice([("write -P 5", DATA), ("write -z", ZERO), ("write -z -u", ZERO)])
        commands.append(f"{verb} {first * cluster} {length * cluster}")
        expected |= dict.fromkeys(range(first, first + length), alloc)
    path = make_image(tmp_path / "image.qcow2", count * cluster, *commands, cluster_size=cluster)
    found = Qcow2Reader.parse(path.read_bytes())
    assert found.allocation() == dict(sorted(expected.items()))
    assert check(found) == []
    unrolled = {
        at // cluster: run.alloc
        for run in found.runs()
        for at in range(run.offset, run.offset + run.length, cluster)
    }
    assert unrolled == expected


def test_a_file_that_ends_inside_its_last_cluster_reads_on_with_zeroes(image: bytearray) -> None:
    del image[-32 * KiB :]
    found = Qcow2Reader.parse(image)
    assert check(found) == []
    assert found.allocation()[9] is DATA


def test_an_l2_table_that_the_end_of_the_file_cuts_short(tmp_path: Path) -> None:
    image = bytearray(make_image(tmp_path / "i.qcow2", MiB, "write -P 1 0 64k").read_bytes())
    tables = Tables(image)
    new = len(image)
    image += image[tables.l2 : tables.l2 + 512]
    tables.put(tables.l1, new | 1 << 63)
    tables.refcount(tables.l2, 0)
    tables.refcount(new, 1)
    assert Qcow2Reader.parse(image).allocation() == {0: DATA}
    assert check(Qcow2Reader.parse(image)) == []


# -- images that are refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "code", "value", "text"),
    [
        (0, ">I", 0, "not a qcow2 image"),
        (8, ">Q", 50, "backing file name"),
        (8, ">Q", 65537, "backing file name"),
        (20, ">I", 8, "clusters of 2"),
        (20, ">I", 22, "clusters of 2"),
        (24, ">Q", TiB, "1 L1 entries for"),
        (36, ">I", 1 << 30, "L1 entries"),
        (40, ">Q", 0x30200, "the L1 table"),
        (40, ">Q", 1 << 62, "the L1 table"),
        (48, ">Q", 1 << 40, "the refcount table"),
        (56, ">I", 0, "refcount table of 0"),
        (64, ">Q", 512, "snapshot table"),
        (72, ">Q", 8, "compression type 0 with its feature bit"),
        (96, ">I", 7, "refcounts of 2"),
        (100, ">I", 96, "it says it is 96 bytes long"),
        (104, ">B", 1, "compression type 1"),
        (116, ">I", 1 << 20, "extension"),
    ],
)
def test_impossible_headers(image: bytearray, at: int, code: str, value: int, text: str) -> None:
    Qcow2Reader.parse(image)
    struct.pack_into(code, image, at, value)
    with pytest.raises(ImageError, match=text):
        Qcow2Reader.parse(image)


@pytest.mark.parametrize("length", [0, 3, 71, 103, 65536])
def test_images_cut_short(image: bytearray, length: int) -> None:
    with pytest.raises(ImageError, match=r"not a qcow2 image|cut short|not inside the file"):
        Qcow2Reader.parse(image[:length])


def test_features_that_are_not_read(tmp_path: Path) -> None:
    plain = make_image(tmp_path / "plain.qcow2", MiB, "write -P 1 0 64k")
    run_tool("qemu-img", "snapshot", "-c", "once", plain)
    with pytest.raises(UnsupportedFeature, match="internal snapshots"):
        check(Qcow2Reader.parse(plain.read_bytes()))
    assert Qcow2Reader.parse(plain.read_bytes()).allocation() == {0: DATA}
    luks, aes = tmp_path / "luks.qcow2", tmp_path / "aes.qcow2"
    make_luks(luks, MiB)
    how = ("--object", SECRET, "-o", "encrypt.format=aes,encrypt.key-secret=key")
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", *how, aes, MiB)
    for name, path in (("LUKS", luks), ("AES", aes)):
        with pytest.raises(UnsupportedFeature, match=f"^cannot judge: {name} encryption$"):
            Qcow2Reader.parse(path.read_bytes())


@pytest.mark.parametrize(
    ("at", "value", "feature"),
    [
        (7, 4, "qcow2 version 4"),
        (35, 9, "encryption method 9"),
        (78, 1, "incompatible feature bit 8"),
        (74, 1, "incompatible feature bit 40"),
        (72, 128, "incompatible feature bit 63"),
    ],
)
def test_unknown_features_have_a_name(image: bytearray, at: int, value: int, feature: str) -> None:
    image[at] |= value
    if at == 7:
        image[at] = value
    with pytest.raises(UnsupportedFeature) as raised:
        Qcow2Reader.parse(image)
    assert raised.value.feature == feature
    assert raised.value.exit_code == 125


# -- mutants -----------------------------------------------------------------------------------

MUTANTS: dict[str, tuple[Callable[[Tables], None], str]] = {
    "refcount 1 to 0": (lambda t: t.refcount(t.data(0), 0), "refcount 0, but 1 references"),
    "refcount 1 to 2": (lambda t: t.refcount(t.data(0), 2), "its refcount is not 1"),
    "refcount of a table": (lambda t: t.refcount(t.l1, 0), "refcount 0, but 1 references"),
    "two guests, one host": (
        lambda t: t.put(t.l2 + 8 * 7, t.word(t.l2)),
        "is used twice: guest data, guest data",
    ),
    "data over the L1 table": (
        lambda t: t.put(t.l2, t.l1 | 1 << 63),
        "is used twice: the L1 table, guest data",
    ),
    "data over a refcount block": (
        lambda t: t.put(t.l2, t.block | 1 << 63),
        "is used twice: a refcount block, guest data",
    ),
    "L2 table over the header": (lambda t: t.put(t.reftable, 0), "refcount 0, but 1 references"),
    "L2 entry inside a cluster": (lambda t: t.flip(t.l2, 0x200), "points inside a cluster"),
    "L2 entry outside the file": (lambda t: t.flip(t.l2, 1 << 40), "points outside the file"),
    "L2 entry's reserved low bit": (lambda t: t.flip(t.l2 + 8, 4), "reserved bits set"),
    "L2 entry's reserved high bit": (lambda t: t.flip(t.l2 + 8, 1 << 60), "reserved bits set"),
    "L2 entry not COPIED": (lambda t: t.flip(t.l2, 1 << 63), "guest cluster 0 .* lacks COPIED"),
    "L2 entry compressed": (lambda t: t.flip(t.l2, 1 << 62), "COPIED set, but is compressed"),
    "L1 entry not COPIED": (lambda t: t.flip(t.l1, 1 << 63), "L1 entry 0 .* lacks COPIED"),
    "L1 entry outside the file": (lambda t: t.flip(t.l1, 1 << 50), "points outside the file"),
    "L1 entry inside a cluster": (lambda t: t.flip(t.l1, 0x200), "L1 entry 0 .* inside a cluster"),
    "L1 entry's reserved bit": (lambda t: t.flip(t.l1, 1), "L1 entry 0 .* reserved bits"),
    "refcount block's reserved bit": (lambda t: t.flip(t.reftable, 1), "reserved bits set"),
    "refcount block inside a cluster": (lambda t: t.flip(t.reftable, 0x200), "inside a cluster"),
    "refcount block outside": (lambda t: t.put(t.reftable + 8, 1 << 63), "outside the file"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed_here_and_by_qemu(
    image: bytearray, tmp_path: Path, name: str, qemu_build: Build
) -> None:
    mutant, text = MUTANTS[name]
    mutant(Tables(image))
    (tmp_path / "bad.qcow2").write_bytes(image)
    findings = check(Qcow2Reader.parse(image))
    corruptions = [f.text for f in findings if f.severity is Severity.CORRUPTION]
    assert any(re.search(text, reported) for reported in corruptions), findings
    assert findings[0].severity is Severity.CORRUPTION  # the worst comes first
    if "reserved" in name and read_version(qemu_build)[0] < (6, 2, 0):
        return  # `qemu-img check` looks at reserved bits since 6.2 (block/qcow2-refcount.c)
    assert check_fails(tmp_path / "bad.qcow2")


def test_corruption_that_qemu_img_check_does_not_see(image: bytearray, tmp_path: Path) -> None:
    path = tmp_path / "bad.qcow2"
    stray = bytearray(image)
    Tables(stray).put(Tables(stray).l2 + 8 * 20, 1 << 63)
    corrupt = bytearray(image)
    corrupt[79] |= Incompatible.CORRUPT
    shared = bytearray(image)  # two guest clusters on one host cluster, with a refcount to match
    tables = Tables(shared)
    leaked = tables.data(1)
    tables.put(tables.l2, tables.data(0))
    tables.put(tables.l2 + 8, tables.data(0))
    tables.refcount(tables.data(0), 2)
    tables.refcount(leaked, 0)
    old = bytearray(
        make_image(tmp_path / "v2.qcow2", MiB, "write 0 64k", compat="0.10").read_bytes()
    )
    Tables(old).put(Tables(old).l2 + 8 * 5, 1)
    for broken, text in (
        (stray, "COPIED set without an offset"),
        (corrupt, "marked the image corrupt"),
        (shared, "is used twice: guest data, guest data"),
        (old, "the zero flag, which version 2 lacks"),
    ):
        (finding,) = check(Qcow2Reader.parse(broken))
        assert finding.severity is Severity.CORRUPTION
        assert text in finding.text
        path.write_bytes(broken)
        assert not check_fails(path)


def test_leaks_and_notices_are_not_corruption(image: bytearray, tmp_path: Path) -> None:
    tables = Tables(image)
    image[79] |= Incompatible.DIRTY
    image += bytes(64 * KiB)
    tables.refcount(len(image) - 64 * KiB, 1)
    tables.refcount(len(image), 1)  # past the end of the file: no space is lost
    leak, notice = check(Qcow2Reader.parse(image))
    assert (leak.severity, notice.severity) == (Severity.LEAK, Severity.NOTICE)
    assert f"host offset {len(image) - 64 * KiB:#x}" in leak.text
    assert str(leak).startswith("leak: ")
    path = tmp_path / "leak.qcow2"
    path.write_bytes(image)
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", str(path)], capture_output=True, timeout=60
    )
    assert (done.returncode, json.loads(done.stdout)["leaks"]) == (3, 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_every_refcount_width(tmp_path: Path, bits: int) -> None:
    path = make_image(
        tmp_path / "i.qcow2", MiB, "write -P 1 0 100k", cluster_size=4096, refcount_bits=bits
    )
    image = bytearray(path.read_bytes())
    assert check(Qcow2Reader.parse(image)) == []
    image[Tables(image).block + (bits + 7) // 8 - 1] ^= 1  # the lowest bit of cluster 0's refcount
    assert [f.text for f in check(Qcow2Reader.parse(image))] == [
        "host offset 0x0: refcount 0, but 1 references"
    ]


@pytest.mark.parametrize("what", ["clusters", "runs", "allocation"])
def test_broken_entries_are_not_followed(image: bytearray, what: str) -> None:
    tables = Tables(image)
    tables.flip(tables.l2, 1 << 40)
    with pytest.raises(ImageError, match=r"guest cluster 0 .* points outside the file"):
        list(getattr(Qcow2Reader.parse(image), what)())


def flips_agree(path: Path, seed: int, count: int) -> None:
    """Whatever bit of the metadata flips: what qemu-img check calls corrupt is corrupt here."""
    dice = random.Random(seed)
    cluster = dice.choice([4 * KiB, 64 * KiB])
    commands = [
        f"{dice.choice(['write -P 5', 'write -P 6', 'write -z', 'write -z -u'])} "
        f"{dice.randrange(64) * cluster} {cluster}"
        for _ in range(12)
    ]
    options: dict[str, object] = dice.choice(
        [{"compat": "0.10"}, {"refcount_bits": 1}, {"refcount_bits": 64}, {}]
    )
    make_image(path, 64 * cluster, *commands, cluster_size=cluster, **options)
    good = path.read_bytes()
    tables = Tables(bytearray(good))
    places = [(0, 112), (tables.l1, 8), (tables.l2, 512), (tables.reftable, 8), (tables.block, 32)]
    for _ in range(count):
        start, length = dice.choice(places)
        at, bit = start + dice.randrange(length), 1 << dice.randrange(8)
        bad = bytearray(good)
        bad[at] ^= bit
        try:
            refused = any(f.severity is not Severity.NOTICE for f in check(Qcow2Reader.parse(bad)))
        except (ImageError, UnsupportedFeature):
            refused = True
        path.write_bytes(bad)
        assert refused or not check_fails(path), f"seed {seed}: bit {bit:#x} of byte {at:#x}"


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits(tmp_path: Path, seed: int) -> None:
    flips_agree(tmp_path / "flip.qcow2", seed, 15)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_flipped_bits(tmp_path: Path, seed: int) -> None:
    flips_agree(tmp_path / "flip.qcow2", seed, 40)


# -- size ---------------------------------------------------------------------------------------


def test_work_follows_allocation(tmp_path: Path) -> None:
    """What it costs is measured in vmtests/bench/bench_images.py."""
    full = make_image(tmp_path / "full.qcow2", GiB, preallocation="metadata")
    assert sum(run.length for run in Qcow2Reader.parse(map_file(full)).runs()) == GiB
    scattered = (f"write -q {at * 16 * GiB + at * 64 * KiB} 64k" for at in range(64))
    path = make_image(tmp_path / "large.qcow2", TiB, *scattered)
    runs = list(Qcow2Reader.parse(map_file(path)).runs())
    assert [run.offset for run in runs] == [at * 16 * GiB + at * 64 * KiB for at in range(64)]
