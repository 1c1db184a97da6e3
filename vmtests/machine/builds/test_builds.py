"""Builds: which QEMU a name means, what is on record, and what a QEMU says it can do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import BuildError, CommandFailed, HostError, InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds import probe, registry
from qmpshim.machine.builds.build import Build, protocol_of, resolve
from vmtests.support.waiting import becomes_true, wait_until

EMULATOR = shutil.which(builds.EMULATOR)
needs_qemu = pytest.mark.skipif(EMULATOR is None, reason="no QEMU is installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPSHIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


Script = Callable[[str, str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A program made of shell lines."""

    def make(name: str, lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return path

    return make


def running(mark: str) -> list[int]:
    """Processes with ``mark`` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def gone(mark: str) -> bool:
    return becomes_true(lambda: not running(mark), 30.0)


# -- which QEMU a name means -----------------------------------------------------------------


@needs_qemu
def test_the_system_is_meant_when_nothing_is_given() -> None:
    build = resolve(None)
    assert (build.name, build.kind) == ("system", "installed")
    assert build.command() == [os.path.realpath(str(EMULATOR))]
    assert build.tool("qemu-img")[0].endswith("/qemu-img")
    assert resolve("system") == resolve(None) == resolve(EMULATOR).__class__.system()


@needs_qemu
@pytest.mark.parametrize("name", [builds.EMULATOR, EMULATOR])
def test_a_program_by_its_name_or_path(name: str) -> None:
    assert resolve(name).binary == Path(os.path.realpath(str(EMULATOR)))


def test_no_qemu_reports_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(builds, "SYSTEM_NAMES", (builds.EMULATOR,))
    with pytest.raises(HostError, match="apt-get install qemu-system-x86 qemu-utils"):
        resolve(None)
    assert builds.list_builds()[0].problem.startswith("no qemu-system-x86_64 on PATH")


def test_what_is_no_qemu(tmp_path: Path, script: Script) -> None:
    text = tmp_path / "text"
    text.write_text("no program\n")
    with pytest.raises(InputError, match="not a QEMU system emulator: neither an ELF"):
        resolve(str(text))  # no advice to make it executable
    text.chmod(0o755)
    with pytest.raises(InputError, match="not a QEMU system emulator: neither an ELF"):
        resolve(str(text))
    with pytest.raises(InputError, match=r"not a QEMU system emulator: .* said 'nothing'"):
        resolve(str(script("silent", "exit 0")))
    with pytest.raises(InputError, match="not a QEMU system emulator: asked for --version it said"):
        resolve("/bin/true")
    nowhere = script("nowhere", "")
    nowhere.write_text("#!/no/such/shell\n")
    with pytest.raises(InputError, match="not a QEMU system emulator: No such file"):
        resolve(str(nowhere))
    if shutil.which("qemu-img"):
        with pytest.raises(InputError, match="not a QEMU system emulator"):
            resolve("qemu-img")
    with pytest.raises(InputError, match="does not exist"):
        resolve(str(tmp_path / "missing"))
    with pytest.raises(InputError, match="not a QEMU system emulator: it is not a file"):
        resolve("/dev/null")
    with pytest.raises(InputError, match="holds no qemu-system-x86_64"):
        resolve(str(tmp_path))
    with pytest.raises(InputError, match="no build named nosuch"):
        resolve("nosuch")
    with pytest.raises(InputError, match="empty"):
        resolve("")
    with pytest.raises(InputError, match="builds fetch debian:sid"):
        resolve("debian:sid")


def test_a_qemu_that_cannot_be_tested(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match="killed by a signal: Segmentation"):
        resolve(str(script("crash", "kill -SEGV $$")))
    lib = "echo 'error while loading shared libraries: libx.so: cannot open' >&2; exit 127"
    with pytest.raises(BuildError, match="does not start: error while loading"):
        resolve(str(script("library", lib)))
    monkeypatch.setattr(builds, "START_LIMIT", 0.3)
    hang = script("hang", f"exec sleep 61 # {tmp_path}")
    with pytest.raises(BuildError, match="did not end within"):
        resolve(str(hang))
    assert gone(str(hang))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/build.ninja").touch()
    with pytest.raises(BuildError, match="build it there first"):
        resolve(str(tmp_path / "tree"))


@needs_qemu
@pytest.mark.parametrize(
    ("inside", "mark"),
    [("", "build.ninja"), ("build/", "build/build.ninja"), ("x86_64-softmmu/", "config-host.mak")],
)
def test_a_build_tree(inside: str, mark: str, tmp_path: Path, script: Script) -> None:
    script(f"tree/{inside}{builds.EMULATOR}", f'exec {EMULATOR} "$@"')
    script("tree/qemu-img", "echo of the tree")
    (tmp_path / "tree" / mark).touch()
    build = resolve(str(tmp_path / "tree"))
    assert build.kind == "tree"
    assert resolve(str(build.binary)).kind == "tree"
    if inside != "build/":
        assert build.tool("qemu-img") == [str(tmp_path / "tree/qemu-img")]
    assert build.tool("qemu-io") == [shutil.which("qemu-io")]  # borrowed
    with pytest.raises(HostError, match="apt-get install qemu-utils"):
        build.tool("qemu-nosuch")


@needs_qemu
def test_a_prefix_without_a_loader_of_its_own(tmp_path: Path, script: Script) -> None:
    emulator = script(f"p/usr/bin/{builds.EMULATOR}", f'exec {EMULATOR} "$@"')
    for place in ("p/usr/share/qemu", "p/usr/lib/x86_64-linux-gnu/qemu"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "p/usr/lib/x86_64-linux-gnu/qemu/block-x.so").touch()
    build = resolve(str(tmp_path / "p"))
    assert build.kind == "prefix"
    assert build.command() == [str(emulator), "-L", str(tmp_path / "p/usr/share/qemu")]
    assert build.env == {"QEMU_MODULE_DIR": str(tmp_path / "p/usr/lib/x86_64-linux-gnu/qemu")}
    assert build.environment()["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("version", "discipline"),
    [
        ((2, 8, 0), "cow-request"),
        ((2, 12, 1), "cow-request"),
        ((2, 12, 50), "serialising-write"),
        ((3, 0, 0), "serialising-write"),
        ((6, 0, 1), "serialising-write"),
        ((6, 0, 50), "copy-before-write"),
        ((6, 1, 0), "copy-before-write"),
        ((11, 1, 3), "copy-before-write"),
    ],
)
def test_discipline_by_version(version: builds.Version, discipline: str) -> None:
    assert protocol_of(version) == discipline


# -- the registry ----------------------------------------------------------------------------


@pytest.fixture
def fake(script: Script) -> Path:
    return script("fake", "echo 'QEMU emulator version 6.0.1 (made up)'")


def test_add_list_remove(fake: Path, cache: Path) -> None:
    assert builds.add("mine", fake).name == "mine"
    assert resolve("mine").binary == fake
    row = builds.list_builds()[-1]
    assert (row.name, row.version, row.place) == ("mine", "6.0.1 (made up)", str(fake))
    assert (row.discipline, row.problem) == ("serialising-write", "")
    with pytest.raises(InputError, match="registered already"):
        builds.add("mine", fake)
    builds.remove("mine")
    assert fake.exists()
    assert list((cache / "builds").iterdir()) == []
    with pytest.raises(InputError, match="no build named mine"):
        builds.remove("mine")
    with pytest.raises(InputError, match="no build named mine"):
        resolve("mine")


@pytest.mark.parametrize("name", ["", "system", "a:b", "../up", "a b", ".work", "debian-sid"])
def test_bad_names(name: str, fake: Path) -> None:
    with pytest.raises(InputError, match="cannot name a build"):
        builds.add(name, fake)


def test_only_a_qemu_is_registered(cache: Path) -> None:
    with pytest.raises(InputError, match="not a QEMU"):
        builds.add("mine", "/bin/true")
    assert registry.names() == []


def test_a_build_that_went_away_is_listed_with_its_problem(fake: Path, cache: Path) -> None:
    builds.add("mine", fake)
    fake.unlink()
    assert "is gone: remove mine" in builds.list_builds()[-1].problem
    (cache / "builds/mine/build.json").write_text("{}")
    assert "is damaged" in builds.list_builds()[-1].problem
    builds.remove("mine")


def test_a_cache_that_cannot_be_written(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPSHIM_CACHE", "/proc/nosuch")
    with pytest.raises(HostError, match=r"cannot write /proc/nosuch/builds .* set QMPSHIM_CACHE"):
        builds.add("mine", fake)


def test_what_cannot_be_remembered_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    probe.remember(cache / "probe" / "some.json", "{}")
    assert list((cache / "probe").iterdir()) == []


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMPSHIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert registry.cache_directory() == Path("/x/qmpshim")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert registry.cache_directory() == Path("/h/.cache/qmpshim")


def test_one_writer_at_a_time(fake: Path, cache: Path) -> None:
    holder = "import sys; from qmpshim.machine.builds import registry\n" + textwrap.dedent("""
        with registry.lock():
            print("held", flush=True)
            sys.stdin.readline()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        reported: list[str] = []

        def waiting() -> None:
            assert other.stdin
            reported.append("waiting")
            other.stdin.write("\n")
            other.stdin.flush()

        with registry.lock(waiting):
            assert reported == ["waiting"]


def test_what_a_killed_writer_left_is_swept(cache: Path) -> None:
    left = cache / "builds/.work-dead/entry"
    left.mkdir(parents=True)
    (left / "build.json").write_text("{}")
    left.chmod(0o500)
    assert registry.names() == []
    with registry.lock(), registry.workspace() as place:
        assert list((cache / "builds").iterdir()) == [place]
    assert list((cache / "builds").iterdir()) == []


WRITER = """
import itertools, os, sys, time
until = time.monotonic() + 0.5
for number in itertools.count():
    os.mkdir(f"{sys.argv[1]}/{number}")
    if number == 100:
        print("writing", flush=True)
    if time.monotonic() > until:
        break
"""


def test_a_workspace_goes_while_a_program_writes_there(cache: Path) -> None:
    """One that an interruption met as it was started: nothing can end it before this process."""
    with registry.lock(), registry.workspace() as place:
        words = [sys.executable, "-c", WRITER, str(place)]
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        assert writer.stdout.readline() == "writing\n"
    writer.communicate(timeout=60)
    assert list((cache / "builds").iterdir()) == []


# -- what a QEMU can do ----------------------------------------------------------------------


@pytest.fixture
def capable(qemu_build: Build) -> probe.Capabilities:
    return probe.probe(qemu_build)


def test_probe(qemu_build: Build, capable: probe.Capabilities) -> None:
    output = builds.run_emulator(qemu_build, "--version").stdout
    assert "{}.{}.{}".format(*capable.version) in output
    assert capable.version_text in output
    assert capable.discipline == protocol_of(capable.version)
    assert len(capable.sha256) == 64
    assert {"qmp_capabilities", "blockdev-backup", "block-export-add"} <= capable.commands.keys()
    assert "target" in capable.commands["blockdev-backup"]
    # top-id is an argument of one driver only.
    assert {"node-name", "top-id"} <= set(capable.commands["blockdev-add"])
    assert {"BLOCK_JOB_ERROR", "SHUTDOWN"} <= capable.events
    assert {"raw", "qcow2", "nbd", "null-co"} <= capable.drivers
    assert "none" in capable.machines
    assert "return-path" in capable.migration
    assert "tcg" in capable.accelerators
    assert capable.missing(commands=["quit", "no"], drivers=["raw", "nix"]) == [
        "command no",
        "block driver nix",
    ]


def test_a_build_is_asked_once(
    qemu_build: Build, capable: probe.Capabilities, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(build: Build) -> probe.Capabilities:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(probe, "examine", never)
        assert probe.probe(qemu_build) == capable
    remembered = next((cache / "probe").glob(f"*{capable.sha256}.json"))
    for damaged in ("", "{", "[]", json.dumps({"version": [1, 2, 3]})):
        remembered.write_text(damaged)
        assert probe.probe(qemu_build) == capable


def test_the_memory_is_of_the_content(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"one")
    first = probe.fingerprint(binary)
    assert probe.fingerprint(binary) == first
    binary.write_bytes(b"two")
    assert probe.fingerprint(binary) != first
    binary.write_bytes(b"one")
    assert probe.fingerprint(binary) == first
    with pytest.raises(InputError, match="cannot be read"):
        probe.fingerprint(tmp_path / "missing")


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPSHIM_CACHE", "/proc/nosuch")
    assert probe.probe(qemu_build).version >= (2, 8, 0)


#: A QEMU's version, and then no QMP.
VERSION = "case $* in *--version*) echo 'QEMU emulator version 9.9.9'; exit;; *-accel*) exit;; esac"
LISTEN = "while read line; do :; done"


def test_a_qemu_that_dies_or_says_nothing(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = resolve(str(script("dying", f"{VERSION}\necho 'no such machine' >&2; exit 3")))
    with pytest.raises(BuildError, match="exit status 3, no such machine"):
        probe.probe(dying)
    monkeypatch.setattr(probe, "LIMIT", 1.0)
    silent = script("silent", f"{VERSION}\n{LISTEN}")
    with pytest.raises(BuildError, match=r"qmp_capabilities: no answer in 1 s"):
        probe.probe(resolve(str(silent)))
    assert gone(str(silent))
    mumbling = resolve(str(script("mumbling", f"{VERSION}\necho hello; {LISTEN}")))
    with pytest.raises(BuildError, match="monitor said 'hello': that is no JSON"):
        probe.probe(mumbling)
    assert gone(str(mumbling.binary))


def test_a_driver_is_believed_when_it_opens() -> None:
    """The schema may promise what a module or a white list withholds."""

    class Monitor:
        def call(self, command: str, arguments: dict[str, Any]) -> None:
            refusals = {
                "replication": "Unknown driver 'replication'",
                "quorum": "Driver 'quorum' is not whitelisted",
                "qcow2": "Image is not in qcow2 format",
                "blkdebug": "Driver 'null-co' is not whitelisted",
            }
            if command == "blockdev-add" and arguments["driver"] in refusals:
                raise CommandFailed(command, "GenericError", refusals[arguments["driver"]])

    declared = frozenset({"replication", "quorum", "qcow2", "blkdebug", "raw", "rbd"})
    absent = set(probe.absent_drivers(Monitor(), declared))  # type: ignore[arg-type]
    assert absent == {"replication", "quorum"}


@needs_qemu
def test_the_asked_qemu_dies_with_its_asker(script: Script, tmp_path: Path) -> None:
    stuck = script("stuck", f"{VERSION}\ntouch {tmp_path}/up\n{LISTEN}; while :; do sleep 1; done")
    code = (
        f"from qmpshim.machine.builds import build, probe; probe.examine(build.resolve('{stuck}'))"
    )
    # When the asker dies the stuck one's stdin ends too: it goes on, and only a signal helps.
    with subprocess.Popen([sys.executable, "-c", code]) as asker:
        wait_until((tmp_path / "up").exists)
        assert len(running(str(stuck))) == 2
        asker.send_signal(signal.SIGKILL)
    try:
        assert gone(str(stuck))
    finally:
        for survivor in running(str(stuck)):
            os.kill(survivor, signal.SIGKILL)


def test_a_misspelt_release_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """To fetch it would end with there being no such release."""
    monkeypatch.setattr(builds, "names", lambda: ["system", "debian:trixie"])
    with pytest.raises(InputError, match="fetch debian:trixi; or did you mean debian:trixie"):
        resolve("debian:trixi")
