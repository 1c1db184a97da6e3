"""A libvirtd of a test's own, and domains whose emulator is `qmpshim-qemu`.

It is the daemon of `qemu:///session`, which takes its directories from the environment. Root would
get that of `qemu:///system` and Debian's directories, so all runs in a user namespace where no one
is root. Daemon, domains and what they start are in a PID namespace as well: when the daemon ends,
however it ends, the kernel kills the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from qmpshim.errors import MachineDied
from qmpshim.machine.builds.build import EMULATOR, Build
from qmpshim.machine.builds.programs import write_programs
from qmpshim.machine.guest.console import Console
from qmpshim.machine.guest.guest import KERNEL_WORDS
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.workspace import Closes, Workspace, dies_with_owner
from vmtests.support.shim_harness import Wire
from vmtests.support.stand_in import PROGRAM
from vmtests.support.waiting import wait_until

LIMIT = 120.0  # seconds a client may take, on a machine that is slow and loaded
PROGRAMS = ("libvirtd", "virsh", "virtnbdbackup", "virtnbdrestore", "unshare")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_AS_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
_CONTAINED = [*_AS_USER, "--pid", "--fork", "--kill-child", "--mount-proc"]
#: Process 1, which waits for whatever ends there: libvirtd takes a zombie for a QEMU that lives.
_REAPING = ["/bin/sh", "-c", '"$@"; exit', "sh"]


def why_not() -> str:
    """Why there can be no libvirt here, or ``""``."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install {PACKAGES}"
    tried = subprocess.run([*_CONTAINED, "true"], capture_output=True, text=True, check=False)
    return f"no user namespace for libvirtd: {tried.stderr.strip()}" if tried.returncode else ""


PACKAGES = "libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients virtnbdbackup"


