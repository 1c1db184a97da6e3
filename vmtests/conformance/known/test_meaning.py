"""Every finding says what it means to a user: all fields, from the enums, one sentence each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmpshim.codec import encode
from qmpshim.conformance.known.folder import (
    by_severity,
    known_findings,
    read,
    write_up,
    write_ups,
)
from qmpshim.conformance.known.meaning import (
    SEVERITY_OF,
    TO_WRITE,
    Meaning,
    Severity,
    Trigger,
    meaning_from_json,
)
from qmpshim.conformance.known.write_ups import DIRECTORY, WriteUp
from qmpshim.conformance.uses import USES, Use
from qmpshim.errors import InputError
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.check.verdict import Verdict
from vmtests.support import write_up_checks as checks


def test_every_write_up_has_one() -> None:
    files = {p.relative_to(DIRECTORY).with_suffix("").as_posix() for p in DIRECTORY.rglob("*.json")}
    assert {one.name for one in write_ups()} == files and len(files) > 40
    assert files >= checks.MILDER.keys()


@pytest.mark.parametrize("defect", KnownDefect)
def test_what_the_model_predicts_has_one(defect: KnownDefect) -> None:
    assert write_up(defect.value).id == defect.value


@pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
def test_a_meaning_agrees_with_its_write_up(one: WriteUp) -> None:
    checks.meaning_agrees(one)


def test_what_makes_a_build_unreliable() -> None:
    """What one thing that fails brings about, or none, if data or service is lost by it."""
    good = write_up("snapshot-read-returns-new-data").meaning
    against = {
        (severity, trigger)
        for severity in Severity
        for trigger in Trigger
        if replace(good, severity=severity, trigger=trigger).disqualifies
    }
    serious = {Severity.SILENT_WRONG_DATA, Severity.LOST_WRITE, Severity.STALE_READ,
               Severity.CRASH, Severity.HANG, Severity.FAILED_REQUEST}  # fmt: skip
    alone = {Trigger.LOAD, Trigger.FAILURE}
    assert against == {(severity, trigger) for severity in serious for trigger in alone}


GOOD: dict[str, Any] = encode(write_up("snapshot-read-returns-new-data").meaning)


@pytest.mark.parametrize(
    "field",
    [
        {"affects": []},
        {"affects": ["fleecing", "fleecing"]},
        {"affects": ["flying"]},
        {"severity": "bad"},
        {"trigger": "moon"},
        {"upstream": "perhaps"},
        {"situation": ""},
        {"situation": "It happens. And then."},
        {"consequence": "without a full stop"},
        {"workaround": f"{TO_WRITE}."},
    ],
)
def test_a_meaning_that_is_none_is_refused(field: dict[str, Any]) -> None:
    assert isinstance(meaning_from_json(GOOD), Meaning)
    with pytest.raises(InputError):
        meaning_from_json({**GOOD, **field})


@pytest.mark.parametrize("name", list(GOOD))
def test_a_field_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        meaning_from_json({key: value for key, value in GOOD.items() if key != name})


def test_each_verdict_has_a_severity_and_each_use_a_name() -> None:
    assert set(SEVERITY_OF) == set(Verdict)
    assert len({use.words for use in Use}) == len(Use)


def test_each_chain_stands_for_a_use() -> None:
    assert set(USES) == set(TOPOLOGIES)
    for known in known_findings():
        meaning = known.meaning
        assert meaning is not None
        assert {*known.case.uses} <= set(meaning.affects), known.id


def test_the_worst_comes_first() -> None:
    ordered = by_severity(write_ups())
    ranks = [one.meaning.severity.rank for one in ordered]
    assert ranks == sorted(ranks)
    assert ordered[0].meaning.trigger is Trigger.LOAD


def test_a_finding_is_found_by_its_id_and_its_file() -> None:
    assert write_up("stop-always-fails") is write_up("verify/stop-always-fails")
    assert write_up("colo-migration-completes").kind == "pair"
    with pytest.raises(InputError):
        write_up("snapshot-discard-abort")


def test_a_damaged_write_up_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(InputError):
        read(path)
