"""What explore needs of write-ups: whether they explain a finding.

It is given them from above: they are in :mod:`qmpshim.conformance.known`, which knows explore.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict

Version = tuple[int, ...]


class ExplainsFinding(Protocol):
    """A write-up of what schedules show."""

    @property
    def id(self) -> str:
        """What a finding's ``known`` is when it is this."""

    def covers(self, finding: Finding, version: Version) -> bool:
        """Whether *finding*, seen on QEMU *version*, is this one."""


class ExplainsCase(Protocol):
    """A write-up of what a directed case shows."""

    def covers(self, verdict: Verdict, cause: Cause, version: Version) -> bool:
        """Whether this is what was seen on QEMU *version*."""


def recogniser(known: Sequence[ExplainsFinding], version: Version) -> Callable[[Finding], str]:
    """Return the id of what a finding on QEMU *version* is, ``""`` if it is not written up."""

    def recognise(finding: Finding) -> str:
        return next((one.id for one in known if one.covers(finding, version)), "")

    return recognise