class Libvirt(Closes):
    """A running libvirtd; a context manager.

    :param build: what the domains run on
    :param variables: more for the environment of the domains' emulator
    :ivar directory: private
    """

    def __init__(self, build: Build, variables: Mapping[str, str] | None = None) -> None:
        self._workspace = Workspace()
        self.directory = self._workspace.path
        self._emulator = self._write_programs(build, variables or {})
        self._environment = self._directories()
        self._daemon: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _write_programs(self, build: Build, variables: Mapping[str, str]) -> Path:
        """The directory that is the daemon's PATH: the stand-in and the build's tools."""
        real = self._workspace.subdirectory("real")
        write_programs(build, real)
        path = self._workspace.subdirectory("bin")
        for tool in real.iterdir():
            if tool.name != EMULATOR:
                (path / tool.name).symlink_to(tool)
        temporary = self._workspace.subdirectory("tmp")
        settings = {
            "QMPSHIM_BUILD": str(real / EMULATOR),
            "TMPDIR": str(temporary),
            "PATH": _PATH,
            **variables,
        }
        words = " ".join(f"{name}={value}" for name, value in settings.items())
        (path / EMULATOR).write_text(f'#!/bin/sh\n{words} exec {PROGRAM} "$@"\n')
        (path / EMULATOR).chmod(0o755)
        return path / EMULATOR

    def _directories(self) -> dict[str, str]:
        names = ("config", "cache", "data", "runtime")
        places = {name: self._workspace.subdirectory(name) for name in names}
        (places["config"] / "libvirt").mkdir()
        # QEMU's output goes to a file, and not to a virtlogd.
        (places["config"] / "libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
        return {
            "XDG_CONFIG_HOME": str(places["config"]),
            "XDG_CACHE_HOME": str(places["cache"]),
            "XDG_DATA_HOME": str(places["data"]),
            "XDG_RUNTIME_DIR": str(places["runtime"]),
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "PATH": _PATH,
            "LC_ALL": "C.UTF-8",
            "LIBVIRT_DEFAULT_URI": "qemu:///session",
            "QMPSHIM_TEST_SESSION": os.environ.get("QMPSHIM_TEST_SESSION", ""),
        }

    def _start(self) -> None:
        path = str(self._emulator.parent)
        self._daemon = subprocess.Popen(
            dies_with_owner([*_CONTAINED, *_REAPING, "env", f"PATH={path}", "/usr/sbin/libvirtd"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "libvirtd.log").open("wb"),
            env=self._environment,
            start_new_session=True,
        )
        address = Path(self._environment["XDG_RUNTIME_DIR"]) / "libvirt/libvirt-sock"

        def there() -> bool:
            assert self._daemon is not None
            assert self._daemon.poll() is None, self.log()
            return address.exists()

        wait_until(there, LIMIT)

    def place(self) -> Path:
        """A new private directory."""
        return self._workspace.subdirectory("place")

    def log(self) -> str:
        """What the daemon complained of."""
        return (self.directory / "libvirtd.log").read_text(errors="replace")

    def run(self, *words: str | Path) -> str:
        """Run one of libvirt's clients to its end; what it printed."""
        ended = subprocess.run(
            dies_with_owner([*_AS_USER, *map(str, words)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            timeout=LIMIT,
            check=False,
        )
        assert ended.returncode == 0, f"{words}: {ended.stdout}\n{self.log()}"
        return ended.stdout

    @contextlib.contextmanager
    def domain(
        self, disks: Mapping[str, Path], image: GuestImage | None = None
    ) -> Iterator[Domain]:
        """A running domain.

        :param disks: qcow2 images by the name of the target, as ``vda``
        :param image: what boots; None: nothing does
        """
        place = self.place()
        definition = place / "domain.xml"
        definition.write_text(_xml(self._emulator, disks, place, image))
        self.run("virsh", "create", definition)
        domain = Domain(self, place, image is not None)
        try:
            yield domain
        finally:
            domain.close()
            self.run("virsh", "destroy", NAME)

    def close(self) -> None:
        """End the daemon, and with it all in its namespace."""
        if self._daemon is not None:
            self._daemon.kill()  # unshare, which ignores SIGTERM
            self._daemon.wait()
        self._workspace.close()


NAME = "domain"
_MONITOR, _CONSOLE, _CONSOLE_LOG = "monitor.sock", "console.sock", "console.log"
#: A monitor whose place the shim does not take, for its log.
_BEHIND, _AS_IT_IS = "behind.sock", "server=on,wait=off,logfile=/dev/null"


def _xml(emulator: Path, disks: Mapping[str, Path], place: Path, image: GuestImage | None) -> str:
    devices = "".join(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
        f"<source file={quoteattr(str(path))}/><target dev='{target}' bus='virtio'/></disk>"
        for target, path in disks.items()
    )
    boot = "<type arch='x86_64' machine='pc'>hvm</type>"
    if image is not None:
        boot += (
            f"<kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd>"
            f"<cmdline>{' '.join(KERNEL_WORDS)}</cmdline>"
        )
        devices += (
            f"<serial type='unix'><source mode='bind' path='{place / _CONSOLE}'/>"
            f"<log file='{place / _CONSOLE_LOG}'/></serial>"
        )
    return f"""
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
 <name>{NAME}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
 <os>{boot}</os><features><acpi/></features>
 <devices><emulator>{emulator}</emulator>{devices}
  <controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>
 </devices>
 <qemu:commandline>
  <qemu:arg value='-qmp'/><qemu:arg value='unix:{place / _MONITOR},server=on,wait=off'/>
  <qemu:arg value='-chardev'/><qemu:arg value='socket,id=b,path={place / _BEHIND},{_AS_IT_IS}'/>
  <qemu:arg value='-mon'/><qemu:arg value='chardev=b,mode=control'/>
 </qemu:commandline>
</domain>"""


class Domain:
    """A running domain, with a QMP monitor of its own beside libvirt's.

    :param place: where its sockets are
    :param guest: whether it boots one
    """

    def __init__(self, libvirt: Libvirt, place: Path, guest: bool) -> None:
        self.libvirt = libvirt
        self._serial = _connected(place / _CONSOLE) if guest else None
        self._console_log = place / _CONSOLE_LOG
        self._wire = Wire(_connected(place / _MONITOR))
        self._behind = Wire(_connected(place / _BEHIND))
        for wire in (self._wire, self._behind):
            wire.negotiate()

    def console(self) -> Console:
        """The guest's console, once it has booted."""
        assert self._serial is not None
        console = Console(self._serial, self._console_log, MachineDied, lambda: True)
        console.wait_for_prompt()
        return console

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What a command returns; it must not be an error."""
        return _returned(self._wire, command, arguments)

    def ask_behind(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """As :meth:`ask`, on a monitor of QEMU's that the shim does not see."""
        return _returned(self._behind, command, arguments)

    def node(self, target: str) -> str:
        """The node name of the image that is a disk."""
        for node in self.ask("query-named-block-nodes", {"flat": True}):
            if node["drv"] == "qcow2" and Path(node["file"]).stem == target:
                return str(node["node-name"])
        raise AssertionError(f"{target} is no disk of the domain")

    def close(self) -> None:
        """Let go of its monitor and console."""
        self._wire.close()
        self._behind.close()
        if self._serial is not None:
            self._serial.close()


def _returned(wire: Wire, command: str, arguments: Mapping[str, Any] | None) -> Any:
    reply = wire.ask(command, dict(arguments or {}))
    assert "return" in reply, f"{command}: {reply}"
    return reply["return"]


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock
