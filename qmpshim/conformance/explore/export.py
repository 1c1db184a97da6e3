"""Writes a finding as a script of its own, to attach to a bug report: Python, a QEMU, nothing else.

Two ways, and the simpler one that can express the schedule is taken:

* *blkdebug*: everything is QEMU's own. One request at the secondary disk is caught by a breakpoint
  (``qemu-io DRIVE "break read_aio A"``) while the other operations run, and then resumed.
* *NBD*: the script is the NBD server of all three disks and holds the requests itself, for
  schedules that blkdebug's breakpoints cannot tell apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.execution import CUT, RECONNECT
from qmpshim.conformance.explore.findings import Finding
from qmpshim.conformance.explore.scenarios import VANISH
from qmpshim.conformance.explore.trace import What, read_line
from qmpshim.errors import InputError
from qmpshim.machine.gated_chain import Form

_TEMPLATES = Path(__file__).with_name("templates")


def export_script(finding: Finding) -> str:
    """The reproducer's text, a Python program: run it with the QEMU binary as its argument.

    :raises InputError: the finding is a schedule that showed nothing wrong, or one that neither way
        can do
    """
    _check(finding)
    if finding.verdict is None:
        raise InputError("this schedule was recorded as one that shows nothing wrong")
    case = {
        "title": f"{finding.verdict}: {finding.text}",
        "build": finding.build,
        "form": finding.scenario.form.value,
        "size": finding.scenario.size,
        "cluster": finding.scenario.cluster,
        "setup": [[op.do, op.start, op.count] for op in finding.scenario.setup],
        "ops": [[op.do, op.start, op.count] for op in finding.scenario.ops],
        "schedule": [list(choice) for choice in finding.schedule],
        "trace": list(finding.lines),
        "verdict": finding.verdict.value,
    }
    breakpoints = blkdebug_steps(finding)
    if breakpoints is not None:
        case["schedule"] = breakpoints
        return _fill("blkdebug.py.in", case)
    return _fill("nbd.py.in", case)


def _check(finding: Finding) -> None:
    scenario = finding.scenario
    cannot = ""
    if any(step[0] == "fail" and step[-1] in (CUT, RECONNECT) for step in finding.schedule):
        cannot = "a connection that is cut"
    elif any(op.do in VANISH for op in scenario.ops):
        cannot = "a client that vanishes"
    elif scenario.secondary != "raw":
        cannot = "a qcow2 secondary disk"
    if cannot:
        raise InputError(f"a stand-alone script cannot do {cannot}; `qmpshim replay` can")


def _fill(name: str, case: dict[str, Any]) -> str:
    text = (_TEMPLATES / name).read_text()
    text = text.replace("@COMMON@\n", (_TEMPLATES / "common.py.in").read_text())
    lines = "\n".join(f"    {line}" for line in case.pop("trace"))
    text = text.replace("@TITLE@", case["title"].replace('"""', "'''").replace("\\", "/"))
    text = text.replace("@TRACE@", lines.replace("\\", "/"))
    rows = ",\n".join(f"    {json.dumps(key)}: {value!r}" for key, value in case.items())
    return text.replace("@CASE@", "{\n" + rows + ",\n}")


@dataclass(frozen=True, slots=True)
class _Span:
    """A request that was held: from which step on, and which step completed it."""

    what: str
    op: int
    arrival: int
    end: int


def blkdebug_steps(finding: Finding) -> list[list[Any]] | None:
    """The schedule in breakpoints, or ``None`` where they cannot express it.

    They can when at most one request at a time has to wait while an operation starts, and when it
    is a read or write of the secondary disk that the start of its own operation made at once: a
    breakpoint catches the next request of a kind, whosever it is. Steps are ``["break", event]``,
    ``["start", operation]``, ``["resume"]``.
    """
    if finding.scenario.form is not Form.REPLICATION or finding.errnos:
        return None
    spans = _spans(finding)
    starts = [place for place, choice in enumerate(finding.schedule) if choice[0] == "start"]
    waiting = [s for s in spans if any(s.arrival < start < s.end for start in starts)]
    for span in waiting:
        image, verb = span.what.split()[:2]
        alone = [s for s in spans if s.arrival == span.arrival] == [span]
        others = [s for s in waiting if s.arrival < span.end and span.arrival < s.end]
        own = finding.schedule[span.arrival] == ("start", span.op)
        if image != "secondary" or verb not in ("read", "write") or not own:
            return None
        if not alone or others != [span]:
            return None
    if not waiting and len(starts) > 1 and any(start > 1 for start in starts):
        return None  # nothing would keep the operations apart as the schedule does
    steps: list[list[Any]] = []
    for place, choice in enumerate(finding.schedule):
        for span in waiting:
            if span.arrival == place:
                steps.append(["break", f"{span.what.split()[1]}_aio"])
            if span.end == place:
                steps.append(["resume"])
        if choice[0] == "start":
            steps.append(["start", choice[1]])
    steps += [["resume"] for span in waiting if span.end >= len(finding.schedule)]
    return steps


def _spans(finding: Finding) -> list[_Span]:
    """What was held when, from the trace."""
    place = -1
    arrived: list[tuple[str, int, int]] = []
    for line in finding.lines:
        told = read_line(line)
        if told.what.is_step:
            place += 1
        elif told.what is What.ARRIVES and told.op is not None:
            arrived.append((told.name, told.op, place))
    spans = []
    for what, op, arrival in arrived:
        end = next(
            (
                later
                for later in range(arrival + 1, len(finding.schedule))
                if finding.schedule[later][0] != "start"
                and finding.schedule[later][1] == op
                and f"{finding.schedule[later][2]}" == what
            ),
            len(finding.schedule),
        )
        spans.append(_Span(what, op, arrival, end))
    return spans
