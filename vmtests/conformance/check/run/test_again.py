"""The command that shows a finding again can be pasted where it is written."""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.check.case import CaseFinding, ShownBy
from qmpshim.conformance.check.run.again import replay_command
from qmpshim.conformance.check.run.journal import Plan
from qmpshim.model.check.verdict import Verdict


def test_a_bundle_is_named_as_seen_from_where_the_command_is_given() -> None:
    plan = Plan("quick", (), (), {})
    key = ("system", "known/one")
    finding = CaseFinding(Verdict.HANG, "c", "t", bundle="hang-WR", replay=ShownBy.BUNDLE)
    inside = "cases/system/known-one/hang-WR --build system"
    assert replay_command(plan, key, finding) == f"qmpshim replay {inside}"
    assert replay_command(plan, key, finding, Path("out")) == f"qmpshim replay out/{inside}"
