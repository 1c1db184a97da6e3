"""The state of a pair that came to a stop: run state, migration, last message, lock, log line."""

from __future__ import annotations

import asyncio
import signal

from qmpshim.conformance.compare.divergence import Ending
from qmpshim.conformance.compare.evidence import Evidence, MigrationStatus
from qmpshim.errors import Exit, MachineError
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.host.locks import deadlock
from qmpshim.model.check.cause import Cause, CauseKind, migration_detail
from qmpshim.model.check.verdict import Verdict

_SETTLE = 1.0  # seconds in which what we held up may go on
_PATIENCE = 3.0  # seconds a side that may be hung is given to answer


class PostMortem:
    """Both sides queried once; see :meth:`perform`.

    :ivar lines: all that was found, a line each
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.lines: list[str] = []
        self._alone = False  # one side was taken away: the other is in COLO no longer
        # By role, so that a cause is called the same whichever side took over before:
        self._ends: dict[str, int] = {}  # its exit status; negative: the signal
        self._locks: dict[str, str] = {}  # its deadlock
        self._deaf: list[str] = []
        self._migration: dict[str, tuple[str, str]] = {}  # status, and it with its error
        self._log: dict[str, str] = {}  # the last line of stderr

    async def perform(self) -> None:
        """Let go of both wires, and query both sides, with little patience."""
        self.pair.channel.hold()
        self.pair.channel.release()
        await asyncio.sleep(_SETTLE)
        for member in self.pair.members:
            await self._examine(member)
        channel = self.pair.channel
        sent = [message.spelling for message, _ in channel.messages]
        self.lines.append(
            f"channel: the primary sent {channel.sent} bytes; "
            f"the secondary said {', '.join(sent[-4:]) or 'nothing'}"
            + (f"; then bytes that are no message: {channel.strange.hex()}" * bool(channel.strange))
            + (f"; the {channel.closed_by} hung up" if channel.closed_by else "")
        )

    async def _examine(self, member: ColoNode) -> None:
        name, role, qemu = member.name, self.pair.role(member), member.qemu
        if member.given_up:
            self._alone = True
            self.lines.append(f"{name}: was killed on purpose")
            return
        log = [line for line in qemu.stderr().strip().splitlines() if "warning:" not in line]
        if log:
            self._log[role] = log[-1]
        last_line = f"; it said: {log[-1]}" if log else ""
        code = await qemu.wait_for_exit(0.2)
        if code is not None:
            self._ends[role] = code
            self.lines.append(f"{name}: ended by {_ending(code)}{last_line}")
            return
        locked = deadlock(qemu.pid)
        if locked:
            self._locks[role] = locked.circle
        limit, qemu.limit = qemu.limit, _PATIENCE
        try:
            state = await member.status()
            migration = await qemu.execute("query-migrate")
            colo = await qemu.execute("query-colo-status")
            replication = await member.replication_error()
        except MachineError as error:
            self._deaf.append(role)
            self.lines.append(
                f"{name}: runs and does not answer ({error})"
                + (f"; {locked}" if locked else "")
                + last_line
            )
        else:
            status = str(migration.get("status", "none"))
            detail = migration_detail(status, str(migration.get("error-desc", "")))
            self._migration[role] = status, detail
            self.lines.append(
                f"{name}: {state}; migration {detail}"
                f"; COLO mode {colo['mode']}, reason {colo['reason']}"
                f"; replication: {replication or 'no error'}{last_line}"
            )
        finally:
            qemu.limit = limit
        events = [event.name for event in member.events if event.name != "MIGRATION_PASS"]
        self.lines.append(f"{name}: last events: {', '.join(events[-4:]) or 'none'}")

    def ending(self) -> Ending | None:
        """How the first of the sides that ended by itself did so."""
        for role, status in self._ends.items():
            return Ending(Exit(status), self._log.get(role, ""))
        return None

    def cause(
        self, seen: Cause | None, verdict: Verdict, evidence: Evidence | None
    ) -> tuple[Verdict, Cause, Evidence | None]:
        """The one thing that explains it best, its verdict and what it was seen by.

        :param seen: what it is where nothing is wrong with either QEMU
        :param verdict: of that, :param evidence: of that
        """
        for role, how in self._ends.items():
            # By a signal it crashed; with a status it chose to go, as one does that cannot load
            # what was migrated to it.
            ended = Verdict.CRASH if how < 0 else Verdict.PROTOCOL
            detail = f"{_ending(how)}: {self._log.get(role, 'no last words')}"
            return ended, Cause(CauseKind.PAIR_ENDED, role, detail), None
        for role, circle in self._locks.items():
            return Verdict.HANG, Cause(CauseKind.PAIR_DEADLOCKED, role, circle), None
        for role in self._deaf:
            return Verdict.HANG, Cause(CauseKind.PAIR_UNRESPONSIVE, role), None
        if self.pair.spec.colo and not self._alone:
            for role, (status, detail) in self._migration.items():
                # What went wrong before there was any migration explains more than its absence.
                if status != "colo" and not (seen and status == "none"):
                    cause = Cause(CauseKind.PAIR_MIGRATION, role, detail)
                    return Verdict.PROTOCOL, cause, MigrationStatus(role, status)
        return verdict, seen or Cause(CauseKind.PAIR_STUCK), evidence


def _ending(status: int) -> str:
    """How a process ended; *status*: negative for a signal."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"
