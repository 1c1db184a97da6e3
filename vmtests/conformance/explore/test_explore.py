"""Every interleaving on the real QEMU: the explorer, its checkers, known findings."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.checkers.crash_points import (
    after_a_crash,
    after_a_crash_thoroughly,
)
from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.harness.choices import Cut, Start, io_id
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, Injection, RealSystem
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.minimize import confirm
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.folder import known_directed, known_findings
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.errors import BuildError, InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.model.answers import DISCONNECTED
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Exploration, Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import operation
from vmtests.support.followed import followed


def explored_whole(system: Callable[[], RealSystem], mode: Mode) -> tuple[Exploration, RealSystem]:
    """Every execution of a scenario, each of them followed."""
    made, explored = followed(system, mode, Budget(seconds=60))
    assert explored.exhaustive
    return explored, made


@pytest.mark.parametrize("name", ["WR", "WV", "WP", "primary-RM", "primary-GF"])
def test_reduction_loses_no_outcome(pool: QemuPool, name: str) -> None:
    (scenario,) = scenario_sets.named(name)
    found = []
    for mode in (Mode.NAIVE, Mode.DPOR, Mode.STATEFUL):
        explored, system = explored_whole(lambda: RealSystem(pool, scenario), mode)
        assert not system.found
        found.append((explored.outcomes, explored.statistics.schedules))
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1] >= found[1][1] >= found[2][1] and found[0][1] > found[2][1]
    # On the primary these two meet in all they do: no order can be left out without known states.
    assert name.startswith("primary-") or found[0][1] > found[1][1]


@pytest.mark.parametrize(
    ("name", "all_io"),
    [
        *((name, False) for name in ("WC", "PC", "CQ", "DCX", "RO")),
        *((name, False) for name in ("primary-PG", "primary-SG-SR")),
        *((name, True) for name in ("WR", "RP", "CQ", "backup-WZ")),
    ],
)
def test_known_states_hide_no_violation(pool: QemuPool, name: str, all_io: bool) -> None:
    """With commands, too, which do things that are not held, and with qcow2's own I/O."""
    (scenario,) = scenario_sets.named(name)
    found = []
    for mode in (Mode.DPOR, Mode.STATEFUL):
        explored, system = explored_whole(lambda: RealSystem(pool, scenario, all_io=all_io), mode)
        found.append((explored.outcomes, set(system.found)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("OR", "active read 128+128"),
        ("OG", "secondary write 128+128"),
        ("WR", "hidden write 0+128"),
    ],
)
def test_known_states_hide_nothing_of_what_is_judged_after_a_failure(
    pool: QemuPool, name: str, fails: str
) -> None:
    """A failover answers before its commit is over: what began before the failure matters then."""
    (scenario,) = scenario_sets.named(name)
    judged: list[set[tuple[object, ...]]] = []

    class Judged(RealSystem):
        def judge_outcome(self, seen: Outcome) -> RealViolation | None:
            hits = tuple(hit for _, hit in self.now.failed)
            judged[-1].add((seen, tuple(self.now.precedence), hits))
            return super().judge_outcome(seen)

    for mode in (Mode.DPOR, Mode.STATEFUL):
        judged.append(set())
        explored_whole(
            lambda: Judged(pool, scenario, injection=Injection(plan={io_id(0, fails): 5})), mode
        )
    assert judged[0] == judged[1]


def test_a_setup_that_cannot_be_done_is_reported(qemu_build: Build) -> None:
    scenario = scenarios.RealScenario("made", (operation("status"),), (operation("start"),))
    with pytest.raises(InputError, match="made: the setup cannot be done: start: "):
        explore_real(qemu_build, [scenario])


def test_what_was_done_before_does_not_decide_how_much_is_copied_at_once(pool: QemuPool) -> None:
    """QEMU keeps the last block status: of one cluster after a write of one, at first none."""
    copies = set()
    pool.discard()
    for name in ("WQ", "VQ", "fresh", "VQ"):
        if name == "fresh":
            pool.discard()
            continue
        (scenario,) = scenario_sets.named(name)
        system = RealSystem(pool, scenario)
        system.reset()
        system.take(Start(0))
        if name == "VQ":
            copies.add(tuple(system.now.held))  # and there it is left, as at a known state
    assert len(copies) == 1, copies


def test_a_schedule_goes_the_same_way_each_time(pool: QemuPool) -> None:
    (scenario,) = scenario_sets.named("WP")
    traces = set()
    for fresh in (False, False, True):
        if fresh:
            pool.discard()
        system = RealSystem(pool, scenario)
        system.reset()
        while left := system.enabled():
            system.take(left[-1])
        system.finish()
        traces.add(tuple(map(str, system.now.events)))
    assert len(traces) == 1


