"""QEMU's source of a build's version, from Debian, with its qtests made; kept in the cache."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds import registry
from qmpshim.machine.builds.apt import DOWNLOAD_LIMIT, PrivateApt, find_mirror, run
from qmpshim.machine.builds.build import Build, read_version

QTESTS = ("qmp-test", "qmp-cmd-test", "drive_del-test", "machine-none-test")
#: Build tools of QEMU's that Debian 12 has too old, or not at all.
_PYTHON_TOOLS = ("meson>=1.5,<1.6", "pycotap>=1.1", "setuptools", "wheel", "distlib")
_CONFIGURE = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tools",
    "--enable-fdt",  # or meson wants to clone it
    "--enable-replication",  # qmp-cmd-test knows which queries a build as Debian's has
    "--enable-vnc",
    "--disable-docs",
    "--disable-install-blobs",  # Debian's source has none
    "--disable-werror",
)
_UNPACK_LIMIT = 600.0  # seconds
_BUILD_LIMIT = 2 * 3600.0  # seconds

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tree:
    """A source tree of QEMU's and what was made of it.

    :ivar version: Debian's version of the source package
    """

    version: str
    directory: Path

    @property
    def source(self) -> Path:
        """The source tree."""
        return self.directory / "source"

    @property
    def iotests(self) -> Path:
        """The directory of the iotests."""
        return self.source / "tests/qemu-iotests"

    @property
    def build(self) -> Path:
        """The build tree."""
        return self.directory / "build"

    def qtest(self, name: str) -> Path:
        """A qtest's program."""
        return self.build / "tests/qtest" / name

    @property
    def is_made(self) -> bool:
        """Whether all qtests are there."""
        return all(os.access(self.qtest(name), os.X_OK) for name in QTESTS)

    def make(self, options: Sequence[str], targets: Sequence[str]) -> None:
        """Configure the tree, once, and make what is wanted; what was interrupted goes on.

        :param options: of QEMU's ``configure``
        :raises HostError: it cannot be made here
        """
        self.build.mkdir(exist_ok=True)
        python = _python_tools(registry.cache_directory() / "upstream" / "tools")
        configure = self.source / "configure"
        bundled = "--meson=" in configure.read_text()  # before QEMU made an environment of its own
        meson = f"--meson={python.parent}/meson" if bundled else f"--python={python}"
        steps = [["ninja", *targets]]
        if not (self.build / "build.ninja").exists():
            steps.insert(0, [str(configure), *options, meson])
        log = self.directory / "build.log"
        with log.open("wb") as file:
            for step in steps:
                try:
                    subprocess.run(
                        ["nice", *step],
                        cwd=self.build,
                        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        timeout=_BUILD_LIMIT,
                        check=True,
                    )
                except (OSError, subprocess.SubprocessError) as error:
                    raise HostError(
                        f"QEMU {self.version} cannot be made ({error}): see {log}"
                    ) from None


def _python_tools(directory: Path) -> Path:
    """The Python whose environment has the build tools."""
    python = directory / "bin/python"
    if not (directory / "bin/meson").exists():
        run([sys.executable, "-m", "venv", "--clear", str(directory)], 120.0)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([str(python), *install, *_PYTHON_TOOLS], _BUILD_LIMIT)
    return python


def source_version(words: str) -> str:
    """The version of the source package of a Debian build.

    :param words: what the emulator calls its version
    :raises InputError: it is no Debian build
    """
    found = re.search(r"\(Debian ([^)]+)\)", words)
    if found is None:
        raise InputError(f"QEMU {words} is not Debian's: there is no source package to take")
    return re.sub(r"\+b\d+$", "", found[1])  # a rebuild of the same source


def suites(build: Build) -> list[str]:
    """The suites that may have a build's source package, likeliest first."""
    if build.name.startswith(registry.FETCHED):
        return [build.name.removeprefix(registry.FETCHED).partition("@")[0]]
    found = re.search(r"(?m)^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text())
    if found is None:
        raise HostError("/etc/os-release names no Debian suite")
    return [found[1], f"{found[1]}-security", f"{found[1]}-updates"]


def _place(version: str) -> Path:
    return registry.cache_directory() / "upstream" / (version.partition(":")[2] or version)


def source_of(build: Build, progress: Progress) -> Tree:
    """The source tree of a build's version, with nothing made: from the cache, else fetched.

    :raises InputError: the build is not Debian's, or no suite has its source any more
    :raises HostError: no network
    """
    version = source_version(read_version(build)[1])
    place = _place(version)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not (place / "source").is_dir():
        with lock(place.parent):
            if not (place / "source").is_dir():
                _fetch(build, version, place, progress)
    return Tree(version, place)


def tree_of(build: Build, progress: Progress) -> Tree:
    """The tree of a build's version with its qtests made: from the cache, else fetched and made.

    :raises InputError, HostError: as :func:`source_of`; or it cannot be made here
    """
    version = source_version(read_version(build)[1])
    tree = Tree(version, _place(version))
    if tree.is_made:  # or it would wait for another tree that is being made
        return tree
    tree = source_of(build, progress)
    with lock(tree.directory.parent):
        if not tree.is_made:
            progress(f"making the qtests of QEMU {tree.version}: minutes, once")
            # An option since 8.2, and VNC needs it.
            has_pixman = "option('pixman'" in (tree.source / "meson_options.txt").read_text()
            options = [*_CONFIGURE, *(["--enable-pixman"] if has_pixman else [])]
            tree.make(options, [f"tests/qtest/{name}" for name in QTESTS])
    return tree


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold a directory of the cache, so that only one process makes what is to be in it."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fetch(build: Build, version: str, place: Path, progress: Progress) -> None:
    work = place.with_name(f"{place.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # of one that was interrupted
    shutil.rmtree(place, ignore_errors=True)
    work.mkdir()
    refused: list[str] = []
    for suite in suites(build):
        progress(f"fetching the source of QEMU {version} from {suite}")
        apt = PrivateApt(work / f"apt-{suite}", find_mirror(), suite)
        try:
            described = _download(apt, version)
        except InputError as error:
            refused.append(str(error))
            continue
        # apt has verified what the archive's signature covers, each part's hash.
        run(
            ["dpkg-source", "--no-check", "-x", str(described), str(work / "source")], _UNPACK_LIMIT
        )
        for rest in work.glob("apt-*"):
            shutil.rmtree(rest)
        work.rename(place)
        return
    raise InputError("; ".join(refused))


def _download(apt: PrivateApt, version: str) -> Path:
    """Download and verify a source package of QEMU's; its ``.dsc``, the parts beside it.

    :param version: its Debian version, with the epoch
    :raises InputError: the suite has no such package in this version
    :raises HostError: the network failed, or what came is not what the lists promise
    """
    sources, place = apt.root / "sources.list", apt.root / "archives"
    sources.write_text(re.sub("(?m)^deb ", "deb-src ", sources.read_text()))
    apt.update()
    words = ("apt-get", "-q", "source", "--download-only", f"qemu={version}")
    apt.call(*words, limit=DOWNLOAD_LIMIT, cwd=place)
    described = place / f"qemu_{version.partition(':')[2] or version}.dsc"
    if not described.is_file():
        raise HostError(f"{apt.suite} at {apt.mirror}: {described.name} did not arrive")
    return described
