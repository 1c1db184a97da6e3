"""Make the guest of ``guest-images/``: a Debian kernel and an initramfs, without root.

The packages come through Debian's own client with private state (:mod:`qmpshim.machine.builds.apt`)
and are unpacked, never installed. The same packages give the same bytes. An image lies in the cache
under the hash of its content; a link named by the recipe leads to it: nothing is fetched twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import qmpshim
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.apt import PrivateApt, find_mirror, run, unpack
from qmpshim.machine.builds.loader import interpreter_of
from qmpshim.machine.builds.registry import cache_directory, locked
from qmpshim.machine.guest.cpio import Tree

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

RECIPE = Path(qmpshim.__file__).parent.parent / "guest-images"
_FORMAT = 3  # what this module makes of a recipe; count up when that changes
_LIMIT_S = 120
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_MUSL = "usr/lib/x86_64-linux-musl"
_TCC = "usr/lib/x86_64-linux-gnu/tcc"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest that can be booted.

    :ivar directory: its place in the cache
    :ivar digest: sha256 over kernel and initramfs, which is also the directory's name
    :ivar manifest: what is in it: suite, packages with version and sha256, modules, files, sizes
    """

    directory: Path
    digest: str
    manifest: Mapping[str, Any]

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU's ``-kernel`` wants it."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """The initramfs, not compressed."""
        return self.directory / "initramfs.cpio"


def guests_directory() -> Path:
    """Where guest images are kept; it need not exist."""
    return cache_directory() / "guests"


def build(
    progress: Progress | None = None, *, refresh: bool = False, recipe: Path = RECIPE
) -> GuestImage:
    """The guest image of a recipe: from the cache, or made.

    Two at once wait for each other; one that is interrupted leaves nothing that counts.

    :param progress: called with what goes on, in a few words
    :param refresh: make it again of what the mirror has today
    :raises InputError: the recipe is wrong, or names what a package does not have
    :raises HostError: no network, no space, no apt, a signature that does not verify
    """
    report = progress or logger.info
    link = guests_directory() / f"recipe-{recipe_digest(recipe)}"
    waiting = "guest image: waiting for another build to end"
    with locked(guests_directory(), lambda: report(waiting)):
        if not refresh and (found := _load(link)):
            return found
        with tempfile.TemporaryDirectory(prefix=".work-", dir=guests_directory()) as place:
            ready = make(Path(place), recipe, report)
            target = guests_directory() / ready.digest
            if not _load(target):
                shutil.rmtree(target, ignore_errors=True)
                ready.directory.rename(target)
            fresh = Path(place) / "link"
            fresh.symlink_to(target.name)
            fresh.replace(link)
    found = _load(link)
    assert found is not None
    return found


def _load(place: Path) -> GuestImage | None:
    """The image in a directory, or None when there is none or it is damaged."""
    try:
        directory = place.resolve(strict=True)
        manifest = json.loads((directory / "manifest.json").read_text())
        digest = _digest(directory)
    except (OSError, ValueError):
        return None
    return GuestImage(directory, digest, manifest) if digest == directory.name else None


def _digest(directory: Path) -> str:
    both = hashlib.sha256()
    for name in ("vmlinuz", "initramfs.cpio"):
        both.update(hashlib.sha256((directory / name).read_bytes()).digest())
    return both.hexdigest()[:32]


def recipe_digest(recipe: Path) -> str:
    """A digest of all that a guest image is made by."""
    total = hashlib.sha256(f"format {_FORMAT}".encode())
    try:
        for path in sorted(recipe.iterdir()):
            if path.suffix != ".md":
                total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    except OSError as error:
        raise HostError(
            f"no guest recipe in {recipe} ({error.strerror}): run qmpshim from a clone"
        ) from error
    return total.hexdigest()[:16]


# -- making ------------------------------------------------------------------------------------


