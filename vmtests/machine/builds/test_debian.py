"""Fetching a suite: from a small signed archive made of the system's QEMU, and from Debian's."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds import apt, debian, probe, registry
from qmpshim.machine.builds import build as builds

EMULATOR = shutil.which(builds.EMULATOR)
LIBRARIES = "usr/lib/x86_64-linux-gnu"
TOOLS = ("qemu-img", "qemu-io", "qemu-nbd")

needs_archive = pytest.mark.skipif(
    None in [EMULATOR, *map(shutil.which, ("gpg", "apt-get", "dpkg-deb", *TOOLS))],
    reason="no QEMU, gpg or apt to make an archive with",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPSHIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- an archive of our own -------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """A signed archive with one suite, ``made``, and the key it is signed with."""

    root: Path
    keyring: Path
    gnupg: Path

    def package(self, name: str) -> Path:
        (found,) = (self.root / "pool").glob(f"{name}_*.deb")
        return found

    def sign(self) -> None:
        """Write the lists and sign them, as they should be after a package changed."""
        lists = self.root / "dists/made"
        binary = lists / "main/binary-amd64"
        binary.mkdir(parents=True, exist_ok=True)
        index = "".join(
            subprocess.check_output(["dpkg-deb", "-f", str(package)], text=True)
            + f"Filename: pool/{package.name}\nSize: {package.stat().st_size}\n"
            + f"SHA256: {hashlib.sha256(package.read_bytes()).hexdigest()}\n\n"
            for package in sorted((self.root / "pool").glob("*.deb"))
        ).encode()
        for old in (binary / "Packages", lists / "Release", lists / "InRelease"):
            old.unlink(missing_ok=True)  # it may be a link to the pristine one
        (binary / "Packages").write_bytes(index)
        digest = hashlib.sha256(index).hexdigest()
        (lists / "Release").write_text(
            "Suite: made\nCodename: made\nArchitectures: amd64\nComponents: main\n"
            f"Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n {digest} {len(index)} "
            "main/binary-amd64/Packages\n"
        )
        self.gpg("--clearsign", "-o", str(lists / "InRelease"), str(lists / "Release"))

    def gpg(self, *words: str) -> None:
        subprocess.run(
            ["gpg", "--homedir", str(self.gnupg), "--batch", "--quiet", *words],
            check=True,
            capture_output=True,
            timeout=60,
        )


def pack(pool: Path, work: Path, name: str, version: str, depends: str = "") -> None:
    control = work / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <n@x>\n"
        f"Description: made for a test\n{f'Depends: {depends}' if depends else ''}".strip()
        + "\n"
    )
    command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", str(work), str(pool)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """The system's QEMU with its libraries, in three packages, as old suites lay them out."""
    root = tmp_path_factory.mktemp("archive")
    (root / "pool").mkdir()
    emulator = Path(os.path.realpath(str(EMULATOR)))
    programs = [emulator, *(Path(str(shutil.which(tool))) for tool in TOOLS)]
    listed = subprocess.check_output(["ldd", *map(str, programs)], text=True)
    system, tools, libc = root / "w/system", root / "w/tools", root / "w/libc"
    for directory in (system / "usr/bin", tools / "usr/bin", libc / LIBRARIES, libc / "lib64"):
        directory.mkdir(parents=True)
    shutil.copy(emulator, system / "usr/bin" / builds.EMULATOR)
    for firmware in ("usr/share/qemu", "usr/share/doc/made"):
        (system / firmware).mkdir(parents=True)
        (system / firmware / "file").touch()
    modules = Path("/", LIBRARIES, "qemu")
    if modules.is_dir():
        shutil.copytree(modules, system / LIBRARIES / "qemu")
    for tool in programs[1:]:
        shutil.copy(tool, tools / "usr/bin")
    for library in set(re.findall(r"=> (/\S+)", listed)):
        shutil.copy(os.path.realpath(library), libc / LIBRARIES / Path(library).name)
    loader = re.findall(r"(?m)^\s*(/\S*/(ld-linux\S+)) \(", listed)[0]
    shutil.copy(os.path.realpath(loader[0]), libc / LIBRARIES / loader[1])
    # Absolute, as libc6 had it before Debian merged /usr: right only below the prefix.
    (libc / "lib64" / loader[1]).symlink_to(f"/{LIBRARIES}/{loader[1]}")
    (libc / LIBRARIES / "gconv").mkdir()
    (libc / LIBRARIES / "gconv/libJIS.so").touch()
    pack(root / "pool", system, "qemu-system-x86", "1:7.2+made-1+b2", "libc6")
    pack(root / "pool", tools, "qemu-utils", "1:7.2+made-1+b2", "libc6")
    pack(root / "pool", libc, "libc6", "2.36")
    shutil.rmtree(root / "w")
    with tempfile.TemporaryDirectory() as home:  # gpg's socket path must be short
        archive = Archive(root, root / "key.gpg", Path(home))
        archive.gpg("--passphrase", "", "--quick-gen-key", "made@example.org", "ed25519", "sign")
        archive.gpg("-o", str(archive.keyring), "--export")
        archive.sign()
        yield archive
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, timeout=60)


