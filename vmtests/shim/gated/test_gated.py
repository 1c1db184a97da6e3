"""A gated chain led by hand: what is held waits, what is let go goes on; it can be replayed."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pexpect
import pytest

from qmpshim.conformance.explore.harness.choices import Start
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.known.draft import draft_text
from qmpshim.conformance.known.folder import read
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.conformance.workload.pattern import data_of
from qmpshim.errors import InputError, IOFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.answers import OK
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.units import SECTOR
from qmpshim.shim.emulator.serve import Options, Served, endpoint
from qmpshim.shim.gated.schedule import MOST, Schedule
from vmtests.support.bundles import draft_of
from vmtests.support.drafts import filled
from vmtests.support.shim_harness import LIMIT, Loop, Wire
from vmtests.support.waiting import wait_until

CLUSTER = 64 << 10
SECTORS = CLUSTER // SECTOR


class Gated:
    """A gated chain and one client."""

    def __init__(self, loop: Loop, build: Build, **more: Any) -> None:
        spec = ChainSpec(more.pop("workflow", Workflow.REPLICATION), 2 * CLUSTER, CLUSTER)
        self._loop = loop
        self._context = endpoint(Options(build=build, chain=spec, gated=True, **more))
        self.served: Served = loop.run(self._context.__aenter__())
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.served.addresses[0].path))
        self.wire = Wire(sock)
        self.wire.negotiate(oob=True)
        status = self.ask("x-shim-status")
        self.uris = {entry["export"]: entry["uri"] for entry in status["endpoints"]}
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, **arguments: Any) -> Any:
        reply = self.wire.ask(name, arguments)
        assert "return" in reply, reply
        return reply["return"]

    def urgent(self, name: str, **arguments: Any) -> Any:
        """Out of band."""
        self.wire.send(json.dumps({"exec-oob": name, "arguments": arguments, "id": "u"}).encode())
        while (message := self.wire.reply()).get("id") != "u":
            pass
        return message["return"]

    def start(self, side: str, work: Callable[[NbdClient], object]) -> threading.Thread:
        """Do I/O in a thread."""

        def run() -> None:
            with closing(NbdClient(self.uris[side], LIMIT, plain=True)) as client:
                work(client)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def write(self, side: str, number: int, start: int = 0, count: int = SECTORS) -> Any:
        data = data_of(number, start, count)
        return self.start(side, lambda c: c.wait(c.submit_write(data, start * SECTOR)))

    def until_held(self, count: int) -> list[str]:
        """The steps that are held, once there are so many."""
        wait_until(lambda: len(self.urgent("x-shim-held")["held"]) >= count)
        return [held["step"] for held in self.urgent("x-shim-held")["held"]]

    def until_over(self) -> None:
        wait_until(lambda: not self.urgent("x-shim-held")["in-flight"])
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()

    def close(self) -> None:
        self.wire.close()
        self._loop.run(self._context.__aexit__(None, None, None))


@pytest.fixture
def gated(each_build: Build, loop: Loop) -> Iterator[Gated]:
    made = Gated(loop, each_build)
    yield made
    made.close()


def test_a_copy_is_held_and_new_data_waits_for_it(gated: Gated) -> None:
    gated.ask("x-shim-hold", disk="hidden", operation="write")
    writing = gated.write("primary", 2)
    assert gated.until_held(1) == ["hidden write 0+128 (of 0)"]
    assert writing.is_alive()
    gate = gated.served.chains.controller.gate  # type: ignore[union-attr]
    assert gate.snapshot("secondary")[:CLUSTER] == bytes(data_of(1, 0, SECTORS))  # the promise
    assert "released" not in gated.wire.ask("x-shim-verify")["error"]["desc"]
    gated.ask("x-shim-release", number=1)
    gated.until_over()
    assert gate.snapshot("secondary")[:CLUSTER] == bytes(data_of(2, 0, SECTORS))
    steps = gated.ask("x-shim-schedule")["steps"]
    assert [step for step in steps if step.startswith("complete")] == [
        "complete secondary read 0+128 (of 0)",
        "complete hidden write 0+128 (of 0)",
        "complete secondary write 0+128 (of 0)",
    ]
    assert gated.ask("x-shim-let")["rules"] == []
    verified = gated.ask("x-shim-verify")
    assert verified["as-predicted"] and verified["compared"] > 0, verified


def test_all_receive_what_is_held(gated: Gated) -> None:
    gated.ask("x-shim-hold")
    gated.write("guest", 2, 16, 8)
    event = gated.wire.message()
    assert event["event"] == "X_SHIM_HELD"
    assert event["data"]["number"] == 1
    assert event["data"]["step"] == gated.until_held(1)[0]
    gated.ask("x-shim-let")
    gated.until_over()


def test_a_blocked_command_does_not_block_the_io_controller(gated: Gated) -> None:
    """A checkpoint waits for the I/O that is held; out of band it can be let go nevertheless.

    A read is held: a checkpoint with a write in flight may be the end of QEMU.
    """
    gated.ask("x-shim-hold", disk="secondary", operation="read")
    gated.start("guest", lambda c: c.read(CLUSTER, 0))
    gated.until_held(1)
    gated.wire.send(b'{"execute": "xen-colo-do-checkpoint", "id": "c"}')
    wait_until(lambda: "start 1: checkpoint" in gated.urgent("x-shim-schedule")["steps"])
    assert gated.urgent("x-shim-let")["rules"] == []
    gated.until_over()
    status = gated.ask("x-shim-status")
    assert any("I/O was held" in doubt for doubt in status["doubts"])


def test_what_was_done_is_a_bundle_that_replays(gated: Gated, tmp_path: Path) -> None:
    gated.write("primary", 2)
    gated.until_over()  # this one is the setup
    gated.ask("x-shim-hold", disk="hidden", operation="write")
    gated.write("primary", 3, SECTORS, SECTORS)
    gated.until_held(1)
    gated.start("guest", lambda c: c.read(2 * CLUSTER, 0))
    gated.ask("x-shim-let")
    gated.until_over()
    recorded = gated.ask("x-shim-record")
    assert (recorded["kind"], recorded["shows"]) == ("schedule", "as allowed")
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(recorded["case"]))
    finding = load_finding(path)
    assert len(finding.scenario.setup) == 1 and len(finding.scenario.ops) == 2
    build = gated.served.build
    assert build is not None
    assert replay_schedule(finding, build).shows(finding)
    again = gated.ask("x-shim-replay", bundle=str(path))
    assert again == {"reproduced": True, "operations": 3}


def test_zeroes_without_a_hole_are_another_operation(gated: Gated, tmp_path: Path) -> None:
    """NBD's NO_HOLE is part of what was done: a replay that may unmap would be another case."""
    for no_hole in (True, False):

        def zero(client: NbdClient, no_hole: bool = no_hole) -> None:
            client.wait(client.submit_zero(CLUSTER, 0, no_hole=no_hole))

        gated.start("primary", zero)
        gated.until_over()
    recorded = gated.ask("x-shim-record")
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(recorded["case"]))
    scenario = load_finding(path).scenario
    done = [op.name for op in (*scenario.setup, *scenario.ops)]
    assert done == ["primary_zero_no_hole", "primary_zero"]


def test_a_client_that_leaves_takes_no_knowledge_along(gated: Gated) -> None:
    """What QEMU has received it does, although nothing waits for it any more: the model knows."""
    gated.ask("x-shim-hold", disk="hidden", operation="write")
    client = NbdClient(gated.uris["primary"], LIMIT, plain=True)
    data = bytes(data_of(2, 0, SECTORS))
    client.submit_write(data, 0)
    gated.until_held(1)
    client.close()
    gated.ask("x-shim-let")
    gated.until_over()
    verified = gated.ask("x-shim-verify")
    assert verified["as-predicted"], verified
    assert gated.ask("x-shim-predict", node="secondary", length=512)["extents"][0]["operation"] > 1


def test_an_io_is_ended_with_an_error(gated: Gated) -> None:
    gated.ask("x-shim-hold", disk="active", operation="write")
    seen: list[str] = []

    def work(client: NbdClient) -> None:
        try:
            client.wait(client.submit_write(data_of(2, 0, SECTORS), 0))
        except Exception as error:
            seen.append(str(error))

    gated.start("guest", work)
    gated.until_held(1)
    gated.ask("x-shim-release", number=1, errno=5)
    gated.until_over()
    assert seen == ["NBD request: EIO: Input/output error"]
    assert any(
        step.startswith("fail active write") for step in gated.ask("x-shim-schedule")["steps"]
    )
    assert gated.ask("x-shim-record")["shows"] == "as allowed"
    assert gated.ask("x-shim-verify")["doubts"]


