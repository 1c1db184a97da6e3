"""Choices: names and codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.conformance.explore.harness.choices import (
    Complete,
    Cut,
    Fail,
    IoId,
    RealChoice,
    Start,
    choice_from_json,
    choice_to_json,
    io_id,
)

places = st.sampled_from(["", "0+128", "16+8", "meta 65536+512"])
ids = st.builds(
    IoId,
    st.integers(0, 5),
    st.sampled_from(["hidden", "secondary"]),
    st.sampled_from(["read", "write", "flush"]),
    places,
    st.integers(0, 3),
)
faults = st.sampled_from([5, 28, *Cut])
choices = (
    st.builds(Start, st.integers(0, 5)) | st.builds(Complete, ids) | st.builds(Fail, ids, faults)
)


@given(choices)
def test_the_codec_loses_nothing(choice: RealChoice) -> None:
    assert choice_from_json(choice_to_json(choice)) == choice
    assert type(choice_from_json(choice_to_json(choice))) is type(choice)


def test_bundles_of_format_1_are_read() -> None:
    assert choice_from_json(["io", 1, "hidden write 0+128", 2]) == Complete(
        IoId(1, "hidden", "write", "0+128", 2)
    )
    assert choice_to_json(Fail(io_id(0, "active flush"), 5)) == ["fail", 0, "active flush", 0, 5]


@pytest.mark.parametrize(
    "value", [None, [], ["wake", 1], ["start", "0"], ["io", 0, "flush", 0], ["io", 0, "a b", "0"]]
)
def test_what_is_no_choice_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        choice_from_json(value)
