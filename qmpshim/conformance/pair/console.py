"""The output of one side's guest, read on from where it was read last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from qmpshim.machine.colo.node import ColoNode

STANDS_STILL = "stands still"


class GuestConsole:
    """One side's console.

    A guest that takes over another's state goes on in the middle of the line that the other was
    printing; :meth:`cut` sets where, and with what.

    :ivar begun: the line that is being printed
    """

    def __init__(self, member: ColoNode) -> None:
        self.member = member
        self.begun = b""
        self._from = 0  # what comes before it belongs to a state that was given up
        self._read = 0

    def cut(self, at: int, begun: bytes) -> None:
        """From byte *at* on the console belongs to the state that was taken over.

        :param begun: the begun line of the other's console
        """
        self._from = self._read = at
        self.begun = begun

    def whole_lines(self) -> bytes:
        """The lines that were ended since the last time."""
        output = self.member.output(self._read)
        self._read += len(output)
        whole, newline, self.begun = (self.begun + output).rpartition(b"\n")
        return whole + newline

    def text(self) -> bytes:
        """All output since the cut."""
        return self.member.output(self._from)


class GuestAccount(ABC):
    """What one side's guest reported on its console, since the state that it goes on from."""

    def __init__(self, member: ColoNode) -> None:
        self.member = member
        self.console = GuestConsole(member)

    @property
    @abstractmethod
    def writes(self) -> int:
        """How many writes it reported."""

    @abstractmethod
    def read(self) -> None:
        """Take in what has come since the last time."""

    def take_over(self, other: Self, at: int) -> None:
        """It goes on from the state of *other*; from byte *at* of its console on it speaks so."""
        other.read()
        self.console.cut(at, other.console.begun)

    def state(self) -> str:
        """How a guest that does not go on is described."""
        return STANDS_STILL
