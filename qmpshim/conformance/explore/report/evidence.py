"""What goes into a finding's bundle beside its schedule, taken from one more run of it.

The images' bytes and QEMU's stderr as they are at the end, all QMP messages, every request to the
disks, a sequence diagram, and for a crash a backtrace, when there is a gdb (with names where there
are symbols).
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from pathlib import Path

from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.schedule_diagram import diagram
from qmpshim.conformance.explore.reproducer.replay import follow_finding, system_of
from qmpshim.errors import HostError, MachineError, QmpshimError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.host.files import write_sparse
from qmpshim.machine.host.programs import find_program
from qmpshim.model.check.verdict import Verdict

log = logging.getLogger(__name__)

_ATTACH = 15.0  # seconds for gdb to attach
_BACKTRACE = 30.0  # and for its backtrace


def collect(finding: Finding, build: Build, directory: Path) -> None:
    """Run the finding once more and write what can be seen into *directory*, which exists.

    :raises HostError: it cannot be written
    """
    pool = QemuPool(build, reuse=False)
    gdb: Gdb | None = None
    try:
        (directory / "diagram.txt").write_text(diagram(finding) + "\n")
        system = system_of(finding, pool, keeping=True)
        system.reset()
        if pool.machine is None:
            raise MachineError("QEMU ended before there was a chain")
        machine = system.machine
        if finding.verdict is Verdict.CRASH and machine.alive():
            gdb = Gdb.attach(machine.pid, directory / "backtrace.txt")
        follow_finding(system, finding)
        _write(machine, directory)
    except QmpshimError as error:
        log.warning("the bundle has no images: %s", error)
    except OSError as error:
        raise HostError(f"cannot write the bundle {directory}: {error.strerror}") from error
    finally:
        pool.close()  # the crash may not have come again: then this is what gdb waits for
        if gdb is not None:
            gdb.end()


def _write(machine: GatedMachine, directory: Path) -> None:
    (directory / "stderr.txt").write_text(machine.stderr())
    messages = [json.dumps(message) for message in machine.qmp.log]
    (directory / "qmp.log").write_text("\n".join(messages) + "\n")
    rows = [
        f"{event.seq:5} {event.kind.value:10} {event.image:9} "
        f"{event.op.name.lower() if event.op else '':12} {event.offset}+{event.length} "
        f"(request {event.io}, connection {event.connection})"
        for event in machine.gate.trace
    ]
    (directory / "disk-requests.log").write_text("\n".join(rows) + "\n")
    for name in machine.images:
        write_sparse(directory / f"{name}.img", machine.gate.snapshot(name))


class Gdb:
    """A debugger that waits for the signal, to report where it came from."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def attach(cls, pid: int, output: Path) -> Gdb | None:
        """Attach to a process; ``None`` where there is no gdb."""
        gdb = find_program("gdb")
        if gdb is None:
            return None
        script = ["set debuginfod enabled off", "handle SIGUSR1 nostop noprint", "continue",
                  "info program", "thread apply all backtrace 30"]  # fmt: skip
        command = [gdb, "-nx", "-batch", "-p", str(pid)]
        for line in script:
            command += ["-ex", line]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _ATTACH
        while time.monotonic() < deadline and process.poll() is None:
            if _traced(pid):
                break
            time.sleep(0.05)
        return cls(process)

    def end(self) -> None:
        """Wait for its report."""
        try:
            self._process.wait(_BACKTRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _traced(pid: int) -> bool:
    """Whether a debugger has attached and let the process go on."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return fields.get("TracerPid", "0") != "0" and not fields["State"].startswith("t")
