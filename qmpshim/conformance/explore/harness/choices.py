"""The steps an explorer may take on a real QEMU, as data, and their JSON.

A choice names the same event in every execution, see :data:`qmpshim.model.explore.system.Choice`.
These are tuples: the explorer hashes and compares them by the thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from qmpshim.machine.chain.parts import first_of
from qmpshim.model.units import SECTOR


class Cut(IntEnum):
    """What ends an I/O other than an errno: its connection breaks, with all that waits on it.

    The values are no errnos: bundles and write-ups have them where they have errnos.
    """

    FOR_GOOD = 0  # the image is gone
    RECONNECT = -1  # the next connection is accepted, and QEMU is set to wait for that


CUTS = frozenset(Cut)


class IoId(NamedTuple):
    """The name of an I/O of QEMU's.

    :ivar op: index of the operation that it belongs to
    :ivar place: ``0+128``, first sector and count; ``meta 65536+512``, bytes of the image's file;
        empty for a flush
    :ivar nth: how many I/Os of this name came before
    """

    op: int
    image: str
    verb: str
    place: str
    nth: int = 0

    @property
    def name(self) -> str:
        """``hidden write 0+128``: what a script without us can know of it."""
        return f"{self.image} {self.verb}{self.place and ' '}{self.place}"

    @property
    def meta(self) -> bool:
        """Whether it is about an image's tables, not data."""
        return self.place.startswith("meta ")

    @property
    def kind(self) -> str:
        """Image and verb, ``hidden write``, as a write-up's ``fails`` gives it: on either disk."""
        return f"{first_of(self.image)} {self.verb}"

    def __str__(self) -> str:
        return f"{self.name} #{self.nth + 1}" if self.nth else self.name


class Start(NamedTuple):
    """Begin an operation.

    :ivar op: its index
    """

    op: int


class Complete(NamedTuple):
    """Let a held I/O be done, and answer it."""

    io: IoId

    @property
    def op(self) -> int:
        """The operation whose step this is."""
        return self.io.op


class Fail(NamedTuple):
    """Let a held I/O fail.

    :ivar fault: an errno, or a :class:`Cut`
    """

    io: IoId
    fault: int

    @property
    def op(self) -> int:
        """The operation whose step this is."""
        return self.io.op


RealChoice: TypeAlias = Start | Complete | Fail


def io_id(op: int, name: str, nth: int = 0) -> IoId:
    """The I/O of a name as :attr:`IoId.name` gives it.

    :raises ValueError: it is no such name
    """
    image, verb, *place = name.split(" ", 2)
    return IoId(op, image, verb, place[0] if place else "", nth)


def failures(schedule: Iterable[RealChoice]) -> list[Fail]:
    """The steps that let an I/O fail."""
    return [step for step in schedule if isinstance(step, Fail)]


def failing_kinds(schedule: Sequence[RealChoice]) -> frozenset[str]:
    """The I/Os that a schedule lets fail: image and verb, as in ``hidden write``."""
    return frozenset(step.io.kind for step in failures(schedule))


def choice_to_json(choice: RealChoice) -> list[Any]:
    """As :func:`choice_from_json` reads it."""
    match choice:
        case Start(op):
            return ["start", op]
        case Complete(io):
            return ["io", io.op, io.name, io.nth]
        case Fail(io, fault):
            return ["fail", io.op, io.name, io.nth, fault]


def choice_from_json(value: Any) -> RealChoice:
    """The reverse of :func:`choice_to_json`.

    :raises TypeError, ValueError: it is none
    """
    if not isinstance(value, list) or any(isinstance(part, bool) for part in value):
        raise TypeError(f"no step of a schedule: {value!r}")
    match value:
        case ["start", int(op)]:
            return Start(op)
        case ["io", int(op), str(name), int(nth)]:
            return Complete(io_id(op, name, nth))
        case ["fail", int(op), str(name), int(nth), int(fault)]:
            return Fail(io_id(op, name, nth), fault)
    raise ValueError(f"no step of a schedule: {value!r}")


def step_object(choice: RealChoice) -> dict[str, Any]:
    """A step of a schedule in a document, with positions in bytes."""
    if isinstance(choice, Start):
        return {"step": "start", "operation": choice.op}
    io = choice.io
    value: dict[str, Any] = {
        "step": "fail" if isinstance(choice, Fail) else "complete",
        "operation": io.op,
        "disk": io.image,
        "verb": io.verb,
        "meta": io.meta,
        "nth": io.nth,
    }
    if io.place:
        unit = 1 if io.meta else SECTOR
        start, count = (int(number) * unit for number in io.place.split()[-1].split("+"))
        value |= {"offset_bytes": start, "length_bytes": count}
    if isinstance(choice, Fail):
        value["errno"] = choice.fault
    return value
