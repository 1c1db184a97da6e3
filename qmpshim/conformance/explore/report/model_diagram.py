"""A violation as text: a sequence diagram of operations, and what waits for what, by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from qmpshim.model.answers import OK, UNANSWERED
from qmpshim.model.check.online import owner
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.explore.system import Choice, Violation
from qmpshim.model.runtime.coroutines import Io

LANE = 36  # characters


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a schedule.

    :ivar did: what the operation did
    :ivar news: by operation, what is new about it after the step
    """

    choice: Choice
    did: str
    news: dict[int, str]


def trace(system: ModelSystem, schedule: Sequence[Choice]) -> tuple[list[Step], Violation | None]:
    """Take the steps of a schedule and note what happens.

    :returns: the steps, and what is wrong after them
    :raises ValueError: a step is not enabled when its turn comes
    """
    system.reset()
    steps = []
    before = _standing(system)
    for choice in schedule:
        if choice not in system.enabled():
            raise ValueError(f"{choice} is not enabled; there are {list(system.enabled())}")
        io = system.pending(choice)
        failed = len(system.watch.failed)
        system.take(choice)
        did = {"start": "starts", "wake": "goes on"}.get(str(choice[0]), "")
        if io is not None:
            did = _words(system, io, failed=len(system.watch.failed) > failed)
        after = _standing(system)
        news = {op: text for op, text in after.items() if text != before.get(op)}
        steps.append(Step(choice, did, news))
        before = after
    if system.violation is None and not system.enabled():
        system.finish()
    return steps, system.violation


def _clusters(system: ModelSystem, start: int, count: int) -> str:
    size = max(128, system.scenario.cluster)
    first, last = start // size, (start + count - 1) // size
    return f"cluster {first}" if first == last else f"clusters {first}-{last}"


def _words(system: ModelSystem, io: Io, failed: bool) -> str:
    where = f"{io.disk} {_clusters(system, io.start, io.count)}" if io.op != "flush" else io.disk
    if failed:
        return f"{io.op} {where}: fails"
    if io.op in ("empty", "flush"):
        return f"{io.op} {io.disk}"
    image = getattr(system.chain, io.disk)
    edges = system.cells.edges
    found = [image.contents.read(edges[p], 1)[0] for p in system.cells.pieces(io.start, io.count)]
    unlike = list(dict.fromkeys(found))
    return f"{io.op} {where}: {', '.join(owner(number) for number in unlike)}"


def _standing(system: ModelSystem) -> dict[int, str]:
    """By operation: asleep and behind which, or ended and how."""
    standing = {}
    for task in system.scheduler.sleepers():
        assert task.queue is not None
        holder = task.queue.owner
        whose = f" of op {holder}" if isinstance(holder, int) and holder >= 0 else ""
        standing[task.op] = f"waits for {task.queue.label}{whose}"
    for op, answer in enumerate(system.watch.answers):
        data = system.watch.data[op]
        if data is not None:
            unlike = ", ".join(owner(number) for number in dict.fromkeys(data))
            standing[op] = f"ends: sees {unlike}"
        elif answer == OK:
            standing[op] = "ends"
        elif answer != UNANSWERED:
            standing[op] = f"ends: {answer}"
    return standing


def render(system: ModelSystem, schedule: Sequence[Choice]) -> str:
    """The sequence diagram of a schedule, a lane for each operation, time downwards.

    :raises ValueError: a step is not enabled when its turn comes
    """
    steps, violation = trace(system, schedule)
    scenario = system.scenario
    lanes = len(scenario.ops)
    heads = [f"op {i}: {op} = data {scenario.number(i)}" if op.writes else f"op {i}: {op}"
             for i, op in enumerate(scenario.ops)]  # fmt: skip
    lines = [f"scenario {scenario.name}: {scenario.about}"]
    if scenario.setup:
        done = [f"{op} = data {number}" if op.writes else str(op)
                for number, op in enumerate(scenario.setup, 1)]  # fmt: skip
        lines.append(f"before: {', '.join(done)}")
    lines += ["", *row("", heads), *row("", ["-" * (LANE - 2)] * lanes)]
    for number, step in enumerate(steps, 1):
        cells = ["|"] * lanes
        actor = step.choice[1]
        assert isinstance(actor, int)
        for op, news in step.news.items():
            cells[op] = f"| {news}"
        own = step.news.get(actor)
        cells[actor] = f"* {step.did}" + (f"; {own}" if own else "")
        lines += row(str(number), cells)
    lines.append("")
    if violation is None:
        lines.append("nothing is wrong")
    else:
        cluster = "" if violation.cluster is None else f" (cluster {violation.cluster})"
        lines.append(f"{violation.kind.value}: {violation.text}{cluster}")
    lines.append(f"schedule: {schedule_text(schedule)}")
    return "\n".join(lines)


def row(number: str, cells: Sequence[str]) -> list[str]:
    """One row of a diagram: a label, and a cell for each lane, wrapped."""
    wrapped = [wrap(cell, LANE - 2, subsequent_indent="    ") for cell in cells]
    height = max(len(cell) for cell in wrapped)
    rows = []
    for row in range(height):
        texts = [
            cell[row] if row < len(cell) else ("|" if cell[0][:1] in "|*" else "")
            for cell in wrapped
        ]
        label = number if row == 0 else ""
        rows.append(f"{label:>4}  " + "".join(f"{text:<{LANE}}" for text in texts).rstrip())
    return rows


def schedule_text(schedule: Sequence[Choice]) -> str:
    """A schedule in one line: ``start:0 io:0:0 start:1 ...``."""
    return " ".join(":".join(str(part) for part in choice) for choice in schedule)


def schedule_from_text(text: str) -> tuple[Choice, ...]:
    """The schedule that :func:`schedule_text` wrote."""
    return tuple(
        tuple(int(part) if part.isdecimal() else part for part in choice.split(":"))
        for choice in text.split()
    )