@pytest.fixture
def archive(pristine: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A copy of it that may be spoilt, set up as the mirror to use."""
    root = tmp_path / "archive"
    shutil.copytree(pristine.root, root, copy_function=os.link)
    monkeypatch.setenv(apt.MIRROR_VARIABLE, f"file:{root}")
    monkeypatch.setattr(apt, "KEYRING", pristine.keyring)
    return Archive(root, pristine.keyring, pristine.gnupg)


def registry_is_empty(cache: Path) -> bool:
    return not registry.names() and not list((cache / "builds").glob("*"))


@needs_archive
def test_fetch_and_run(archive: Archive, cache: Path) -> None:
    reported: list[str] = []
    build = debian.fetch("debian:made", reported.append)
    prefix = cache / "builds/debian-made/prefix"
    assert (build.name, build.kind) == ("debian:made", "debian")
    assert build.binary == prefix / "usr/bin" / builds.EMULATOR
    assert build.launcher[0].startswith(f"{prefix}/{LIBRARIES}/ld-linux")
    assert build.arguments == ("-L", f"{prefix}/usr/share/qemu")
    assert build.tool("qemu-img")[-1] == f"{prefix}/usr/bin/qemu-img"
    assert b"qemu-img version" in subprocess.check_output([*build.tool("qemu-img"), "--version"])
    assert probe.probe(build).sha256 == probe.fingerprint(Path(str(EMULATOR)).resolve())
    assert [line.split(": ")[1].split()[0] for line in reported] == [
        "reading",
        "downloading",
        "unpacking",
        "QEMU",
    ]
    # What is needed is here, what is not is not, and nothing else was left behind.
    assert sorted(path.name for path in prefix.iterdir()) == ["lib64", "usr"]
    assert not (prefix / "usr/share/doc").exists()
    assert not (prefix / LIBRARIES / "gconv").exists()
    assert (prefix / LIBRARIES / "qemu-bundle").resolve() == prefix
    assert [path.name for path in (cache / "builds").glob("*")] == ["debian-made"]
    # A second time there is nothing to do, and without the mirror it can still be used.
    shutil.rmtree(archive.root)
    reported.clear()
    assert debian.fetch("debian:made", reported.append) == build
    assert reported == []
    assert builds.resolve("debian:made") == build
    assert builds.list_builds()[-1].name == "debian:made"
    builds.remove("debian:made")
    assert registry_is_empty(cache)


@needs_archive
def test_an_unpacked_prefix_by_its_path(archive: Archive, cache: Path, tmp_path: Path) -> None:
    fetched = debian.fetch("debian:made")
    shutil.copytree(cache / "builds/debian-made/prefix", tmp_path / "p", symlinks=True)
    for place in (tmp_path / "p", tmp_path / "p/usr/bin" / builds.EMULATOR):
        build = builds.resolve(str(place))
        assert build.kind == "prefix"
        assert build.launcher[0] == fetched.launcher[0].replace(
            str(cache / "builds/debian-made/prefix"), str(tmp_path / "p")
        )
    (tmp_path / "p").rename(tmp_path / "a:b")
    with pytest.raises(HostError, match="must not have ':'"):
        builds.resolve(str(tmp_path / "a:b"))


@needs_archive
def test_versions(archive: Archive) -> None:
    with pytest.raises(InputError, match=r"has 1:7.2\+made-1\+b2 there"):
        debian.fetch("debian:made@7.1")
    with pytest.raises(InputError, match=r"has 1:7.2\+made-1\+b2 there"):
        debian.fetch("debian:made@7.2+mad")
    assert debian.fetch("debian:made@7.2").name == "debian:made@7.2"
    assert debian.fetch("debian:made@1:7.2+made-1").name == "debian:made@7.2+made-1"
    assert builds.resolve("debian:made@1:7.2+made-1").name == "debian:made@1:7.2+made-1"


@needs_archive
def test_what_is_there_is_not_fetched_again(archive: Archive, cache: Path) -> None:
    debian.fetch("debian:made")
    mark = cache / "builds/debian-made/prefix/mark"
    mark.touch()
    debian.fetch("debian:made")
    assert mark.exists()
    assert [path.name for path in (cache / "builds").glob("*")] == ["debian-made"]


def spoil(path: Path, content: bytes) -> None:
    path.unlink()  # it is a link to the pristine one
    path.write_bytes(content)


@needs_archive
def test_a_package_changed_after_signing(archive: Archive, cache: Path) -> None:
    package = archive.package("qemu-utils")
    content = bytearray(package.read_bytes())
    content[-1000] ^= 1
    spoil(package, bytes(content))
    with pytest.raises(HostError, match="changed during the fetch: run it again"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
def test_lists_changed_after_signing(archive: Archive, cache: Path) -> None:
    signed = archive.root / "dists/made/InRelease"
    spoil(signed, signed.read_bytes().replace(b"Codename: made", b"Codename: male"))
    with pytest.raises(HostError, match="is not signed by a key in"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
def test_lists_without_a_signature(archive: Archive, cache: Path) -> None:
    (archive.root / "dists/made/InRelease").unlink()
    with pytest.raises(HostError, match="is not signed by a key in"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
@pytest.mark.skipif(not apt.KEYRING.exists(), reason="no Debian keys here")
def test_another_ones_signature(
    archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("QMPSHIM_CACHE", str(cache))
    monkeypatch.setenv(apt.MIRROR_VARIABLE, f"file:{archive.root}")
    with pytest.raises(HostError, match="is not signed by a key in"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
def test_what_the_mirror_lacks(
    archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="has no suite nosuch"):
        debian.fetch("debian:nosuch")
    archive.package("libc6").unlink()
    with pytest.raises(HostError, match="changed during the fetch: run it again"):
        debian.fetch("debian:made")
    archive.sign()
    with pytest.raises(HostError, match="the packages do not fit together"):
        debian.fetch("debian:made")
    for package in (archive.root / "pool").iterdir():
        package.unlink()
    archive.sign()
    with pytest.raises(InputError, match="Unable to locate package"):
        debian.fetch("debian:made")
    monkeypatch.setattr(apt, "RETRIES", 0)
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://localhost:1/debian")
    with pytest.raises(HostError, match=r"cannot be used: .*Could not connect"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
def test_a_library_is_never_the_hosts(archive: Archive, cache: Path, tmp_path: Path) -> None:
    package = archive.package("libc6")
    work = tmp_path / "libc"
    subprocess.run(["dpkg-deb", "-R", str(package), str(work)], check=True)
    (glib,) = (work / LIBRARIES).glob("libglib-2.0.so*")
    glib.unlink()
    shutil.rmtree(work / "DEBIAN")
    package.unlink()
    pack(archive.root / "pool", work, "libc6", "2.36")
    archive.sign()
    with pytest.raises(BuildError, match=r"needs libglib-2\.0\.so\.0, found: (/lib|not found)"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


@needs_archive
@pytest.mark.parametrize("link", ["/{outside}", "../../{outside}"])
def test_a_package_that_leads_another_out(tmp_path: Path, link: str) -> None:
    """tar itself follows a link that an earlier package left, as dpkg must."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    target = link.format(outside=outside.relative_to("/" if link[0] == "/" else tmp_path))
    first = _package(tmp_path, "first", {"usr/x": target})
    second = _package(tmp_path, "second", {"usr/x/file": None})
    third = _package(tmp_path, "third", {"usr/y": "x2", "usr/x2/file": None})
    apt.unpack([third], root, 60)
    with pytest.raises(HostError, match=r"second\.deb would write \./usr/x/file outside of"):
        apt.unpack([first, second], root, 60)
    assert not list(outside.iterdir()) and (root / "usr/y/file").exists()


def _package(directory: Path, name: str, members: dict[str, str | None]) -> Path:
    """A package with files, and links where a target is given; it has no directories."""

    def archive(contents: dict[str, str | None], text: bytes) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for path, target in contents.items():
                member = tarfile.TarInfo(f"./{path}")
                if target is None:
                    member.size = len(text)
                else:
                    member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member, io.BytesIO(text))
        return made.getvalue()

    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": archive({"control": None}, f"{control}Description: x\n".encode()),
        "data.tar.gz": archive(members, b"text"),
    }
    whole = b"!<arch>\n"
    for part, data in parts.items():  # ar(5)
        whole += f"{part:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(data):<10}`\n".encode()
        whole += data + b"\n" * (len(data) % 2)
    (directory / f"{name}.deb").write_bytes(whole)
    return directory / f"{name}.deb"


