"""The pytest plugin as another project uses it: a project of its own, run by pytester."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest

# Made without TCG: it does not start where there is no KVM.
MICROVM = shutil.which("qemu-system-x86_64-microvm") if os.access("/dev/kvm", os.W_OK) else None

USER = """
import errno

import pytest

from qmpshim.errors import InputError, IOFailed
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Op


def test_build(qemu_build):
    assert qemu_build.command()


@pytest.mark.parametrize("number", [1, 2])
def test_both(qemu_build, number):
    assert number


@pytest.mark.qemu_chain(workflow="backup", size=1 << 20)
def test_backup(secondary_chain):
    new, old = b"n" * 65536, b"o" * 65536
    primary, guest = secondary_chain.primary, secondary_chain.guest
    primary.wait(primary.submit_write(old, 0))
    secondary_chain.start()
    primary.wait(primary.submit_write(new, 0))
    assert guest.read(65536, 0) == old
    assert secondary_chain.execute("query-block-jobs")[0]["device"] == "backup"
    secondary_chain.stop()


@pytest.mark.parametrize("end", ["primary", "guest"])
@pytest.mark.qemu_chain(workflow="replication", size=32 << 20)
def test_each_end_of_a_chain(secondary_chain, end):
    secondary_chain.start()
    io_of(getattr(secondary_chain, end), 32 << 20)


@pytest.mark.qemu_chain(size=16 << 20)
def test_each_end_behind_a_shim(qmp_shim):
    qmp_shim.execute("xen-set-replication", {"enable": True, "primary": False})
    io_of(qmp_shim.primary, 16 << 20)
    io_of(qmp_shim.guest, 16 << 20)
    assert qmp_shim.execute("x-shim-verify")["as-predicted"]
    assert qmp_shim.execute("x-shim-status")["operations"] > 10
    with pytest.raises(InputError, match="no NBD export 'other': guest, primary"):
        qmp_shim.disk("other")


@pytest.mark.qemu_chain(form="backup", size=1 << 20)
def test_each_end_of_a_gated_chain(gated_chain):
    io_of(gated_chain.clients["primary"], 1 << 20)
    guest = gated_chain.clients["guest"]  # a read-only export
    for refused in (
        lambda: guest.write(b"x" * 512, 0),
        lambda: guest.zero(512, 0),
        lambda: guest.discard(512, 0),
        lambda: guest.read(512, 2 << 20),  # beyond its end
    ):
        with pytest.raises(IOFailed) as failed:
            refused()
        assert failed.value.errno == errno.EINVAL


def io_of(client, size):
    # Each operation and what is there after it; with room, more data than one request takes.
    data = bytes(range(256)) * ((size >> 1) // 256)
    client.write(data, 4096)
    assert client.read(len(data), 4096) == data
    client.zero(1024, 8192)
    assert client.read(2048, 8192) == bytes(1024) + data[5120:6144]
    client.discard(65536, 65536)
    client.flush()
    assert client.read(512, 4096) == data[:512]


def test_replication(secondary_chain):
    guest = secondary_chain.guest
    with pytest.raises(IOFailed) as failed:
        guest.wait(guest.submit_write(b"g" * 512, 0))
    assert failed.value.errno == errno.EIO  # not started
    secondary_chain.start()
    guest.wait(guest.submit_write(b"g" * 512, 0))
    assert secondary_chain.status() is None
    secondary_chain.checkpoint()
    secondary_chain.failover()


@pytest.mark.qemu_chain(form="backup")
def test_gate(gated_chain):
    gated_chain.call(
        "blockdev-backup",
        {"job-id": "b", "device": "secondary", "target": "hidden", "sync": "none"},
    )
    gated_chain.settle()
    gated_chain.gate.hold(lambda io: io.image == "hidden" and io.length >= 512)
    cookie = gated_chain.clients["primary"].send(Op.WRITE, 0, 512, b"x" * 512)
    gated_chain.settle()
    assert [io.image for io in gated_chain.gate.held] == ["hidden"]
    assert cookie not in gated_chain.clients["primary"].answers
    gated_chain.gate.open()
    gated_chain.gate.release_all()


@pytest.mark.qemu_chain(size=1 << 20)
def test_shim(qmp_shim):
    import json
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(qmp_shim.addresses[0].path))
        wire = client.makefile("rw")
        assert "QMP" in json.loads(wire.readline())
        for command in ("qmp_capabilities", "x-shim-status"):
            wire.write(json.dumps({"execute": command}))
            wire.flush()
            assert "return" in json.loads(wire.readline())
"""


@pytest.fixture
def project(pytester: pytest.Pytester, qemu_on_path: None) -> pytest.Pytester:
    """Somebody else's project: it has the plugin because qmpshim is installed."""
    pytester.makepyfile(test_user=USER)
    return pytester


def test_it_is_found_by_its_entry_point(pytester: pytest.Pytester) -> None:
    output = pytester.runpytest_subprocess("--trace-config", "--co", "-q").stdout.str()
    assert "qmpshim.pytest_plugin" in output or "qmpshim/pytest_plugin.py" in output
    assert "--qemu-build=NAME" in pytester.runpytest_subprocess("--help").stdout.str()


def test_without_the_option_the_systems_qemu_is_used(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("-v", "--strict-markers")
    result.assert_outcomes(passed=11)
    result.stdout.fnmatch_lines(["*::test_build?system? PASSED*", "*::test_gate?system? PASSED*"])


def test_the_readmes_example(pytester: pytest.Pytester, qemu_on_path: None) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    after = text.partition("## Your own tests")[2]
    block = re.search(r"\n\n((?: {4}.*\n|\n)+)", after)
    assert block is not None
    pytester.makepyfile(test_example=textwrap.dedent(block[1]))
    pytester.runpytest_subprocess("--strict-markers").assert_outcomes(passed=1)


def test_once_per_build_side_by_side(project: pytest.Pytester) -> None:
    """A QEMU without replication skips what needs it and does the rest; xdist spreads it all."""
    if MICROVM is None:
        pytest.skip("Debian's microvm build of QEMU cannot run here")
    arguments = ("--qemu-build=system", f"--qemu-build={MICROVM}", "-rs")
    for more in ((), ("-n", "2")):
        result = project.runpytest_subprocess(*arguments, *more)
        result.assert_outcomes(passed=17, skipped=5)
        result.stdout.fnmatch_lines(["*SKIP*has no replication driver*--enable-replication*"])


def test_a_build_that_is_not_there_ends_it_at_once(project: pytest.Pytester) -> None:
    for more in ((), ("-n", "2")):
        result = project.runpytest_subprocess("--qemu-build", "no-such-build", *more)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            ["ERROR: --qemu-build no-such-build: no build named no-such-build: give a path*"]
        )


@pytest.mark.parametrize("words", ['colour="blue"', 'size="1M"'])
def test_a_mark_that_means_nothing_is_an_error(pytester: pytest.Pytester, words: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.qemu_chain({words})
        def test_it(secondary_chain):
            pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*qemu_chain takes qemu_chain(workflow=*"])


def test_qmpshim_itself_is_imported_only_when_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            rooms = {name.split(".")[1] for name in sys.modules if name.startswith("qmpshim.")}
            assert rooms == {"pytest_plugin"}
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
