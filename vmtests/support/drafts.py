"""Drafts of write-ups, filled in as their author would."""

from __future__ import annotations

import json
from pathlib import Path

from qmpshim.conformance.known.meaning import TO_WRITE


def filled(draft: Path) -> Path:
    """The same file, with sentences where the draft has none."""
    value = json.loads(draft.read_text())
    value |= {"reason": "it is so", "source": "block/x.c f()"}
    value["title"] = "A title"
    if "steps" in value:
        value["steps"] = ["A sentence.", "Another one."]
    if "expected" in value:
        value["expected"] = "A sentence."
    for name in ("situation", "consequence", "workaround"):
        assert TO_WRITE in value["meaning"][name]
        value["meaning"][name] = "A sentence."
    draft.write_text(json.dumps(value))
    return draft