def test_no_space(archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "SPACE_FACTOR", 10**9)
    with pytest.raises(HostError, match=r"needs \d+ MiB in .* are free: set QMPSHIM_CACHE"):
        debian.fetch("debian:made")
    assert registry_is_empty(cache)


FETCH = """
import sys
from pathlib import Path
from qmpshim.machine.builds import apt, debian
apt.KEYRING = Path(sys.argv[1])
debian.fetch("debian:made", lambda words: print(words, flush=True))
"""


def start_fetch(archive: Archive) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(archive.keyring)], stdout=subprocess.PIPE, text=True
    )


@needs_archive
def test_two_at_once(archive: Archive, cache: Path) -> None:
    both = [start_fetch(archive) for _ in range(2)]
    output = [fetch.communicate(timeout=60)[0] for fetch in both]
    assert [fetch.returncode for fetch in both] == [0, 0]
    assert "".join(output).count("downloading") == 1
    assert "".join(output).count("waiting for another fetch to end") == 1
    assert registry.names() == ["debian:made"]


@needs_archive
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("moment", ["reading", "downloading", "unpacking"])
def test_interrupted(number: int, moment: str, archive: Archive, cache: Path) -> None:
    with start_fetch(archive) as fetch:
        assert fetch.stdout
        for line in fetch.stdout:
            if line.startswith(f"debian:made: {moment}"):  # the mirror's path has it, too
                fetch.send_signal(number)
                break
        fetch.communicate(timeout=60)
    assert fetch.returncode != 0
    assert registry.names() == []
    if number == signal.SIGINT:
        assert registry_is_empty(cache)
    debian.fetch("debian:made")
    left = [path.name for path in (cache / "builds").iterdir()]
    assert left == ["debian-made"]


