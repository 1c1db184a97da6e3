"""A finding's steps as data for a sequence diagram: who moves, what is held, who waits for it.

Made from the lines of a trace (see :class:`~qmpshim.conformance.explore.execution.Execution`) or
from a list of operations; drawn by :mod:`qmpshim.conformance.check.drawing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_START = re.compile(r"start (\d+): (.*)")
_MOVE = re.compile(r"(complete|fail) (.*) \(of (-?\d+)\)(.*)")
_END = re.compile(r"    (\d+) ends: (.*)")
_ARRIVAL = re.compile(r"    (.*) \(of (-?\d+)\)")


def steps_of_lines(lanes: Sequence[str], lines: Iterable[str]) -> dict[str, Any]:
    """The diagram of an explored schedule.

    :param lanes: the operations, in words
    :param lines: the trace
    :returns: ``lanes`` and ``steps``; a step has the ``lane`` that moves (None: nobody's), its
        ``kind`` (start, complete, fail, note) and ``text``, the I/Os that arrive at the gate
        (``arrives``: lane and text) and the operations that end (``ends``)
    """
    steps: list[dict[str, Any]] = []
    for line in lines:
        if found := _START.fullmatch(line):
            steps.append(_step(int(found[1]), "start", found[2]))
        elif found := _MOVE.fullmatch(line):
            steps.append(_step(int(found[3]), found[1], found[2] + found[4]))
        elif (found := _END.fullmatch(line)) and steps:
            steps[-1]["ends"].append([int(found[1]), found[2]])
        elif (found := _ARRIVAL.fullmatch(line)) and steps:
            steps[-1]["arrives"].append([int(found[2]), found[1]])
        else:
            steps.append(_step(None, "note", line.strip()))
    return {"lanes": list(lanes), "steps": steps}


def _step(lane: int | None, kind: str, text: str) -> dict[str, Any]:
    return {"lane": lane, "kind": kind, "text": text, "arrives": [], "ends": []}


#: Whoever does an operation of a straight workload.
SIDES = ("primary", "guest", "chain")


def steps_of_operations(operations: Iterable[tuple[str, str]], wrong: str) -> dict[str, Any]:
    """The diagram of a straight workload: one operation after another.

    :param operations: side and words of each
    :param wrong: what is wrong after the last
    """
    steps = [_step(SIDES.index(side), "start", text) for side, text in operations]
    return {
        "lanes": ["primary (NBD)", "guest", "monitor (QMP)"],
        "steps": [*steps, _step(None, "note", wrong)],
    }
