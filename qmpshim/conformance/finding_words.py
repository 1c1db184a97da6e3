"""The words that every command has: for a finding, within the contract or not, known or new."""

from __future__ import annotations

#: What a command adds to its summary where known findings count, too.
KNOWN_FAIL = "known ones fail the run, too"
#: What a case or a scenario is that a build cannot do.
CANNOT_BE_TESTED = "cannot be tested"


def state_words(known: str, confirmed: bool = True) -> str:
    """Whether a finding is written up, and as what; and whether it showed itself every time.

    :param known: id of its write-up, or ``""``
    """
    state = f"known: {known}" if known else "NEW"
    return state if confirmed else f"{state}, NOT CONFIRMED"


def classified(contract: bool, known: str, confirmed: bool = True) -> str:
    """The same, after whether it was seen within QEMU's documents."""
    return f"{'contract' if contract else 'robustness'}, {state_words(known, confirmed)}"