class _Reported(RealSystem):
    """Keeps what every execution looked like."""

    def __init__(self, pool: QemuPool, scenario: RealScenario) -> None:
        super().__init__(pool, scenario)
        self.traces: list[tuple[str, ...]] = []

    def finish(self) -> Hashable:
        outcome = super().finish()
        self.traces.append(tuple(map(str, self.now.events)))
        return outcome


@pytest.mark.parametrize("name", ["WR", "RO", "PC", "primary-PG"])
def test_when_we_look_decides_nothing(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine sockets become readable in another order, and one after the other."""
    (scenario,) = scenario_sets.named(name)
    calm = _Reported(pool, scenario)
    explore(calm, Mode.STATEFUL, stop=False)
    ready, chance = ManualEventLoop.ready, random.Random(name)

    def one_at_a_time(event_loop: ManualEventLoop, seconds: float) -> list[tuple[int, int]]:
        found = ready(event_loop, seconds)
        return found and [chance.choice(found)]

    monkeypatch.setattr(ManualEventLoop, "ready", one_at_a_time)
    for _ in range(3):
        busy = _Reported(pool, scenario)
        explore(busy, Mode.STATEFUL, stop=False)
        assert busy.traces == calm.traces


def test_stillness_seen_from_outside_is_stillness_asked_for(pool: QemuPool) -> None:
    """What /proc reports and what QMP round trips report: the same schedules, the same traces."""
    (scenario,) = scenario_sets.named("WP")
    traces = []
    for outside in (True, False):
        pool.prepare(scenario)
        assert pool.machine is not None
        pool.machine.quiescence.known = outside
        seen: list[tuple[str, ...]] = []

        class Reporting(RealSystem):
            def finish(self) -> object:
                outcome = super().finish()
                seen.append(tuple(map(str, self.now.events)))  # noqa: B023
                return outcome

        explore(Reporting(pool, scenario), Mode.DPOR, Budget(schedules=12), stop=False)
        traces.append(seen)
    pool.discard()
    assert traces[0] == traces[1]


def test_a_crash_at_any_instant_leaves_sound_images(pool: QemuPool) -> None:
    for name, check, most in (("WP", after_a_crash, 40), ("WP", after_a_crash_thoroughly, 2)):
        (scenario,) = scenario_sets.named(name)
        system = RealSystem(pool, scenario, checks=Checks(each_step=check))
        done = explore(system, Mode.DPOR, Budget(schedules=most), stop=False)
        assert done.outcomes - {"lost"} and not system.found


def test_a_broken_image_at_a_crash_point_is_corruption(pool: QemuPool) -> None:
    (scenario,) = scenario_sets.named("WP")

    def spoil(system: RealSystem) -> RealViolation | None:
        store = system.machine.stores["hidden"]
        store.write(2 * 65536, bytes(65536))  # the first refcount block
        return after_a_crash(system)

    system = RealSystem(pool, scenario, checks=Checks(each_step=spoil))
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    assert {kind for kind, _ in system.found} == {Verdict.CORRUPTION}


def test_the_report_of_a_reference_pair(pool: QemuPool, qemu_build: Build) -> None:
    ticks: list[Progress] = []
    report = explore_real(
        qemu_build, scenario_sets.named("WG"), bounds=Bounds(jobs=2), progress=ticks.append
    )
    assert report.jobs == 1 and " with 1 process\n" in render(report)
    assert report.exhaustive and not report.findings and not report.unconfirmed
    assert ticks and ticks[-1].schedules == report.schedules > 10
    assert ticks[-1].distinct == report.scenarios[0].distinct > 0
    assert json.loads(json.dumps(report.to_json()))["schedules"] == report.schedules
    assert "no divergence" in render(report)


def test_a_finding_is_grouped_made_small_and_replayed(tmp_path: Path, qemu_build: Build) -> None:
    """A checkpoint in the middle of a guest write breaks the active disk, on every QEMU so far."""
    report = explore_real(qemu_build, scenario_sets.named("PC"))
    (finding,) = [f for f in report.findings if f.verdict == "corruption"]
    assert finding.confirmed and not finding.contract and not finding.known
    assert not finding.scenario.setup  # it was not needed
    save_finding(tmp_path / "bundle", finding)
    again = load_finding(tmp_path / "bundle")
    assert (again.schedule, again.scenario) == (finding.schedule, finding.scenario)
    assert replay_schedule(again, qemu_build).shows(finding)
    known = known_findings()
    assert any(one.covers(finding, report.version) for one in known)
    with pytest.raises(InputError):
        load_finding(tmp_path)


@pytest.mark.parametrize("known", known_findings(), ids=lambda one: one.id)
def test_what_is_known_shows_itself_on_this_qemu(known: ExplorerWriteUp, qemu_build: Build) -> None:
    finding = load_finding(known.path)
    version = builds.read_version(qemu_build)[0]
    try:
        seen = replay_schedule(finding, qemu_build)
    except BuildError as error:
        pytest.skip(str(error))
    if known.concerns(version):
        assert seen.shows(finding), seen.lines
    else:
        assert not seen.shows(finding), "fixed? write down in which version"


def directed(build: Build) -> None:
    """Every case ends as it is written up, and for the reason that is written there."""
    version = builds.read_version(build)[0]
    written = known_directed()
    expected = {name for name, one in written.items() if one.concerns(version)}
    seen: dict[str, RealViolation] = {}
    for case in DIRECTED:
        with contextlib.suppress(BuildError):  # it has no snapshot-access
            if (found := run_directed(case, build)) is not None:
                seen[case.name] = found
    assert seen.keys() == expected, seen
    for name, found in seen.items():
        assert written[name].covers(found.kind, found.cause, version), found


def test_the_directed_cases_do_as_known(qemu_build: Build) -> None:
    directed(qemu_build)


@pytest.mark.parametrize(
    ("name", "all_io"),
    [
        *((name, False) for name in ("RG", "PL", "RK", "CQ", "primary-RG", "primary-GO")),
        *((name, True) for name in ("OQ", "FQ")),
    ],
)
def test_whatever_fails_nothing_but_the_known_comes_of_it(
    name: str, all_io: bool, qemu_build: Build
) -> None:
    """EIO, ENOSPC, a disk that goes away, one that comes back: the model says what then."""
    report = explore_real(
        qemu_build,
        scenario_sets.named(name),
        settings=Settings(faults=(5, 28, Cut.FOR_GOOD, Cut.RECONNECT), all_io=all_io),
        known=WrittenUp(known_findings()),
    )
    assert report.exhaustive and not report.unconfirmed
    assert not report.new, render(report)
    assert name == "CQ" or report.schedules > 10


@pytest.mark.parametrize("name", ["WK", "PL"])
def test_a_client_that_vanishes_leaves_the_export_to_the_next(pool: QemuPool, name: str) -> None:
    (scenario,) = scenario_sets.named(name)
    explored, system = explored_whole(lambda: RealSystem(pool, scenario), Mode.STATEFUL)
    assert not system.found
    assert any(DISCONNECTED in outcome[0] for outcome in explored.outcomes)  # type: ignore[index]


@pytest.mark.parametrize("name", ["qcow2-WV", "qcow2-PO"])
def test_the_secondary_disk_may_be_qcow2(pool: QemuPool, name: str) -> None:
    (scenario,) = scenario_sets.named(name)
    _, system = explored_whole(lambda: RealSystem(pool, scenario), Mode.STATEFUL)
    assert not system.found
    assert any(name.name.startswith("secondary write") for name in system.ios)


def test_the_snapshot_forgets_whole_clusters_only(each_build: Build) -> None:
    """Since 9.1 what of a cluster was not asked for keeps its old data."""
    if read_version(each_build)[0] < (9, 1):
        pytest.skip("older builds abort (snapshot-discard-aborts)")
    ops = (operation("primary_write", 0, 8), operation("guest_discard", 8, 16, after=0))
    scenario = RealScenario("made", ops, form="fleecing", size=320, cluster=8)
    report = explore_real(each_build, [scenario], settings=Settings(minimise=False))
    assert not report.findings and not report.unconfirmed and not report.scenarios[0].skipped


def test_metadata_can_be_held_too(pool: QemuPool) -> None:
    (scenario,) = scenario_sets.named("WP")
    system = RealSystem(pool, scenario, all_io=True)
    done = explore(system, Mode.STATEFUL, Budget(schedules=12), stop=False)
    assert done.outcomes - {"lost"} and not system.found and not system.derailed
    held = {name.name for name in system.ios}
    assert any(" meta " in name for name in held) and any("flush" in name for name in held)


def test_a_bundle_has_all_there_is(tmp_path: Path, qemu_build: Build) -> None:
    (known,) = [one for one in known_findings() if "then-overlapping-write" in one.id]
    if not known.concerns(read_version(qemu_build)[0]):
        pytest.skip(f"{qemu_build.name} does not abort here (written up)")
    finding = load_finding(DIRECTORY / "checkpoint-then-overlapping-write-aborts.json")
    save_finding(tmp_path / "bundle", finding, qemu_build)
    parts = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert b"Assertion" in parts["stderr.txt"]
    assert b"xen-colo-do-checkpoint" in parts["qmp.log"]
    assert b"hidden" in parts["disk-requests.log"]
    assert parts["diagram.txt"].count(b"* starts") == len(finding.scenario.ops)
    assert parts["hidden.img"][:4] == b"QFI\xfb" and len(parts["secondary.img"]) == 2 * 65536
    if shutil.which("gdb"):
        assert b"abort" in parts["backtrace.txt"]


def test_a_scenario_is_described_in_full() -> None:
    descriptions = {one.name: scenarios.described(one) for one in scenario_sets.named("all")}
    assert descriptions["primary-GS"] == (
        "guest write [0, 128), stop; before: guest write [144, 152); robustness"
    )
    assert "robustness" not in descriptions["primary-GO"]
    assert descriptions["WR"] == "primary write [0, 128), guest read [0, 256)"
    assert descriptions["CW-CR"] == (
        "checkpoint, primary write [0, 128), guest read [0, 256) after operation 0; "
        "before: primary write [192, 224), guest write [144, 152); robustness"
    )


def test_the_same_operation_twice() -> None:
    """Each is found by its name, and has an operation twice and another one."""
    for scenario in scenario_sets.twice():
        assert scenario_sets.named(scenario.name) == [scenario]
        assert len(scenario.ops) == 3 and len(set(scenario.ops)) == 2, scenario.name


def test_a_scenario_survives_json() -> None:
    forms = [s for form in TOPOLOGIES for s in scenario_sets.pairs(form)]
    for scenario in (*forms, *scenario_sets.follow_ups()):
        again = scenarios.scenario_from_json(json.loads(json.dumps(scenario.to_json())))
        assert again == scenario
    with pytest.raises(InputError):
        scenarios.scenario_from_json({"ops": [{"do": "dance"}]})
    with pytest.raises(InputError):
        scenario_sets.named("nonsense")
    with pytest.raises(InputError, match=r"no scenario 'primary-WR'; did you mean primary-"):
        scenario_sets.named("primary-WR")
    for wrong in (
        {"form": "primary", "ops": [{"do": "primary_write", "at": [0, 8]}]},
        {"form": "primary", "ops": [{"do": "unexport"}]},
        {"form": "backup", "ops": [{"do": "guest_write", "at": [0, 8]}]},
        {"form": "fleecing", "ops": [{"do": "guest_zero", "at": [0, 8]}]},
        {"ops": [{"do": "guest_zero", "at": [0, 8]}]},
    ):
        with pytest.raises(InputError, match=r"a chain of the form \w+ cannot do: "):
            scenarios.scenario_from_json(wrong)
    wrong = {"form": "primary", "ops": [{"do": "status"}], "secondary": "qcow2"}
    with pytest.raises(InputError, match="the primary's chain has raw disks only"):
        scenarios.scenario_from_json(wrong)
    with pytest.raises(InputError, match="raw disks only"):
        scenario_sets.named("qcow2-primary")
    assert not any(one.form == "primary" for one in scenario_sets.named("qcow2-pairs"))


@pytest.mark.full
def test_the_quick_set_is_green_for_the_known(each_build: Build) -> None:
    """All pairs of all forms, to exhaustion; every finding shows itself each time."""
    every = [s for form in TOPOLOGIES for s in scenario_sets.pairs(form)]
    report = explore_real(
        each_build, every, bounds=Bounds(jobs=2), known=WrittenUp(known_findings())
    )
    assert report.exhaustive
    assert not report.new and not report.unconfirmed, render(report)


@pytest.mark.full
def test_the_directed_cases_on_each_build(each_build: Build) -> None:
    directed(each_build)


@pytest.mark.full
@pytest.mark.parametrize("known", known_findings(), ids=lambda one: one.id)
def test_what_is_known_on_each_build(each_build: Build, known: ExplorerWriteUp) -> None:
    finding = load_finding(known.path)
    try:
        confirmed = confirm(replace(finding), each_build, minimise=False, errnos=finding.errnos)
    except BuildError as error:
        pytest.skip(str(error))
    expected = known.concerns(builds.read_version(each_build)[0])
    assert confirmed.confirmed == expected, confirmed.lines
