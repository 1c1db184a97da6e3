"""Writes a finding as a script of its own, to attach to a bug report.

It needs Python, a QEMU, and its qemu-img.

Two ways, and the simpler one that can express the schedule is taken:

* *blkdebug*: everything is QEMU's own. One request at the secondary disk is caught by a breakpoint
  (``qemu-io DRIVE "break read_aio A"``) while the other operations run, and then resumed.
* *NBD*: the script is the NBD server of all disks of the chain and holds the requests itself, for
  schedules in which blkdebug's breakpoints cannot distinguish requests.
"""

from __future__ import annotations

import ast
import pprint
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.harness.choices import Cut, Fail, Start, failures
from qmpshim.conformance.explore.harness.events import Arrived, Ended, Started
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.symptoms import arrivals, symptom_of
from qmpshim.errors import InputError
from qmpshim.machine.chain.build import marking, opening
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.parts import DirtyBitmap
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.operations import Verb
from qmpshim.model.units import SECTOR

_TEMPLATES = Path(__file__).with_name("templates")
#: What steps may call beside what is in ``steps.py.in``; each before what it calls itself. A pair's
#: guests have the same functions: of them the one is there that the steps themselves begin with.
_LIBRARIES = (
    "points.py.in",
    "pair_none.py.in",
    "pair_boot.py.in",
    "pair_linux.py.in",
    "pair_guest.py.in",
    "resume.py.in",
    "failover.py.in",
    "channel.py.in",
    "pair.py.in",
    "colo.py.in",
)

_ARGUMENTS = "[QEMU-SYSTEM-BINARY [QEMU-IMG]]"
_WITH_LINUX = """QEMU-SYSTEM-BINARY QEMU-IMG KERNEL INITRAMFS

The last two are a small Linux whose program writes to its disk: `qmpshim guest build` makes it."""


def export_script(
    finding: Finding, breakpoints: bool = True, crash_words: Sequence[str] = ()
) -> str:
    """The reproducer's text, a Python program: run it with the QEMU binary as its argument.

    :param breakpoints: False: hold the requests by NBD even where blkdebug can
    :param crash_words: as of :func:`~.symptoms.symptom_of`
    :raises InputError: the finding is a schedule that showed nothing wrong
    """
    if finding.verdict is None:
        raise InputError("this schedule was recorded as one that shows nothing wrong")
    scenario = finding.scenario
    topology = scenario.topology
    case: dict[str, Any] = {
        "title": f"{finding.verdict}: {finding.text}",
        "build": finding.build,
        "form": scenario.form,
        "parts": _first_parts(topology).parts_to_json(),
        "offers": _offers(topology),
        "drains": [do for do in topology.commands if topology.drains(do)],
        "commands": {do: command.to_json() for do, command in topology.commands.items()},
        "bitmaps": {
            bitmap.node: [one.to_json() for one in _making(bitmap, scenario.disk_size * SECTOR)]
            for bitmap in topology.bitmaps
        },
        "begins": topology.begins and topology.begins.to_json(),
        "images": [*topology.images],
        "size": scenario.size,
        "disks": scenario.disks,
        "disk_size": scenario.disk_size,
        "apart": scenario.apart,
        "clusters": {name: scenario.cluster_of(name) for name in topology.qcow2},
        "units": {name: scenario.unit_of(name) for name in topology.qcow2},
        "qcow2": [*topology.qcow2],
        "setup": [[op.name, op.start, op.count] for op in scenario.setup],
        "ops": [[op.name, op.start, op.count] for op in scenario.ops],
        "trace": finding.lines,
        "sign": symptom_of(finding, crash_words),
        "allocation": finding.allocation,
    }
    steps = blkdebug_steps(finding) if breakpoints else None
    if steps is not None:
        if "steps" in case["sign"]:
            case["sign"]["steps"] = len(steps)
        return _fill("blkdebug.py.in", {**case, "schedule": steps})
    case |= {
        "holes": scenario.leaves_holes,
        "reconnect": Cut.RECONNECT
        in (*finding.errnos, *(one.fault for one in failures(finding.schedule))),
        "all_io": finding.all_io,
        "schedule": nbd_steps(finding),
        "after": [op.after for op in scenario.ops],
    }
    return _fill("nbd.py.in", case)


def _first_parts(topology: Topology) -> Topology:
    """A chain without the exports that operations make."""
    return replace(topology, parts=topology.first) if topology.begins_late else topology


def _offers(topology: Topology) -> list[dict[str, Any]]:
    """The exports that operations make."""
    parts = topology.offering if topology.begins_late else ()
    return replace(topology, parts=parts).parts_to_json()


def _making(bitmap: DirtyBitmap, size: int) -> Iterator[QmpCommand]:
    """The commands that make a bitmap which names something from the beginning.

    :param size: bytes of the disk
    """
    yield opening(bitmap, lambda node: {})
    yield from marking(bitmap, size)


def steps_script(title: str, steps: str) -> str:
    """A reproducer that takes a few steps, one after another, as a program.

    :param steps: in Python, in terms of ``templates/steps.py.in``, of ``colo.py.in`` (two
        machines), ``pair.py.in`` (with their disks), ``points.py.in`` (disks with bitmaps) and the
        others of :data:`_LIBRARIES`: those are there of which they call something. The first line
        is a comment: ``# A QEMU`` and what it must have.
    :raises InputError: they are no Python
    """
    try:
        called = _called(steps)
    except SyntaxError as error:
        raise InputError(f"line {error.lineno} of the steps: {error.msg}") from error
    head, _, steps = steps.partition("\n")
    needs = head.removeprefix("# A QEMU ")
    case = {"title": title, "sign": {"kind": "steps"}, "schedule": []}
    more = ""
    for library in map(template, _LIBRARIES):
        if called & _defined(library):
            more = library + more
            called |= _called(library)
    text = _filled("steps.py.in", case, needs).replace("@MORE@\n", more)
    text = text.replace("@ARGUMENTS@", _WITH_LINUX if takes_linux(steps) else _ARGUMENTS)
    return text.replace("@STEPS@\n", steps)


