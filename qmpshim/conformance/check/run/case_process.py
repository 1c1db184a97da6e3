"""One case in a process of its own, under a watchdog: what goes wrong costs this case alone.

The process has a private ``TMPDIR``, and what it starts a mark in its environment, so that all of
them can be measured, and ended, whatever they did to their session.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import tarfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qmpshim.codec import decode
from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.errors import HostError, QmpshimError, os_errors
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.fork_server import ForkServer
from qmpshim.machine.host.marks import Marked
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.check.verdict import Verdict

OUTCOME, RESULTS = "outcome.json", "results"
_WORKER = "qmpshim.conformance.check.run.case_worker:main"
_MARK = "QMPSHIM_CASE"
_GLANCE = 0.2  # seconds between two looks at a case
_ENDING = 10.0  # seconds, at most, that what was killed takes to end
_MOST_KEPT = 64 << 20  # bytes of bundles and images that one case may leave in the results

_SERVER = ForkServer()


@dataclass(frozen=True, slots=True)
class Order:
    """A case to be done on a build, in whichever process.

    :ivar identity: of the build when the run began
    :ivar runner: ``module:function`` that carries the case out
    """

    build: Build
    identity: Identity
    case: Case
    runner: str

    @property
    def key(self) -> tuple[str, str]:
        """Build and case, unique within a run."""
        return self.build.name, self.case.name


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of an order.

    :ivar files: a compressed tar archive of what the case leaves behind, or nothing
    """

    key: tuple[str, str]
    outcome: CaseOutcome
    files: bytes = b""


class Cancelled(QmpshimError):
    """Somebody wants the work to end; the case counts as not done."""


def carry_out(order: Order, cancelled: Callable[[], bool] = lambda: False) -> Delivery:
    """Do one case in a process of its own.

    :param cancelled: called now and then
    :raises Cancelled: it returned True
    :raises HostError: there is no place for the work
    """
    with Workspace("c-") as workspace:
        # Paths of sockets in there must stay short, so this is its TMPDIR itself.
        directory = workspace.subdirectory("case")
        (directory / "order").write_bytes(pickle.dumps(order))
        watched = _Watched(order, directory, workspace.path)
        try:
            outcome = watched.wait(cancelled)
        finally:
            watched.end()
        return Delivery(order.key, outcome, _pack(directory / RESULTS))


class _Watched:
    """The process, and all processes it started."""

    def __init__(self, order: Order, directory: Path, temporary: Path) -> None:
        self.order, self.directory, self.temporary = order, directory, temporary
        mark = uuid.uuid4().hex
        self._marked = Marked(_MARK, mark.__eq__)
        with open(os.devnull, "rb") as nothing, (directory / "output").open("wb") as output:
            self.process = _SERVER.start(
                _WORKER,
                (str(directory / "order"), str(directory)),
                (nothing.fileno(), output.fileno(), output.fileno()),
                {**os.environ, "TMPDIR": str(temporary), _MARK: mark},
                os.getcwd(),
                (order.runner.partition(":")[0],),
            )

    def wait(self, cancelled: Callable[[], bool]) -> CaseOutcome:
        """Watch until it ends, or has to be ended."""
        case = self.order.case
        began = time.monotonic()
        while True:
            if (status := self.process.wait(_GLANCE)) is not None:
                return self._ended(status)
            if cancelled():
                raise Cancelled(f"{case.name} on {self.order.build.name} was cancelled")
            seconds = round(time.monotonic() - began, 3)
            if seconds > case.budget:
                text = f"did not end within its {case.budget:g} s"
                return CaseOutcome(Status.BROKEN, text, seconds=seconds)
            if (found := self._over_limit()) is not None:
                return replace(found, seconds=seconds)

    def _ended(self, status: int) -> CaseOutcome:
        path = self.directory / OUTCOME
        if path.is_file():
            return decode(CaseOutcome, json.loads(path.read_text()), "an outcome of a case")
        how = f"ended with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        output = (self.directory / "output").read_text(errors="replace").strip().splitlines()
        return CaseOutcome(
            Status.BROKEN, f"the check {how}" + (f": {output[-1][:300]}" if output else "")
        )

    def _over_limit(self) -> CaseOutcome | None:
        """What came of the case, where its processes take more than it may have; else None."""
        case = self.order.case
        sizes = {pid: _resident(pid) for pid in (self.process.pid, *self._marked.pids())}
        if sum(sizes.values()) > case.memory:
            largest = max(sizes, key=lambda pid: sizes[pid])
            text = (
                f"its processes used more than {case.memory >> 20} MiB of memory, "
                f"{_command(largest)} alone {sizes[largest] >> 20} MiB"
            )
            return self._exceeded("memory", text, largest != self.process.pid)
        if _stored(self.temporary) > case.disk:
            return self._exceeded("disk", f"it stored more than {case.disk >> 20} MiB", True)
        return None

    def _exceeded(self, what: str, text: str, of_qemu: bool) -> CaseOutcome:
        if not of_qemu:
            return CaseOutcome(Status.BROKEN, text)
        finding = CaseFinding(
            Verdict.CRASH,
            f"{what} is eaten up",
            f"ended by the watchdog: {text}",
            f"less than the case's limit of {what}",
            text,
        )
        return CaseOutcome(Status.DIVERGED, text, (finding,))

    def end(self) -> None:
        """End what still runs. A janitor of a workspace ends by itself, its directory with ours."""
        self.process.kill()
        self._marked.end(_ENDING)


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "one"


def _stored(directory: Path) -> int:
    """Bytes that files below *directory* take on the disk."""
    total = 0
    for place, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


# -- what a case leaves behind -----------------------------------------------------------------


def _pack(directory: Path) -> bytes:
    if not directory.is_dir() or not any(directory.iterdir()):
        return b""
    large = _stored(directory) > _MOST_KEPT
    into = io.BytesIO()

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir()):
            return None
        return None if large and member.name.endswith((".raw", ".qcow2")) else member

    with tarfile.open(fileobj=into, mode="w:gz", compresslevel=1) as archive:
        archive.add(directory, ".", filter=keep)
    return into.getvalue()


def unpack(files: bytes, directory: Path) -> None:
    """Put what a case left behind into *directory*, which is made if there is anything.

    :raises HostError: it cannot be written
    """
    if not files:
        return
    with os_errors(HostError, f"cannot write {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            # From another machine, perhaps: nothing of it may land elsewhere.
            inside = [m for m in archive if _inside(m.name) and (m.isfile() or m.isdir())]
            archive.extractall(directory, inside)


def _inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in Path(name).parts
