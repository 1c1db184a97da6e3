"""Fetch the QEMU of any Debian suite without root and without touching the system.

Debian's own client does it all, ``apt-get`` with private state and an empty list of installed
packages: it verifies the archive's signature and finds every dependency down to the C library.
The packages are unpacked, never installed; what a QEMU needs to run stays.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds import probe, registry
from qmpshim.machine.builds.apt import MIRROR_VARIABLE, PrivateApt, find_mirror, run, unpack
from qmpshim.machine.builds.build import Build

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

#: No qemu-block-extra: its drivers (rbd, gluster, …) double the download and no check uses them.
_PACKAGES = ("qemu-system-x86", "qemu-utils")
_PROGRAMS = (builds.EMULATOR, "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")
#: What stays of the unpacked packages, as shell patterns below the prefix.
_KEPT = (
    "lib/*-linux-*",
    "lib/ld-linux*",
    "lib64",
    "usr/lib/*-linux-*",
    "usr/lib/ld-linux*",
    "usr/lib/ipxe",
    "usr/lib64",
    *(f"usr/bin/{program}" for program in _PROGRAMS),
    "usr/share/qemu",
    "usr/share/seabios",
)
#: Bytes needed on disk for each byte downloaded: the archives and what they unpack to.
SPACE_FACTOR = 6
_UNPACK_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Spec:
    """``debian:SUITE`` or ``debian:SUITE@VERSION``.

    :ivar suite: a suite or code name of the Debian archive
    :ivar version: the Debian version of QEMU wanted, without its epoch; its first part
        will do; '' for what the suite has
    """

    suite: str
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """:raises InputError: it is neither form."""
        found = re.fullmatch(
            r"debian:([a-z][a-z0-9.-]*)(?:@(?:\d+:)?([0-9][A-Za-z0-9.+~-]*))?", text
        )
        if not found:
            raise InputError(f"{text!r}: write debian:SUITE or debian:SUITE@VERSION")
        return cls(found[1], found[2] or "")

    def __str__(self) -> str:
        return f"debian:{self.suite}" + (f"@{self.version}" if self.version else "")


def fetch(text: str, progress: Progress | None = None) -> Build:
    """Download, unpack, try and register a suite's QEMU; one that is here already is returned.

    An interrupted fetch leaves nothing that counts; two at once wait for each other.

    :param text: ``debian:SUITE`` or ``debian:SUITE@VERSION``; it becomes the build's name
    :param progress: called with a short text at each step
    :raises InputError: not a specification, or the mirror has no such suite or version
    :raises HostError: no network, no space, no apt, or a signature that does not verify
    :raises BuildError: it was unpacked and does not run here
    """
    spec = Spec.parse(text)
    name = str(spec)
    report = progress or logger.info
    if registry.has(name):
        return builds.resolve(name)
    with registry.lock(lambda: report("waiting for another fetch to end")):
        if not registry.has(name):
            with registry.workspace() as workspace:
                registry.install(_fetch_into(workspace, spec, report), name, replace=True)
    return builds.resolve(name)


def _fetch_into(workspace: Path, spec: Spec, report: Progress) -> Path:
    """Make the registry entry of ``spec`` in the workspace."""
    mirror = find_mirror()
    apt = PrivateApt(workspace / "apt", mirror, spec.suite)
    report(f"{spec}: reading the package lists of {mirror}")
    apt.update()
    if spec.version:
        _pin_version(apt, spec)
    archives, size = apt.plan(*_PACKAGES)
    needed, free = size * SPACE_FACTOR, shutil.disk_usage(workspace).free
    if free < needed:
        raise HostError(
            f"{spec} needs {needed >> 20} MiB in {registry.cache_directory()}, where "
            f"{free >> 20} MiB are free: set QMPSHIM_CACHE to a directory with more"
        )
    report(f"{spec}: downloading {len(archives)} packages, {size >> 20} MiB")
    apt.download(*_PACKAGES)
    report(f"{spec}: unpacking")
    prefix = workspace / "entry" / "prefix"
    prefix.mkdir(parents=True)
    unpack(archives, prefix, _UNPACK_LIMIT_S)
    words = probe.examine(_make_runnable(str(spec), prefix)).version_text
    origin: dict[str, str | list[str]] = {
        "mirror": mirror,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "packages": sorted(archive.stem for archive in archives),
    }
    registry.write(registry.RegisteredBuild(str(spec), "debian", "prefix", origin), prefix.parent)
    report(f"{spec}: QEMU {words} runs")
    return prefix.parent


def _pin_version(apt: PrivateApt, spec: Spec) -> None:
    """Hold all of QEMU's packages at the version wanted.

    :raises InputError: the suite has another
    """
    offered = apt.versions(_PACKAGES[0])
    for version in offered:
        if re.match(re.escape(spec.version) + r"(?![0-9A-Za-z])", version.partition(":")[2]):
            # The packages of one source differ in "+bN", the number of the rebuild.
            apt.pin("qemu-*", re.sub(r"\+b\d+$", "", version) + "*")
            return
    raise InputError(
        f"{spec}: {apt.mirror} has {', '.join(offered) or 'no QEMU'} there; for another "
        f"set {MIRROR_VARIABLE}=http://snapshot.debian.org/archive/debian/YYYYMMDDT000000Z"
    )


# -- the prefix ------------------------------------------------------------------------------


def _make_runnable(name: str, prefix: Path) -> Build:
    """Reduce unpacked packages to what QEMU needs, and make it run from there."""
    _prune(prefix)
    emulator = prefix / "usr/bin" / builds.EMULATOR
    used = _libraries(builds.from_prefix(name, emulator, prefix, "debian"), prefix)
    _prune_libraries(prefix, {library.parent for library in used})
    build = builds.from_prefix(name, emulator, prefix, "debian")
    _keep_off_the_host(build, prefix)
    return build


def _prune(prefix: Path) -> None:
    """Delete what no QEMU reads: most of the packages are there for their libraries only."""
    for directory, folders, files in os.walk(prefix):
        below = Path(directory).relative_to(prefix)
        for name in [*folders, *files]:
            path = (below / name).as_posix()
            if any(fnmatch.fnmatch(path, kept) for kept in _KEPT):
                if name in folders:
                    folders.remove(name)
            elif name in folders and any(kept.startswith(f"{path}/") for kept in _KEPT):
                continue
            elif name in folders and not (prefix / path).is_symlink():
                shutil.rmtree(prefix / path)
                folders.remove(name)
            else:
                (prefix / path).unlink()


def _libraries(build: Build, prefix: Path) -> set[Path]:
    """Every library that the programs and modules load, all of them out of the prefix.

    :raises BuildError: a program needs one that is missing or the host's
    """
    if not build.launcher:
        raise BuildError(f"{build.name}: its packages have no dynamic loader for {build.binary}")
    found = set()
    programs = [prefix / "usr/bin" / name for name in _PROGRAMS]
    for program in [*programs, *prefix.glob("usr/lib/*/qemu/*.so")]:
        listed = run([*build.launcher, "--list", str(program)], 30, check=False).stdout
        for name, place in re.findall(r"(?m)^\s*(\S+) => (not found|\S+)", listed):
            library = Path(place)
            if library.is_relative_to(prefix):
                found.add(library)
            elif program in programs:
                raise BuildError(f"{build.name}: {program.name} needs {name}, found: {place}")
    return found


def _prune_libraries(prefix: Path, used: set[Path]) -> None:
    """Delete other programs' plug-ins, which are in directories beside the libraries."""
    for base in (prefix / "lib", prefix / "usr/lib"):
        for directory in base.glob("*-linux-*/*/"):
            needed = any(place.is_relative_to(directory) for place in used)
            if directory.name != "qemu" and not needed and not directory.is_symlink():
                shutil.rmtree(directory)


def _keep_off_the_host(build: Build, prefix: Path) -> None:
    """Make the emulator look for modules and data here where it would look below ``/usr``.

    A foreign module makes QEMU 10.0 and 11.1 abort (util/module.c). The directory of
    ``/proc/self/exe``, which is the loader's, plus ``qemu-bundle`` stands for ``/`` when it is
    there. Source: QEMU 7.1 and later, util/cutils.c, get_relocated_path.
    """
    directory = Path(build.launcher[0]).parent
    (directory / "qemu-bundle").symlink_to(os.path.relpath(prefix, directory))