def takes_linux(steps: str) -> bool:
    """Whether the script with these steps takes a kernel and an initramfs, too."""
    return "start_linux_pair" in _called(steps)


def _called(steps: str) -> set[str]:
    """The functions that a program calls by their names and does not define itself."""
    calls = (node.func for node in ast.walk(ast.parse(steps)) if isinstance(node, ast.Call))
    return {func.id for func in calls if isinstance(func, ast.Name)} - _defined(steps)


def _defined(program: str) -> set[str]:
    """The functions that a program defines."""
    return {node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}


def _fill(name: str, case: dict[str, Any]) -> str:
    lines = "\n".join(f"    {line}" for line in case.pop("trace"))
    text = _filled(name, case, TOPOLOGIES[case["form"]].needs)
    return text.replace("@TRACE@", lines.replace("\\", "/"))


def _filled(name: str, case: dict[str, Any], needs: str) -> str:
    text = template(name)
    for part in ("base", "common", "orders", "end"):
        text = text.replace(f"@{part.upper()}@\n", template(f"{part}.py.in"))
    text = text.replace("@NEEDS@", needs)
    text = text.replace("@TITLE@", case["title"].replace('"""', "'''").replace("\\", "/"))
    return text.replace("@CASE@", pprint.pformat(case, width=96, sort_dicts=False))


def template(name: str) -> str:
    """A part of the scripts."""
    return (_TEMPLATES / name).read_text()


def nbd_steps(finding: Finding) -> list[list[Any]]:
    """The schedule without the operations that requests belong to: by name and number alone.

    Steps are ``["start", operation]``, ``["complete", name, number]``, ``["fail", name, number,
    errno]``, and ``cut`` and ``reconnect`` of the connection that a request came by.
    """
    there = Counter[tuple[int, str]]()
    number: dict[tuple[object, ...], int] = {}
    for name, of_all, whose in chain.from_iterable(arrivals(finding)):
        number[whose, name, there[whose, name]] = of_all
        there[whose, name] += 1
    steps: list[list[Any]] = []
    for choice in finding.schedule:
        if isinstance(choice, Start):
            steps.append(["start", choice.op])
            continue
        io = choice.io
        what = [io.name, number.get((io.op, io.name, io.nth), io.nth)]
        match choice:
            case Fail(fault=Cut.FOR_GOOD):
                steps.append(["cut", *what])
            case Fail(fault=Cut.RECONNECT):
                steps.append(["reconnect", *what])
            case Fail(fault=errno):
                steps.append(["fail", *what, errno])
            case _:
                steps.append(["complete", *what])
    return steps


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
    breakpoint catches the next request of a kind, whosever it is. A command that waits for what is
    held keeps the monitor, and with it the breakpoint's end, from us: a checkpoint does so on 5.1
    to 6.0 (``blk_unref()`` in ``secondary_do_checkpoint()`` drains), the removal of an export even
    after its answer. Steps are ``["break",
    event]``, ``["start", operation]``, ``["resume"]``; what is held after the last is let go then.
    """
    scenario = finding.scenario
    if scenario.topology.replication_mode != "secondary" or scenario.secondary != "raw":
        return None
    failing = finding.errnos or failures(finding.schedule)
    if failing or symptom_of(finding)["kind"] in ("corruption now", "requests"):
        return None
    spans = _spans(finding)
    for command, start, end in _running(finding):
        op = scenario.ops[command]
        if op.verb is not Verb.CHECKPOINT:  # what it leaves to be done after its answer is unknown
            end = len(finding.schedule)
        if op.reconfigures and any(s.arrival < end and start < s.end <= end for s in spans):
            return None
    starts = [place for place, choice in enumerate(finding.schedule) if isinstance(choice, Start)]
    waiting = [s for s in spans if any(s.arrival < start < s.end for start in starts)]
    for span in waiting:
        image, verb = span.what.split()[:2]
        alone = [s for s in spans if s.arrival == span.arrival] == [span]
        others = [s for s in waiting if s.arrival < span.end and span.arrival < s.end]
        own = finding.schedule[span.arrival] == Start(span.op)
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
        if isinstance(choice, Start):
            steps.append(["start", choice.op])
    return steps


def _running(finding: Finding) -> list[tuple[int, int, int]]:
    """From the trace: each operation with the steps that started and ended it."""
    place, found = -1, {}
    for event in finding.events:
        place += event.what.is_step
        match event:
            case Started(op):
                found[op] = (place, len(finding.schedule))
            case Ended(op) if op in found:
                found[op] = (found[op][0], place)
    return [(op, start, end) for op, (start, end) in found.items()]


def _spans(finding: Finding) -> list[_Span]:
    """What was held when, from the trace."""
    place = -1
    arrived: list[tuple[str, int, int]] = []
    for event in finding.events:
        if event.what.is_step:
            place += 1
        elif isinstance(event, Arrived):
            arrived.append((event.io.name, event.op, place))
    spans = []
    for what, op, arrival in arrived:
        end = next(
            (
                later
                for later in range(arrival + 1, len(finding.schedule))
                if not isinstance(step := finding.schedule[later], Start)
                and (step.op, step.io.name) == (op, what)
            ),
            len(finding.schedule),
        )
        spans.append(_Span(what, op, arrival, end))
    return spans