def make(workspace: Path, recipe: Path, report: Progress) -> GuestImage:
    """Fetch the packages and make kernel, initramfs and manifest in ``workspace / "image"``.

    :raises InputError: see :func:`build`
    :raises HostError: see :func:`build`
    """
    try:
        wanted = tomllib.loads((recipe / "guest.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{recipe / 'guest.toml'}: {error}") from error
    mirror = find_mirror()
    apt = PrivateApt(workspace / "apt", mirror, wanted["suite"])
    report(f"guest image: reading the package lists of {mirror}")
    apt.update()
    kernel = apt.dependencies(wanted["kernel"])[:1]
    report(f"guest image: downloading {', '.join(kernel)} and {len(wanted['packages'])} more")
    inside = apt.fetch(*kernel, *wanted["packages"])
    tools = apt.fetch(*wanted["compiler"])
    report("guest image: unpacking and packing")
    root = workspace / "root"
    unpack([*inside, *tools], root, _LIMIT_S)
    return _Maker(workspace, recipe, root, wanted).image(inside, tools)


class _Maker:
    """Makes an image of unpacked packages."""

    def __init__(self, workspace: Path, recipe: Path, root: Path, wanted: dict[str, Any]) -> None:
        self._workspace = workspace
        self._recipe = recipe
        self._root = root
        self._wanted = wanted
        self._tree = Tree()

    def image(self, inside: Sequence[Path], tools: Sequence[Path]) -> GuestImage:
        tree, wanted = self._tree, self._wanted
        kernel = self._only("boot/vmlinuz-*")
        for path in ("/proc", "/sys", "/tmp", "/root", "/mnt", "/dev"):
            tree.directory(path)
        tree.character_device("/dev/console", 5, 1)  # process 1 wants it before there is a /dev
        for path, source in wanted["files"].items():
            self._program(path, self._root / source.lstrip("/"))
        for path, source in wanted["scripts"].items():
            tree.file(path, (self._recipe / source).read_bytes(), executable=True)
        for path, source in wanted["programs"].items():
            tree.file(path, self._compile(self._recipe / source), executable=True)
        modules = self._modules(self._only("lib/modules/*"))
        directory = self._workspace / "image"
        directory.mkdir()
        shutil.copyfile(kernel, directory / "vmlinuz")
        archive = tree.archive()
        (directory / "initramfs.cpio").write_bytes(archive)
        manifest = {
            "suite": wanted["suite"],
            "kernel": kernel.name.removeprefix("vmlinuz-"),
            "packages": [_package(path) for path in inside],
            "compiler": [_package(path) for path in tools],
            "modules": modules,
            "files": tree.paths(),
            "bytes": {"vmlinuz": kernel.stat().st_size, "initramfs.cpio": len(archive)},
        }
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        return GuestImage(directory, _digest(directory), manifest)

    def _only(self, pattern: str) -> Path:
        found = sorted(self._root.glob(pattern))
        if len(found) != 1:
            raise InputError(f"the kernel package has {len(found)} of {pattern}, not one")
        return found[0]

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            name = path.relative_to(self._root)
            raise InputError(f"none of the recipe's packages has /{name}") from error

    # -- programs and their libraries

    def _program(self, path: str, source: Path) -> None:
        data = self._read(source)
        self._tree.file(path, data, executable=bool(source.stat().st_mode & stat.S_IXUSR))
        interpreter = interpreter_of(source)
        if interpreter is None:
            return
        listed = run([*self._loader(), "--list", str(source)], _LIMIT_S).stdout
        for name, place in re.findall(r"(?m)^\s*([^\s/]+) => (.+?)(?: \(0x.*)?$", listed):
            library = Path(place)
            if not library.is_relative_to(self._root):
                raise InputError(f"{path} needs {name}: add its package to the recipe")
            self._tree.file(f"/lib/{name}", library.read_bytes(), executable=True)
        self._tree.file(interpreter, self._read(self._root / interpreter.lstrip("/")), True)

    def _loader(self) -> list[str]:
        """What starts a program of the packages with their libraries, whatever the host's are."""
        libraries = ":".join(str(self._root / place) for place in _LIBRARIES)
        loader = self._root / "lib64/ld-linux-x86-64.so.2"
        # A link with an absolute target would lead to the host's loader.
        if loader.is_symlink():
            loader = self._root / os.readlink(loader).lstrip("/")
        return [str(loader), "--inhibit-cache", "--library-path", libraries]

    def _compile(self, source: Path) -> bytes:
        """A static program, made with tcc and musl: small, and the same bytes everywhere."""
        musl, tcc = self._root / _MUSL, self._root / _TCC
        out = self._workspace / "program"
        run(
            [
                *(*self._loader(), str(self._root / "usr/bin/tcc"), f"-B{tcc}", "-Wall", "-Werror"),
                *("-static", "-nostdinc", "-nostdlib", f"-I{tcc / 'include'}"),
                *(f"-I{self._root / 'usr/include/x86_64-linux-musl'}", "-o", str(out)),
                *(str(musl / "crt1.o"), str(musl / "crti.o"), str(source)),
                *(str(musl / "libc.a"), str(tcc / "libtcc1.a"), str(musl / "libc.a")),
                str(musl / "crtn.o"),
            ],
            _LIMIT_S,
        )
        return out.read_bytes()

    # -- modules

    def _modules(self, directory: Path) -> list[str]:
        """Put the modules wanted and those they need into the tree; their names in load order.

        depmod has not run on the unpacked package, so each module's own dependencies are read.
        """
        files = {path.stem.replace("-", "_"): path for path in directory.rglob("*.ko")}
        builtin = {
            Path(line).stem.replace("-", "_")
            for line in (directory / "modules.builtin").read_text().splitlines()
        }
        order: list[str] = []

        def add(name: str) -> None:
            if name in order or name in builtin:
                return
            if name not in files:
                raise InputError(f"{directory.name} has no module {name}")
            data = files[name].read_bytes()
            for needed in _depends(data):
                add(needed)
            order.append(name)
            self._tree.file(f"/lib/modules/{name}.ko", _unsigned(data))

        for name in self._wanted["modules"]:
            add(name)
        lines = "".join(f"{name}.ko\n" for name in order)
        self._tree.file("/lib/modules/order", lines.encode())
        return order


def _depends(module: bytes) -> list[str]:
    """The modules that a module names as needed (its ``.modinfo``, include/linux/module.h)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return found[1].decode().replace("-", "_").split(",") if found and found[1] else []


def _unsigned(module: bytes) -> bytes:
    """A module without its signature, which an emulated processor takes long to verify.

    What is signed here is the archive it came from. Source: include/linux/module_signature.h.
    """
    marker = b"~Module signature appended~\n"
    if not module.endswith(marker):
        return module
    end = len(module) - len(marker)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - 12 - length]


def _package(archive: Path) -> dict[str, str]:
    name, version, _architecture = unquote(archive.stem).split("_")
    return {
        "package": name,
        "version": version,
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
