"""The JSON document of a command: one envelope, and beside it what the command itself found.

Every command with a result fills a :class:`Document`; it is written whatever the ending is (done,
found something, failed, interrupted). The members of the envelope and those of each command are in
``schemas/``. Units: bytes and seconds. A number whose unit is not in its name has it in the
name: ``offset_bytes``, ``clients_seconds``. Sentences for people (``trace``, ``text``, ``minimal``)
are the lines that the terminal shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import qmpshim
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import Build, read_version

#: Raised when a member of the envelope is removed or means something else.
VERSION = 1
#: What ended the work before it was complete, beside a signal's name.
BUDGET = "budget"


class Overall(StrEnum):
    """The verdict on all that was done; each finding has its own kind."""

    AS_PREDICTED = "as predicted"
    DIVERGED = "diverged"


_OF_STATUS = {0: Overall.AS_PREDICTED, 1: Overall.DIVERGED}


@dataclass(slots=True)
class Document:
    """What a command reports.

    :ivar command: in words, e.g. ``guest check``
    :ivar arguments: the command line after the program's name
    :ivar judges: whether this command judges a QEMU at all; a list does not
    :ivar builds: the builds it was about, as :func:`build_object` makes them
    :ivar result: the command's own members, at the top level beside the envelope's
    :ivar exit_status: of the process
    :ivar diverged: something was found, though the exit status is another (interrupted)
    :ivar error: why there is no verdict, one line
    :ivar interrupted: what ended the work early: a signal's name, or :data:`BUDGET`
    """

    command: str
    arguments: tuple[str, ...] = ()
    judges: bool = True
    builds: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    exit_status: int = 0
    diverged: bool = False
    error: str | None = None
    interrupted: str | None = None

    @property
    def verdict(self) -> Overall | None:
        """The verdict; ``None`` where nothing was judged, or not to the end."""
        if not self.judges:
            return None
        if self.interrupted is not None and self.diverged:
            return Overall.DIVERGED
        return _OF_STATUS.get(self.exit_status)

    def about(self, *builds: Build) -> None:
        """Add builds that the command is about; one that does not start has no version."""
        for build in builds:
            try:
                version = read_version(build)[1]
            except QmpshimError:
                version = ""
            self.builds.append(
                build_object(build.name, version, str(build.binary), command=build.command())
            )

    def to_json(self) -> dict[str, Any]:
        """The document. No member of the result has the name of one of the envelope's."""
        envelope = {
            "format": {"name": f"qmpshim {self.command}", "version": VERSION},
            "qmpshim": qmpshim.__version__,
            "command": self.command,
            "arguments": list(self.arguments),
            "builds": self.builds,
            "verdict": self.verdict,
            "exit_status": self.exit_status,
            "error": self.error,
            "interrupted": self.interrupted,
        }
        assert not envelope.keys() & self.result.keys(), envelope.keys() & self.result.keys()
        return {**envelope, **self.result}


def build_object(name: str, version: str, path: str, **more: Any) -> dict[str, Any]:
    """A build in a document.

    :param version: in QEMU's own words, with the distribution's package in parentheses
    :param path: where it is
    """
    found = re.match(r"((?:\d+\.?)*)[^(]*(?:\((.*)\))?", version)
    assert found is not None  # it fits everything
    return {
        "name": name,
        "version": version,
        "numbers": [int(number) for number in found[1].split(".") if number],
        "package": found[2] or "",
        "path": path,
        **more,
    }