def test_what_was_found_by_hand_is_written_up(gated: Gated, tmp_path: Path) -> None:
    """A copy fails and the status says nothing: the bundle's draft is a write-up."""
    gated.ask("x-shim-hold", disk="hidden", operation="write")
    errors: list[Exception] = []

    def work(client: NbdClient) -> None:
        try:
            client.wait(client.submit_write(data_of(2, 0, SECTORS), 0))
        except IOFailed as error:
            errors.append(error)

    gated.start("primary", work)
    gated.until_held(1)
    gated.ask("x-shim-release", number=1, errno=5)
    gated.until_over()
    assert len(errors) == 1
    bundle, draft = tmp_path / "by-hand.json", tmp_path / "known" / "found.json"
    draft.parent.mkdir()
    recorded = gated.ask("x-shim-record")
    assert recorded["shows"].startswith("error-contract: ")
    bundle.write_text(json.dumps(recorded["case"]))
    draft.write_text(draft_text(draft_of(bundle)))
    written = read(filled(draft))
    assert isinstance(written, ExplorerWriteUp)
    assert written.covers(load_finding(bundle), (7, 2, 22))


def test_wrong_words(gated: Gated) -> None:
    def error_text(name: str, **arguments: Any) -> str:
        return str(gated.wire.ask(name, arguments)["error"]["desc"])

    assert error_text("x-shim-hold", disk="tertiary") == "Invalid parameter 'tertiary'"
    assert "active disk" in error_text("x-shim-hold", disk="top")
    assert error_text("x-shim-release", number=7) == "7 is not held; held: nothing"
    assert "no errno" in error_text("x-shim-release", errno=0)
    assert "nothing was done" in error_text("x-shim-record")


def test_backup(loop: Loop, qemu_build: Build) -> None:
    gated = Gated(loop, qemu_build, workflow=Workflow.BACKUP)
    try:
        gated.ask("x-shim-hold", disk="secondary", operation="write")
        gated.write("primary", 2)
        assert gated.until_held(1) == ["secondary write 0+128 (of 0)"]
        gated.ask("x-shim-let")
        gated.until_over()
        gated.ask("block-job-cancel", device="backup")
        gated.until_over()
        recorded = gated.ask("x-shim-record")
        assert recorded["shows"] == "as allowed"
        assert [op["do"] for op in recorded["case"]["scenario"]["ops"]] == ["primary_write", "stop"]
    finally:
        gated.close()


def test_what_is_no_gated_chain(loop: Loop, qemu_build: Build) -> None:
    for wrong in (
        Options(build=qemu_build, gated=True),
        Options(build=qemu_build, gated=True, chain=ChainSpec(Workflow.BACKUP, 65 << 20)),
        Options(
            build=qemu_build,
            gated=True,
            chain=ChainSpec(Workflow.BACKUP, 1 << 20, secondary="qcow2"),
        ),
    ):
        with pytest.raises(InputError):
            loop.run(endpoint(wrong).__aenter__())


# -- the schedule ------------------------------------------------------------


def test_a_schedule_cannot_hold_everything() -> None:
    schedule = Schedule("replication", 2 * SECTORS, SECTORS)
    with pytest.raises(InputError, match="nothing was done"):
        schedule.case()
    running = schedule.begins("primary_write", 0, 8)
    with pytest.raises(InputError, match="still in flight"):
        schedule.case()
    assert len(schedule.case(dead=True)[0].ops) == 1
    schedule.ends(running, OK)
    for _ in range(MOST):
        running = schedule.begins("guest_read", 0, 8)
        schedule.ends(running, OK)
    scenario, steps = schedule.case()  # one after another: all but the last are the setup
    assert (len(scenario.setup), len(scenario.ops), steps) == (MOST, 1, (Start(0),))
    both = schedule.begins("guest_read", 0, 8), schedule.begins("checkpoint")
    for index in both:
        schedule.ends(index, OK)
    scenario, steps = schedule.case()
    assert steps == (Start(0), Start(1)) and not scenario.contract
    schedule.ends(schedule.begins("guest_zero", 0, 8), OK)
    with pytest.raises(InputError, match="guest zero"):
        schedule.case()


