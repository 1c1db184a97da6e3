"""Causes: one wording each, which bundles of format 1 are read by, and a codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.model.check.cause import WORDING, Cause, CauseKind, FaultContext, Phase, Relation
from qmpshim.model.check.cause_reader import cause_from_json, cause_from_text

#: What an old bundle's text says, and what it means.
TEXTS = {
    "guest_read: new data instead of the old data": Cause(
        CauseKind.WRONG_DATA, "guest_read", "new data", ("the old data",)
    ),
    "view: zeroes instead of the guest's data or the old data, after a failed hidden write": Cause(
        CauseKind.WRONG_DATA,
        "view",
        "zeroes",
        ("the guest's data", "the old data"),
        fault=FaultContext(Relation.AFTER, "hidden write"),
    ),
    "active cluster unallocated instead of data, beside the hidden disk went away": Cause(
        CauseKind.ALLOCATION,
        "active",
        "unallocated",
        ("data",),
        fault=FaultContext(Relation.BESIDE, "hidden", gone=True),
    ),
    "case 3. backup failed: not in the status": Cause(
        CauseKind.NOT_IN_STATUS, "3", "backup failed"
    ),
    "status answers I/O error occurred while failing over": Cause(CauseKind.MISLEADING_STATUS),
    "status answers I/O error occurred": Cause(
        CauseKind.WRONG_ANSWER, "status", "I/O error occurred"
    ),
    "the view changes with the next primary write, after a failed checkpoint": Cause(
        CauseKind.VIEW_CHANGES_AFTER_FAILED_CHECKPOINT
    ),
    "taken apart: QEMU was killed by SIGSEGV": Cause(
        CauseKind.ENDED, detail="QEMU was killed by SIGSEGV", phase=Phase.TEAR_DOWN
    ),
    "before the scenario begins: xen-set-replication: no": Cause(
        CauseKind.ENDED, detail="xen-set-replication: no", phase=Phase.SETUP
    ),
    "guest_write says success after a refused primary write and a refused secondary one": Cause(
        CauseKind.ERROR_MASKED_BY_BOTH, "guest_write", "primary write"
    ),
    "guest_zero says success after a refused primary zero, and is not read back": Cause(
        CauseKind.ERROR_MASKED_OLD_DATA, "guest_zero", "primary zero"
    ),
    "active broken, says our reader, after a crash": Cause(
        CauseKind.BROKEN_BY_CRASH, "active", "our reader"
    ),
    "the primary's export does not go": Cause(CauseKind.STAYS, "the primary's export"),
    "x: Assertion `a && b' failed.": Cause(CauseKind.ENDED, detail="x: Assertion `a && b' failed."),
}


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_an_old_bundle_is_read(text: str) -> None:
    assert cause_from_text(text) == TEXTS[text]
    assert str(TEXTS[text]) == text


def test_every_kind_has_a_wording_of_its_own() -> None:
    assert set(WORDING) == set(CauseKind)
    fixed = [text for text in WORDING.values() if "{" not in text]
    assert len(set(fixed)) == len(fixed)


words = st.text(st.characters(codec="utf-8"), max_size=20)
faults = st.builds(FaultContext, st.sampled_from(Relation), words, st.booleans())
causes = st.builds(
    Cause,
    st.sampled_from(CauseKind),
    words,
    words,
    st.lists(words, max_size=3).map(tuple),
    st.sampled_from(Phase),
    st.none() | faults,
)


@given(causes)
def test_the_codec_loses_nothing(cause: Cause) -> None:
    assert cause_from_json(cause.to_json()) == cause