@pytest.mark.parametrize(
    "text", ["sid", "debian:", "debian:Sid", "debian:a b", "debian:../x", "debian:sid@", "x:sid"]
)
def test_specifications(text: str) -> None:
    with pytest.raises(InputError, match="write debian:SUITE or debian:SUITE@VERSION"):
        debian.fetch(text)


# -- the mirror ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "mirror"),
    [
        (
            "sources.list",
            "# deb http://no/debian sid main\n"
            "deb-src http://no/debian sid main\n"
            "deb [arch=amd64 signed-by=/k/docker.asc] https://docker/linux/debian sid stable\n"
            "deb http://one/debian/ bookworm main contrib # near\n",
            "http://one/debian",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb-src\nURIs: http://no/debian\nSuites: sid\nComponents: main\n\n"
            "Enabled: no\nTypes: deb\nURIs: http://no/debian\nSuites: sid\nComponents: main\n\n"
            "Types: deb\n# snapshot\nURIs: http://two/debian\n http://three/debian\n"
            "Suites: sid\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            "http://two/debian",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: sid\n"
            "Components: main\n",
            "mirror+file:///etc/apt/mirrors/debian.list",
        ),
        (
            "sources.list.d/other.sources",
            "Types: deb\nURIs: https://other/debian\nSuites: sid\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/other.gpg\n",
            "http://deb.debian.org/debian",
        ),
        ("sources.list", "deb file:/srv/debian sid main\n", "copy:/srv/debian"),
        ("unread", "", "http://deb.debian.org/debian"),
    ],
)
def test_the_systems_mirror(
    file: str, text: str, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(apt.MIRROR_VARIABLE, raising=False)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text)
    assert apt.find_mirror(tmp_path) == mirror
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://mine/")
    assert apt.find_mirror(tmp_path) == "http://mine"


