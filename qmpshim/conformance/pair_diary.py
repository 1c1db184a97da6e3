"""What a boot-sector guest has acknowledged, read off its console as the run goes on."""

from __future__ import annotations

from qmpshim.machine.boot_guest import Line, console_lines
from qmpshim.machine.pair_member import Member


class Diary:
    """One side's console.

    A guest that takes over another's state goes on in the middle of the line that the other was
    printing; :meth:`cut` says where, and with what.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self._from = 0
        self._begun = b""

    def cut(self, at: int, begun: bytes) -> None:
        """From byte *at* on the console belongs to the state that was taken over.

        :param begun: the begun line of the other's console
        """
        self._from, self._begun = at, begun

    def size(self) -> int:
        """How long the console is now."""
        return len(self.member.said())

    def text(self) -> bytes:
        """What was said since the cut."""
        return self._begun + self.member.said(self._from)

    def begun(self) -> bytes:
        """The line that is being printed."""
        return self.text().rpartition(b"\n")[2]

    def lines(self) -> list[Line]:
        """The whole lines since the cut."""
        return console_lines(self.text())

    def written(self) -> list[int]:
        """The numbers of the writes that were acknowledged since the cut."""
        return [line.number for line in self.lines() if line.kind == "W"]

    def complaints(self) -> list[Line]:
        """Blocks that were not as they had been written, and writes that failed."""
        return [line for line in self.lines() if line.kind != "W"]
