"""The endpoint as a service: which clients may come, other projects' clients, and as the binary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from qemu.qmp import QMPClient

from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.monitors import Monitor, extract
from qmpshim.shim.emulator.serve import Options, endpoint
from qmpshim.shim.endpoint.listener import Address, Listener, tls_context
from vmtests.support.shim_harness import LIMIT, Loop, Process, Wire
from vmtests.support.stand_in import ARGS, PROGRAM, SERVE, started
from vmtests.support.waiting import until, wait_until


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait_until_ended(pid: int) -> None:
    wait_until(lambda: not _running(pid))


def _client(path: Path) -> Wire:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    wait_until(lambda: not sock.connect_ex(str(path)))
    return Wire(sock)


# -- other people's clients ------------------------------------------------------------


async def test_qemu_qmp(address: Path) -> None:
    clients = [QMPClient(f"{n}") for n in range(8)]
    for one in clients:
        await one.connect(str(address))

    async def chat(one: QMPClient) -> None:
        for number in range(8):
            if number % 4 == 0:
                await one.execute("stop")
                await one.execute("cont")
            version: Any = await one.execute("query-version")
            assert version["qemu"]["major"] >= 5
            await one.execute("query-qmp-schema")

    await asyncio.wait_for(asyncio.gather(*(chat(one) for one in clients)), 60)
    for one in clients:
        await one.disconnect()


def test_qmp_shell(address: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", str(address)],
        input=b"query-status\nx-shim-status\n",
        capture_output=True,
        timeout=LIMIT,
    )
    assert b'"running"' in done.stdout or b"'running'" in done.stdout, done
    assert b"endpoints" in done.stdout


def test_netcat_style(address: Path) -> None:
    program = os.environ.get("SOCAT") or shutil.which("socat")
    if program is None:
        pytest.skip("no socat")
    done = subprocess.run(
        [program, "-t5", "-", f"UNIX-CONNECT:{address}"],
        input=b"{'execute':'qmp_capabilities'}{'execute':'query-name'}",
        capture_output=True,
        timeout=LIMIT,
    )
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [
        ["QMP"],
        ["return"],
        ["return"],
    ]


# -- which clients may come ----------------------------------------------------


def test_the_socket_is_private(address: Path) -> None:
    assert stat.S_IMODE(address.stat().st_mode) == 0o600


@pytest.mark.usefixtures("qemu_on_path")
def test_without_an_address_to_listen_on_it_is_private(loop: Loop) -> None:
    """The directory is ours alone, and so is each socket in it, those of the NBD endpoints too."""
    context = endpoint(Options(chain=ChainSpec(Workflow.BACKUP, 1 << 20)))
    served = loop.run(context.__aenter__())
    try:
        path = served.addresses[0].path
        assert path is not None
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        relays = list((path.parent / "watch").glob("*.sock"))
        assert relays
        for socket_ in (path, *relays):
            assert stat.S_IMODE(socket_.stat().st_mode) == 0o600
    finally:
        loop.run(context.__aexit__(None, None, None))
    assert not path.parent.exists()


def test_a_client_finds_a_qemu_that_has_come_up(tmp_path: Path, qemu_build: Build) -> None:
    """Else a client would wait for one that hangs before it greets, and get nothing."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    script = tmp_path / "qemu-system-x86_64"
    wait = f"touch {begun}; until [ -e {go} ]; do sleep 0.05; done"
    words = [f"{name}={value}" for name, value in qemu_build.env.items()] + qemu_build.command()
    script.write_text(f'#!/bin/sh\n{wait}; exec env {" ".join(words)} "$@"\n')
    script.chmod(0o755)
    path = tmp_path / "s"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with started([*SERVE, f"unix:{path}"], env=env) as process:
        wait_until(begun.exists)
        assert not path.exists()
        go.touch()
        assert process.stdout is not None and process.stdout.readline()
        with contextlib.closing(_client(path)) as client:
            assert "QMP" in client.message()
            assert client.ask("qmp_capabilities") == {"return": {}}
            assert client.ask("quit") == {"return": {}}
        assert process.wait(LIMIT) == 0


def test_addresses() -> None:
    assert Address.parse("unix:a b").path == Path("a b")
    assert Address.parse("/x/y").path == Path("/x/y")
    assert str(Address.parse("localhost:1")) == "localhost:1"
    assert str(Address.parse("[::1]:4444")) == "[::1]:4444"
    for wrong in ("", "unix:", "host", "host:99999", "a:b:1"):
        with pytest.raises(InputError):
            Address.parse(wrong)
    assert Address.parse("127.0.0.9:1").is_loopback
    assert not Address.parse("0.0.0.0:1").is_loopback
    assert not Address.parse("example.org:1").is_loopback


