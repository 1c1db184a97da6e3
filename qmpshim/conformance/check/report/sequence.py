"""A finding's steps as data for a sequence diagram: operations, held I/Os, what waits for them.

Made from the events of a trace (see :class:`~qmpshim.conformance.explore.harness.history.History`)
or from a list of operations; drawn by :mod:`qmpshim.conformance.check.report.drawing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Ended,
    Event,
    Failed,
    Started,
    What,
)
from qmpshim.model.answers import answer_to_json


def steps_of_events(lanes: Sequence[str], events: Iterable[Event]) -> dict[str, Any]:
    """The diagram of an explored schedule.

    :param lanes: the operations, in words
    :param events: the trace
    :returns: ``lanes`` and ``steps``; a step has the ``lane`` that moves (None: none of them), its
        ``kind`` (start, complete, fail, cut, note), the ``io`` that it is about, and ``text``: the
        operation, or how the I/O ended; the I/Os that arrive at the gate (``arrives``: lane and
        text) and the operations that end (``ends``)
    """
    steps: list[dict[str, Any]] = []
    for event in events:
        match event:
            case Arrived(io) if steps:
                steps[-1]["arrives"].append([io.op, str(io)])
            case Ended(op, answer) if steps:
                steps[-1]["ends"].append([op, answer_to_json(answer)])
            case Started(op):
                steps.append(_step(op, event.what.value, event.text))
            case Completed(io) | Failed(io):
                steps.append(_step(io.op, event.what.value, event.text, str(io)))
            case _:
                steps.append(_step(None, What.NOTE.value, str(event).strip()))
    return {"lanes": list(lanes), "steps": steps}


def _step(lane: int | None, kind: str, text: str, io: str = "") -> dict[str, Any]:
    return {"lane": lane, "kind": kind, "text": text, "io": io, "arrives": [], "ends": []}


def steps_of_operations(
    lanes: Mapping[str, str], operations: Iterable[tuple[str, str]], wrong: str
) -> dict[str, Any]:
    """The diagram of a workload: one operation after another.

    :param lanes: headings, by the side or disk that an operation is of
    :param operations: side or disk, and text of each
    :param wrong: what is wrong after the last
    """
    columns = list(lanes)
    steps = [_step(columns.index(side), "start", text) for side, text in operations]
    return {"lanes": list(lanes.values()), "steps": [*steps, _step(None, "note", wrong)]}
