"""The shell as a person uses it, on a pty against a real QEMU; and what its lines mean."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from prompt_toolkit.document import Document

from qmpshim.errors import InputError
from qmpshim.machine.host.workspace import dies_with_owner
from qmpshim.shim.shell.colours import COMMAND, KEY, LOCAL, NUMBER, STRING, WORD, Colours
from qmpshim.shim.shell.completion import CommandSchema, LiveNames, candidates
from qmpshim.shim.shell.language import Local, QmpRequest, complete, parse, size
from qmpshim.shim.shell.prompt import run_stoppable
from qmpshim.shim.shell.shell import Shell, ShellOptions
from qmpshim.shim.shell.words import draw_graph, draw_map, explain
from vmtests.support.stand_in import ARGS
from vmtests.support.terminal import say
from vmtests.support.waiting import wait_until

SHELL = """
import asyncio, sys
from pathlib import Path
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.shell.run import run_shell
from qmpshim.shim.shell.shell import ShellOptions
chain = ChainSpec(Workflow.REPLICATION, 4 << 20) if sys.argv[1] == "chain" else None
options = ShellOptions(serve=Options(chain=chain), commands=tuple(sys.argv[2:]))
sys.exit(asyncio.run(run_shell(options, sys.stdin, sys.stdout, sys.stderr)))
"""
SCHEMA: list[dict[str, Any]] = [
    {"name": "str", "meta-type": "builtin", "json-type": "string"},
    {"name": "bool", "meta-type": "builtin", "json-type": "boolean"},
    {"name": "1", "meta-type": "enum", "values": ["raw", "qcow2"]},
    {
        "name": "2",
        "meta-type": "object",
        "tag": "driver",
        "members": [{"name": "driver", "type": "1"}, {"name": "node-name", "type": "str"}],
        "variants": [{"case": "qcow2", "type": "3"}, {"case": "raw", "type": "4"}],
    },
    {
        "name": "3",
        "meta-type": "object",
        "members": [
            {"name": "file", "type": "5"},
            {"name": "lazy", "type": "bool", "default": None},
        ],
    },
    {"name": "4", "meta-type": "object", "members": [{"name": "offset", "type": "str"}]},
    {"name": "5", "meta-type": "alternate", "members": [{"type": "2"}, {"type": "str"}]},
    {"name": "blockdev-add", "meta-type": "command", "arg-type": "2", "ret-type": "4"},
    {"name": "block-job-cancel", "meta-type": "command", "arg-type": "6", "ret-type": "4"},
    {"name": "6", "meta-type": "object", "members": [{"name": "device", "type": "str"}]},
    {"name": "transaction", "meta-type": "command", "arg-type": "7", "ret-type": "4"},
    {
        "name": "7",
        "meta-type": "object",
        "members": [{"name": "actions", "type": "[8]"}, {"name": "kinds", "type": "[1]"}],
    },
    {"name": "8", "meta-type": "object", "members": [{"name": "mode", "type": "1"}]},
    {"name": "[8]", "meta-type": "array", "element-type": "8"},
    {"name": "[1]", "meta-type": "array", "element-type": "1"},
]


# -- what lines mean ------------------------------------------------------------


def test_lines() -> None:
    def message(line: str) -> dict[str, object]:
        item = parse(line)
        assert isinstance(item, QmpRequest)
        return item.message

    assert message("stop") == {"execute": "stop"}
    assert message("a b=1 c.d=true c.e=x f='1 2' g=[1,{'h':null}] i=-1.5 j=0x10 k=") == {
        "execute": "a",
        "arguments": {
            "b": 1, "c": {"d": True, "e": "x"}, "f": "1 2", "g": [1, {"h": None}], "i": -1.5,
            "j": 16, "k": "",
        },
    }  # fmt: skip
    assert message("{'execute': 'x',\n'id': 1}") == {"execute": "x", "id": 1}
    assert parse(":write primary 0 64k pattern") == Local(
        "write", ("primary", "0", "64k", "pattern")
    )
    assert parse("  # nothing") is None
    for wrong in (
        "a b",
        "a =1",
        "a b=1 b=2",
        "a b=1 b.c=2",
        "{]",
        "{",
        "a b='x",
        "a b={1}",
    ):
        with pytest.raises(InputError):
            parse(wrong)
    assert complete("stop") and complete("{}") and complete("{]")
    assert not complete("{'execute':") and not complete("stop \\")
    assert [size(t) for t in ("5", "64k", "1M", "2g")] == [5, 1 << 16, 1 << 20, 2 << 30]


def test_help_shows_the_branches_of_a_union() -> None:
    schema = CommandSchema(SCHEMA)
    assert explain(schema, "blockdev-add", "driver=qcow2") == [
        "blockdev-add",
        "  driver: raw|qcow2",
        "  node-name: string",
        "  with driver=qcow2",
        "    file: {driver, node-name} or string",
        "    lazy: boolean (optional)",
    ]
    assert explain(schema, "blockdev-add")[-2:] == ["  with driver=raw", "    offset: string"]
    with pytest.raises(InputError, match="blockdev-add has no mode=x: driver chooses"):
        explain(schema, "blockdev-add", "mode=x")
    with pytest.raises(InputError, match=r"block-job-cancel has no mode=x$"):
        explain(schema, "block-job-cancel", "mode=x")


def test_completion() -> None:
    schema, live = CommandSchema(SCHEMA), LiveNames(["n0", "n1"], ["j0"], ["e0"])

    def texts(line: str) -> list[str]:
        return [found.text for found in candidates(line, schema, live)]

    assert texts("block") == ["block-job-cancel", "blockdev-add"]
    assert texts(":ma") == [":map"]
    assert texts(":help blockdev-add d") == ["driver=qcow2", "driver=raw"]
    assert texts("blockdev-add ") == ["driver=", "node-name="]
    assert texts("blockdev-add driver=") == ["raw", "qcow2"]
    assert texts("blockdev-add driver=raw ") == ["node-name=", "offset="]
    assert texts("blockdev-add driver=qcow2 f") == ["file."]
    assert texts("blockdev-add driver=qcow2 file.") == ["file.driver=", "file.node-name="]
    assert texts("blockdev-add driver=qcow2 file.driver=raw file.o") == ["file.offset="]
    assert texts("blockdev-add driver=qcow2 lazy=") == ["true", "false"]
    assert texts("blockdev-add node-name=n") == ["n0", "n1"]
    assert texts("block-job-cancel device=") == ["j0"]
    assert texts('{"execute": "blo') == ["block-job-cancel", "blockdev-add"]
    assert texts('{"execute": "blockdev-add", "arguments": {"dr') == ["driver"]
    start = '{"execute": "blockdev-add", "arguments": {'
    assert texts(start + '"driver": "q') == ["qcow2"]
    assert texts(start + '"driver": "qcow2", "') == ["node-name", "file", "lazy"]
    assert texts(start + '"driver": "qcow2", "lazy": ') == ["true", "false"]
    assert texts(start + '"driver": "qcow2", "file": {"driver": "raw", ') == [
        '"node-name"',
        '"offset"',
    ]
    assert texts(start + "'driver': 'qcow2', 'file': {'driver': '") == ["raw", "qcow2"]
    assert texts(start + '"file": {"driver": "raw"}, "driver": "raw", "o') == ["offset"]
    assert texts(start + '"node-name": "') == ["n0", "n1"]
    assert texts(start + '"driver": "raw" ') == []
    assert texts('{"arguments": {"device": "j0"}, "execute": "block-job-cancel", "') == [
        "id",
        "exec-oob",
    ]
    assert texts('{"execute": "block-job-cancel",\n "arguments": {"device": "') == ["j0"]
    assert texts('{"execute": "transaction", "arguments": {"actions": [{"mode": "raw"}, {"m') == [
        "mode"
    ]
    assert texts('{"execute": "transaction", "arguments": {"actions": [{"mode": "') == [
        "raw",
        "qcow2",
    ]
    assert texts('{"execute": "transaction", "arguments": {"kinds": ["raw", "q') == ["qcow2"]
    assert texts(":hold hidden w") == ["write"]
    assert texts(":write gu") == ["guest"]


def test_colours() -> None:
    def coloured(text: str) -> list[tuple[str, str]]:
        lines = Colours().lex_document(Document(text))
        parts = [part for n in range(text.count("\n") + 1) for part in lines(n)]
        assert "".join(part[1] for part in parts) == text.replace("\n", "")
        return [(part[1], part[0]) for part in parts if part[0]]

    assert coloured("blockdev-add driver=raw size=5 x='a b'") == [
        ("blockdev-add", COMMAND),
        ("driver", KEY),
        ("size", KEY),
        ("5", NUMBER),
        ("x", KEY),
        ("'a b'", STRING),
    ]
    assert coloured(":write primary 0 64k pattern") == [
        (":write", LOCAL),
        ("0", NUMBER),
        ("64k", NUMBER),
    ]
    assert coloured('{"execute":\n "stop", "id": -1, "x": true, "half') == [
        ('"execute"', KEY),
        ('"stop"', STRING),
        ('"id"', KEY),
        ("-1", NUMBER),
        ('"x"', KEY),
        ("true", WORD),
        ('"half', STRING),
    ]


def test_drawings() -> None:
    answer = {
        "cluster-size": 4,
        "clusters": 8,
        "disks": [
            {"disk": "hidden", "runs": [
                {"start": 0, "count": 2, "allocation": "unallocated"},
                {"start": 2, "count": 1, "allocation": "data"},
                {"start": 3, "count": 5, "allocation": "zero"}]},
        ],
    }  # fmt: skip
    assert draw_map(answer, 8)[1] == "   hidden ..#00000"
    assert draw_map(answer, 4)[1] == "   hidden .#00"
    graph = {
        "nodes": [
            {"id": 1, "type": "block-driver", "name": "top"},
            {"id": 2, "type": "block-driver", "name": "low"},
        ],
        "edges": [{"parent": 1, "child": 2, "name": "file"}],
    }
    assert draw_graph(graph) == ["top", "  file: low"]


# -- scripts and pipes ------------------------------------------------------------


def _run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHELL, *words],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.usefixtures("qemu_on_path")
def test_commands_and_exit_status() -> None:
    done = _run("plain", "query-status", "stop", "query-status")
    assert done.returncode == 0
    values = [json.loads(line) for line in done.stdout.splitlines()]  # jq-friendly: values alone
    assert [value.get("running") for value in values] == [True, None, False]
    assert "STOP" in done.stderr
    done = _run("plain", "no-such", "query-status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has not been found" in done.stderr


@pytest.mark.usefixtures("qemu_on_path")
def test_escaped_quotes_reach_qemu(tmp_path: Path) -> None:
    """As qmp-shell takes them: the command within the command is one argument of it."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    lines = [
        f"blockdev-add driver=file node-name=va filename={disk}",
        r'human-monitor-command command-line="qemu-io va \"write -P 33 0 128k\""',
    ]
    done = _run("none", text="\n".join(lines) + "\n")
    assert done.returncode == 0, done
    assert disk.read_bytes() == bytes([33]) * (128 << 10) + bytes(896 << 10)