def test_remote_needs_permission_and_tls(loop: Loop, tmp_path: Path) -> None:
    address = Address.parse("0.0.0.0:0")
    with pytest.raises(InputError, match="--allow-remote"):
        loop.call(lambda: Listener(address, lambda sock: None))
    with pytest.raises(InputError, match="--tls"):
        loop.call(lambda: Listener(address, lambda sock: None, True))
    with pytest.raises(InputError, match="server-cert"):
        tls_context(tmp_path)


def test_a_taken_address_is_left_alone_and_a_dead_one_taken_over(
    loop: Loop, tmp_path: Path
) -> None:
    path = tmp_path / "s"

    def listen() -> Listener:
        return Listener(Address(path=path), lambda sock: sock.close())

    first = loop.call(listen)
    with pytest.raises(InputError, match="another server"):
        loop.call(listen)
    os.rename(path, tmp_path / "moved")
    os.rename(tmp_path / "moved", path)
    loop.run(first.close())
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    loop.run(loop.call(listen).close())
    path.write_text("precious")
    with pytest.raises(InputError, match="no socket"):
        loop.call(listen)
    assert path.read_text() == "precious"


def test_another_user_is_refused(loop: Loop, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to become another user")
    path = tmp_path / "s"
    came: list[socket.socket] = []

    listener = loop.call(lambda: Listener(Address(path=path), came.append))
    path.chmod(0o666)  # even when the mode is opened
    for directory in [tmp_path, *tmp_path.parents][:-1]:
        directory.chmod(directory.stat().st_mode | 0o711)
    code = (
        f"import os,socket; os.setuid(65534); s=socket.socket(socket.AF_UNIX); "
        f"s.connect({str(path)!r}); print(s.recv(10))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, timeout=LIMIT)
    if b"Permission" not in done.stderr:
        assert done.stdout == b"b''\n", done
        assert listener.refused == 1
    assert not came
    loop.run(listener.close())


def test_tls(loop: Loop, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    subject = ["-nodes", "-days", "2", "-newkey", "rsa:2048", "-x509", "-subj", "/CN=localhost"]
    for name in ("ca", "other"):
        subprocess.run(
            ["openssl", "req", *subject, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem"],
            cwd=tmp_path, capture_output=True, check=True,
        )  # fmt: skip
    shutil.copy(tmp_path / "ca-cert.pem", tmp_path / "server-cert.pem")
    shutil.copy(tmp_path / "ca-key.pem", tmp_path / "server-key.pem")
    came: list[socket.socket] = []

    def attach(sock: socket.socket) -> None:
        came.append(sock)
        sock.setblocking(True)
        sock.sendall(b"hello\r\n")

    here = Address.parse("127.0.0.1:0")
    listener = loop.call(lambda: Listener(here, attach, True, tls_context(tmp_path)))
    for name, welcome in (("ca", True), ("other", False)):
        context = ssl.create_default_context(cafile=str(tmp_path / "ca-cert.pem"))
        context.load_cert_chain(tmp_path / f"{name}-cert.pem", tmp_path / f"{name}-key.pem")
        with socket.create_connection(("127.0.0.1", listener.address.port), LIMIT) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="localhost") as client:
                    assert (client.recv(100) == b"hello\r\n") == welcome
            except (ssl.SSLError, ConnectionError):
                assert not welcome
    assert len(came) == 1
    loop.run(listener.close())
    for sock in came:
        sock.close()


def _certificates(directory: Path) -> ssl.SSLContext:
    """A server's certificates in *directory*, and what its clients need."""
    subject = ["-nodes", "-days", "2", "-newkey", "rsa:2048", "-x509", "-subj", "/CN=localhost"]
    subprocess.run(
        ["openssl", "req", *subject, "-keyout", "server-key.pem", "-out", "server-cert.pem"],
        cwd=directory, capture_output=True, check=True,
    )  # fmt: skip
    shutil.copy(directory / "server-cert.pem", directory / "ca-cert.pem")
    context = ssl.create_default_context(cafile=str(directory / "ca-cert.pem"))
    context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
    return context


def test_a_tls_client_that_is_cut_off_leaves_nothing(loop: Loop, tmp_path: Path) -> None:
    """It takes nothing, so what was to be sent to it never leaves: it must not wait for ever."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    context = _certificates(tmp_path)
    came: list[socket.socket] = []

    here = Address.parse("127.0.0.1:0")
    listener = loop.call(lambda: Listener(here, came.append, True, tls_context(tmp_path)))
    before = loop.call(lambda: len(asyncio.all_tasks()))
    with socket.create_connection(("127.0.0.1", listener.address.port), LIMIT) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with context.wrap_socket(raw, server_hostname="localhost"):
            wait_until(lambda: bool(came))
            came[0].settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    came[0].sendall(bytes(1 << 20))
            assert loop.call(lambda: len(asyncio.all_tasks())) > before  # the one that speaks TLS
            came[0].close()
            wait_until(lambda: loop.call(lambda: len(asyncio.all_tasks())) <= before)
    loop.run(listener.close())


def test_a_path_too_long_for_a_socket(loop: Loop, tmp_path: Path) -> None:
    address = Address(path=tmp_path / ("d" * 120))

    async def listen() -> None:
        Listener(address, lambda _: None)

    for what in (listen, address.connect):
        with pytest.raises(InputError, match="AF_UNIX path too long"):
            loop.run(what())


def test_an_endpoint_that_is_given_up_leaves_no_qemu(loop: Loop, qemu_build: Build) -> None:
    """Cancelled while QEMU starts."""

    async def give_up(rounds: int) -> bool:
        async def enter() -> None:
            async with endpoint(Options(build=qemu_build)):
                pass

        entering = asyncio.ensure_future(enter())
        await until(lambda: _children("qemu-system") or entering.done())
        for _ in range(rounds):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        return entering.cancelled()

    for rounds in (0, 3, 30):
        assert loop.run(give_up(rounds))
        wait_until(lambda: not _children("qemu-system"))  # it was killed; that takes its time


def _children(name: str) -> list[str]:
    """Processes that this one started and that run *name*."""
    listed = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", name], capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


# -- the shim's own end ------------------------------------------------------------


@pytest.mark.usefixtures("qemu_on_path")
def test_a_started_qemu_dies_with_the_shim(tmp_path: Path) -> None:
    with started([*SERVE, f"unix:{tmp_path / 's'}"]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert _running(pid)
        process.send_signal(signal.SIGKILL)
        _wait_until_ended(pid)


def test_an_attached_qemu_lives_on(tmp_path: Path, qemu_build: Build) -> None:
    path = tmp_path / "q"
    args = (*ARGS, "-qmp", f"unix:{path},server=on,wait=off")
    qemu = Process(qemu_build, args)
    try:
        wait_until(path.exists)
        for _ in range(2):  # and may be attached to again
            with started([*SERVE, f"unix:{tmp_path / 's'}", f"unix:{path}"]) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"0\n"
                wire = _client(tmp_path / "s")
                wire.negotiate()
                assert wire.ask("query-name") == {"return": {}}
                process.send_signal(signal.SIGKILL)
                assert wire.rest() == []
                wire.close()
            assert _running(qemu.process.pid)
    finally:
        qemu.close()


# -- standing in for the binary ------------------------------------------------------------


def test_extract() -> None:
    def one(*arguments: str) -> Monitor:
        rest, (monitor,) = extract(arguments)
        assert rest == [], rest
        return monitor

    path = Address(path=Path("/a,b"))
    assert one("-qmp", "unix:/a,,b,server=on,wait=off") == Monitor(path, True, False)
    assert one("--qmp", "unix:/a,,b,server,nowait") == Monitor(path, True, False)
    assert one("-qmp", "unix:/a,,b,server=on") == Monitor(path, True, True)
    assert one("-qmp", "unix:/a,,b") == Monitor(path)
    assert one("-qmp", "tcp:localhost:44,server=on,wait=off") == Monitor(
        Address(host="localhost", port=44), True
    )
    assert one("-qmp", "stdio") == Monitor(stdio=True)
    socket_ = "socket,id=m,path=/a,,b"
    assert one("-chardev", socket_, "-mon", "chardev=m,mode=control") == Monitor(path)
    assert one("-mon", "m,mode=control,pretty=on", "-chardev", "socket,id=m,fd=7") == Monitor(
        fd=7, pretty=True
    )
    for kept in (
        ["-chardev", socket_, "-mon", "chardev=m,mode=readline"],
        ["-chardev", "socket,id=m,path=/x,telnet=on", "-mon", "chardev=m,mode=control"],
        ["-chardev", "pipe,id=m,path=/x", "-mon", "chardev=m,mode=control"],
        ["-monitor", "stdio", "-m", "64"],
    ):
        assert extract(kept) == (kept, [])


@pytest.mark.usefixtures("qemu_on_path")
@pytest.mark.parametrize("how", ["fd", "server", "client"])
def test_stand_in(how: str, tmp_path: Path) -> None:
    """As qemu.machine, a person, and libqtest start QEMU."""
    path = tmp_path / "m"
    ours, theirs = socket.socketpair()
    listening = socket.socket(socket.AF_UNIX)
    more: dict[str, object] = {}
    if how == "fd":
        monitor = ["-chardev", f"socket,id=mon,fd={theirs.fileno()}"]
        more["pass_fds"] = [theirs.fileno()]
    elif how == "server":
        monitor = ["-chardev", f"socket,id=mon,path={path},server=on,wait=off"]
    else:
        listening.bind(str(path))
        listening.listen()
        monitor = ["-chardev", f"socket,id=mon,path={path}"]
    words = [*ARGS, *monitor, "-mon", "chardev=mon,mode=control", "-name", "stood-in"]
    with started([PROGRAM, *words], **more) as process:
        theirs.close()
        if how == "fd":
            wire = Wire(ours)
        elif how == "server":
            wire = _client(path)
        else:
            listening.settimeout(LIMIT)
            wire = Wire(listening.accept()[0])
        wire.negotiate()
        assert wire.ask("query-name") == {"return": {"name": "stood-in"}}
        assert "return" in wire.ask("x-shim-status")
        wire.ask("quit")
        assert process.wait(LIMIT) == 0
        wire.close()
    ours.close()
    listening.close()


@pytest.mark.usefixtures("qemu_on_path")
def test_stand_in_on_stdio_and_its_exit_status() -> None:
    done = subprocess.run(
        [PROGRAM, *ARGS, "-qmp", "stdio"],
        input=b"{'execute':'qmp_capabilities'}{'execute':'query-name'}{'execute':'quit'}",
        capture_output=True,
        timeout=LIMIT,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"return": {}} in lines and "QMP" in lines[0], done
    assert done.returncode == 0
    done = subprocess.run(
        [PROGRAM, "-machine", "no-such", "-qmp", "stdio"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.returncode == 1
    assert b"unsupported machine type" in done.stderr


@pytest.mark.usefixtures("qemu_on_path")
def test_stand_in_on_files_and_its_exit_status_when_qemu_only_answers(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("{'execute':'qmp_capabilities'}{'execute':'quit'}")
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        done = subprocess.run(
            [PROGRAM, *ARGS, "-qmp", "stdio"],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
        )
    assert done.returncode == 0 and not done.stderr, done
    assert (tmp_path / "out").read_bytes().count(b'{"return": {}}') == 2
    words = ["-qmp", f"unix:{tmp_path}/s,server=on,wait=off", "-device", "virtio-blk,help"]
    done = subprocess.run([PROGRAM, *words], capture_output=True, timeout=LIMIT)
    assert done.returncode == 0 and b"options" in done.stdout, done


@pytest.mark.usefixtures("qemu_on_path")
def test_stand_in_on_a_terminal_that_is_slow_to_read() -> None:
    """Nothing may be lost, although the terminal's buffer is full for a while."""
    with contextlib.closing(
        pexpect.spawn(str(PROGRAM), [*ARGS, "-qmp", "stdio"], timeout=LIMIT)
    ) as terminal:
        terminal.setecho(False)
        terminal.expect_exact('"QMP"')
        terminal.sendline("{'execute': 'qmp_capabilities'}")
        terminal.expect_exact("return")
        terminal.sendline("{'execute': 'query-qmp-schema'}" * 3)
        time.sleep(0.5)
        terminal.sendline("{'execute': 'query-name', 'id': 'the-last'} {'execute': 'quit'}")
        terminal.expect_exact("the-last")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0


@pytest.mark.usefixtures("qemu_on_path")
def test_stand_in_passes_on_what_is_no_business_of_its() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, timeout=LIMIT)
    assert done.stdout.startswith(b"QEMU emulator version")


@pytest.mark.usefixtures("qemu_on_path")
def test_stand_in_killed_takes_qemu_along_and_dies_as_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "m"
    words = [*ARGS, "-qmp", f"unix:{path},server=on,wait=off", "-pidfile", str(tmp_path / "pid")]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with started([PROGRAM, *words]) as process:
            wire = _client(path)
            wire.negotiate()
            pid = int((tmp_path / "pid").read_text())
            process.send_signal(number)
            assert process.wait(LIMIT) == (0 if number == signal.SIGTERM else -9)
            _wait_until_ended(pid)
            wire.close()
            path.unlink(missing_ok=True)
    # The workspace of a killed shim goes a moment later.
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("qmpshim-*")))
