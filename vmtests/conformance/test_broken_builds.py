"""Builds broken on purpose, side by side with an honest one: each is convicted, and only they."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from broken_builds import BROKEN, make

from qmpshim.conformance import campaign
from qmpshim.conformance.case import Case, Status
from qmpshim.conformance.compare import Comparison, State, compare
from qmpshim.conformance.executors import LocalExecutor
from qmpshim.conformance.reports import write_reports
from qmpshim.conformance.results import Results
from qmpshim.conformance.suites import Suite
from qmpshim.machine.builds import resolve
from qmpshim.machine.workspace import Workspace
from qmpshim.model.verdict import Verdict

WORKLOAD = {"operations": 120, "seed": 2, "size": 1 << 20, "shrink": 3}
CASES = (
    Case("verify", "verify", {"workflow": "replication", **WORKLOAD}),
    Case("directed", "quit", {"case": "quit-running"}),
)
#: Build to the verdict it must get, and where it may show itself.
CONVICTED = {
    "wrong-cluster-size": ({Verdict.ALLOCATION}, {"hidden disk (file)", "active disk (file)"}),
    "checkpoint-swallowed": (
        {Verdict.ALLOCATION, Verdict.CONTENT, Verdict.ISOLATION},
        {"hidden disk (file)", "active disk (file)", "guest read"},
    ),
    "late-start": ({Verdict.ERROR_CONTRACT}, {"guest read", "guest write", "guest discard"}),
    "lossy-relay": (
        {Verdict.CONTENT, Verdict.ISOLATION, Verdict.CORRUPTION},
        {"hidden disk (file)", "guest read"},
    ),
    "substituted": ({Verdict.PROTOCOL}, {"another build was substituted"}),
    "exit-status-lies": ({Verdict.CRASH}, {"quit-running: crash"}),
    "dies-at-checkpoint": ({Verdict.CRASH}, {"QEMU"}),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Comparison, Path]]:
    """One run over all of them."""
    place = tmp_path_factory.mktemp("broken")
    builds = [resolve(str(make(name, place / name))) for name in ("honest", *CONVICTED)]
    chosen = {build.name: build for build in builds}
    with closing(campaign.begin(place / "out", chosen, Suite("broken", CASES))) as journal:
        campaign.carry_on(journal, builds, LocalExecutor(2), lambda standing: None)
        comparison = compare(Results.of(journal))
    write_reports(comparison, place / "out")
    yield comparison, place / "out"


def sights(comparison: Comparison, name: str) -> dict[str, Verdict]:
    """By cause, what is new on a build."""
    return {
        sight.best.cause: sight.best.verdict
        for row in comparison.rows
        for sight in row.sights.values()
        if Path(sight.build).parent.name == name and sight.state is State.NEW
    }


@pytest.mark.parametrize("name", CONVICTED)
def test_it_is_convicted(compared: tuple[Comparison, Path], name: str) -> None:
    comparison, _ = compared
    found = sights(comparison, name)
    verdicts, causes = CONVICTED[name]
    where = {cause.partition(": ")[0] if name != "exit-status-lies" else cause for cause in found}
    assert set(found.values()) <= verdicts and where & causes, found


def test_the_honest_one_is_not(compared: tuple[Comparison, Path]) -> None:
    comparison, _ = compared
    assert sights(comparison, "honest") == {}
    assert not comparison.broken
    assert comparison.exit_status == 1


@pytest.mark.parametrize("name", CONVICTED)
def test_it_is_in_every_report(compared: tuple[Comparison, Path], name: str) -> None:
    """With how to see it again."""
    _, place = compared
    for report in ("results.json", "junit.xml", "report.tap", "report.html"):
        text = (place / report).read_text()
        assert f"/{name}/qemu-system-x86_64" in text, report
    assert f"/{name}/qemu-system-x86_64 quit" in (place / "report.tap").read_text()


def test_it_shows_itself_again(compared: tuple[Comparison, Path], workspace: Workspace) -> None:
    """The command of the report, as a case: on the broken build, and not on the honest one."""
    import asyncio

    from qmpshim.conformance import bundle
    from qmpshim.conformance.verify import replay, setup_for

    comparison, place = compared
    (sight,) = [
        sight
        for row in comparison.rows
        for sight in row.sights.values()
        if "/late-start/" in sight.build and sight.smallest == "verify"
    ]
    (saved,) = place.glob(f"cases/*late-start*/verify/{sight.best.bundle}")
    case = bundle.load(saved)
    for name, diverges in ((sight.build, True), ("system", False)):
        setup = setup_for(resolve(name), case.spec)
        found = asyncio.run(replay(case, setup, workspace, lambda text: None)).divergence
        assert (found is not None) is diverges


# -- what costs its own case, and never the run --------------------------------------------------

MIB = 1 << 20
GREEDY = {
    "hangs": (Status.BROKEN, r"did not end within its 6 s"),
    "eats-memory": (Status.DIVERGED, r"used more than 700 MiB of memory, qemu"),
    "fills-the-disk": (Status.DIVERGED, r"stored more than 100 MiB"),
    "kills-its-owner": (Status.BROKEN, r"killed by SIGSEGV"),
}


def test_what_goes_wrong_costs_its_own_case(tmp_path: Path) -> None:
    import re

    limits = {"hangs": 6.0}
    names = ["honest", *GREEDY]
    assert BROKEN.keys() >= set(names)
    builds = {name: resolve(str(make(name, tmp_path / name))) for name in names}
    workload = {"workflow": "backup", "operations": 60, "size": 1 << 20, "shrink": 1}
    for name, build in builds.items():
        cases = [
            Case(
                "verify",
                f"{n}",
                {**workload, "seed": n},
                limits.get(name, 60.0),
                700 * MIB,
                100 * MIB,
            )
            for n in (1, 2)
        ]
        with closing(
            campaign.begin(tmp_path / f"out-{name}", {build.name: build}, Suite("s", tuple(cases)))
        ) as journal:
            campaign.carry_on(journal, [build], LocalExecutor(2), lambda standing: None)
            assert not journal.missing
            for outcome in journal.outcomes.values():
                if name == "honest":
                    assert outcome.status is Status.OK, outcome
                    continue
                status, text = GREEDY[name]
                assert outcome.status is status and re.search(text, outcome.text), outcome