# -- the real archive ------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("suite", "version", "discipline"),
    [
        ("bullseye", (5, 2), "serialising-write"),
        ("bookworm", (7, 2), "copy-before-write"),
        ("bookworm-backports", (8, 0), "copy-before-write"),
        ("trixie", (10, 0), "copy-before-write"),
        ("sid", (11, 0), "copy-before-write"),
    ],
)
def test_real_suites(suite: str, version: tuple[int, int], discipline: str) -> None:
    build = debian.fetch(f"debian:{suite}")
    capabilities = probe.probe(build)
    assert capabilities.version >= (*version, 0)
    assert capabilities.discipline == discipline
    assert capabilities.replication
    for tool in (*TOOLS, "qemu-storage-daemon"):
        output = subprocess.check_output([*build.tool(tool), "--version"], env=build.environment())
        assert ".".join(map(str, capabilities.version)).encode() in output
    # With a machine it needs its firmware and its modules; the help looks at all modules, and
    # must find none of the host's.
    command = [*build.command(), "-machine", "pc", "-accel", "tcg", "-m", "64", "-nic", "user"]
    with subprocess.Popen(
        [*command, "-display", "none", "-monitor", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=build.environment(),
    ) as machine:
        try:
            of_the_machine, _ = machine.communicate("info status\ndevice_add help\nquit\n", 30)
        finally:
            machine.kill()
    assert "VM status: running" in of_the_machine
    assert 'name "virtio-blk-pci"' in of_the_machine
    assert "same build" not in of_the_machine or suite == "bullseye"  # 5.2 refuses them politely
    assert machine.returncode == 0


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_user_without_rights_can_fetch() -> None:
    code = (
        "from qmpshim.machine.builds import debian, probe; "
        "print(probe.probe(debian.fetch('debian:sid')))"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # which that user may read
        os.chown(home, 65534, 65534)
        ended = subprocess.run(
            [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                sys.executable,
                "-c",
                code,
            ],
            env={**os.environ, "HOME": home, "TMPDIR": home, "QMPSHIM_CACHE": f"{home}/cache"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert "copy-before-write" in ended.stdout
