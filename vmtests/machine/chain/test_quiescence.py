"""When QEMU is still, and what answers for it when its threads cannot be seen."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qmpshim.errors import MachineHung
from qmpshim.machine.builds.build import EMULATOR, Build, resolve
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.chain.quiescence import family
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.model.explore.walk import OutOfBudget

SHAPE = Shape(TOPOLOGIES["backup"], 256 << 10, 64 << 10)


@pytest.fixture(params=["itself", "child of a wrapper"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, qemu_build: Build, qemu_on_path: None
) -> Iterator[GatedMachine]:
    build = qemu_build
    if request.param != "itself":
        wrapper = tmp_path / "qemu-system-x86_64"
        wrapper.write_text(
            f"#!{sys.executable}\n"
            "import subprocess, sys\n"
            "from qmpshim.machine.host.workspace import dies_with_owner\n"
            f"words = dies_with_owner([{shutil.which(EMULATOR)!r}, *sys.argv[1:]])\n"
            "sys.exit(subprocess.run(words, close_fds=False).returncode)\n"
        )
        wrapper.chmod(0o755)
        build = resolve(str(wrapper))
    with closing(GatedMachine(build, SHAPE)) as made:
        yield made


def test_what_was_sent_has_been_handled(machine: GatedMachine) -> None:
    client = machine.clients["primary"]
    for number in range(5):
        machine.gate.hold("secondary")
        cookie = client.send(NbdCommand.READ, number * 512, 512)
        machine.settle()
        assert [io.image for io in machine.gate.held] == ["secondary"]
        assert cookie not in client.answers
        machine.gate.release_all()
        machine.settle()
        assert cookie in client.answers


def test_with_nothing_to_do_nothing_more_comes(machine: GatedMachine) -> None:
    """Of a QEMU that is asleep that is known at once, wrapped or not; not while we hold."""
    machine.settle()
    assert machine.event_loop.until(lambda: machine.stalled(60.0), 60.0)
    assert not machine.stalled(1e9)  # qcow2 cleans its caches every ten minutes
    machine.gate.hold("secondary")
    machine.clients["primary"].send(NbdCommand.READ, 0, 512)
    assert machine.event_loop.until(lambda: bool(machine.gate.held), 60.0)
    assert not machine.stalled(0.0)
    held = machine.gate.held
    assert machine.event_loop.until(lambda: machine.stalled(60.0, beside=held), 60.0)
    machine.clients["primary"].send(NbdCommand.READ, 4096, 512)
    assert machine.event_loop.until(lambda: len(machine.gate.held) == 2, 60.0)
    assert not machine.stalled(0.0, beside=held)


def test_a_timer_may_still_fire(machine: GatedMachine) -> None:
    """What waits for one is no hang: throttled reads, each a second and more after the other."""
    limits = {"iops-total": 1}
    machine.call("object-add", {"qom-type": "throttle-group", "id": "g", "limits": limits})
    throttled = {"driver": "throttle", "node-name": "t", "throttle-group": "g"}
    machine.call("blockdev-add", {**throttled, "file": "secondary"})
    export = {"type": "nbd", "id": "slow", "name": "slow", "node-name": "t"}
    machine.call("block-export-add", export)
    machine.connect("slow")
    client = machine.clients["slow"]
    cookies = [client.send(NbdCommand.READ, n * 4096, 512) for n in range(4)]
    waited = 0
    while client.answers.keys() != set(cookies):
        machine.settle()
        if client.answers.keys() != set(cookies):
            assert not machine.stalled(20.0)
            waited += 1
        machine.event_loop.poll(0.05)
    assert waited


def test_a_stopped_qemu_is_no_busy_one(machine: GatedMachine) -> None:
    pids = family(machine.pid)
    os.kill(pids[-1], signal.SIGSTOP)  # QEMU itself, wrapped or not
    try:
        assert machine.event_loop.until(lambda: machine.stalled(0.0), 60.0)
        with pytest.raises(MachineHung, match=r"stopped by a signal|query-name: no answer"):
            machine.settle()
            machine.call("query-name")
    finally:
        os.kill(pids[-1], signal.SIGCONT)
    machine.settle()
    assert not machine.quiescence.stopped()


def test_time_is_up_wherever_qemu_is_waited_for(machine: GatedMachine) -> None:
    machine.event_loop.deadline = time.monotonic()
    for wait in (machine.settle, lambda: machine.call("query-name")):
        with pytest.raises(OutOfBudget):
            wait()
