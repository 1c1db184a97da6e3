"""The checkers of explore: what each looks at, and the verdicts it may give.

The table in their README is :func:`table`; a test compares. It has the tests with mutants
that a checker kills, too: they are marked so, ``pytest.mark.kills``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import qmpshim.conformance.explore.checkers as package
from qmpshim.model.check.verdict import Verdict

FOLDER = Path(next(iter(package.__path__)))
#: What checkers share, and are none themselves.
SHARED = (
    "at_end", "end", "failed_end", "failed_runs", "failure_reports", "orders",
    "partial_work", "parts", "placements", "sequential",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checker:
    """One checker.

    :ivar module: its file, without ``.py``
    :ivar looks_at: the observables
    :ivar verdicts: what it may find
    """

    module: str
    looks_at: str
    verdicts: Sequence[Verdict]

    @property
    def summary(self) -> str:
        """What it does: the first line of its module."""
        text = ast.get_docstring(ast.parse((FOLDER / f"{self.module}.py").read_text())) or ""
        return text.splitlines()[0].partition(": ")[2].rstrip(".")


CHECKERS: tuple[Checker, ...] = (
    Checker("online", "each request as it arrives; the disk when a flush ends",
            (Verdict.ORDER, Verdict.CONTENT, Verdict.LOST_WRITE)),
    Checker("liveness", "answers, jobs, exports, the commit of a failover",
            (Verdict.HANG, Verdict.ERROR_CONTRACT)),
    Checker("final_state", "the bytes of all images, by our own reader", (Verdict.CORRUPTION,)),
    Checker("linearizability",
            "answer and data of each operation, each disk and the guest's view in each cell, "
            "allocation of each cluster, replication's status",
            (Verdict.ALLOCATION, Verdict.CONTENT, Verdict.ERROR_CONTRACT, Verdict.ISOLATION,
             Verdict.LOST_WRITE, Verdict.PROTOCOL)),
    Checker("point_in_time", "the target of a backup job in each sector, and how the job ended",
            (Verdict.CONTENT, Verdict.ERROR_CONTRACT, Verdict.PROTOCOL)),
    Checker("job_errors",
            "events BLOCK_JOB_ERROR; a job that one has paused, before and after it is resumed",
            (Verdict.ERROR_CONTRACT,)),
    Checker("bitmaps",
            "each dirty bitmap of the disk: its granules, whether it records, whether it is in "
            "use", (Verdict.ALLOCATION, Verdict.LOST_WRITE, Verdict.PROTOCOL)),
    Checker("pulled_bitmaps",
            "the same of the bitmap that was frozen when a pull began, and of the one that "
            "began then", (Verdict.ALLOCATION, Verdict.LOST_WRITE, Verdict.PROTOCOL)),
    Checker("pulled_point",
            "the guest's view, and what operations read of it, where one of them has started "
            "the pull", (Verdict.CONTENT, Verdict.ISOLATION)),
    Checker("failures",
            "the same, where I/Os failed; failures 3 to 7 of docs/block-replication.txt",
            (Verdict.ERROR_CONTRACT, Verdict.ISOLATION)),
    Checker("quorum", "the same on the primary, and of disks that vote; events QUORUM_REPORT_BAD",
            (Verdict.ERROR_CONTRACT, Verdict.LOST_WRITE)),
    Checker("durability", "flushes of the secondary disk after a failover's commit",
            (Verdict.LOST_WRITE,)),
    Checker("probe", "answers, the guest's view and the disks after one more write",
            (Verdict.CONTENT, Verdict.ERROR_CONTRACT, Verdict.ISOLATION, Verdict.LOST_WRITE)),
    Checker("crash_points",
            "the images after a step, by our own reader, qemu-img check and a fresh QEMU",
            (Verdict.CORRUPTION, Verdict.CRASH, Verdict.HANG)),
    Checker("power_loss", "the images after a step, without any part of what was not flushed",
            (Verdict.CORRUPTION, Verdict.LOST_WRITE)),
)  # fmt: skip


def table_of(kills: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The checkers as a table in Markdown.

    :param kills: by checker, the file and the name of each test with mutants that it kills
    """
    rows = ["| checker | checks | looks at | verdicts | mutants killed |", "|---|---|---|---|---|"]
    for one in CHECKERS:
        verdicts = ", ".join(sorted(one.verdicts))
        killed = "; ".join(
            f"{test.replace('_', ' ')} (`{file}`)" for file, test in kills[one.module]
        )
        rows.append(f"| `{one.module}` | {one.summary} | {one.looks_at} | {verdicts} | {killed} |")
    return "\n".join(rows)
