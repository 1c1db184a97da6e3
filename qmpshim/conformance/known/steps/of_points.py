"""Steps of a stand-alone script, made of what a run on disks with bitmaps and jobs did to QEMU.

A job's events are waited for where they came in that run; commands may be refused, as they were
there.
"""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.known.steps.conclusions import by_hand, conclusion, expectation
from qmpshim.conformance.pointintime.bundle import PointsCase, load_steps
from qmpshim.machine.chain.record import (
    BaseImage,
    Began,
    CommandSent,
    Connected,
    ExportGone,
    FileClosed,
    JobReached,
    NewImage,
    NodeClosed,
    RecordedStep,
    RequestSent,
    Restarted,
)
from qmpshim.model.operations import Verb


def steps_of_points(case: PointsCase, path: Path) -> str:
    """What a script does, as Python, with what ``steps.py.in`` and ``points.py.in`` have.

    :param path: of the bundle's file, beside which is what its run did; where it is not, the steps
        have to be written by hand
    """
    found, steps = case.wrong, load_steps(path)
    if not steps:
        done = (" ".join(str(one).split()) for one in case.operations)
        return by_hand("of 5.2 or later", done, found)
    lines = [
        "# A QEMU of 5.2 or later",
        f"SIZE, CLUSTER = {case.spec.size}, {case.spec.cluster}",
        "start_qemu()",
    ]
    begins = max((at for at, step in enumerate(steps) if isinstance(step, Began)), default=0)
    answers = [at for at, step in enumerate(steps) if isinstance(step, CommandSent | RequestSent)]
    for at, step in enumerate(steps):
        if at == begins:
            lines += expectation(found)
        lines.append(_line(step, named=at == answers[-1]))
    last = steps[answers[-1]]
    read = isinstance(last, RequestSent) and last.verb is Verb.READ
    return "\n".join([*filter(None, lines), *conclusion(found, read)]) + "\n"


def _line(step: RecordedStep, named: bool) -> str:
    """A step; *named*: its answer is ``text``, and what it returns ``data``."""
    match step:
        case Began(number):
            return f"# operation {number}"
        case BaseImage(file, owner):
            return f'base("{file}", {owner})'
        case NewImage(file, backing):
            return f'overlay("{file}", "{backing}")' if backing else f'overlay("{file}")'
        case CommandSent(name, arguments, needed):
            call = f'{"need" if needed else "answer"}("{name}", **{arguments!r})'
            return f"text = {call}" if named and not needed else call
        case Connected(export):
            return f'connect("{export}")'
        case RequestSent(export, verb, start, count, owner):
            call = f'io("{export}", "{verb.value}", {start}, {count}, {owner})'
            return f"text, data = {call}" if named else call
        case JobReached(job, status):
            return f'reaches("{job}", "{status}")'
        case ExportGone(export):
            return f'gone("{export}")'
        case NodeClosed(node):
            return f'close_node("{node}")'
        case FileClosed(file):
            return f'until_closed("{file}")'
        case Restarted(killed):
            return f"restart(killed={killed})"
