"""Debian's package client with private state: it reads, verifies and downloads any suite.

Nothing of the system's apt is used but the way to reach a mirror: not its lists, cache, pins,
hooks or list of installed packages. No root is needed, and nothing outside one directory changes.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qmpshim.errors import HostError, InputError
from qmpshim.machine.host.programs import find_program, run_program
from qmpshim.machine.host.workspace import dies_with_owner

logger = logging.getLogger(__name__)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "QMPSHIM_DEBIAN_MIRROR"
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
#: Settings of the system's apt that this one shares: how to reach a mirror, not what to install.
_SHARED_SETTING = re.compile(r"Acquire::(https?|socks|Retries|ForceIPv|Check-)[^ ]* ")
#: Suites laid over another, which has their packages' dependencies.
_OVERLAY = re.compile(r"(.+?)-(backports|backports-sloppy|updates|proposed-updates|security)")
_INSTALL = ("apt-get", "-q", "-y", "--download-only", "install")
RETRIES = 3
_LISTS_LIMIT_S = 600
DOWNLOAD_LIMIT = 3600  # seconds


@dataclass(frozen=True, slots=True)
class Source:
    """One URI of binary packages in the system's sources.

    :ivar uri: as sources.list(5) has it
    :ivar components: ``main`` and its like
    :ivar signed_by: the keyring named for it, or ''
    """

    uri: str
    components: tuple[str, ...]
    signed_by: str

    @property
    def is_debian(self) -> bool:
        """It looks like the Debian archive, not like a third party's packages for Debian."""
        own_key = not self.signed_by or "debian-archive" in self.signed_by
        place = re.search(r"/debian/?$|debian\.list$", self.uri)
        return "main" in self.components and own_key and place is not None


def find_mirror(directory: Path = Path("/etc/apt")) -> str:
    """The Debian mirror: ``$QMPSHIM_DEBIAN_MIRROR``, the one in the system's sources, or Debian's.

    :param directory: apt's configuration
    :returns: a URI as sources.list(5) has it
    """
    theirs = [source.uri for source in system_sources(directory) if source.is_debian]
    best = os.environ.get(MIRROR_VARIABLE) or [*theirs, _DEFAULT_MIRROR][0]
    # apt leaves the packages of a "file:" mirror where they are, and copies those of "copy:".
    return re.sub("^file:", "copy:", best.rstrip("/"))


