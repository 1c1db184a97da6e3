"""Replay bundles of a kind that a test knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from qmpshim.conformance.known.bundle_kinds import drafts, load_bundle

Case = TypeVar("Case")


def loaded(path: Path, kind: type[Case]) -> Case:
    """The case of a bundle, or of a write-up."""
    case = load_bundle(path)
    assert isinstance(case, kind), case
    return case


def draft_of(path: Path) -> dict[str, Any]:
    """A draft of a write-up."""
    return drafts(path)[0]


def steps_draft(path: Path) -> str:
    """The steps beside one."""
    return drafts(path)[1]
