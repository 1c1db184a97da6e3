"""The three image readers against each other, and mutants of each."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyqcow
import pytest

from qmpshim.errors import HostError, ImageError, MachineHung
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.agreement import agree
from qmpshim.machine.images.image_view import ImageView, RawFile, through
from qmpshim.machine.images.libqcow import QcowReader
from qmpshim.machine.images.qcow2 import Clusters, Qcow2Reader, Run
from qmpshim.machine.images.qemu_img import CheckResult, MapExtent, qemu_img_check, qemu_img_map
from qmpshim.model.disks.image import Alloc
from vmtests.support.qcow2_images import (
    KiB,
    MiB,
    Tables,
    converted,
    five_stretches,
    flat,
    make_image,
    make_raw,
    qcow2_node,
)

UNALLOCATED, ZERO, DATA = Alloc.UNALLOCATED, Alloc.ZERO, Alloc.DATA
pytestmark = pytest.mark.usefixtures("qemu_on_path")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Clusters of 64 KiB: 0 and 1 DATA in a row, 3 ZERO, 5 ZERO with host bytes, 9 DATA."""
    return five_stretches(tmp_path / "image.qcow2")


# -- content -----------------------------------------------------------------------------------


def check_random_chain(directory: Path, seed: int, cluster: int, version: int) -> None:
    """Active over hidden over a raw secondary: every way to read it must give QEMU's bytes."""
    dice = random.Random(seed)
    tail = dice.choice([0, 512, cluster - 512, 1536])
    size = dice.randrange(2, 20) * cluster + tail
    secondary = make_raw(
        directory / "secondary", dice.choice([size, size // 1024 * 512, size + cluster]), 99
    )
    layers = []
    for name in ("hidden", "active"):
        commands = []
        for _ in range(dice.randrange(12)):
            start = dice.randrange(size // 512) * 512
            lengths = (512, cluster, 3 * cluster, dice.randrange(1, 4 * cluster // 512) * 512)
            length = min(size - start, dice.choice(lengths))
            verb = dice.choice(
                [f"write -P {dice.randrange(1, 90)}"] * 3 + ["write -z", "write -z -u", "discard"]
            )
            commands.append(f"{verb} {start} {length}")
        compat = {2: "0.10", 3: "1.1"}[version]
        layer = make_image(directory / name, size, *commands, cluster_size=cluster, compat=compat)
        assert agree(layer) == []
        layers.append(layer)
    hidden, active = layers
    base = {"driver": "raw", "file": {"driver": "file", "filename": str(secondary)}}
    expected = converted(qcow2_node(active, qcow2_node(hidden, base)), directory / "out")
    top = ImageView.open(active)
    chain = (top, ImageView.open(hidden), RawFile(secondary))
    assert flat(through(chain)) == expected
    for _ in range(10):
        start, length = dice.randrange(size), dice.randrange(size + 1000)
        wanted = expected[start : start + length]
        assert flat(through(chain, start, length)) == wanted
        own = QcowReader(map_file(active)).read(start, length)
        assert flat(top.pieces(start, length)) == own
        assert top.read(start, length).tobytes() == own


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster", [4 * KiB, 64 * KiB, MiB, 2 * MiB])
def test_every_reader_reads_what_qemu_reads(tmp_path: Path, cluster: int, version: int) -> None:
    check_random_chain(tmp_path, cluster + version, cluster, version)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(200))
def test_every_reader_reads_what_qemu_reads_long(tmp_path: Path, seed: int) -> None:
    check_random_chain(tmp_path, seed, [512, 4 * KiB, 64 * KiB, MiB][seed % 4], 2 + seed // 4 % 2)


def test_a_zero_cluster_hides_the_backing_file_in_its_header(tmp_path: Path) -> None:
    """libqcow alone refuses this image, and with a parent reads the zero clusters from it."""
    base = make_raw(tmp_path / "base", MiB, 7)
    top = make_image(
        tmp_path / "top",
        MiB,
        "write -z 0 64k",
        "write -P 5 64k 64k",
        "write -z 64k 64k",
        "write -P 6 128k 64k",
        backing_file=base,
        backing_fmt="raw",
    )
    assert agree(top) == []
    expected = bytes(128 * KiB) + b"\6" * 64 * KiB + b"\7" * 832 * KiB
    assert flat(through([ImageView.open(top), RawFile(base)])) == expected
    assert QcowReader(map_file(top)).read(128 * KiB, 128 * KiB) == b"\6" * 64 * KiB + bytes(
        64 * KiB
    )


def test_an_image_in_memory_and_cut_short(path: Path) -> None:
    image = bytearray(path.read_bytes())
    del image[-32 * KiB :]  # the last cluster is guest cluster 9
    expected = b"\3" * 32 * KiB + bytes(32 * KiB)
    path.write_bytes(image)
    assert (
        converted(qcow2_node(path), path.with_suffix(".raw"))[576 * KiB :][: 64 * KiB] == expected
    )
    assert QcowReader(image).read(576 * KiB, 64 * KiB) == expected
    view = ImageView(image)
    assert [p.length for p in view.pieces(576 * KiB, 64 * KiB)] == [32 * KiB, 32 * KiB]
    assert flat(view.pieces(576 * KiB, 64 * KiB)) == expected
    assert view.read(576 * KiB, 64 * KiB).tobytes() == expected
    assert agree(path) == []


def test_nothing_is_read_past_the_end(path: Path) -> None:
    view, reader = ImageView.open(path), QcowReader(map_file(path))
    assert flat(view.pieces(4 * MiB - 10, 100)) == reader.read(4 * MiB - 10, 100) == bytes(10)
    for start in (4 * MiB, 5 * MiB):
        assert list(view.pieces(start, 100)) == []
        assert reader.read(start, 100) == b""
        assert view.read(start, 100).tobytes() == b""
    empty = make_image(path.with_name("empty.qcow2"), 0)
    assert (list(ImageView.open(empty).pieces()), QcowReader(map_file(empty)).read(0, 9)) == (
        [],
        b"",
    )
    assert agree(empty) == []


def test_pieces_are_few_and_not_copied(path: Path) -> None:
    image = bytearray(path.read_bytes())
    view = ImageView(image)
    pieces = list(view.pieces(64 * KiB, 448 * KiB + 1024))
    assert [(p.offset // KiB, p.length, p.alloc, p.data is None) for p in pieces] == [
        (64, 64 * KiB, DATA, False),
        (128, 64 * KiB, UNALLOCATED, True),
        (192, 64 * KiB, ZERO, True),
        (256, 64 * KiB, UNALLOCATED, True),
        (320, 64 * KiB, ZERO, True),
        (384, 128 * KiB + 1024, UNALLOCATED, True),
    ]
    assert pieces[0].data is not None
    assert pieces[0].data[0] == 1
    image[Tables(image).data(1)] = 77
    assert pieces[0].data[0] == 77
    (first, *_) = view.pieces()
    assert (first.offset, first.length) == (0, 128 * KiB)


def test_libqcow_refuses_in_one_line(path: Path) -> None:
    image = bytearray(path.read_bytes())
    image[79] |= 2
    with pytest.raises(
        ImageError, match=r"^libqcow refuses the image: unsupported incompat[^\n]*$"
    ):
        QcowReader(image)


# -- QEMU's tools ------------------------------------------------------------------------------

PRESENT = (6, 1, 0)  # since then `qemu-img map` reports what is present


def test_qemu_img_map(path: Path, qemu_build: Build) -> None:
    if read_version(qemu_build)[0] < PRESENT:
        pytest.skip("this qemu-img map does not tell what is present")
    extents = qemu_img_map(path)
    tables = Tables(bytearray(path.read_bytes()))
    assert extents[0] == MapExtent(0, 128 * KiB, True, True, tables.data(0))
    assert [extent.alloc for extent in extents[:6]] == [
        DATA,
        UNALLOCATED,
        ZERO,
        UNALLOCATED,
        ZERO,
        UNALLOCATED,
    ]
    assert extents[4].host_offset == tables.data(5)
    assert sum(extent.length for extent in extents) == 4 * MiB


def test_qemu_img_check(path: Path) -> None:
    assert qemu_img_check(path) == CheckResult(0, 0, "")
    image = bytearray(path.read_bytes())
    Tables(image).refcount(Tables(image).data(0), 0)
    Tables(image).put(Tables(image).l2 + 8 * 9, 0)
    path.write_bytes(image)
    found = qemu_img_check(path)
    assert (found.corruptions, found.leaks) == (2, 1)  # refcount and COPIED; guest cluster 9
    assert "ERROR cluster" in found.text


def test_tools_that_fail_say_so_in_one_line(path: Path, tmp_path: Path) -> None:
    junk = make_raw(tmp_path / "junk.qcow2", MiB, 0)
    junk.write_bytes(b"QFI\xfb" + junk.read_bytes())
    sleeper = script(tmp_path / "sleeper", "exec sleep 60")
    for ask in (qemu_img_map, qemu_img_check):
        for image in (junk, tmp_path / "absent"):
            with pytest.raises(
                ImageError, match=rf"^qemu-img \w+ refuses the image: [^\n]*{image.name}"
            ):
                ask(image)
        with pytest.raises(HostError, match=r"^cannot start /nowhere/qemu-img: No such file"):
            ask(path, ["/nowhere/qemu-img"])
        with pytest.raises(MachineHung, match=r"did not end in 0\.2 s"):
            ask(path, [sleeper], timeout=0.2)
    with pytest.raises(HostError, match="cannot read"):
        agree(tmp_path / "absent")


# -- all against all, mutants ------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            '0,/"zero": false, "data": true/s//"zero": true, "data": false/',
            "at 0x0: qemu-img map says zero, "
            "the independent reader says data (host offset 0x50000)",
        ),
        (
            '0,/"offset": 327680/s//"offset": 393216/',
            "at 0x0: qemu-img map says data (host offset 0x60000), "
            "the independent reader says data (host offset 0x50000)",
        ),
        (
            '0,/"present": false/s//"present": true/',
            "at 0x20000: qemu-img map says zero, the independent reader says unallocated",
        ),
        (
            's/"length": 3538944/"length": 3538432/',
            "qemu-img map covers 4193792 bytes, the header says 4194304",
        ),
    ],
)
def test_agree_finds_a_misbehaving_map(
    path: Path, tmp_path: Path, edit: str, sentence: str, qemu_build: Build
) -> None:
    if "present" in edit and read_version(qemu_build)[0] < PRESENT:
        pytest.skip("this qemu-img map does not tell what is present")
    misbehaving = script(
        tmp_path / "misbehaving",
        f'if [ $1 = map ]; then qemu-img "$@" | sed \'{edit}\'; else exec qemu-img "$@"; fi',
    )
    assert agree(path) == []
    assert agree(path, [misbehaving]) == [sentence]


def test_agree_finds_a_misbehaving_check(path: Path, tmp_path: Path) -> None:
    for answer, status, sentence in (
        (
            '{"corruptions": 3}',
            2,
            "qemu-img check: 3 corruptions; the independent check: no corruption",
        ),
        ('{"leaks": 2}', 3, "qemu-img check counts 2 leaks, the independent check 0"),
    ):
        misbehaving = script(
            tmp_path / "misbehaving",
            f"[ $1 = check ] && {{ echo '{answer}'; exit {status}; }}\nexec qemu-img \"$@\"",
        )
        assert agree(path, [misbehaving]) == [sentence]
    script(tmp_path / "misbehaving", "echo no image >&2; exit 1")
    reported = agree(path, [misbehaving])
    assert reported[0].startswith("qemu-img check: qemu-img check refuses the image: no image;")
    assert reported[1] == "qemu-img map refuses the image: no image"


def test_an_old_map_leaves_zero_and_unallocated_open(path: Path, tmp_path: Path) -> None:
    """Before 6.1 there is no "present": that alone is no disagreement, wrong data still is."""
    old = script(tmp_path / "old", 'qemu-img "$@" | sed \'s/"present": [a-z]*, //\'')
    assert {extent.alloc for extent in qemu_img_map(path, [old])} == {None, ZERO, DATA}
    assert agree(path, [old]) == []
    script(
        tmp_path / "old",
        'qemu-img "$@" | sed \'s/"present": [a-z]*, //; 0,/"data": true/s//"data": false/\'',
    )
    assert "the independent reader says data" in agree(path, [old])[0]


def test_agree_finds_a_misbehaving_walker(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(change: Callable[[Clusters], Clusters]) -> list[str]:
        def clusters(self: Qcow2Reader) -> Clusters:
            return change(original(self))

        with monkeypatch.context() as patch:
            patch.setattr(Qcow2Reader, "clusters", clusters)
            return agree(path)

    original = Qcow2Reader.clusters
    assert altered(lambda c: c) == []
    data_as_zero = altered(lambda c: Clusters(c.index, np.ones_like(c.kind), c.host))
    assert "at 0x0: libqcow reads data, the independent reader says zero" in data_as_zero
    lost = altered(lambda c: Clusters(c.index[:-1], c.kind[:-1], c.host[:-1]))
    assert lost == [
        "at 0x90000: qemu-img map says data (host offset 0x80000), "
        "the independent reader says unallocated"
    ]
    elsewhere = altered(lambda c: Clusters(c.index, c.kind, np.roll(c.host, 1)))
    assert "at 0x0: libqcow and the independent reader read different bytes" in elsewhere


def test_agree_finds_a_misbehaving_libqcow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = QcowReader.read
    wrong = {70000, 200 * KiB}

    def read(self: QcowReader, offset: int, length: int) -> bytes:
        data = bytearray(original(self, offset, length))
        for wrong_at in wrong:
            if offset <= wrong_at // KiB * KiB and wrong_at < offset + length:
                data[wrong_at - offset] ^= 1
        return bytes(data)

    monkeypatch.setattr(QcowReader, "read", read)
    assert agree(path) == ["at 0x11170: libqcow and the independent reader read different bytes"]
    wrong.add(192 * KiB + 5)
    assert "at 0x30000: libqcow reads data, the independent reader says zero" in agree(path)
    monkeypatch.setattr(pyqcow, "file", BrokenLibqcow)
    assert agree(path) == [
        "the independent reader reads the image; libqcow refuses the image: OSError"
    ]


class BrokenLibqcow:
    def open_file_object(self, file: object) -> None:
        raise OSError("gone")


def test_an_image_that_all_call_corrupt_is_no_disagreement(path: Path) -> None:
    good = path.read_bytes()
    for at, value in ((40, 1 << 62), (Tables(bytearray(good)).l2, 1 << 50), (0, 0)):
        image = bytearray(good)
        Tables(image).put(at, value)
        path.write_bytes(image)
        assert agree(path) == []
        with pytest.raises(ImageError):
            list(Qcow2Reader.parse(image).runs())


def test_agree_reports_what_only_one_check_finds(path: Path) -> None:
    image = bytearray(path.read_bytes())
    image[79] |= 2
    path.write_bytes(image)
    assert agree(path) == [
        "qemu-img check: no corruption; the independent check: QEMU marked the image corrupt",
        "the independent reader reads the image; "
        "libqcow refuses the image: unsupported incompatible features flags: 0x00000002",
    ]


def test_agree_looks_at_the_image_without_its_backing_chain(tmp_path: Path) -> None:
    base = make_raw(tmp_path / "base", MiB, 7)
    top = make_image(
        tmp_path / "top", MiB, "write -P 1 0 64k", backing_file=base, backing_fmt="raw"
    )
    base.unlink()
    assert agree(top) == []
    with pytest.raises(ImageError, match="base"):
        qemu_img_map(top)


# -- long stretches ----------------------------------------------------------------------------


def test_runs_of_a_range(tmp_path: Path) -> None:
    assert list(ImageView.open(make_image(tmp_path / "empty", 0)).runs()) == []
    view = ImageView.open(make_image(tmp_path / "full", MiB, f"write -P 1 0 {MiB}"))
    (whole,) = view.runs()
    assert whole.host_offset is not None
    assert list(view.runs(10, 20)) == [Run(10, 20, DATA, whole.host_offset + 10)]


def test_comparing_in_order_and_at_random(tmp_path: Path) -> None:
    """The two ways to compare a whole disk, in pieces as they lie and by reads; both can fail."""
    size, small = 16 * MiB, 4 * KiB
    ordered = make_image(tmp_path / "ordered", size, f"write -q -P 17 0 {size}")
    places = list(range(0, 8 * MiB, small))
    random.Random(1).shuffle(places)
    writes = (f"write -q -P 17 {at} {small}" for at in places)
    scattered = make_image(tmp_path / "scattered", 8 * MiB, *writes, cluster_size=small)
    wanted = np.full(MiB, 17, np.uint8)

    def by_pieces() -> None:
        for piece in ImageView.open(ordered).pieces():
            assert piece.data is not None
            data = np.frombuffer(piece.data, np.uint8)
            for at in range(0, len(data), MiB):
                assert np.array_equal(data[at : at + MiB], wanted[: len(data) - at])

    view = ImageView.open(scattered)
    assert len(list(view.pieces())) > 2000

    def by_read() -> None:
        for at in range(0, 8 * MiB, MiB):
            assert np.array_equal(view.read(at, MiB), wanted)

    by_pieces()
    by_read()
    wanted[-1] = 0
    for compare in (by_pieces, by_read):
        with pytest.raises(AssertionError):
            compare()
