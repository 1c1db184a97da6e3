"""A finding as a sequence diagram in text: a lane for each operation, time downwards."""

from __future__ import annotations

import re

from qmpshim.conformance.explore.diagram import LANE, row
from qmpshim.conformance.explore.findings import Finding
from qmpshim.conformance.explore.scenarios import words

_START = re.compile(r"start (\d+): ")
_STEP = re.compile(r"(complete|fail|cut the connection of) (.*) \(of (\d+)\)(.*)")
_ASKS = re.compile(r" {4}(.*) \(of (\d+)\)")
_ENDS = re.compile(r" {4}(\d+) ends: (.*)")


def diagram(finding: Finding) -> str:
    """The diagram of a finding's trace.

    ``*`` is a step that the schedule takes, ``|`` what QEMU does on its own: asks its disks for
    something, or ends an operation.
    """
    ops = finding.scenario.ops
    lines = [f"scenario {finding.scenario.name}"]
    if finding.scenario.setup:
        lines.append("before: " + ", ".join(words(op) for op in finding.scenario.setup))
    lines += ["", *row("", [f"op {index}: {words(op)}" for index, op in enumerate(ops)])]
    lines += row("", ["-" * (LANE - 2)] * len(ops))
    number = 0
    for line in finding.lines:
        cells = ["|"] * len(ops)
        label = ""
        if match := _START.match(line):
            cells[int(match[1])] = "* starts"
        elif match := _STEP.match(line):
            what = {"complete": "", "fail": "FAILS: "}.get(match[1], "CUT: ")
            cells[int(match[3])] = f"* {what}{match[2]}{match[4]}"
        elif match := _ASKS.match(line):
            cells[int(match[2])] = f"| asks: {match[1]}"
        elif match := _ENDS.match(line):
            cells[int(match[1])] = f"| ends: {match[2]}"
        else:
            lines.append(f"      {line.strip()}")
            continue
        if not line.startswith(" "):
            number += 1
            label = str(number)
        lines += row(label, cells)
    lines += ["", f"{finding.verdict}: {finding.text}"]
    return "\n".join(lines)
