"""Every file that a user can give: whatever is wrong with it, that is one line of an InputError."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qmpshim.codec import encode
from qmpshim.commands.explore_scenarios import real_scenarios
from qmpshim.conformance.bundles import chain
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.results import Results, load_results
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.conformance.check.run.journal import Journal, Plan
from qmpshim.conformance.check.suites import suite_named
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.search.model_run import scenarios_for
from qmpshim.conformance.known.bundle_kinds import load_bundle
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.errors import InputError
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.scenarios import SCENARIOS

_CHECK_CASE = suite_named("quick").cases[0]


def _of(name: str) -> Any:
    return json.loads((DIRECTORY / name).read_text())["case"]


def _operations() -> Any:
    return ChainCase(
        ChainSpec(Workflow.BACKUP, 4 << 20),
        Behaviour(discard_passes_job=True),
        (
            Operation(Side.PRIMARY, Verb.WRITE, 0, 128, number=1),
            Operation(Side.CHAIN, Verb.START, number=2),
        ),
        Divergence(Verdict.CONTENT, "hidden disk (file)", 2, "this", "that"),
        17,
        {"version": "7.2"},
    ).to_json()


def _plan() -> Plan:
    identity = Identity("system", "7.2.22", "00", (7, 2, 22), "copy-before-write")
    return Plan("quick", (identity,), (_CHECK_CASE,), {"system": "system"}, "quick")


def _outcome() -> CaseOutcome:
    finding = CaseFinding(Verdict.CRASH, "cause", "title", trace=("one", "two"))
    return CaseOutcome(Status.DIVERGED, "text", (finding,), {"operations": 7.0}, 1.5)


def _journal(path: Path) -> None:
    directory = path.with_name("run")
    directory.mkdir(exist_ok=True)
    # One JSON value a line.
    values = json.loads(path.read_text())
    lines = values if isinstance(values, list) else [values]
    (directory / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Journal.resume(directory).close()


@dataclass(frozen=True)
class Given:
    """A kind of file: one that is well, and what reads it."""

    name: str
    value: Any
    read: Callable[[Path], object]


def _schedule(path: Path) -> None:
    finding = load_finding(path)
    for breakpoints in (True, False):
        export_script(finding, breakpoints)


def _given() -> Iterator[Given]:
    yield Given("operations", _operations(), load_bundle)
    yield Given("schedule", _of("checkpoint-corrupts-overlay.json"), _schedule)
    yield Given("faults", _of("failed-flush-leaves-l1-entry.json"), _schedule)
    pair = _of("pair/colo-primary-deadlocks-under-tcg.json")
    yield Given("pair", pair, load_bundle)
    results = Results(_plan(), {("system", _CHECK_CASE.name): _outcome()})
    yield Given("results", results.to_json(), load_results)
    line = {"build": "system", "case": _CHECK_CASE.name, "outcome": encode(_outcome())}
    yield Given("journal", [_plan().to_json(), line], _journal)
    suite = {"name": "mine", "include": [], "cases": [encode(_CHECK_CASE) | {"shards": 2}]}
    yield Given("suite", suite, lambda path: suite_named(str(path)))
    real = [scenario.to_json() for scenario in named("WR") + named("CW")]
    yield Given("scenario", real, lambda path: real_scenarios(str(path)))
    model = [scenario.to_json() for scenario in list(SCENARIOS.values())[:2]]
    yield Given("model scenario", model, lambda path: scenarios_for(str(path)))
    prediction = {"stage": "active", "disks": {"hidden": {"allocation": {}, "owners": []}}}
    yield Given("prediction", prediction, lambda path: chain.load_prediction(path.parent))


GIVEN = {one.name: one for one in _given()}
_WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 1 << 70, 1.5, float("nan"), float("inf"), "", "x" * 5000, "\ud800"),
    *([], {}, [[]], [None], [1, 2], ["a", "b", "c", "d"], {"a": 1}, [{"do": "start"}], "ä\n\0"),
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a value."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*at, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 4)):
            yield from _places(value[index], (*at, index))


def _mutated(value: Any, at: tuple[Any, ...], into: Callable[[Any, Any], None]) -> Any:
    changed = copy.deepcopy([value])
    inner: Any = changed
    for step in (0, *at)[:-1]:
        inner = inner[step]
    into(inner, (0, *at)[-1])
    return changed[0] if changed else None


def _mutants(value: Any) -> Iterator[Any]:
    """Each value left out, and put in place of each other value."""

    def leave_out(inner: Any, key: Any) -> None:
        del inner[key]

    def put(wrong: Any, inner: Any, key: Any) -> None:
        inner[key] = wrong

    for at in _places(value):
        yield _mutated(value, at, leave_out)
        for wrong in _WRONG:
            yield _mutated(value, at, partial(put, wrong))


def _reads_or_refuses(given: Given, path: Path, what: object) -> bool:
    """Whether it is refused, which takes one line that is not too long."""
    try:
        given.read(path)
    except InputError as error:
        text = str(error)
        assert text.strip() and "\n" not in text and len(text) < 1000, (what, text)
        return True
    except Exception as error:
        raise AssertionError(f"{given.name}: {str(what)[:300]}: {error!r}") from error
    return False


@pytest.mark.parametrize("name", GIVEN)
def test_a_file_that_is_well_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    path.write_text(json.dumps(GIVEN[name].value))
    assert not _reads_or_refuses(GIVEN[name], path, "as it is")


@pytest.mark.parametrize("name", GIVEN)
def test_values_that_are_wrong_or_missing(name: str, tmp_path: Path) -> None:
    given, path = GIVEN[name], tmp_path / "prediction.json"
    mutants = list(_mutants(given.value))
    refused = 0
    for mutant in random.Random(1).sample(mutants, min(len(mutants), 700)):
        path.write_text(json.dumps(mutant))
        refused += _reads_or_refuses(given, path, mutant)
    assert refused > len(mutants[:700]) // 20


@pytest.mark.parametrize("name", [one for one in GIVEN if one != "journal"])
def test_what_is_no_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    text = json.dumps(GIVEN[name].value).encode()
    for data in (b"", b"\0", b"{", b"[" * 100_000, text[: len(text) // 2], b"\xff" + text, b"nul"):
        path.write_bytes(data)
        assert _reads_or_refuses(GIVEN[name], path, data[:20])