def system_sources(directory: Path) -> Iterator[Source]:
    """The entries of ``sources.list`` and ``sources.list.d``, in both forms (sources.list(5))."""
    one_line = [directory / "sources.list", *sorted(directory.glob("sources.list.d/*.list"))]
    for path in filter(Path.is_file, one_line):
        for line in path.read_text(errors="replace").splitlines():
            found = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+\S+([^#]*)", line)
            if found:
                key = re.search(r"signed-by=(\S+)", found[1] or "")
                yield Source(found[2], tuple(found[3].split()), key[1] if key else "")
    for path in sorted(directory.glob("sources.list.d/*.sources")):
        text = re.sub(r"(?m)^#.*\n", "", path.read_text(errors="replace"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                key.lower(): value.split()
                for key, value in re.findall(r"(?m)^([\w-]+):(.*(?:\n[ \t].*)*)", stanza)
            }
            if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
                for uri in fields.get("uris", []):
                    components = tuple(fields.get("components", []))
                    yield Source(uri, components, " ".join(fields.get("signed-by", [])))


class PrivateApt:
    """apt with its own configuration, lists and cache below one directory.

    :param root: that directory; it must not exist
    :param mirror: URI of the archive
    :param suite: the suite's name there
    :raises HostError: apt is not here, or lacks Debian's keys
    """

    def __init__(self, root: Path, mirror: str, suite: str) -> None:
        self.root = root
        self.mirror = mirror
        self.suite = suite
        for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
            if find_program(program) is None:
                raise HostError(f"fetching a Debian suite needs {program}: install {package}")
        if not KEYRING.exists():
            raise HostError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
        for directory in ("empty.d", "lists/partial", "archives/partial", "log"):
            (root / directory).mkdir(parents=True)
        (root / "status").touch()  # nothing is installed: every dependency is wanted
        (root / "preferences").touch()
        sources = [(mirror, suite)]
        if overlay := _OVERLAY.fullmatch(suite):
            sources.append((mirror, overlay[1]))
            if overlay[2] == "security":  # an archive of its own beside the main one
                sources[0] = (re.sub("/debian$", "/debian-security", mirror), suite)
        elif suite == "experimental":
            sources.append((mirror, "sid"))
        if len(sources) > 1:
            # Such a suite can be NotAutomatic: apt takes a package from it only when it is pinned.
            # Its own name is its code name for some suites, its suite name for others.
            (root / "preferences").write_text(
                "".join(
                    f"Package: *\nPin: release {key}={suite}\nPin-Priority: 500\n\n"
                    for key in ("a", "n")
                )
            )
        (root / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {uri} {name} main\n" for uri, name in sources)
        )
        (root / "apt.conf").write_text(self._configuration())

    def _configuration(self) -> str:
        # Read before every other configuration file, so the system's own (hooks that clean the
        # real cache, sources, pins) are not read at all: Dir::Etc::parts and main lead nowhere.
        root = self.root
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": root / "empty.d",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": root / "empty.d",
            "Dir::Etc::preferences": root / "preferences",
            "Dir::Etc::preferencesparts": root / "empty.d",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": root / "empty.d",
            "Dir::State": root,
            "Dir::State::status": root / "status",
            "Dir::State::lists": root / "lists",
            "Dir::Cache": root,
            "Dir::Cache::archives": root / "archives",
            "Dir::Log": root / "log",
            "APT::Sandbox::User": "",  # the packages are where only this user can write
            "APT::Architectures": run(["dpkg", "--print-architecture"], 10).stdout.strip(),
            "APT::Install-Recommends": "false",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": RETRIES,
            "Acquire::http::Timeout": "60",
        }
        if os.environ.get(MIRROR_VARIABLE):
            # A mirror of the past (snapshot, archive) is signed and expired by nature.
            settings["Acquire::Check-Valid-Until"] = "false"
        shared = [
            line
            for line in run(["apt-config", "dump"], 30).stdout.splitlines()
            if _SHARED_SETTING.match(line)
        ]
        return "\n".join([*(f'{key} "{value}";' for key, value in settings.items()), *shared, ""])

    def call(
        self, *words: str, limit: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of apt's programs with this configuration.

        :param limit: seconds
        :raises InputError: the suite has no such package
        :raises HostError: what it complains of is another matter
        """
        configuration = str(self.root / "apt.conf")
        ended = run(list(words), limit, check=False, cwd=cwd, APT_CONFIG=configuration)
        if ended.returncode != 0:
            self._explain(ended.stderr)
        return ended

    def update(self) -> None:
        """Fetch and verify the package lists.

        :raises InputError: the mirror has no such suite
        :raises HostError: no network, no valid signature
        """
        self.call("apt-get", "-q", "update", limit=_LISTS_LIMIT_S)

    def versions(self, package: str) -> list[str]:
        """The versions of a package that can be had, newest first."""
        listed = self.call("apt-cache", "madison", package, limit=60).stdout
        return [line.split("|")[1].strip() for line in listed.splitlines() if "|" in line]

    def pin(self, packages: str, version: str) -> None:
        """Hold packages at a version; both are patterns (apt_preferences(5))."""
        with (self.root / "preferences").open("a") as file:
            file.write(f"\nPackage: {packages}\nPin: version {version}\nPin-Priority: 1001\n")

    def plan(self, *packages: str) -> tuple[list[Path], int]:
        """The archives of packages with all they depend on: where they will be, and their bytes.

        :raises InputError: the suite has no such package
        :raises HostError: their dependencies cannot be met
        """
        listed = self.call(*_INSTALL, *packages, "--print-uris", limit=60)
        files = re.findall(r"(?m)^'[^']+' (\S+) (\d+) ", listed.stdout)
        if not files:
            self._explain(listed.stderr)
        archives = [self.root / "archives" / name for name, _length in files]
        return archives, sum(int(length) for _name, length in files)

    def download(self, *packages: str) -> None:
        """Fetch and verify the archives that :meth:`plan` returned.

        :raises HostError: the network failed, or what came is not what the lists promise
        """
        self.call(*_INSTALL, *packages, limit=DOWNLOAD_LIMIT)

    def dependencies(self, package: str) -> list[str]:
        """The packages that a package depends on directly, the first of each choice.

        :raises InputError: the suite has no such package
        """
        listed = self.call("apt-cache", "depends", "--important", package, limit=60)
        return re.findall(r"(?m)^ *Depends: (\S+)$", listed.stdout)

    def fetch(self, *packages: str) -> list[Path]:
        """Download and verify these packages and no others; their archives, in the same order.

        :raises InputError: the suite has no such package
        :raises HostError: the network failed, or what came is not what the lists promise
        """
        place = self.root / "archives"
        self.call("apt-get", "-q", "download", *packages, limit=DOWNLOAD_LIMIT, cwd=place)
        found = [next(place.glob(f"{package}_*.deb"), None) for package in packages]
        if missing := [name for name, archive in zip(packages, found, strict=True) if not archive]:
            raise HostError(f"{self.suite} at {self.mirror}: {missing[0]} did not arrive")
        return [archive for archive in found if archive]

    def _explain(self, complaint: str) -> NoReturn:
        """Raise apt's complaint as one line with what to do about it."""
        logger.debug("apt: %s", complaint)
        where = f"{self.suite} at {self.mirror}"
        errors = [line[2:].strip() for line in complaint.splitlines() if line.startswith("E:")]
        reason = errors[0] if errors else (complaint.strip() or "no reason given").splitlines()[-1]
        if "does not have a Release file" in complaint and "Could not" not in complaint:
            raise InputError(
                f"{self.mirror} has no suite {self.suite}; one that is no longer supported: "
                f"set {MIRROR_VARIABLE}=http://archive.debian.org/debian"
            )
        if re.search(
            r"Unable to (locate|find a source) package|no installation candidate"
            r"|Can not find version",
            complaint,
        ):
            raise InputError(f"{where}: {reason}")
        if re.search(r"404 +Not Found|Failed to stat|Hash Sum mismatch|unexpected size", complaint):
            raise HostError(f"{where} changed during the fetch: run it again ({reason})")
        if re.search(r"not signed|NO_PUBKEY|signatures? (were|was) invalid|EXPKEYSIG", complaint):
            raise HostError(
                f"{where} is not signed by a key in {KEYRING}: "
                f"apt-get install debian-archive-keyring, or set {MIRROR_VARIABLE} ({reason})"
            )
        if "is not valid yet" in complaint or "is expired" in complaint:
            raise HostError(f"{where}: {reason} (is this machine's clock right?)")
        if "unmet dependencies" in complaint or "broken packages" in complaint:
            raise HostError(f"{where}: the packages do not fit together today")
        raise HostError(f"{where} cannot be used: {reason}")


def run(
    words: list[str],
    limit: float,
    *,
    check: bool = True,
    cwd: Path | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in English, killed with this one.

    :param limit: seconds
    :raises HostError: it takes too long, or (``check``) ends with an error
    """
    try:
        env = {**os.environ, "LC_ALL": "C.UTF-8", **variables}
        ended = run_program(dies_with_owner(words), limit, env, cwd)
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{words[0]} did not end within {limit:.0f} s") from error
    if check and ended.returncode != 0:
        reason = (ended.stderr.strip() or f"exit status {ended.returncode}").splitlines()[-1]
        raise HostError(f"{' '.join(words[:2])}: {reason}")
    return ended


def unpack(archives: Iterable[Path], root: Path, limit: float) -> None:
    """Unpack packages one over another; nothing is written outside of ``root``.

    tar refuses what would lead out of one package, but follows a link that another one left.

    :param limit: seconds for each
    :raises HostError: a package is damaged, or would write elsewhere
    """
    root.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        if stray := _leads_out(archive, root):
            raise HostError(f"{archive.name} would write {stray} outside of {root}")
        run(["dpkg-deb", "-x", str(archive), str(root)], limit)


def _leads_out(archive: Path, root: Path) -> str:
    """A member of a package that an earlier one's link leads out of ``root``, or ''."""
    inside = os.path.realpath(root)
    words = dies_with_owner(["dpkg-deb", "--fsys-tarfile", str(archive)])
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as lister:
        assert lister.stdout is not None
        try:
            with tarfile.open(fileobj=lister.stdout, mode="r|") as members:
                parents = {os.path.dirname(member.name): member.name for member in members}
        except tarfile.TarError:
            return ""  # damaged: unpacking it raises the precise error
    for parent, name in parents.items():
        place = os.path.realpath(f"{inside}/{parent}")
        if place != inside and not place.startswith(f"{inside}/"):
            return name
    return ""
