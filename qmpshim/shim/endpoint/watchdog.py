"""Notices that QEMU no longer answers, reports it to all clients and ends what waits for it.

QEMU does one in-band command of a monitor at a time. So it has not answered for as long as no reply
came while a command was outstanding. At the limit

* each client gets the event ``X_SHIM_QEMU_HUNG``, also one that comes later;
* each command that waits gets an error in the place of its reply, which keeps the order of replies:
  QEMU may still carry it out;
* a command that comes later gets an error at once and is not sent to QEMU. Out-of-band commands
  are, for QEMU may still execute those;
* the shim's own commands answer as far as that needs no QEMU.

When QEMU answers after all there is the event ``X_SHIM_QEMU_ANSWERS``. Its late reply goes to no
client: its client already got an error. The shim itself learns from it what QEMU did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from qmpshim.shim.endpoint.upstream import Overdue, Upstream

HUNG, ANSWERS = "X_SHIM_QEMU_HUNG", "X_SHIM_QEMU_ANSWERS"


class Watchdog:
    """Watches one QEMU.

    :param emit: sends an event to every client
    :ivar limit: seconds that QEMU may take to answer
    :ivar excused: whether it may take as long as it likes, e.g. since its I/O is held by us
    :ivar noticed: called first at each hang, with the commands QEMU has not answered
    """

    def __init__(
        self, upstream: Upstream, emit: Callable[[str, Mapping[str, object]], None]
    ) -> None:
        self._upstream = upstream
        self._emit = emit
        self._timer: asyncio.TimerHandle | None = None
        self._owed: Sequence[str] = ()
        self._was_excused = False  # at the last look
        self.limit = 0.0
        self.is_hung = False
        self.excused: Callable[[], bool] = lambda: False
        self.noticed: Callable[[Sequence[str]], None] = lambda commands: None
        upstream.on_late = self._answers

    def start(self, limit: float) -> None:
        """Watch from now on."""
        self.stop()
        self.limit = limit
        self._look_again(limit)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def event(self) -> dict[str, object]:
        """The data of :data:`HUNG`."""
        return {"seconds": int(self._upstream.silent_for), "commands": list(self._owed)}

    @property
    def refusal(self) -> Overdue:
        """What a command gets that is not sent to QEMU, since that hangs."""
        silent = self._upstream.silent_for
        return Overdue(f"QEMU has not answered for {silent:.0f} s; this was not sent")

    def _look_again(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(seconds, 0.01), self._look)

    def _look(self) -> None:
        upstream = self._upstream
        if upstream.gone:
            return
        excused = self.excused()
        if excused or self._was_excused:  # else what was let go a moment ago would be overdue
            upstream.restart_clock()
        self._was_excused = excused
        silent = upstream.silent_for
        if not self.is_hung and silent >= self.limit:
            self.is_hung, self._owed = True, upstream.owed
            self.noticed(self._owed)
            self._emit(HUNG, self.event)
        if self.is_hung:  # and out-of-band commands that came since then
            text = f"QEMU has not answered for {silent:.0f} s; it may still carry this out"
            upstream.give_up(text)
            silent = 0.0
        self._look_again(self.limit - silent)

    def _answers(self, silent: float) -> None:
        """A reply came after its request was given up."""
        if self.is_hung:
            self.is_hung, self._owed = False, ()
            self._emit(ANSWERS, {"seconds": int(silent)})
