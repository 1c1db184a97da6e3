"""Options and fixtures shared by all tests.

``--qemu-build`` and the fixtures ``qemu_build``, ``secondary_chain``, ``gated_chain`` and
``qmp_shim`` are the project's own plugin's, which its installation makes known to pytest.
``each_build`` is here: what a test takes that looks at more than one QEMU by itself; and
``qemu_on_path``, for what starts QEMU or its tools by their names.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.machine.builds import registry
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.programs import write_programs
from qmpshim.machine.host.workspace import Workspace
from qmpshim.pytest_plugin import build_named
from vmtests.support.reproducer import Reproducer

pytest_plugins = ["pytester"]  # the plugin is tested as another project would use it

#: The fetched builds that the quick tests look at: with the system's, a QEMU of each discipline
#: and age. Those with --full look at all that are fetched.
QUICK = {"debian:bullseye", "debian:trixie", "debian:sid"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long tests")


def _each(config: pytest.Config) -> list[str]:
    """The builds of ``each_build``: those given, else the system's and those that are fetched."""
    if given := config.getoption("qemu_build"):
        return list(dict.fromkeys(given))
    fetched = (name for name in registry.names() if name.startswith(registry.FETCHED))
    return ["system", *(n for n in fetched if n in QUICK or config.getoption("--full"))]


def _cache_bytecode(config: pytest.Config) -> None:
    """Python started by the tests reads bytecode, also where none is to be written here.

    Compiling takes longer than all else that most of those hundreds of processes do.  The workers
    of xdist inherit it from the session that starts them, and the next session finds it.
    """
    cache: pytest.Cache | None = getattr(config, "cache", None)  # none by -p no:cacheprovider
    if sys.dont_write_bytecode and cache is not None:
        os.environ["PYTHONPYCACHEPREFIX"] = str(cache.mkdir("bytecode"))
        del os.environ["PYTHONDONTWRITEBYTECODE"]


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job or nohup ignores these, and all that tests start would, too.

    What has a handler here is as usual in a program that is started from here: so nohup goes on
    to keep the tests themselves alive.
    """
    _cache_bytecode(config)
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, lambda *_: None),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_report_header(config: pytest.Config) -> str:
    return f"each build: {', '.join(_each(config))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "each_build" in metafunc.fixturenames:
        metafunc.parametrize("each_build", _each(metafunc.config), indirect=True, scope="session")


@pytest.fixture(scope="session")
def each_build(request: pytest.FixtureRequest) -> Build:
    """One build after the other: all that are given, else all that are here."""
    return build_named(request.param)


@pytest.fixture(scope="module")
def qemu_on_path(qemu_build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The build's programs are the first on PATH: whatever takes the system's QEMU takes this."""
    if qemu_build.name == "system":
        yield
        return
    place = tmp_path_factory.mktemp("bin")
    write_programs(qemu_build, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long: runs with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


def _own_processes() -> set[str]:
    """Command lines of processes that this test session's environment mark shows as its own."""
    mark = f"QMPSHIM_TEST_SESSION={os.environ['QMPSHIM_TEST_SESSION']}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found.add(f"{entry.name} {b' '.join(words).decode(errors='replace')}")
        except OSError:
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end of the session there must be no process, socket or file that was not there."""
    tmp_path_factory.getbasetemp()  # pytest's own directory, made before TMPDIR changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMPSHIM_TEST_SESSION", f"{os.getpid()}")
        with tempfile.TemporaryDirectory(prefix="qmpshim-tests-") as private:
            patch.setenv("TMPDIR", private)
            patch.setattr(tempfile, "tempdir", private)
            yield
            left = sorted(path.name for path in Path(private).iterdir())
            running = sorted(p for p in _own_processes() if "qemu" in p or "nbd" in p)
    assert not left, f"files left behind in the temporary directory: {left}"
    assert not running, f"processes left behind: {running}"


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """A workspace that is gone after the test."""
    with Workspace() as made:
        yield made


@pytest.fixture
def reproducer(tmp_path: Path, qemu_on_path: None) -> Iterator[Reproducer]:
    # Not below tmp_path: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        yield Reproducer(tmp_path, Path(temporary))
