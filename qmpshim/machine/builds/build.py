"""What a QEMU build is, where it is found and how its programs are started.

A build is the system's QEMU, a build tree, an unpacked prefix, or a Debian suite fetched by
:mod:`qmpshim.machine.builds.debian`. A prefix that holds its own dynamic loader is started through
    it, with nothing of the host's libraries: a QEMU of 2020 and one of tomorrow run side by side.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qmpshim.errors import BuildError, HostError, InputError, NoSuchBuild, QmpshimError
from qmpshim.machine.builds import registry
from qmpshim.machine.builds.loader import library_directories, private_loader
from qmpshim.machine.host.programs import find_program, need_program, run_program
from qmpshim.machine.host.workspace import dies_with_owner

logger = logging.getLogger(__name__)

Kind = Literal["installed", "tree", "prefix", "debian"]
ProtocolName = Literal["cow-request", "serialising-write", "copy-before-write"]
Version = tuple[int, int, int]

EMULATOR, STORAGE_DAEMON = "qemu-system-x86_64", "qemu-storage-daemon"
#: Red Hat ships the emulator under this name, outside PATH.
SYSTEM_NAMES = (EMULATOR, "qemu-kvm", "/usr/libexec/qemu-kvm")
#: Where a build tree keeps the emulator; the last two are the layout before meson (QEMU < 5.2).
_IN_TREE = ("", "build", "x86_64-softmmu", "build/x86_64-softmmu")
_IN_PREFIX = ("usr/bin", "bin", "usr/local/bin")
_FIRMWARE = (
    "usr/share/qemu",
    "usr/share/seabios",
    "usr/lib/ipxe/qemu",
    "share/qemu",
    "usr/local/share/qemu",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*")
_INSTALL_HINT = "apt-get install qemu-system-x86 qemu-utils"
_NOT_QEMU = "is not a QEMU system emulator"
START_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class Build:
    """One QEMU and the tools made with it.

    :ivar name: what a person calls it: ``system``, a registered name, or the path given
    :ivar kind: where it comes from
    :ivar binary: the system emulator itself, or the storage daemon, which has block devices, jobs
        and exports as the emulator has, and no virtual machine
    :ivar launcher: what comes before a program of this build: the build's own loader, or nothing
    :ivar arguments: what every emulator start needs: ``-L`` for the build's own firmware
    :ivar env: variables to add to the environment of the emulator and the tools
    :ivar tool_directories: the directories of qemu-img and the other tools, best first
    """

    name: str
    kind: Kind
    binary: Path
    launcher: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    tool_directories: tuple[Path, ...] = ()

    @classmethod
    def system(cls) -> Build:
        """The emulator installed on this machine.

        :raises HostError: there is none
        """
        for name in SYSTEM_NAMES:
            if found := find_program(name):
                binary = Path(found).resolve()
                # Tools first beside the name on PATH, then beside what it points to.
                places = dict.fromkeys((Path(found).parent, binary.parent))
                return cls("system", "installed", binary, tool_directories=tuple(places))
        raise HostError(f"no {EMULATOR} on PATH: {_INSTALL_HINT}, or name a build with --qemu")

    @property
    def is_daemon(self) -> bool:
        """Whether it is the storage daemon."""
        return self.binary.name == STORAGE_DAEMON

    @property
    def no_machine(self) -> str | None:
        """The value of ``-machine`` for block devices alone; None: there is no such option."""
        return None if self.is_daemon else "none"

    def command(self) -> list[str]:
        """The words that start the emulator; machine and devices follow them."""
        firmware = () if self.is_daemon else self.arguments
        return [*self.launcher, str(self.binary), *firmware]

    def emulator_command(self) -> list[str]:
        """As :meth:`command`, for what needs a virtual machine.

        :raises BuildError: it is the storage daemon
        """
        if self.is_daemon:
            raise BuildError(f"{self.binary} has no virtual machine: this needs {EMULATOR}")
        return self.command()

    def tool(self, name: str) -> list[str]:
        """The words that start ``qemu-img``, ``qemu-io``, ``qemu-nbd``, ``qemu-storage-daemon``.

        A build without that tool (a tree where only the emulator was made) borrows the host's.

        :raises HostError: neither has it
        """
        for directory in self.tool_directories:
            if os.access(directory / name, os.X_OK):
                return [*self.launcher, str(directory / name)]
        if borrowed := find_program(name):
            logger.info("%s has no %s: using %s", self.name, name, borrowed)
            return [borrowed]
        package = "qemu-system-common" if name == "qemu-storage-daemon" else "qemu-utils"
        raise HostError(f"no {name} for {self.name}: apt-get install {package}")

    def tool_command(self, name: str) -> list[str]:
        """As :meth:`tool`, for where no environment can be given.

        :raises HostError: there is no such tool, or no ``env``
        """
        return self.alone(self.tool(name))

    def alone(self, words: list[str]) -> list[str]:
        """A command of this build's with the build's own environment in it.

        :raises HostError: there is no ``env``
        """
        if not self.env:
            return words
        variables = (f"{variable}={value}" for variable, value in self.env.items())
        return [need_program("env", "coreutils"), *variables, *words]

    def environment(self) -> dict[str, str]:
        """The whole environment to start the emulator and the tools in."""
        return {**os.environ, **self.env}


@dataclass(frozen=True, slots=True)
class BuildRow:
    """One row of the table of builds; ``problem``: why the build cannot be used, or ''."""

    name: str
    version: str
    kind: str
    place: str
    discipline: str
    problem: str = ""


def resolve(name_or_path: str | None) -> Build:
    """The build a person means, known to start.

    :param name_or_path: None or ``system``: the system's; a registered name; a path to an
        emulator, a build tree or an unpacked prefix; or a program on PATH
    :raises NoSuchBuild: it is no path, and no build has this name
    :raises InputError: there is nothing at that path, or it is not a QEMU emulator
    :raises HostError: the system's is wanted and there is none
    :raises BuildError: it is a QEMU that does not start or was not made
    """
    build = find(name_or_path)
    read_version(build)
    return build


def find(wanted: str | None) -> Build:
    """As :func:`resolve`, but whether it starts is found out by starting it.

    Raises what :func:`resolve` raises, but not for a QEMU that does not start.
    """
    if wanted is None or wanted == "system":
        return Build.system()
    if registry.has(wanted):
        return _registered(wanted)
    if wanted.startswith(registry.FETCHED) and not os.path.exists(wanted):
        near = difflib.get_close_matches(wanted, names(), n=1)
        other = f"; or did you mean {near[0]}?" if near else ""
        raise NoSuchBuild(f"{wanted} is not here yet: qmpshim builds fetch {wanted}{other}")
    if not wanted:
        raise NoSuchBuild("the build's name or path is empty")
    path = Path(os.path.expanduser(wanted))
    if os.path.isdir(path):
        return _from_directory(wanted, path.resolve())
    if os.path.exists(path) or os.sep in wanted:
        return _from_binary(wanted, path)
    if found := find_program(wanted):
        return _from_binary(wanted, Path(found))
    known = ", ".join(names())
    raise NoSuchBuild(f"no build named {wanted}: give a path to a QEMU, or one of {known}")


def names() -> list[str]:
    """The names that a build can be chosen by: the system's, and the registered ones."""
    return ["system", *registry.names()]


