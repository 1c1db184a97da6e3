"""What gcov counted, added up and shown."""

from __future__ import annotations

from block_coverage import table
from coverage_build import Counted, counted_in


def line(number: int, count: int, *branches: int) -> dict[str, object]:
    taken = [{"count": branch} for branch in branches]
    return {"line_number": number, "count": count, "branches": taken}


def test_a_line_has_run_where_one_of_its_copies_has() -> None:
    lines = [line(3, 0, 0, 0), line(3, 2, 2, 0), line(4, 0), line(5, 0), line(9, 1), line(12, 0)]
    found = counted_in({"file": "../source/block/backup.c", "lines": lines})
    assert found == Counted("backup.c", (2, 5), (1, 4), (4, 5, 12))
    shown = list(table([found], missed=True))
    assert shown[1].split() == ["backup.c", "40", "%", "25", "%"]
    assert shown[2].strip() == "never: 4-5, 12"
    assert len(list(table([found], missed=False))) == 2
