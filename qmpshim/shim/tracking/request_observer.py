"""Observes the requests at one endpoint, for the model and the schedule of a gated chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qmpshim.machine.nbd.protocol.transmission import CMD_FUA, CMD_NO_HOLE, NbdCommand, Request
from qmpshim.model.answers import DISCONNECTED, OK, Answer, io_error
from qmpshim.model.operations import Side, Verb
from qmpshim.model.units import SECTOR, touched
from qmpshim.shim.tracking.applied_changes import Change

if TYPE_CHECKING:
    from qmpshim.shim.gated.schedule import Schedule

_KINDS = {
    NbdCommand.READ.value: Verb.READ,
    NbdCommand.WRITE.value: Verb.WRITE,
    NbdCommand.WRITE_ZEROES.value: Verb.ZERO,
    NbdCommand.TRIM.value: Verb.DISCARD,
    NbdCommand.FLUSH.value: Verb.FLUSH,
}
_CHANGES = (Verb.WRITE, Verb.ZERO, Verb.DISCARD)


class FollowedChains(Protocol):
    """What an observer reports to: see :class:`~qmpshim.shim.tracking.chains.TrackedChains`."""

    @property
    def schedule(self) -> Schedule | None:
        """Where a gated chain's steps are taken down."""

    def side(self, export: str) -> Side | None:
        """Whose side an export is; None when it is no disk that may be written to."""

    def changed(self, export: str, change: Change, error: int) -> None:
        """A request was answered, with an errno of the NBD protocol."""

    def lost(self, export: str, change: Change) -> None:
        """A request will not be answered."""

    def doubt(self, export: str, why: str) -> None:
        """What goes through an export can no longer be followed."""


@dataclass(slots=True)
class _Flying:
    """A request under way.

    :ivar step: its index in the schedule
    """

    request: Request
    step: int | None


class ExportObserver:
    """The observer of one export."""

    def __init__(self, chains: FollowedChains, export: str) -> None:
        self._chains = chains
        self._export = export
        self._flying: dict[int, _Flying] = {}
        self._token = 0

    def begins(self, request: Request) -> int:
        """A request goes to QEMU."""
        self._token += 1
        side, schedule = self._chains.side(self._export), self._chains.schedule
        step = None
        if schedule is not None and side is not None and request.type in _KINDS:
            sectors = touched(request.offset, request.length, SECTOR)
            do = f"{side}_{_as_flagged(request)}"
            step = schedule.begins(do, sectors.start, len(sectors))
        self._flying[self._token] = _Flying(request, step)
        return self._token

    def ends(self, token: int, request: Request, error: int) -> None:
        """QEMU has answered."""
        self._over(token, io_error(error) if error else OK)
        kind = _KINDS.get(request.type)
        if kind is None:
            return
        if kind in _CHANGES and any(_meet(request, f.request) for f in self._flying.values()):
            self._chains.doubt(
                self._export,
                "requests to the same sectors were under way at once: which came last is not known",
            )
        self._chains.changed(self._export, self._change(kind, request), error)

    def lost(self, token: int, request: Request) -> None:
        """QEMU will not answer."""
        self._over(token, DISCONNECTED)
        if (kind := _KINDS.get(request.type)) is not None:
            self._chains.lost(self._export, self._change(kind, request))

    def _change(self, kind: Verb, request: Request) -> Change:
        side = self._chains.side(self._export) or Side.GUEST
        mapped = bool(request.flags & CMD_NO_HOLE)
        return Change(side, kind, request.offset, request.length, request.data, mapped)

    def _over(self, token: int, answer: Answer) -> None:
        flying = self._flying.pop(token)
        if flying.step is not None and self._chains.schedule is not None:
            self._chains.schedule.ends(flying.step, answer)


def _as_flagged(request: Request) -> Verb:
    """What a request does, its flags among it."""
    kind = _KINDS[request.type]
    if kind is Verb.ZERO and request.flags & CMD_NO_HOLE:
        return Verb.ZERO_NO_HOLE
    if kind is Verb.WRITE and request.flags & CMD_FUA:
        return Verb.WRITE_FUA
    return kind


def _meet(one: Request, other: Request) -> bool:
    """Whether two requests change common bytes."""
    return (
        _KINDS.get(other.type) in _CHANGES
        and one.offset < other.offset + other.length
        and other.offset < one.offset + one.length
    )
