"""The catalogue of known defects says what the write-ups say."""

from __future__ import annotations

from qmpshim.conformance.known.write_ups import DIRECTORY
from vmtests.support.catalogue import CATALOGUE, catalogue


def test_it_is_up_to_date() -> None:
    assert CATALOGUE.read_text() == catalogue(), "make findings"


def test_every_write_up_is_in_it() -> None:
    text = catalogue()
    names = [p.relative_to(DIRECTORY).with_suffix("").as_posix() for p in DIRECTORY.rglob("*.json")]
    assert names and all(f"| `{name}` |" in text for name in names)
