"""A finding is made small: what is left of its scenario is what the defect needs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from errno import EIO, ENOSPC

import pytest

from qmpshim.conformance.explore.harness.choices import failures, io_id
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json, group
from qmpshim.conformance.explore.report.recognition import recogniser
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.search import minimize
from qmpshim.conformance.explore.search.confirmed import Confirmed
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.explore.search.search import ScenarioTask
from qmpshim.conformance.explore.search.settings import Settings
from qmpshim.conformance.explore.space import simpler
from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget

_WAY = ("form", "fleecing"), ("first", "guest_discard"), ("second", "primary_write")


def test_what_is_simpler_is_one_thing_less() -> None:
    point = SPACE.complete(dict([*_WAY, ("cluster", "4k"), ("options", "filter-unmap")]))
    assert point is not None
    less = simpler.simpler(scenario_of(point))
    assert [one.without for one in less] == ["options=filter-unmap (filter: discard=unmap)",
                                             "cluster=4k"]  # fmt: skip
    for one in less:
        smaller = point_named(one.scenario.name)
        assert sum(smaller[name] != point[name] for name in point) == 1
    bare = simpler.simplest(scenario_of(point))
    assert bare is not None and simpler.simplest(bare) is None and not simpler.simpler(bare)


def test_what_was_made_of_a_point_is_none_any_more() -> None:
    """Its name no longer says what it is; its options can be given up all the same."""
    made = scenario_of(point_named("primary_write+guest_write,options=filter-unmap"))
    fewer = replace(made, ops=made.ops[:1], name=f"{made.name}'")
    assert simpler.simplest(fewer) is None
    (less,) = simpler.simpler(fewer)
    assert less.without == "top: discard=unmap" and less.scenario == replace(fewer, options=())
    (raw,) = simpler.simpler(named("qcow2-WR")[0])
    assert raw.without == "secondary=qcow2" and raw.scenario.secondary == "raw"


def _strictly(build: Build, name: str, faults: tuple[int, ...] = ()) -> list[Finding]:
    """What is found in a scenario if nothing is known; each replays."""
    report = explore_real(build, [scenario_of(point_named(name))], settings=Settings(faults=faults))
    assert not report.unconfirmed
    assert all(one.needed in render(report) for one in report.findings)
    assert all(finding_from_json(one.to_json()) == one for one in report.findings)
    return report.findings


def test_a_finding_names_what_its_scenario_needs(qemu_build: Build) -> None:
    """A discard at the end of a snapshot aborts where the disk ends inside a cluster."""
    found = _strictly(
        qemu_build,
        "guest_discard+primary_write,form=fleecing,relation=before,place=end,disk=half,cluster=4k,"
        "history=copied-part,options=detect-zeroes",
    )
    aborts = [one for one in found if "hbitmap_reset" in one.text]
    if not aborts:
        pytest.skip("this build does not have that defect")
    (finding,) = aborts
    assert finding.needs == ("disk=half", "place=end") and not finding.may_need
    assert finding.scenario.size == 3 * 128 + 64 and finding.scenario.cluster == 128
    assert not finding.scenario.setup and not finding.scenario.options
    assert len(finding.scenario.ops) == 1


def test_a_failure_that_does_not_matter_is_left_out(qemu_build: Build) -> None:
    """And what one of two failures suffices for is known by that one."""
    (scenario,) = named("primary-GF")
    plan = {io_id(0, "primary write 0+128"): EIO, io_id(1, "secondary flush"): ENOSPC}
    with closing(QemuPool(qemu_build)) as pool:
        system = RealSystem(pool, scenario, injection=Injection(plan=plan))
        explore(system, Mode.RANDOM, Budget(schedules=8), stop=False)
        seen = [*system.found.values()]
    both = [one for one in seen if len(failures(one.schedule)) == 2]
    version = read_version(qemu_build)[0]
    task = ScenarioTask(qemu_build, version, Mode.RANDOM, (EIO, ENOSPC), None, 0)
    confirmed = Confirmed(task, True, recogniser(known_findings(), version))
    assert [one.known for one in confirmed.findings(both)] == [""]
    confirmed.confirm(both, lambda left: None)
    (found,) = confirmed.findings(both)
    assert found.known == "primary-error-masked" and found.confirmed
    assert [step.io.image for step in failures(found.schedule)] == ["primary"]


def test_what_a_failure_that_does_not_matter_has_shifted(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the same flush has another number; what only it takes is known then."""
    monkeypatch.setattr(minimize, "SMALLER_LIMIT", 0.5)
    scenario = scenario_of(point_named("primary_write+backup_full,form=push,cluster=512"))
    plan = {io_id(1, "hidden write 0+64"): EIO, io_id(1, "hidden flush", 23): EIO}
    with closing(QemuPool(qemu_build)) as pool:
        system = RealSystem(pool, scenario, injection=Injection(plan=plan), all_io=True)
        explore(system, Mode.RANDOM, Budget(schedules=3), stop=False, seed=1)
        seen = [one for one in system.found.values() if len(failures(one.schedule)) == 2]
    recognise = recogniser(known_findings(), read_version(qemu_build)[0])
    new = [one for one in group(seen, recognise) if not one.known]
    if not new:
        pytest.skip("the requests of this build have other numbers")
    (found,) = new
    one = minimize.confirm(found, qemu_build, errnos=(EIO,), all_io=True, recognise=recognise)
    assert one.known == "failed-flush-leaves-l1-entry" and one.confirmed
    (failed,) = failures(one.schedule)
    assert failed.io.kind == "hidden flush" and failed.io.nth != 23


def test_another_scenario_has_its_failing_request_elsewhere(qemu_build: Build) -> None:
    """What fails is not at the same place when the geometry is made simple."""
    found = _strictly(
        qemu_build,
        "guest_write+status,form=primary,place=end,disk=half,options=secondary-keeps",
        faults=(EIO,),
    )
    masked = [one for one in found if one.cause.kind is CauseKind.ERROR_MASKED]
    assert masked
    for one in masked:
        assert not one.needed and not one.scenario.options and one.scenario.size == 512


def test_what_fails_elsewhere_on_this_build_is_looked_for_there(qemu_build: Build) -> None:
    """A schedule whose I/O does not come says nothing: one of the same kind fails in its place."""
    found = load_finding(DIRECTORY / "failed-backup-not-in-status.json")
    (failed,) = failures(found.schedule)
    elsewhere = failed._replace(io=failed.io._replace(place="3+4"))
    schedule = tuple(elsewhere if step == failed else step for step in found.schedule)
    shown = show_again(replace(found, schedule=schedule), qemu_build)
    assert shown.finding is not None and failures(shown.finding.schedule) == [failed]
    other = failed._replace(io=failed.io._replace(image="nowhere"))
    schedule = tuple(other if step == failed else step for step in found.schedule)
    shown = show_again(replace(found, schedule=schedule), qemu_build)
    assert shown.finding is None and shown.absent == (other.io,)
    assert str(other.io) in shown.unrequested
