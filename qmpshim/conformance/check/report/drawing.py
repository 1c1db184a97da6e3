"""A sequence diagram's geometry: lanes, marks and texts with their places, ready to be drawn.

Takes the data of :mod:`qmpshim.conformance.check.report.sequence`; ``templates/sequence.svg.j2``
draws it. Lengths are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from qmpshim.model.answers import OK, answer_from_json

LEFT, LANE, HEAD, LINE, PAD = 44, 292, 20, 17, 11
_CHARACTERS = 36  # of the diagram's font in a lane


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; ``kind`` is its class."""

    x: float
    y: float
    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a lane's line: ``idle``, ``held`` or ``waits``."""

    x: float
    y1: float
    y2: float
    kind: str


@dataclass(slots=True)
class StepDrawing:
    """What belongs to one step, and appears with it."""

    number: int
    y: float
    height: float
    dots: list[tuple[float, float, str]] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    note: bool = False


@dataclass(slots=True)
class Drawing:
    """A whole diagram."""

    width: float
    height: float
    heads: list[Text]
    head_height: float
    steps: list[StepDrawing]
    lanes: list[float]


@dataclass(slots=True)
class _Lane:
    started: bool = False
    ended: bool = False
    held: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.held:  # an operation's I/O may go on after its answer
            return "held"
        return "waits" if self.started and not self.ended else ""


def draw(diagram: Mapping[str, Any]) -> Drawing:
    """Place everything."""
    names: Sequence[str] = diagram["lanes"]
    lanes = [LEFT + LANE * index + 8.0 for index in range(len(names))]
    wrapped = [wrap(name, _CHARACTERS) or [""] for name in names]
    head_height = HEAD + LINE * max((len(lines) for lines in wrapped), default=1)
    heads = [
        Text(x, HEAD + LINE * row, line, "head")
        for x, lines in zip(lanes, wrapped, strict=True)
        for row, line in enumerate(lines)
    ]
    plain = all(step["kind"] in ("start", "note") and not step["ends"] and not step["arrives"]
                   for step in diagram["steps"])  # fmt: skip
    states = [_Lane() for _ in names]
    steps: list[StepDrawing] = []
    y = float(head_height + PAD)
    for number, step in enumerate(diagram["steps"], 1):
        drawing = _step(number, step, y, lanes, states, plain)
        steps.append(drawing)
        y += drawing.height
    return Drawing(LEFT + LANE * max(1, len(names)), y + PAD, heads, head_height, steps, lanes)


def _step(
    number: int,
    step: Mapping[str, Any],
    y: float,
    lanes: Sequence[float],
    states: Sequence[_Lane],
    plain: bool,
) -> StepDrawing:
    lane = step["lane"]
    if lane is None or not 0 <= lane < len(lanes):
        width = _CHARACTERS * max(1, len(lanes))
        texts = [
            Text(LEFT, y + LINE * (row + 1), line, "note")
            for row, line in enumerate(wrap(step["text"], width) or [""])
        ]
        return StepDrawing(number, y, LINE * len(texts) + PAD, texts=texts, note=True)
    before = [one.state for one in states]
    rows: dict[int, list[tuple[str, str]]] = {lane: [(_did(step), step["kind"])]}
    _move(step, lane, states)
    for other, what in step["arrives"]:
        if 0 <= other < len(states):
            states[other].held.append(what)
            rows.setdefault(other, []).append((f"{what} is held", "arrives"))
    for other, answer in step["ends"]:
        if 0 <= other < len(states):
            states[other].ended = True
            well = "ends" if answer_from_json(answer) == OK else "fails"
            rows.setdefault(other, []).append((f"ends: {answer}", well))
    holders = [index for index, one in enumerate(states) if one.state == "held"]
    if not plain:
        for index, one in enumerate(states):
            if one.state == "waits" and before[index] != "waits":
                blocking = " and ".join(f"op {h}" for h in holders if h != index)
                text = "waits" + (f" ({blocking} is held up)" if blocking else "")
                rows.setdefault(index, []).append((text, "waiting"))
    drawing = StepDrawing(number, y, 0)
    for index, lines in rows.items():
        at = y
        for text, kind in lines:
            drawing.dots.append((lanes[index], at + LINE - 4, kind))
            for line in wrap(text, _CHARACTERS - 2, subsequent_indent="  "):
                at += LINE
                drawing.texts.append(Text(lanes[index] + 14, at, line, kind))
        drawing.height = max(drawing.height, at - y + PAD)
    if not plain:
        end = y + drawing.height
        drawing.segments = [
            Segment(x, y + LINE - 4, end + LINE - 4, one.state)
            for x, one in zip(lanes, states, strict=True)
            if one.state
        ]
    return drawing


def _did(step: Mapping[str, Any]) -> str:
    if not step["io"]:
        return f"{step['text']}"
    how = {"complete": "done", "fail": f"fails {step['text']}", "cut": f"cut {step['text']}"}
    return f"{step['io']}: {how[step['kind']]}"


def _move(step: Mapping[str, Any], lane: int, states: Sequence[_Lane]) -> None:
    states[lane].started = True
    if step["kind"] == "cut":  # with the connection goes all that waits on it
        image = step["io"].split(" ", 1)[0]
        for one in states:
            one.held = [what for what in one.held if what.split(" ", 1)[0] != image]
    elif step["io"] in states[lane].held:
        states[lane].held.remove(step["io"])