# -- the shell ------------------------------------------------------------

SHELL = [sys.executable, "-m", "qmpshim", "shell", "--gated", "--workflow", "replication"]


def _shell(tmp_path: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        SHELL, input="\n".join(lines), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )


def test_by_hand_in_the_shell(tmp_path: Path) -> None:
    done = _shell(
        tmp_path,
        ":hold hidden write",
        ":write primary 0 64k pattern",
        ":held",
        ":release 1",
        ":wait",
        ":let",
        ":verify",
        ":schedule",
        ":record bundle.json",
    )
    assert done.returncode == 0, done
    assert "in flight as 1: write primary 0 64k pattern" in done.stdout
    assert "   1 hidden write 0+128 (of 0)" in done.stdout
    assert "1 done: write primary 0 64k pattern: wrote 65536 bytes at 0" in done.stdout
    assert "as predicted" in done.stdout
    assert "held 1: hidden write" in done.stderr
    assert "shows: as allowed" in done.stdout
    done = _shell(tmp_path, ":schedule bundle.json", ":wait", ":schedule")
    assert done.returncode == 0, done
    assert done.stdout.count("complete hidden write 0+128 (of 0)") == 2


def test_the_shell_does_no_other_operation_than_the_schedules(tmp_path: Path) -> None:
    """One that it has no word for ends it before anything is done."""
    written = (DIRECTORY / "failover-undoes-primary-write.json").read_text()
    other = written.replace('"primary_write"', '"primary_zero_fast"')
    (tmp_path / "fast.json").write_text(other)
    done = _shell(tmp_path, ":schedule fast.json")
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "the shell cannot do primary zero fast" in done.stderr


def test_the_hint_of_a_recorded_session_names_the_build(tmp_path: Path, qemu_build: Build) -> None:
    """The system's by its path here; and it can be pasted."""
    named = str(qemu_build.binary) if qemu_build.name == "system" else qemu_build.name
    done = subprocess.run(
        [*SHELL, "--build", named],
        input=":write primary 0 64k pattern\n:wait\n:record by-hand.json",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done
    hint = f"`qmpshim replay by-hand.json --build {shlex.quote(named)}` shows: as allowed"
    assert hint in done.stdout


def test_a_schedule_of_the_explorer_by_hand(tmp_path: Path) -> None:
    """The known crash, step by step in the shell, leaves a bundle that shows it again."""
    case = DIRECTORY / "checkpoint-then-overlapping-write-aborts.json"
    done = _shell(tmp_path, f":schedule {case}", ":wait")
    assert done.returncode == 1, done
    assert "block_copy_task_create: Assertion" in done.stderr
    finding = load_finding(tmp_path / "qmpshim-bundles" / "by-hand-1.json")
    assert finding.verdict == "crash" and finding.cause == load_finding(case).cause


def test_what_is_left_in_flight(tmp_path: Path) -> None:
    done = _shell(tmp_path, ":hold", ":write guest 0 4k pattern")
    assert done.returncode == 1
    assert "still in flight: 1: write guest 0 4k pattern" in done.stderr


def test_a_person_holds_and_lets_go(tmp_path: Path) -> None:
    """The prompt is back while I/O is held; its end is printed as it comes."""
    child = pexpect.spawn(
        SHELL[0],
        SHELL[1:],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"},
        cwd=str(tmp_path),
        dimensions=(40, 100),
        timeout=LIMIT,
        encoding="utf-8",
    )
    child.expect("QEMU [0-9.]+.*:help")
    child.expect("qmp>")
    child.send(":hold seco")
    child.expect("secondary")  # the completion menu
    child.send("ndary write\r")
    child.expect("holding secondary write")
    child.send(":write primary 0 64k pattern\r")
    child.expect("held 1: secondary write 0\\+128")
    child.expect("in flight as 1")
    child.expect("qmp>")
    child.send("query-name\r")  # QEMU answers meanwhile
    child.expect("{}")
    child.send(":release 1\r")
    child.expect("1 done: write primary 0 64k pattern: wrote 65536 bytes")
    child.send("\x1b[A\x1b[A\r")  # twice up: what was typed before
    child.expect("name")
    child.send(":quit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    history = (tmp_path / "qmpshim" / "history").read_text()
    assert "+:hold secondary write" in history and "+query-name" in history
