"""The verdicts: one vocabulary for everything that can be found wrong."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What kind of divergence a finding is: one vocabulary for CLI, JSON, JUnit and HTML."""

    CONTENT = "content"  # hidden, active or secondary disk differ from the prediction
    ISOLATION = "isolation"  # a reader saw what it must not
    ORDER = "order"  # new data reached the secondary before the old was in the hidden disk
    ALLOCATION = "allocation"  # a cluster is allocated that must not be, or the reverse
    CRASH = "crash"
    HANG = "hang"
    CORRUPTION = "corruption"  # qemu-img check or the independent reader disagree
    ERROR_CONTRACT = "error-contract"  # an error missing, wrong, or unreported
    PROTOCOL = "protocol"  # a QMP answer differs
    LOST_WRITE = "lost-write"
