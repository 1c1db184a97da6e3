"""The guest image is the same bytes wherever it is made, and says what is in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qmpshim.errors import InputError
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.cpio import Tree
from qmpshim.machine.guest.image import RECIPE, GuestImage


def test_two_builds_in_different_places_give_the_same_bytes(
    image: GuestImage, tmp_path: Path
) -> None:
    place = tmp_path / "a place of another length"
    place.mkdir()
    again = guest_image.make(place, RECIPE, lambda text: None)
    if again.manifest["packages"] != image.manifest["packages"]:
        other = tmp_path / "b"  # the mirror moved on since the cached one was made
        other.mkdir()
        image = guest_image.make(other, RECIPE, lambda text: None)
    assert again.digest == image.digest
    for name in ("vmlinuz", "initramfs.cpio", "manifest.json"):
        assert (again.directory / name).read_bytes() == (image.directory / name).read_bytes()


def test_the_manifest_says_what_is_in_it(image: GuestImage) -> None:
    names = {package["package"] for package in image.manifest["packages"]}
    assert {"busybox-static", "e2fsprogs", "libc6"} < names
    assert all(len(package["sha256"]) == 64 for package in image.manifest["packages"])
    assert {"virtio_blk", "virtio_scsi", "ata_piix"} < set(image.manifest["modules"])
    assert sum(image.manifest["bytes"].values()) < 32 << 20
    listed = subprocess.run(
        ["cpio", "-tv", "--quiet"],
        stdin=image.initramfs.open("rb"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "bin/workload" in listed
    assert "root" in listed.splitlines()[0]


def test_a_damaged_image_is_made_anew(
    image: GuestImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPSHIM_CACHE", str(tmp_path))
    link = tmp_path / "guests" / f"recipe-{guest_image.recipe_digest(RECIPE)}"
    place = tmp_path / "guests" / image.digest
    shutil.copytree(image.directory, place)
    link.symlink_to(image.digest)
    made = []

    def remake(workspace: Path, recipe: Path, tell: object) -> GuestImage:
        made.append(recipe)
        return GuestImage(
            Path(shutil.copytree(image.directory, workspace / "image")), image.digest, {}
        )

    monkeypatch.setattr(guest_image, "make", remake)
    assert guest_image.build().directory == place.resolve()
    assert not made
    with (place / "vmlinuz").open("r+b") as file:
        file.write(b"x")
    assert guest_image.build().digest == image.digest
    assert made
    assert (place / "vmlinuz").read_bytes() == image.kernel.read_bytes()


def test_a_recipe_that_asks_for_what_is_not_there_says_so(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    shutil.copytree(RECIPE, recipe)
    text = (recipe / "guest.toml").read_text()
    (recipe / "guest.toml").write_text(text.replace("busybox-static", "no-such-package"))
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match="no-such-package"):
        guest_image.make(tmp_path / "work", recipe, lambda text: None)


def test_the_archive_is_what_cpio_unpacks(tmp_path: Path) -> None:
    tree = Tree()
    tree.file("/b/deep/file", b"content", executable=True)
    (tmp_path / "archive").write_bytes(tree.archive())
    subprocess.run(
        ["cpio", "-idm", "--quiet", "-F", str(tmp_path / "archive")], cwd=tmp_path, check=True
    )
    assert (tmp_path / "b" / "deep" / "file").read_bytes() == b"content"
    assert (tmp_path / "b" / "deep" / "file").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b" / "deep" / "file").stat().st_mtime == 0
