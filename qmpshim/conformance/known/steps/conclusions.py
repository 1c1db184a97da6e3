"""What the stand-alone script of a divergence looks for, in terms of ``steps.py.in``.

It is what the divergence has as data (:mod:`~qmpshim.conformance.compare.evidence`): the answer
to the last step is ``text``, and whose data that returned is ``data``. What a bundle has in words
alone is left to the author (``TO_WRITE`` of ``meaning.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qmpshim.conformance.compare.divergence import Divergence, Ending, stable
from qmpshim.conformance.compare.evidence import (
    Allocated,
    Answered,
    BitmapBits,
    BitmapNames,
    BitmapState,
    InFiles,
    JobEnded,
    JobSilent,
    NotInFile,
    Returned,
    Runs,
    Unsound,
)
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.model.check.verdict import Verdict

#: ``text`` of a step that succeeds; of a status that has no error it is "".
_FINE = '("ok", "")'


def expectation(found: Divergence | None) -> list[str]:
    """The lines before the last operation, where QEMU ends or hangs in it."""
    if found is None:
        return []
    if found.ending is not None:
        return [_crash(found.ending)]
    return ["expect_hang()"] if found.verdict is Verdict.HANG else []


def conclusion(found: Divergence, read: bool) -> list[str]:
    """The last lines of a script.

    :param read: the last step is the read that is wrong, and its data is ``data``
    """
    if found.ending is not None:
        return ['conclude(False, "QEMU lives")']
    if found.verdict is Verdict.HANG:
        return ['conclude(False, "all is answered")']
    match found.evidence:
        case Answered(predicted, observed):
            return [f'conclude({_wrong_answer(predicted, observed)}, "the answer is %s" % text)']
        case Returned(export, start, owners):
            count = sum(length for _, length in owners)
            if read:
                wrong = f'text == "ok" and data != {_list(owners)}'
                return [f'conclude({wrong}, "it returns %s" % runs(data))']
            return [f'data = look("{export}", {start}, {count})', *_data(owners)]
        case InFiles(images, start, owners):
            count = sum(length for _, length in owners)
            return [f"data = in_files({list(images)}, {start}, {count})", *_data(owners)]
        case NotInFile(image, ranges):
            return [
                f'there = [of for of in {list(ranges)} if owns("{image}", *of)]',
                f'conclude(bool(there), "{image} has of its own %s" % there)',
            ]
        case Allocated(image, cluster, allowed):
            return [
                f'kind = allocation("{image}", {cluster})',
                f'conclude(kind not in {allowed!r}, "cluster {cluster} of {image} is %s" % kind)',
            ]
        case Unsound(image):
            return [f'conclude(*unsound("{image}"))']
        case _:
            return _of_jobs_and_bitmaps(found)


def _of_jobs_and_bitmaps(found: Divergence) -> list[str]:
    match found.evidence:
        case JobEnded(job, allowed):
            return [
                f'how = reaches("{job}", "completed", "failed", "cancelled")',
                f'conclude(how not in {allowed!r}, "{job} is %s" % how)',
            ]
        case JobSilent(job):
            return [
                f'silent = ("{job}", "error") not in qmp.job_events',
                f'conclude(silent, "an error of {job} is reported: %s" % (not silent))',
            ]
        case BitmapNames(node, names):
            return [
                f'there = sorted(bitmaps("{node}"))',
                f'conclude(there != {sorted(names)!r}, "the bitmaps are %s" % there)',
            ]
        case BitmapState(node, name, state, least, most):
            return [
                f'state = bitmaps("{node}").get("{name}", {{}})',
                f"wanted = {state!r}",
                "wrong = [key for key in wanted if state.get(key, False) != wanted[key]]",
                f'counted = {least} <= state.get("count", -1) <= {most}',
                'conclude(bool(wrong) or not counted, "the bitmap: %s" % state)',
            ]
        case BitmapBits(export, name, must, may):
            return [
                f'there = dirty("{export}", "{name}")',
                f"must, may = sectors({list(must)}), sectors({list(may)})",
                'conclude(not must <= there <= may, "dirty: %d sectors" % len(there))',
            ]
    return [to_look_for(found)]


def to_look_for(seen: object) -> str:
    """The comment in the place of a conclusion that the author has to write."""
    return f"# {TO_WRITE}: conclude(seen, evidence); what was seen: {' '.join(str(seen).split())}"


def by_hand(needs: str, done: Iterable[str], seen: object) -> str:
    """Steps that the author has to write: what was done, and seen, as comments."""
    lines = [f"# A QEMU {needs}", "start_qemu()", *(f"# {TO_WRITE}: {line}" for line in done)]
    return "\n".join([*lines, to_look_for(seen)]) + "\n"


def _crash(ending: Ending) -> str:
    words = re.escape(stable(ending.last_words)) if ending.last_words else ".*"
    return f"expect_crash({words!r}, {ending.how.status})"


def _wrong_answer(predicted: str | int | None, observed: str | int | None) -> str:
    """Of an answer: the other of success and an error, or the very error that was wrong."""
    if predicted is None:
        return f"text not in {_FINE}"
    if observed is None:
        return f"text in {_FINE}"
    return f"text == {_text(observed)!r}"


def _text(error: str | int) -> str:
    return f"errno {error}" if isinstance(error, int) else error


def _data(owners: Runs) -> list[str]:
    return [f'conclude(data != {_list(owners)}, "there is %s" % runs(data))']


def _list(owners: Iterable[tuple[int, int]]) -> str:
    return " + ".join(f"[{owner}] * {count}" for owner, count in owners)
