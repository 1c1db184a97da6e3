"""Answers: how an operation ended, as data; and predictions of them."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TypeAlias

#: What query-xen-replication-status reports after an error (block/replication.c).
REPLICATION_ERROR = "I/O error occurred"


class Described:
    """An answer or a prediction; as text it is what :func:`answer_to_json` gives."""

    __slots__ = ()

    def __str__(self) -> str:
        return answer_to_json(self)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Unanswered(Described):
    """Not answered so far."""


@dataclass(frozen=True, slots=True)
class Ok(Described):
    """Success."""


@dataclass(frozen=True, slots=True)
class IoError(Described):
    """An I/O request ended with an errno."""

    errno: int


@dataclass(frozen=True, slots=True)
class ReportedError(Described):
    """A command ended with an error, or a status query reports one; QEMU's text.

    QEMU's error class is left out: the commands that are modelled give ``GenericError`` alone.
    """

    text: str


@dataclass(frozen=True, slots=True)
class NoJob(Described):
    """A status query reports that the backup job is over."""


@dataclass(frozen=True, slots=True)
class Disconnected(Described):
    """The connection went away before an answer came."""


Answer: TypeAlias = Unanswered | Ok | IoError | ReportedError | NoJob | Disconnected

UNANSWERED, OK, NO_JOB, DISCONNECTED = Unanswered(), Ok(), NoJob(), Disconnected()
io_error = functools.lru_cache(maxsize=64)(IoError)  # the few that there are, each once


# -- predictions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnyError(Described):
    """Predicted: an error, whose text is QEMU's own choice."""


@dataclass(frozen=True, slots=True)
class JobEnding(Described):
    """Predicted: the status of a job that was cancelled, and is over sooner or later."""


@dataclass(frozen=True, slots=True)
class OrDisconnected(Described):
    """Predicted: this, or the client is cut off before it learns of it."""

    answer: Ok | IoError


Prediction: TypeAlias = Answer | AnyError | JobEnding | OrDisconnected

ANY_ERROR, JOB_ENDING = AnyError(), JobEnding()


def admits(predicted: Prediction, answer: Prediction) -> bool:
    """Whether an answer is as predicted."""
    match predicted:
        case AnyError():
            return isinstance(answer, IoError | ReportedError | NoJob)
        case JobEnding():
            return isinstance(answer, Ok | NoJob)
        case OrDisconnected(ending):
            return answer in (ending, DISCONNECTED)
    return predicted == answer


def admitted(predicted: Prediction) -> list[Answer]:
    """The answers that are as predicted, where these are few.

    :raises ValueError: they are not
    """
    match predicted:
        case AnyError():
            raise ValueError("any error is as predicted")
        case JobEnding():
            return [OK, NO_JOB]
        case OrDisconnected(ending):
            return [ending, DISCONNECTED]
    return [predicted]


# -- codec: bundles, write-ups and exported scripts have an answer as one string -----------------

_FIXED: dict[Prediction, str] = {
    UNANSWERED: "?",
    OK: "ok",
    NO_JOB: "no job",
    DISCONNECTED: "gone",
    ANY_ERROR: "an error",
    JOB_ENDING: "ok, or no job",
}
_READ: dict[str, Answer] = {_FIXED[one]: one for one in (UNANSWERED, OK, NO_JOB, DISCONNECTED)}
_ERRNO = re.compile(r"errno (\d+)")


def answer_to_json(answer: Prediction) -> str:
    """An answer (or a prediction) as one string."""
    match answer:
        case IoError(errno):
            return f"errno {errno}"
        case ReportedError(text):
            return text
        case OrDisconnected(ending):
            return answer_to_json(ending)
    return _FIXED[answer]


def answer_from_json(value: str) -> Answer:
    """The reverse of :func:`answer_to_json`; what is nothing else is QEMU's text."""
    if found := _ERRNO.fullmatch(value):
        return io_error(int(found[1]))
    return _READ.get(value) or ReportedError(value)
