"""A finding as a sequence diagram in text: a lane for each operation, time downwards."""

from __future__ import annotations

from qmpshim.conformance.explore.harness.events import What
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.model_diagram import LANE, row
from qmpshim.errors import name_errnos

_CELLS = {
    What.START: "* starts",
    What.COMPLETE: "* {0.io}",
    What.FAIL: "* FAILS: {0.io} {0.text}",
    What.CUT: "* CUT: {0.io} {0.text}",
    What.ARRIVES: "| asks: {0.io}",
    What.ENDS: "| ends: {0.text}",
}


def diagram(finding: Finding, named: bool = True) -> str:
    """The diagram of a finding's trace.

    ``*`` is a step that the schedule takes, ``|`` what QEMU does on its own: sends its disks a
    request, or ends an operation.

    :param named: with the scenario's name and the verdict, which are words of qmpshim's
    """
    ops = finding.scenario.ops
    lines = [f"scenario {finding.scenario.name}"] if named else []
    if finding.scenario.setup:
        lines.append("before: " + ", ".join(map(str, finding.scenario.setup)))
    lines += ["", *row("", [f"op {index}: {op}" for index, op in enumerate(ops)])]
    lines += row("", ["-" * (LANE - 2)] * len(ops))
    number = 0
    for event in finding.events:
        if event.op is None:
            lines.append(name_errnos(f"      {event.text}"))
            continue
        cells = ["|"] * len(ops)
        cells[event.op] = name_errnos(_CELLS[event.what].format(event))
        label = ""
        if event.what.is_step:
            number += 1
            label = str(number)
        lines += row(label, cells)
    if named:
        lines += ["", finding.described]
    return "\n".join(lines).lstrip("\n")
