"""The catalogue of known defects as text, made from the write-ups: FINDINGS.md beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qmpshim.conformance.known.folder import DIRECTORY

CATALOGUE = DIRECTORY.with_name("FINDINGS.md")

_HEAD = """\
# Known defects of QEMU

Made from the write-ups in `findings/` by `make findings`; do not edit it. Each has its minimal
case there, and `qmpshim replay FILE` shows it again. *Versions* are those that have it, by the
builds that were tested and by QEMU's sources.
"""
_SECTIONS = {
    True: "Within QEMU's documented contract",
    False: "Robustness: commands while I/O is in flight or after a failure",
}


def catalogue() -> str:
    """All write-ups by contract and name, as Markdown."""
    written = [(path, json.loads(path.read_text())) for path in sorted(DIRECTORY.rglob("*.json"))]
    parts = [_HEAD]
    for contract, title in _SECTIONS.items():
        parts.append(
            f"\n## {title}\n\n| finding | versions | what happens, and why |\n|---|---|---|\n"
        )
        parts += [_row(path, value) for path, value in written if _contract(value) is contract]
    return "".join(parts)


def _contract(value: dict[str, Any]) -> bool:
    return bool(value.get("contract", True))


def _row(path: Path, value: dict[str, Any]) -> str:
    name = path.relative_to(DIRECTORY).with_suffix("").as_posix()
    since, fixed = (value["versions"].get(key, "") for key in ("since", "fixed"))
    versions = f"{since or '…'} to before {fixed}" if fixed else f"from {since}" if since else "all"
    return f"| `{name}` | {versions} | **{_cell(value['title'])}.** {_cell(value['reason'])} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").rstrip(".")
