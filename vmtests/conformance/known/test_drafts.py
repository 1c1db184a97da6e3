"""A draft of a write-up, once it is filled in, passes all that the suite checks of write-ups."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.bundle_kinds import KINDS
from qmpshim.conformance.known.draft import draft_text
from qmpshim.conformance.known.folder import known_findings, read, write_up, write_ups
from qmpshim.conformance.known.meaning import TO_WRITE, Trigger
from qmpshim.conformance.known.tracker import steps_of
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.errors import InputError
from qmpshim.model.check.verdict import Verdict
from vmtests.support.bundles import draft_of, steps_draft
from vmtests.support.write_up_checks import CHECKS

SNAPSHOT = "snapshot-read-returns-new-data"


def filled(value: Any) -> Any:
    """A sentence for each that has to be written, and nothing else."""
    if isinstance(value, dict):
        return {name: filled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    return "A sentence." if isinstance(value, str) and TO_WRITE in value else value


def accepted(bundle: Path, path: Path) -> WriteUp:
    """What the suite accepts of the bundle's draft."""
    value = filled(json.loads(draft_text(draft_of(bundle))))
    path.write_text(json.dumps(value | ({"side": "primary"} if "side" in value else {})))
    steps_of(path).write_text(steps_draft(bundle).replace(TO_WRITE, "Written"))
    one = read(path)
    for check in CHECKS:
        check(one)
    return one


@pytest.mark.parametrize("verdict", Verdict)
def test_of_a_schedule(verdict: Verdict, tmp_path: Path) -> None:
    found = replace(load_finding(write_up(SNAPSHOT).path), verdict=verdict)
    (tmp_path / "schedule.json").write_text(json.dumps(found.to_json()))
    assert accepted(tmp_path, tmp_path / "draft.json").verdicts == (verdict,)


@pytest.mark.parametrize(
    "known", [one for one in write_ups() if one.case is not None], ids=lambda one: one.name
)
def test_of_what_is_written_up(known: WriteUp, tmp_path: Path) -> None:
    assert accepted(known.path, tmp_path / "draft.json").verdicts[0] in known.verdicts


def test_all_kinds_of_bundles_are_among_them() -> None:
    cases = [one.case.to_json() for one in write_ups() if one.case is not None]
    assert {case.get("kind", "") for case in cases} == KINDS.keys()


# -- what it takes ---------------------------------------------------------------------------------


#: Its case needs no failure, and does harm only after one.
HARMLESS_ALONE = "write-beside-zeroes-zeroes-data"


@pytest.mark.parametrize("known", known_findings(), ids=lambda one: one.id)
def test_it_takes_what_the_schedule_does(known: WriteUp) -> None:
    """Misuse, failures of disks and of the host, or none: as their authors found."""
    wanted = Trigger.LOAD if known.id == HARMLESS_ALONE else known.meaning.trigger
    assert draft_of(known.path)["meaning"]["trigger"] == wanted


def test_a_failure_beyond_the_contract_is_misuse(tmp_path: Path) -> None:
    found = load_finding(write_up("failed-backup-not-in-status").path)
    (tmp_path / "schedule.json").write_text(json.dumps(replace(found, contract=False).to_json()))
    assert accepted(tmp_path, tmp_path / "draft.json").meaning.trigger is Trigger.MISUSE


FAULT = {"backup": "full", "disk": 0, "name": "", "mode": None, "slow": False, "manual": False}
FAILS: dict[str, Any] = {"do": "backup", "actions": [{**FAULT, "fault": "report"}]}


@pytest.mark.parametrize(
    ("operations", "trigger"),
    [
        ([], Trigger.LOAD),
        ([FAILS], Trigger.FAILURE),
        ([{"do": "kill"}], Trigger.FAILURE),
        ([FAILS, {"do": "kill"}], Trigger.TWO_FAILURES),
    ],
)
def test_it_takes_what_the_operations_do(
    operations: list[dict[str, Any]], trigger: Trigger, tmp_path: Path
) -> None:
    value = json.loads(write_up("verify/refused-transaction-marks-everything").path.read_text())
    case = value["case"]
    more = [{"disk": 0, **one, "number": 50 + n} for n, one in enumerate(operations)]
    case["operations"] += more
    case["divergence"]["operation"] = 100
    (tmp_path / "case.json").write_text(json.dumps(case))
    assert accepted(tmp_path, tmp_path / "draft.json").meaning.trigger is trigger


# -- bundles that are damaged ----------------------------------------------------------------------


def case_of(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(write_up(name).path.read_text())["case"]
    return case


def bundle_of(name: str, tmp_path: Path, **fields: Any) -> Path:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(case_of(name) | fields))
    return path


DAMAGED: tuple[dict[str, Any], ...] = (
    {"build": "x"},
    {"build": ["x"]},
    {"build": {"version": 5}},
    {"operations": []},
)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (SNAPSHOT, {"build": {"version": 5}}),
        (SNAPSHOT, {"build": {"version": ["7"]}}),
        (SNAPSHOT, {"build": "x"}),
        *(
            ("pair/colo-migration-completes", {"builds": builds})
            for builds in (5, [5], ["x"], {"version": "x"}, [{"version": 5}])
        ),
        *(
            (f"verify/{name}", fields)
            for name in ("stop-always-fails", "refused-transaction-marks-everything")
            for fields in DAMAGED
        ),
    ],
)
def test_a_damaged_bundle_is_one_line(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("bundle.json")) as raised:
        draft_of(bundle_of(name, tmp_path, **fields))
    assert "\n" not in str(raised.value) and "damaged" in str(raised.value)


def test_a_write_up_of_no_operations_is_damaged(tmp_path: Path) -> None:
    """What recognises its finding needs the last of them."""
    one = write_up("verify/stop-always-fails")
    value = json.loads(one.path.read_text())
    value["case"]["operations"] = []
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "x.json")


def test_what_verify_and_points_keep_are_two_kinds() -> None:
    assert isinstance(write_up("verify/stop-always-fails").case, ChainCase)
    assert isinstance(write_up("verify/refused-transaction-marks-everything").case, PointsCase)
