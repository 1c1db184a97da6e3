"""Image files: what a hole costs, and what is reported when there is no space."""

from __future__ import annotations

import os
import shlex
from collections import namedtuple
from pathlib import Path

import pytest

from qmpshim.errors import HostError
from qmpshim.machine.host.files import (
    copy_sparse,
    copy_tree,
    file_extents,
    map_file,
    slug,
    write_directory,
    write_sparse,
)

MiB = 1 << 20
Space = namedtuple("Space", "f_bavail f_frsize")


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """64 GiB with three pages in it, the last one at the very end."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for offset in (0, 1 << 30, (64 << 30) - 4096):
            file.seek(offset)
            file.write(b"\x5a" * 4096)
    return path


def test_a_copy_has_the_same_holes(sparse: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_sparse(sparse, copy)
    assert copy.stat().st_size == 64 << 30
    assert copy.stat().st_blocks * 512 < MiB
    assert list(file_extents(copy)) == list(file_extents(sparse))
    with copy.open("rb") as file:
        file.seek(-4096, os.SEEK_END)
        assert file.read() == b"\x5a" * 4096


def test_a_directory_is_copied_without_its_holes(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    sparse.rename(tmp_path / "from" / "disk")
    (tmp_path / "from" / "x.sock").touch()
    copy_tree(tmp_path / "from", tmp_path / "to", "*.sock")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["disk"]
    assert (tmp_path / "to" / "disk").stat().st_blocks * 512 < MiB


def test_what_cannot_be_copied(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(HostError, match=r"cannot copy .*dangling: .*No such file"):
        copy_tree(tmp_path / "from", tmp_path / "to")
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"cannot copy .* to .*file"):
        copy_tree(tmp_path / "from", tmp_path / "file")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(parts: Path) -> None:
        assert parts.name.startswith(".")
        write_sparse(parts / "image", bytes(MiB) + b"tail")

    for name in ("new", "new-2", "new-3"):
        assert write_directory(tmp_path / "out" / "new", fill) == tmp_path / "out" / name
    image = tmp_path / "out" / "new-3" / "image"
    assert image.read_bytes() == bytes(MiB) + b"tail"
    assert image.stat().st_blocks * 512 < MiB

    def half(parts: Path) -> None:
        (parts / "one").touch()
        (parts / "missing" / "two").touch()

    with pytest.raises(HostError, match=r"cannot write .*broken: No such file"):
        write_directory(tmp_path / "out" / "broken", half)
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"cannot write .*file/new: "):
        write_directory(tmp_path / "file" / "new", fill)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["new", "new-2", "new-3"]


@pytest.mark.parametrize("free", [1 << 40, 0])
def test_a_file_with_holes_on_a_full_disk_is_read(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tmpfs a mapping's hole takes up space when it is looked at: SIGBUS when there is none."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(b"head")
        file.seek(3 * MiB + 5)
        file.write(b"tail")
    monkeypatch.setattr(os, "fstatvfs", lambda _: Space(free // 4096, 4096))
    view = map_file(path)
    assert bytes(view) == path.read_bytes()
    assert view.readonly
    # A mapping of the file shows what comes later; what was read does not.
    with path.open("r+b") as file:
        file.write(b"HEAD")
    assert bytes(view[:4]) == (b"HEAD" if free else b"head")


@pytest.mark.parametrize(
    ("name", "part"),
    [("explore-crash-fleecing-HU'", "explore-crash-fleecing-HU"), ("a/../b $c", "a-..-b-c")],
)
def test_a_name_becomes_one_part_of_a_path_that_a_shell_takes(name: str, part: str) -> None:
    assert slug(name) == part == shlex.quote(part)
