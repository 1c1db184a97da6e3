"""The pytest plugin: any QEMU build, its chains of disks and the shim as fixtures.

    pytest --qemu-build debian:trixie --qemu-build ~/qemu/build

runs each test that uses ``qemu_build``, directly or by another fixture, once per build; without
the option on the system's QEMU. What a build cannot do is skipped, with the reason.
``@pytest.mark.qemu_chain(...)`` chooses the chain. Imported in every run of pytest wherever
qmpshim is installed, so it imports the rest of qmpshim only when a fixture is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qmpshim.machine.builds.build import Build
    from qmpshim.machine.chain.blocking import BlockingChain
    from qmpshim.machine.chain.gated import GatedMachine
    from qmpshim.shim.endpoint.background import BlockingShim

_MARK = (
    "qemu_chain(workflow='replication', size=4 MiB, cluster=64 KiB, secondary='raw'): "
    "the chain, in bytes, for secondary_chain and qmp_shim; gated_chain takes form, size, cluster "
    "(form: replication, backup, fleecing or primary)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--qemu-build``."""
    parser.getgroup("qmpshim").addoption(
        "--qemu-build",
        action="append",
        default=[],
        metavar="NAME",
        help="a QEMU build to test: a name of `qmpshim builds list`, a binary, a build tree; "
        "may be given several times (default: the system's)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fail at once where a build is not there.

    :raises pytest.UsageError: it is not
    """
    config.addinivalue_line("markers", _MARK)
    if not config.getoption("qemu_build"):
        return
    from qmpshim.errors import QmpshimError
    from qmpshim.machine.builds.build import resolve

    for name in config.getoption("qemu_build"):
        try:
            resolve(name)
        except QmpshimError as error:
            raise pytest.UsageError(f"--qemu-build {name}: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once per build, for every test that uses one."""
    if "qemu_build" in metafunc.fixturenames:
        names = dict.fromkeys(metafunc.config.getoption("qemu_build") or ["system"])
        metafunc.parametrize("qemu_build", names, indirect=True, scope="session")


@contextlib.contextmanager
def _or_skip() -> Iterator[None]:
    from qmpshim.errors import BuildError, HostError

    try:
        yield
    except BuildError as error:
        pytest.skip(str(error))
    except HostError as error:  # to skip everything where nothing is installed would look green
        pytest.fail(str(error), pytrace=False)


def _marked(request: pytest.FixtureRequest, defaults: dict[str, Any]) -> dict[str, Any]:
    mark = request.node.get_closest_marker("qemu_chain")
    given = dict(mark.kwargs) if mark else {}
    wrong = given.keys() - {"workflow", "form", "size", "cluster", "secondary"}
    in_bytes = all(isinstance(given.get(name, 0), int) for name in ("size", "cluster"))
    if wrong or not in_bytes or (mark and mark.args):
        raise pytest.UsageError(f"{request.node.nodeid}: qemu_chain takes {_MARK}")
    return {name: given.get(name, value) for name, value in defaults.items()}


def build_named(name: str) -> Build:
    """The build of that name; a test that takes one that cannot start is skipped."""
    from qmpshim.machine.builds.build import resolve

    with _or_skip():
        return resolve(name)


@pytest.fixture(scope="session")
def qemu_build(request: pytest.FixtureRequest) -> Build:
    """The build under test (:class:`qmpshim.machine.builds.build.Build`)."""
    return build_named(request.param)


@pytest.fixture
def secondary_chain(request: pytest.FixtureRequest, qemu_build: Build) -> Iterator[BlockingChain]:
    """A QEMU with the secondary's chain open over files, and an NBD client at each end.

    ``primary`` and ``guest`` have ``read(length, offset)``, ``write(data, offset)``,
    ``zero(length, offset)``, ``discard(length, offset)`` and ``flush()``: bytes, and each returns
    when QEMU has answered. They raise :exc:`~qmpshim.errors.IOFailed` with QEMU's ``errno``,
    :exc:`~qmpshim.errors.MachineDied` and :exc:`~qmpshim.errors.MachineHung`.
    """
    from qmpshim.machine.chain.blocking import BlockingChain
    from qmpshim.machine.chain.secondary import ChainSpec
    from qmpshim.model.chain.secondary import Workflow

    words = _marked(
        request,
        {"workflow": "replication", "size": 4 << 20, "cluster": 64 << 10, "secondary": "raw"},
    )
    spec = ChainSpec(Workflow(words.pop("workflow")), **words)
    with _or_skip():
        chain = BlockingChain(qemu_build, spec)
    with chain:
        yield chain


@pytest.fixture
def gated_chain(request: pytest.FixtureRequest, qemu_build: Build) -> Iterator[GatedMachine]:
    """A QEMU whose images are all on a gate that holds, fails and releases each I/O.

    ``clients["primary"]`` and ``clients["guest"]`` have ``read``, ``write``, ``zero``, ``discard``
    and ``flush`` as those of :func:`secondary_chain`; with ``send`` a request is not waited for,
    as one must be that is held.
    """
    from qmpshim.machine.chain.chains import TOPOLOGIES
    from qmpshim.machine.chain.gated import GatedMachine, Shape

    words = _marked(request, {"form": "replication", "size": 128 << 10, "cluster": 64 << 10})
    with _or_skip():
        machine = GatedMachine(
            qemu_build, Shape(TOPOLOGIES[words["form"]], words["size"], words["cluster"])
        )
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def qmp_shim(request: pytest.FixtureRequest, qemu_build: Build) -> Iterator[BlockingShim]:
    """The shim in front of a QEMU; a chain is there when the test is marked ``qemu_chain``.

    ``qmp_shim.addresses[0]`` is where QMP clients may come; ``execute()`` is one. ``primary`` and
    ``guest`` are clients at the chain's two ends, as those of :func:`secondary_chain`.
    """
    from qmpshim.machine.chain.secondary import ChainSpec
    from qmpshim.model.chain.secondary import Workflow
    from qmpshim.shim.emulator.serve import Options
    from qmpshim.shim.endpoint.background import background

    spec = None
    if request.node.get_closest_marker("qemu_chain"):
        words = _marked(
            request,
            {"workflow": "replication", "size": 4 << 20, "cluster": 64 << 10, "secondary": "raw"},
        )
        spec = ChainSpec(Workflow(words.pop("workflow")), **words)
    with contextlib.ExitStack() as stack:
        with _or_skip():
            served = stack.enter_context(background(Options(build=qemu_build, chain=spec)))
        yield served
