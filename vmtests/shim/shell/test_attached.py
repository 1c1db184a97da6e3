"""The shell on a QEMU that runs already: plain, or with a shim before it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from prompt_toolkit.document import Document

from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.shell.colours import COMMAND, KEY, NUMBER, WORD, Colours
from qmpshim.shim.shell.completion import CommandSchema, LiveNames, candidates
from qmpshim.shim.shell.shell import Shell, ShellOptions
from qmpshim.shim.shell.words import NEEDS_SHIM
from vmtests.support.stand_in import qemu_at
from vmtests.support.terminal import say

QMPSHIM = (sys.executable, "-m", "qmpshim")


def shell(
    directory: Path, *words: str, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A shell that runs to its end in *directory*."""
    return subprocess.run(
        [*QMPSHIM, "shell", *words],
        cwd=directory, input=text, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def run_lines(address: str, lines: list[str]) -> list[tuple[str, tuple[bool, str, str]]]:
    """Each line, whether it went well, and what a shell in this process wrote to each stream."""

    async def run() -> list[tuple[str, tuple[bool, str, str]]]:
        out, err = io.StringIO(), io.StringIO()
        made = Shell(ShellOptions(), out, err)
        await made.connect(Address.parse(address))
        printed = []
        for line in lines:
            well = await made.run_line(line)
            printed.append((line, (well, out.getvalue(), err.getvalue())))
            for stream in (out, err):
                stream.seek(0)
                stream.truncate()
        await made.close()
        return printed

    return asyncio.run(run())


@contextmanager
def typed(directory: Path, *words: str, until: str = "qmp>") -> Iterator[pexpect.spawn]:
    """A shell on a terminal that has shown *until*: a regular expression; else ready for a line."""
    env = {**os.environ, "XDG_STATE_HOME": str(directory / "state"), "TERM": "xterm"}
    child = pexpect.spawn(
        QMPSHIM[0], [*QMPSHIM[1:], "shell", *words],
        cwd=directory, env=env, dimensions=(30, 160), timeout=120, encoding="utf-8",
    )  # fmt: skip
    try:
        child.expect("QEMU [0-9.]+.*:help")
        child.expect(until)
        yield child
    finally:
        child.close(force=True)


def test_a_socket_needs_no_slash(
    tmp_path: Path, qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no socket is there"):
        Address.parse("qmp.sock")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no socket is there"):
        Address.parse("file")
    with qemu_at(qemu_build, tmp_path):
        assert Address.parse("qmp.sock") == Address.parse("unix:qmp.sock")
        done = shell(tmp_path, "qmp.sock", "-c", "query-name")
        assert (done.returncode, done.stdout) == (0, "{}\n"), done
        server = subprocess.Popen(
            [*QMPSHIM, "serve", "--qmp", "qmp.sock", "--listen", "unix:shim.sock"],
            cwd=tmp_path, stdout=subprocess.PIPE,
        )  # fmt: skip
        with server:
            assert server.stdout is not None and b"listening" in server.stdout.readline()
            stressed = subprocess.run(
                [*QMPSHIM, "stress", "shim.sock", "--clients", "3", "--messages", "5"],
                cwd=tmp_path, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert stressed.returncode == 0, stressed
            server.terminate()


def test_a_shell_that_quits_does_not_end_a_qemu_that_it_did_not_start(
    tmp_path: Path, qemu_build: Build
) -> None:
    with qemu_at(qemu_build, tmp_path) as qemu:
        with typed(tmp_path, "qmp.sock") as terminal:
            say(terminal, "quit", r"QEMU lives on\. To end it: qmpshim (shell \S+ -c quit) ")
            command = shlex.split(terminal.match[1])
            terminal.expect(pexpect.EOF)
            terminal.close()
            assert (terminal.exitstatus, qemu.poll()) == (0, None)
        with typed(tmp_path, "qmp.sock") as terminal:
            say(terminal, "exit", pexpect.EOF)
        assert qemu.poll() is None
        assert shell(tmp_path, *command[1:]).returncode == 0  # as it was printed
        assert qemu.wait(60) == 0
    with qemu_at(qemu_build, tmp_path) as qemu, typed(tmp_path, "qmp.sock") as terminal:
        terminal.send('{"execute": "quit"}\r')
        terminal.expect(pexpect.EOF)
        assert qemu.wait(60) == 0


def test_what_quit_is_in_scripts(tmp_path: Path, qemu_build: Build) -> None:
    """There it is QEMU's command, as qmp-shell's users wrote it; exit ends the script alone."""
    (tmp_path / "script").write_text("quit\n")
    with qemu_at(qemu_build, tmp_path) as qemu:
        assert shell(tmp_path, "qmp.sock", text="exit\nquit\n").returncode == 0
        assert shell(tmp_path, "qmp.sock", "-c", ":quit", "-c", "quit").returncode == 0
        assert qemu.poll() is None
        assert shell(tmp_path, "qmp.sock", "--script", "script").returncode == 0
        assert qemu.wait(60) == 0
    with qemu_at(qemu_build, tmp_path) as qemu:
        assert shell(tmp_path, "qmp.sock", text="quit\n").returncode == 0
        assert qemu.wait(60) == 0


def test_the_shims_words_on_a_plain_qemu(tmp_path: Path, qemu_build: Build) -> None:
    (tmp_path / "with blank").mkdir()
    directory = tmp_path / "with blank"
    with qemu_at(qemu_build, directory):
        where = f"{directory}/qmp.sock"
        for word, (well, _, err) in run_lines(where, [f":{word}" for word in sorted(NEEDS_SHIM)]):
            assert (well, err.count("\n")) == (False, 1), (word, err)
            assert f"{word} asks a shim, and this is a plain QEMU" in err
        commands = [shlex.split(part) for part in re.findall("`(.*?)`", err)]
        assert [words[:2] for words in commands] == [["qmpshim", "serve"], ["qmpshim", "shell"]]
        # What was printed, pasted:
        with subprocess.Popen(
            [*QMPSHIM, *commands[0][1:]], cwd=tmp_path, stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None and b"listening" in server.stdout.readline()
            done = shell(tmp_path, *commands[1][2:], "-c", ":status")
            assert done.returncode == 0 and "operations" in done.stdout, done
            server.terminate()
        words = [":graph", ":help", ":help qmp-shell", ":wait", "help stop", "? stop"]
        for word, (well, out, err) in run_lines(where, words):
            assert (well, err) == (True, ""), (word, err)
            assert word in (":graph", ":wait") or out


def test_a_line_for_the_human_monitor(tmp_path: Path, qemu_build: Build) -> None:
    """Quotes within quotes: the data that was written is there."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    node = "node-name=va,driver=raw,file.driver=file,file.filename=disk"
    with qemu_at(qemu_build, tmp_path, "-blockdev", node):
        done = shell(
            *(tmp_path, "qmp.sock", "-c"),
            r'human-monitor-command command-line="qemu-io va \"write -P 33 0 128k\""',
            *("-c", ':hmp qemu-io va "write -P 34 128k 512"', "-c", ":hmp info version"),
        )
        assert done.returncode == 0, done
        assert re.search(r"^\d+\.\d+\.\d+", done.stdout, re.MULTILINE), done
    assert (tmp_path / "disk").read_bytes()[: (128 << 10) + 1024] == (
        b"\x21" * (128 << 10) + b"\x22" * 512 + bytes(512)
    )


def test_a_transaction_over_several_lines(tmp_path: Path, qemu_build: Build) -> None:
    node = ["-blockdev", "driver=null-co,node-name=n,size=1048576"]
    with qemu_at(qemu_build, tmp_path, *node):
        with typed(tmp_path, "qmp.sock") as terminal:
            say(terminal, ":log log", "qmp>")
            say(terminal, "transaction(", "TRANS>")
            say(terminal, "block-dirty-bitmap-add node=n name=never", "TRANS>")
            terminal.send("\x03")  # Ctrl-C: none of it is sent
            terminal.expect("qmp>")
            say(terminal, "transaction(", "TRANS>")
            for action in ("add", "disable"):
                say(terminal, f"block-dirty-bitmap-{action} node=n name=b0", "TRANS>")
            say(terminal, ")", r"\{\}")
            say(terminal, "exit", pexpect.EOF)
        script = (tmp_path / "log").read_text()
        assert "never" not in script and script.count("block-dirty-bitmap") == 2
        (tmp_path / "log").write_text(script.replace("b0", "b1"))
        done = shell(tmp_path, "qmp.sock", "--script", "log")
        assert done.returncode == 0, done
        done = shell(tmp_path, "qmp.sock", text="transaction(\nabort\n")
        assert done.returncode == 1 and "does not end" in done.stderr
        done = shell(
            *(tmp_path, "qmp.sock", "-c"),
            "transaction( block-dirty-bitmap-add node=n name=b2 )",
            *("-c", "query-named-block-nodes flat=true"),
        )
        nodes = json.loads(done.stdout.splitlines()[-1])
        bitmaps = {b["name"]: b["recording"] for n in nodes for b in n.get("dirty-bitmaps", [])}
        assert bitmaps == {"b0": False, "b1": False, "b2": True}


def test_any_export_is_written_to(tmp_path: Path, qemu_build: Build) -> None:
    """Also one of a node outside of the chain, by its id; the chain is judged as before."""
    with typed(tmp_path, "--build", qemu_build.name, "--workflow", "replication") as terminal:
        say(terminal, "xen-set-replication enable=true primary=false", r"\{\}")
        node = "driver=null-co node-name=aside size=1048576 read-zeroes=true"
        say(terminal, f"blockdev-add {node}", r"\{\}")
        export = "type=nbd id=spare name=other node-name=aside writable=true"
        say(terminal, f"block-export-add {export}", r"\{\}")
        terminal.send(":write s")
        terminal.expect("spare")  # the completion menu
        say(terminal, "pare 0 64k pattern", "wrote 65536 bytes at 0 through spare")
        for line, expected in (
            (":write spare 0 4k zero", "wrote 4096"),
            (":read spare 0 16", "00 00 00 00"),
            (":discard spare 0 64k", "discarded 65536"),
            (":flush spare", "flushed through spare"),
            (":write primary 0 64k 0x5a", "through primary"),
            (":verify", "as predicted"),
            (":write nothing 0 64k 1", "there is no NBD export 'nothing': primary, guest, "),
        ):
            say(terminal, line, re.escape(expected))
        say(terminal, "exit", pexpect.EOF)


def test_completion_in_a_transaction() -> None:
    schema = CommandSchema(
        [
            {"name": "str", "meta-type": "builtin", "json-type": "string"},
            {"name": "kind", "meta-type": "enum", "values": ["abort", "bitmap-add"]},
            {"name": "0", "meta-type": "object"},
            {"name": "1", "meta-type": "object", "members": [{"name": "actions", "type": "[2]"}]},
            {"name": "[2]", "meta-type": "array", "element-type": "2"},
            {
                "name": "2", "meta-type": "object", "tag": "type",
                "members": [{"name": "type", "type": "kind"}],
                "variants": [{"case": "bitmap-add", "type": "3"}, {"case": "abort", "type": "0"}],
            },
            {"name": "3", "meta-type": "object", "members": [{"name": "data", "type": "4"}]},
            {
                "name": "4", "meta-type": "object",
                "members": [{"name": "node", "type": "str"}, {"name": "name", "type": "str"}],
            },
            {"name": "transaction", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
        ]
    )  # fmt: skip
    live = LiveNames(["n0"], [], ["e0", "v0"], ["e0"])

    def texts(line: str) -> list[str]:
        return [found.text for found in candidates(line, schema, live)]

    assert texts("transaction( bit") == texts("transaction(\nabort\nbit") == ["bitmap-add"]
    assert texts("transaction(\nbitmap-add n") == ["node=", "name="]
    assert texts("transaction(\nbitmap-add node=") == ["n0"]
    assert texts("transaction(\nbitmap-add node=n0 ") == ["name="]
    assert texts("transaction(\nabort ") == []
    assert texts(":write ") == ["primary", "guest", "e0"]
    assert texts("he") == ["help"]
    assert texts("help tr") == texts("? tr") == texts(":help tr") == ["transaction"]


def test_colours_in_a_transaction() -> None:
    lines = Colours().lex_document(Document("transaction(\nabort a=1 b=True"))
    assert [(part[1], part[0]) for part in lines(1) if part[0]] == [
        ("abort", COMMAND), ("a", KEY), ("1", NUMBER), ("b", KEY), ("True", WORD),
    ]  # fmt: skip


@pytest.mark.parametrize("workflow", ["backup", "replication"])
def test_it_says_what_starts_its_chain(tmp_path: Path, qemu_build: Build, workflow: str) -> None:
    """And that line, typed as it stands, is what the model waits for."""
    words = ("--build", qemu_build.name, "--workflow", workflow)
    with typed(tmp_path, *words, until="disks from: ([^\r]*)") as terminal:
        line = terminal.match[1]
        terminal.expect("qmp>")
        say(terminal, line, r"\{\}")
        say(terminal, ":verify", "as predicted: ")