def read_version(build: Build) -> tuple[Version, str]:
    """Query the emulator's version: the numbers, and QEMU's own text with the package.

    :raises InputError: it is not a QEMU system emulator
    :raises BuildError: it is one, or may be, and does not start
    """
    ended = run_emulator(build, "--version")
    found = re.match(
        rf"(?:QEMU (?:PC )?emulator|{STORAGE_DAEMON}) version ((\d+)\.(\d+)\.(\d+).*)",
        ended.stdout,
    )
    if found:
        return (int(found[2]), int(found[3]), int(found[4])), found[1].strip()
    complaint = ended.stderr.strip()
    output = (complaint or ended.stdout.strip() or "nothing").splitlines()[-1]
    if ended.returncode < 0:
        reason = signal.strsignal(-ended.returncode)
        raise BuildError(f"{build.binary} --version was killed by a signal: {reason}")
    if "shared librar" in complaint or "version `" in complaint:
        raise BuildError(f"{build.binary} does not start: {output}")
    raise InputError(f"{build.binary} {_NOT_QEMU}: asked for --version it said {output[:200]!r}")


def run_emulator(build: Build, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the emulator for an answer that it prints and ends.

    :raises InputError: it is no program
    :raises BuildError: it does not end in time
    """
    try:
        command = dies_with_owner([*build.command(), *words])
        ended = run_program(command, START_LIMIT, build.environment())
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"{build.binary} {words[0]} did not end within {START_LIMIT:.0f} s"
        ) from error
    if ended.returncode in (126, 127) and ended.stderr.startswith("setpriv: "):
        reason = ended.stderr.strip().rpartition(": ")[2]
        raise InputError(f"{build.binary} {_NOT_QEMU}: {reason}")
    return ended


def protocol_of(version: Version) -> ProtocolName:
    """How this QEMU keeps a copy and a new write apart, by version.

    A micro number of 50 and above is the development of the next release.
    """
    if version < (2, 12, 50):
        return "cow-request"
    return "serialising-write" if version < (6, 0, 50) else "copy-before-write"


# -- places ----------------------------------------------------------------------------------


def _from_directory(name: str, place: Path) -> Build:
    for inside in _IN_TREE:
        if (place / inside / EMULATOR).is_file():
            return _from_binary(name, place / inside / EMULATOR)
    for inside in _IN_PREFIX:
        if (place / inside / EMULATOR).is_file():
            return from_prefix(name, place / inside / EMULATOR, place)
    if any((place / mark).exists() for mark in ("build.ninja", "config-host.mak", "meson.build")):
        raise BuildError(f"{place} is a tree without {EMULATOR}: build it there first")
    raise InputError(f"{place} holds no {EMULATOR}, neither a build tree nor an unpacked prefix")


def _from_binary(name: str, path: Path) -> Build:
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist, or is out of reach for this user")
    binary = path.resolve()
    if not binary.is_file():
        raise InputError(f"{path} {_NOT_QEMU}: it is not a file")
    if not _is_program(binary):  # execvp(3) would give a text to the shell, line by line
        raise InputError(f"{path} {_NOT_QEMU}: neither an ELF file nor a script")
    if not os.access(binary, os.X_OK):
        raise InputError(f"{path} is not executable: chmod +x {shlex.quote(str(path))}")
    for tree in (binary.parent, binary.parent.parent):
        if (tree / "build.ninja").exists() or (tree / "config-host.mak").exists():
            tools = (binary.parent, tree, tree / "storage-daemon")
            return Build(name, "tree", binary, tool_directories=tuple(dict.fromkeys(tools)))
    for root in (binary.parent.parent, binary.parent.parent.parent):
        if private_loader(binary, root):
            return from_prefix(name, binary, root)
    return Build(name, "installed", binary, tool_directories=(binary.parent,))


def _is_program(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith((b"\x7fELF", b"#!"))
    except OSError:  # execute permission alone is enough to run it
        return True


def from_prefix(name: str, binary: Path, root: Path, kind: Kind = "prefix") -> Build:
    """A build whose firmware, modules and perhaps libraries are under ``root``."""
    if root in (Path("/"), Path("/usr"), Path("/usr/local")):
        return Build(name, "installed", binary, tool_directories=(binary.parent,))
    env: dict[str, str] = {}
    modules = [root / "usr/lib/qemu", root / "lib/qemu", *sorted(root.glob("usr/lib/*/qemu"))]
    if found := [place for place in modules if any(place.glob("*.so"))]:
        env["QEMU_MODULE_DIR"] = str(found[0])
    launcher: tuple[str, ...] = ()
    libraries = library_directories(root)
    if loader := private_loader(binary, root):
        if ":" in str(root):
            raise HostError(f"{root}: a prefix with its own loader must not have ':' in its path")
        # The host's cache would lead to libraries of another suite. (The loader's built-in
        # directories still can, for a library that the prefix lacks.)
        launcher = (str(loader), "--inhibit-cache", "--library-path", ":".join(libraries))
    elif libraries:
        env["LD_LIBRARY_PATH"] = ":".join(
            [*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        )
    firmware = [
        word for place in _FIRMWARE if (root / place).is_dir() for word in ("-L", str(root / place))
    ]
    return Build(name, kind, binary, launcher, tuple(firmware), env, (binary.parent,))


# -- registry --------------------------------------------------------------------------------


def add(name: str, place: str | os.PathLike[str]) -> Build:
    """Register an existing QEMU under a short name; nothing is copied.

    :raises InputError: the name is taken or not a name, or ``place`` is no QEMU
    :raises BuildError: it does not start
    :raises HostError: the cache directory cannot be written
    """
    if not _NAME.fullmatch(name) or name == "system" or name.startswith("debian-"):
        raise InputError(f"{name!r} cannot name a build: letters, digits, . _ + @ -; not debian-…")
    where = Path(os.path.expanduser(place)).absolute()
    build = resolve(str(where))
    with registry.lock(), registry.workspace() as workspace:
        ready = workspace / "entry"
        ready.mkdir()
        registry.write(registry.RegisteredBuild(name, build.kind, str(where)), ready)
        registry.install(ready, name)
    return replace(build, name=name)


def remove(name: str) -> None:
    """Forget a build; what a fetch unpacked is deleted with it, other places stay as they are.

    :raises InputError: no such name is registered
    """
    if name == "system":
        raise InputError("the system's build is not ours to remove (apt is its owner)")
    registry.remove(name)


def list_builds() -> list[BuildRow]:
    """The table of builds: the system's first, then the registered ones; broken ones too."""
    return [_row(name) for name in ["system", *registry.names()]]


def _row(name: str) -> BuildRow:
    kind, place = "installed", ""
    try:
        if name != "system":
            entry = registry.read(name)
            kind, place = entry.kind, str(entry.path)
        build = find(name)
        version, words = read_version(build)
        return BuildRow(name, words, build.kind, place or str(build.binary), protocol_of(version))
    except QmpshimError as error:
        return BuildRow(name, "", kind, place, "", str(error))


def _registered(name: str) -> Build:
    entry = registry.read(name)
    if entry.kind == "debian":
        return from_prefix(name, entry.path / "usr/bin" / EMULATOR, entry.path, "debian")
    if not entry.path.exists():
        raise InputError(f"build {name} was in {entry.path}, which is gone: remove {name}")
    place = entry.path
    return _from_directory(name, place) if place.is_dir() else _from_binary(name, place)
