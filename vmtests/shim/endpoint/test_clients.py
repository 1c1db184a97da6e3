"""Other people's clients and harnesses on a shim: qmp-tui, and the ways of libvirt and QEMU."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pexpect
import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.shim_harness import LIMIT, Loop, Wire, normal, pair
from vmtests.support.stand_in import ARGS, PROGRAM

#: What libvirt 9.0 says to a QEMU while it starts one, as its sources show; ids left out.
LIBVIRT: list[tuple[str, dict[str, Any] | None]] = [
    ("query-version", None),
    ("query-target", None),
    ("query-commands", None),
    ("query-kvm", None),
    ("qom-list-types", {"implements": "device", "abstract": True}),
    ("qom-list", {"path": "/machine"}),
    ("qom-list", {"path": "/machine/unattached"}),
    ("query-machines", None),
    ("query-cpu-definitions", None),
    ("query-migrate-capabilities", None),
    ("query-qmp-schema", None),
    ("query-command-line-options", None),
    ("query-chardev", None),
    ("query-hotpluggable-cpus", None),
    ("query-cpus-fast", None),
    ("query-iothreads", None),
    ("object-add", {"qom-type": "secret", "id": "s0", "data": "letmein"}),
    ("query-named-block-nodes", {"flat": True}),
    ("query-block", None),
    ("query-status", None),
    ("cont", None),
    ("query-status", None),
    ("object-del", {"id": "s0"}),
]


def test_libvirts_way(each_build: Build, loop: Loop) -> None:
    """The same conversation with QEMU itself and through the shim."""
    with pair(loop, each_build) as both:
        for wire in (both.direct, both.through):
            assert "QMP" in wire.message()
        for number, (name, arguments) in enumerate([("qmp_capabilities", None), *LIBVIRT], 1):
            request: dict[str, Any] = {"execute": name, "id": f"libvirt-{number}"}
            if arguments is not None:
                request["arguments"] = arguments
            answers = []
            for wire in (both.direct, both.through):
                wire.send(json.dumps(request).encode() + b"\r\n")  # as libvirt ends its lines
                reply = wire.reply()
                assert reply["id"] == f"libvirt-{number}"
                answers.append(normal(reply))
            assert answers[0] == answers[1], name


def test_libvirts_descriptors(address: Path, tmp_path: Path) -> None:
    """libvirt hands files over in sets: add-fd with SCM_RIGHTS, then /dev/fdset/N."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(address))
    wire = Wire(sock)
    wire.negotiate()
    (tmp_path / "disk").write_bytes(b"d" * 4096)
    fd = os.open(tmp_path / "disk", os.O_RDWR)
    request = {"execute": "add-fd", "arguments": {"fdset-id": 7, "opaque": "disk"}, "id": "l-1"}
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
    sock.sendmsg([json.dumps(request).encode() + b"\r\n"], [rights])
    os.close(fd)
    assert wire.reply()["return"]["fdset-id"] == 7
    node = {"driver": "file", "node-name": "f", "filename": "/dev/fdset/7"}
    assert wire.ask("blockdev-add", node) == {"return": {}}
    (nodes,) = wire.ask("query-named-block-nodes")["return"]
    assert nodes["image"]["virtual-size"] == 4096
    wire.close()


def test_qmp_tui(address: Path) -> None:
    """It negotiates, out-of-band too, and shows what happens."""
    pytest.importorskip("urwid")
    child = pexpect.spawn(
        sys.executable,
        ["-c", "from qemu.qmp.qmp_tui import main; main()", str(address)],
        env={**os.environ, "TERM": "xterm"},
        dimensions=(40, 100),
        timeout=LIMIT,
        encoding="utf-8",
    )
    _until(child, '"return"')  # it has negotiated
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(address))
    wire = Wire(sock)
    wire.negotiate()
    wire.ask("stop")
    _until(child, "STOP")
    wire.close()
    child.close(force=True)


def _until(child: pexpect.spawn, pattern: str) -> None:
    """Wait for something on the screen, which it draws anew only when a key comes."""
    for _ in range(int(LIMIT * 2)):
        child.send(" ")
        if child.expect([pattern, pexpect.TIMEOUT], timeout=0.5) == 0:
            return
    raise AssertionError(f"{pattern} does not come")


@pytest.mark.usefixtures("qemu_on_path")
def test_a_harness_that_starts_what_it_takes_for_qemu(tmp_path: Path) -> None:
    """As QEMU's own python/qemu/machine does: the monitor on a socket pair."""
    ours, theirs = socket.socketpair()
    command = [
        *(str(PROGRAM), "-display", "none", "-vga", "none"),
        *("-chardev", f"socket,id=mon,fd={theirs.fileno()}"),
        *("-mon", "chardev=mon,mode=control", *ARGS),
    ]
    with theirs, tempfile.TemporaryFile() as log:
        machine = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=log, stderr=log)
    wire = Wire(ours)
    wire.negotiate()
    assert wire.ask("query-status")["return"]["running"] is True
    assert "endpoints" in wire.ask("x-shim-status")["return"]
    machine.send_signal(signal.SIGTERM)
    messages = wire.rest()
    assert [m["event"] for m in messages] == ["SHUTDOWN"]
    assert messages[0]["data"]["reason"] == "host-signal"
    assert machine.wait(LIMIT) == 0
    wire.close()
