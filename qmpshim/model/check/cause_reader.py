"""Causes read again, from JSON, and from the text that is all which bundles of format 1 have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qmpshim.model.check.cause import (
    NO_ANSWER,
    OR,
    PHASES,
    WORDING,
    Cause,
    CauseKind,
    FaultContext,
    Phase,
    Relation,
    migration_detail,
)
from qmpshim.model.check.verdict import Verdict


def cause_from_json(value: dict[str, Any]) -> Cause:
    """The reverse of :meth:`Cause.to_json`.

    :raises KeyError, TypeError, ValueError: it is no cause
    """
    given = value.get("fault")
    fault = None
    if given is not None:
        if not isinstance(given, dict):
            raise TypeError(f"{given!r} is no fault")
        fault = FaultContext(Relation(given["relation"]), str(given["what"]), bool(given["gone"]))
    return _of_setup(
        Cause(
            CauseKind(str(value["kind"])),
            str(value.get("subject", "")),
            str(value.get("detail", "")),
            tuple(map(str, value.get("predicted", ()))),
            Phase(str(value.get("phase", Phase.EXECUTION))),
            fault,
        )
    )


def cause_of_finding(value: Mapping[str, Any], from_text: Callable[[str], Cause]) -> Cause:
    """The cause in a finding's JSON.

    :param from_text: reads it where the finding is an older one, which has its text alone
    :raises KeyError, TypeError, ValueError: there is none
    """
    if "cause_fields" in value:
        return cause_from_json(value["cause_fields"])
    return from_text(str(value["cause"]))


# -- bundles of format 1 have the text alone ---------------------------------------------------

_FIELDS = {
    "subject": r"(?P<subject>[\w' ]+?)",
    "detail": r"(?P<detail>.+)",
    "predicted": r"(?P<predicted>.+)",
}
#: What a format-1 text may only be where its fields are these.
_NARROWER = {
    CauseKind.HANGS: {"subject": r"(?P<subject>\w+)"},
    CauseKind.WRONG_ANSWER: {"subject": r"(?P<subject>\w+)"},
    CauseKind.ERROR_MASKED: {"detail": r"(?P<detail>\w+ \w+)"},
    CauseKind.ERROR_MASKED_BY_BOTH: {"detail": r"(?P<detail>\w+ \w+)"},
    CauseKind.ERROR_MASKED_OLD_DATA: {"detail": r"(?P<detail>\w+ \w+)"},
    CauseKind.WRONG_DATA: {
        "subject": r"(?P<subject>guest_read|primary_read|view|primary|secondary|hidden|active)",
        "detail": r"(?P<detail>.+?)",
    },
    CauseKind.NEW_DATA_AFTER_ERROR: {"subject": r"(?P<subject>guest_read|view)"},
    CauseKind.ALLOCATION: {
        "subject": r"(?P<subject>hidden|active)",
        "detail": r"(?P<detail>\w+)",
    },
    CauseKind.CORRUPTION: {"subject": r"(?P<subject>hidden|active|secondary)"},
    CauseKind.JOB_STATE: {"subject": r"(?P<subject>paused|speed|status|io-status)"},
    CauseKind.NOT_IN_STATUS: {"subject": r"(?P<subject>\d)"},
    CauseKind.PAIR_DIVERGES: {
        "subject": "(?P<subject>.+)",
        "detail": f"(?P<detail>{'|'.join(Verdict)})",
    },
}
#: How an operation of the setup was put that failed.
_OLD_SETUP = re.compile(
    r"(?P<io>[\w ]+?)(?: \[N, N\))? of the setup "
    r"(?:failed with (?P<errno>errno N)|was not answered)"
    r"|(?P<command>start|checkpoint|failover|stop|status|unexport): (?P<error>.*)",
    re.DOTALL,
)
#: How a pair's migration was put.
_OLD_MIGRATION = re.compile(r"(.*: migration is )'(\w+)' instead of 'colo'(?:: (.*))?", re.DOTALL)
_FAULT = re.compile(
    r"(?P<text>.*), (?P<relation>after|beside) "
    r"(?:a failed (?P<failed>\w+ \w+)|the (?P<gone>\w+) disk went away)"
)


def _reader(kind: CauseKind) -> Callable[[str], re.Match[str] | None]:
    fields = {**_FIELDS, **_NARROWER.get(kind, {})}
    parts = re.split(r"\{(\w+)\}", WORDING[kind])
    pattern = "".join(
        fields[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)
    )
    return re.compile(pattern, re.DOTALL).fullmatch


#: A directed case's and QEMU's own words may be anything. Fixed words go before all others.
_READERS = {
    kind: _reader(kind)
    for kind in sorted(WORDING, key=lambda kind: "{" in WORDING[kind])
    if "directed" not in kind
    and kind not in (CauseKind.ENDED, CauseKind.PAIR_FAILS, CauseKind.SETUP_FAILS)
}


def pair_cause_from_text(text: str) -> Cause:
    """The cause that a pair's bundle of format 1 gives as text."""
    if old := _OLD_MIGRATION.fullmatch(text):
        text = f"{old[1]}{migration_detail(old[2], old[3] or '')} instead of colo"
    for kind, read in _READERS.items():
        if kind.startswith("pair") and (match := read(text)) is not None:
            fields: dict[str, Any] = match.groupdict()
            return Cause(kind, **fields)
    return Cause(CauseKind.PAIR_FAILS, detail=text)


def cause_from_text(text: str) -> Cause:
    """The cause that an exploration's bundle of format 1 gives as text.

    What fits no wording is QEMU's own.
    """
    phase, fault = Phase.EXECUTION, None
    for one, prefix in PHASES.items():
        if prefix and text.startswith(prefix):
            phase, text = one, text.removeprefix(prefix)
    if found := _FAULT.fullmatch(text):
        gone = found["gone"] is not None
        fault = FaultContext(Relation(found["relation"]), found["gone"] or found["failed"], gone)
        text = found["text"]
    for kind, read in _READERS.items():
        if not kind.startswith("pair") and (match := read(text)) is not None:
            read_out = match.groupdict()
            predicted = tuple(one for one in read_out.pop("predicted", "").split(OR) if one)
            return Cause(kind, **read_out, predicted=predicted, phase=phase, fault=fault)
    return _of_setup(Cause(CauseKind.ENDED, detail=text, phase=phase, fault=fault))


def _of_setup(cause: Cause) -> Cause:
    """The cause as it is called now."""
    if cause.kind is not CauseKind.ENDED or cause.phase is not Phase.SETUP:
        return cause
    old = _OLD_SETUP.fullmatch(cause.detail)
    if old is None:
        return cause
    subject = old["command"] or old["io"].replace(" ", "_")
    detail = old["error"] or old["errno"] or NO_ANSWER
    return replace(cause, kind=CauseKind.SETUP_FAILS, subject=subject, detail=detail)
