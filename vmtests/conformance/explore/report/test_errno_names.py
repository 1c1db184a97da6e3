"""Whatever people read of a finding names its errnos."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.schedule_diagram import diagram
from qmpshim.conformance.known.folder import known_findings

_BARE = re.compile(r"errno \d+\b(?! \(E)")
_WITH = [one for one in known_findings() if _BARE.search("\n".join(load_finding(one.path).lines))]


def test_some_have_them() -> None:
    assert len(_WITH) >= 3


@pytest.mark.parametrize("written", _WITH, ids=lambda one: one.id)
def test_no_errno_is_a_bare_number(written: object, tmp_path: Path) -> None:
    finding = load_finding(written.path)  # type: ignore[attr-defined]
    bundle = save_finding(tmp_path / "bundle", finding)
    for text in (
        finding.described,
        " ".join(diagram(finding).replace("|", " ").split()),  # a lane may break the line there
        (bundle / "README").read_text(),
        (bundle / "trace.txt").read_text(),
    ):
        assert not _BARE.search(text), _BARE.findall(text)
