"""A violation on a real QEMU."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmpshim.conformance.compare.evidence import Evidence
from qmpshim.errors import Exit
from qmpshim.model.check.cause import Cause
from qmpshim.model.explore.system import Violation


@dataclass(frozen=True, slots=True)
class RealViolation(Violation):
    """A violation on a real QEMU.

    :ivar cause: the same for all schedules that fail in the same way; groups findings
    :ivar ending: how QEMU ended, where it did
    :ivar evidence: what was seen, as data, where a script can look for it
    """

    cause: Cause = field(kw_only=True)
    ending: Exit | None = field(default=None, kw_only=True)
    evidence: Evidence | None = field(default=None, kw_only=True)