@pytest.mark.usefixtures("qemu_on_path")
def test_a_script_from_stdin_on_a_chain(tmp_path: Path) -> None:
    record = tmp_path / "record"
    script = f"""
# a comment
:log {record}
xen-set-replication enable=true primary=false
:write primary 0 64k pattern
:write guest 1M 4k 0x41
:read guest 1M 16
{{"execute":
  "query-name"}}
:map
:predict hidden 0 1k
:verify
:checkpoint
:verify
:log off
:record {tmp_path}/bundle.json
"""
    done = _run("chain", text=script)
    assert done.returncode == 0, done
    assert done.stdout.count("as predicted") == 3
    assert "41 41 41 41" in done.stdout
    assert re.search(r"active \.{16}#", done.stdout)
    again = _run("chain", text=f":source {record}")
    assert again.returncode == 0, again
    assert again.stdout.count("as predicted") == 2
    replayed = subprocess.run(
        [sys.executable, "-m", "qmpshim", "replay", str(tmp_path / "bundle.json")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert replayed.returncode == 0, replayed
    assert "reproduced: 7 operations went as predicted" in replayed.stdout


@pytest.mark.usefixtures("qemu_on_path")
@pytest.mark.parametrize("keeps_going", [True, False])
def test_an_error_that_is_expected_can_be_recorded(keeps_going: bool, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    option = ["--keep-going"] if keeps_going else []
    lines = [
        "xen-set-replication enable=true primary=false",
        ":write primary 0 64k 1",
        "no-such-command",
        f":record {bundle}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "qmpshim", "shell", "--workflow", "replication", *option],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done  # it failed, whatever came after it
    assert "no-such-command: The command no-such-command has not been found" in done.stderr
    assert bundle.exists() is keeps_going
    assert (f"wrote {bundle}" in done.stdout) is keeps_going


def test_what_cannot_be_done_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"query-name\n# caf\xe9\n")
    (tmp_path / "circle").write_text(f":source {tmp_path}/circle\n")
    for word in (
        ":write primary 0 64M 1",
        ":write primary 0 999999999T 1",
        ":read primary 0 1T",
        f":source {tmp_path}/latin",
        f":source {tmp_path}/circle",
        '{"execute": "query-name\udcff"}',
    ):
        done = _run("chain", word)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done


def test_a_pipe_is_read_as_it_comes_and_not_waited_for(tmp_path: Path) -> None:
    """Its writer may want the first answer before the next line."""
    errors = (tmp_path / "errors").open("wb")
    with (
        errors,
        subprocess.Popen(
            [sys.executable, "-m", "qmpshim", "shell"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as shell,
    ):
        assert shell.stdin is not None and shell.stdout is not None
        for _ in range(2):
            shell.stdin.write(b"query-name\n")
            shell.stdin.flush()
            assert shell.stdout.readline() == b"{}\n"
        shell.send_signal(signal.SIGINT)  # the pipe stays open
        assert shell.wait(60) == 130


async def test_a_line_that_is_stopped_and_a_shell_that_is() -> None:
    """Ctrl-C stops the line; what ends the shell must not be taken for it."""
    out = io.StringIO()
    shell = Shell(ShellOptions(), out, out)
    shell.run_line = lambda _: asyncio.sleep(60, True)  # type: ignore[method-assign, assignment]
    before = signal.getsignal(signal.SIGINT)
    line = asyncio.ensure_future(run_stoppable(shell, "x"))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    await line
    assert "not waited for" in out.getvalue()
    assert signal.getsignal(signal.SIGINT) == before
    line = asyncio.ensure_future(run_stoppable(shell, "x"))
    await asyncio.sleep(0)
    line.cancel()
    with pytest.raises(asyncio.CancelledError):
        await line


@pytest.mark.parametrize("greeting", [b"{}\n", b"[1]\n", b"SSH-2.0\r\n"])
def test_an_endpoint_that_does_not_speak_qmp(tmp_path: Path, greeting: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-m", "qmpshim", "shell", str(tmp_path / "s"), "-c", "stop"],
            stderr=subprocess.PIPE,
        ) as shell:
            peer, _ = listening.accept()
            peer.sendall(greeting)
            _, errors = shell.communicate(timeout=60)
            peer.close()
    assert (shell.returncode, errors.count(b"\n")) == (2, 1) and b"QMP" in errors, errors


# -- a QEMU that runs already ------------------------------------------------------------


def test_a_qemu_that_runs_already(tmp_path: Path) -> None:
    """What would start another is refused; that it lives on, or is gone, is printed."""
    path = f"unix:{tmp_path}/m"
    with subprocess.Popen(
        dies_with_owner(["qemu-system-x86_64", *ARGS, "-qmp", f"{path},server=on,wait=off"])
    ) as qemu:
        try:
            wait_until(lambda: (tmp_path / "m").exists())
            for words in (
                ["shell", path, "--workflow", "backup"],
                ["shell", path, "--build", "debian:sid"],
                ["serve", "--qmp", path, "--", "-m", "64"],
                ["serve", "--qmp", path, "--gated"],
            ):
                done = subprocess.run(
                    [sys.executable, "-m", "qmpshim", *words],
                    capture_output=True, text=True, timeout=60,
                )  # fmt: skip
                assert done.returncode == 2 and "that the shim starts" in done.stderr, done
            for end, ending in ((signal.SIGTERM, b"QEMU lives on"), (None, b"is gone")):
                with subprocess.Popen(
                    [sys.executable, "-m", "qmpshim", "serve", "--qmp", path],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                ) as server:
                    assert server.stdout is not None
                    assert server.stdout.readline().startswith(b"listening")
                    if end:
                        server.send_signal(end)
                    else:
                        qemu.kill()
                    assert ending in server.communicate(timeout=60)[0]
                    assert server.returncode == (143 if end else 0)
                assert (qemu.poll() is None) == bool(end) or not end
        finally:
            qemu.kill()


# -- a person ------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path, qemu_on_path: None) -> Iterator[pexpect.spawn]:
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    child = pexpect.spawn(
        sys.executable,
        ["-c", SHELL, "chain"],
        env=env,
        dimensions=(30, 100),
        timeout=60,
        encoding="utf-8",
    )
    child.expect("QEMU [0-9.]+.*:help")
    child.expect("qmp>")
    yield child
    child.close(force=True)
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("qmpshim-*")))


def test_a_session(terminal: pexpect.spawn) -> None:
    terminal.send("query-st")
    terminal.expect("query-status")  # the completion menu
    say(terminal, "atus", '"running": true')
    terminal.send("blockdev-add dri\t")
    terminal.expect("driver=")
    terminal.send("\x03")  # Ctrl-C forgets the line
    terminal.expect("qmp>")
    terminal.send('{"execute":\r')
    terminal.expect(r"\.\.\.")  # it goes on
    terminal.send('"stop"}\r')
    terminal.expect(r"\[\d\d:\d\d:\d\d\] STOP")
    say(terminal, ":help xen-set-replication", "failover: boolean \\(optional\\)")
    terminal.setwinsize(40, 60)
    terminal.kill(signal.SIGWINCH)
    say(terminal, "cont", "RESUME")
    terminal.send("\x04")  # Ctrl-D leaves
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_events_do_not_break_the_line_being_typed(terminal: pexpect.spawn, tmp_path: Path) -> None:
    # Sleeping a moment in QEMU's own monitor is not possible; a job's events come by themselves.
    terminal.send("blockdev-create job-id=c options={'driver':'file','filename':'%s','size':512}\r"
                  % (tmp_path / "f"))  # fmt: skip
    terminal.send("query-na")
    terminal.expect("JOB_STATUS_CHANGE")
    terminal.expect("concluded")
    say(terminal, "me", r"\{\}")
    assert "not been found" not in terminal.before


def test_qemu_dies_under_it(terminal: pexpect.spawn) -> None:
    terminal.send("half a line")
    children = Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children").read_text().split()
    for pid in children:
        if "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(int(pid), signal.SIGKILL)
    terminal.expect("QEMU was killed by SIGKILL")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 1


def test_quit_in_qemu_ends_the_session(terminal: pexpect.spawn) -> None:
    say(terminal, "quit", "SHUTDOWN", pexpect.EOF)
