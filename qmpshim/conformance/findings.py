"""Findings: grouped by cause, made small, proved by running again, compared with what is known.

A thousand schedules that hit one assertion are one finding. It is shown by its shortest schedule of
the fewest operations, and it counts only when fresh QEMUs show it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import qmpshim
from qmpshim.conformance.real_judge import RealViolation
from qmpshim.conformance.real_scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.real_stage import Stage
from qmpshim.conformance.real_system import RealSystem, Release, honestly
from qmpshim.errors import HostError, InputError, MachineError
from qmpshim.machine.builds import Build
from qmpshim.machine.gated_chain import Form
from qmpshim.model.explorer import Mode, explore
from qmpshim.model.scenario import Op
from qmpshim.model.system import Choice
from qmpshim.model.verdict import Verdict
from qmpshim.model.walk import Budget

FORMAT = 1
CASE = "schedule.json"
TIMES = 3  # how often a finding has to show itself again
_PAST = 3  # checkpoints that a finding may need to have behind it
_SMALLER = 5.0  # seconds for each try with fewer operations


@dataclass(frozen=True, slots=True)
class Sighting:
    """A violation in one scenario: its shortest schedule, and in how many it was seen."""

    scenario: RealScenario
    violation: RealViolation
    schedule: tuple[Choice, ...]
    lines: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Known:
    """A finding that is written up.

    :ivar id: its name, e.g. ``checkpoint-crashes-block-copy``
    :ivar cause: a regular expression for :attr:`Finding.cause`
    :ivar since: first version that has it, :ivar until: first version that has it no more
    :ivar contract: also within the contract; one about robustness never excuses a breach of that
    :ivar faulty: an I/O has to fail for it
    """

    id: str
    verdicts: tuple[Verdict, ...]
    cause: str
    title: str
    since: tuple[int, ...] = (0,)
    until: tuple[int, ...] = (999,)
    contract: bool = True
    faulty: bool = False

    def covers(self, finding: Finding, version: tuple[int, ...]) -> bool:
        """Whether *finding*, seen on QEMU *version*, is this one."""
        return (
            finding.verdict in self.verdicts
            and self.since <= version < self.until
            and (self.contract or not finding.contract)
            and self.faulty == _faulty(finding.schedule)
            and re.fullmatch(self.cause, finding.cause) is not None
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, with the smallest case that shows it.

    :ivar contract: seen in a scenario that keeps to QEMU's documents
    :ivar count: schedules in which it was seen
    :ivar scenarios: names of those it was seen in
    :ivar schedule: of :attr:`scenario`, the steps to take
    :ivar lines: what happened, a line a step
    :ivar replays: how often it showed itself again, of how many times
    :ivar known: id of the known finding this is, or ``""``
    """

    verdict: Verdict
    cause: str
    text: str
    contract: bool
    count: int
    scenarios: tuple[str, ...]
    scenario: RealScenario
    schedule: tuple[Choice, ...]
    lines: tuple[str, ...]
    replays: tuple[int, int] = (0, 0)
    known: str = ""
    errnos: tuple[int, ...] = ()
    build: dict[str, Any] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """Whether it showed itself every time."""
        return self.replays[1] > 0 and self.replays[0] == self.replays[1]

    def to_json(self) -> dict[str, Any]:
        """As :func:`finding_from_json` reads it."""
        return {
            "qmpshim": qmpshim.__version__,
            "format": FORMAT,
            "kind": "schedule",
            "verdict": self.verdict.value,
            "cause": self.cause,
            "text": self.text,
            "contract": self.contract,
            "count": self.count,
            "scenarios": list(self.scenarios),
            "scenario": self.scenario.to_json(),
            "errnos": list(self.errnos),
            "schedule": [list(choice) for choice in self.schedule],
            "trace": list(self.lines),
            "replays": list(self.replays),
            "known": self.known,
            "build": self.build,
        }


def finding_from_json(value: Any) -> Finding:
    """The reverse of :meth:`Finding.to_json`.

    :raises InputError: it is no finding, or one of another format
    """
    try:
        if value["format"] != FORMAT or value["kind"] != "schedule":
            raise InputError(f"a finding of format {value['format']}; this reads {FORMAT}")
        return Finding(
            Verdict(value["verdict"]),
            str(value["cause"]),
            str(value["text"]),
            bool(value["contract"]),
            int(value.get("count", 1)),
            tuple(value.get("scenarios", ())),
            scenario_from_json(value["scenario"]),
            tuple(tuple(choice) for choice in value["schedule"]),
            tuple(value.get("trace", ())),
            (int(value["replays"][0]), int(value["replays"][1])),
            str(value.get("known", "")),
            tuple(value.get("errnos", ())),
            dict(value.get("build", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"not a finding: {type(error).__name__}: {error}") from error


def _faulty(schedule: Sequence[Choice]) -> bool:
    return any(step[0] == "fail" for step in schedule)


def group(
    sightings: Sequence[Sighting], version: tuple[int, ...], known: Sequence[Known] = ()
) -> list[Finding]:
    """One finding for each verdict and cause; contract scenarios speak for it if there are any."""
    groups: dict[tuple[Verdict, str], list[Sighting]] = {}
    for sighting in sightings:
        violation = sighting.violation
        groups.setdefault((violation.kind, violation.cause), []).append(sighting)
    findings = []
    for (verdict, cause), group_ in groups.items():
        best = min(
            group_,
            key=lambda s: (not s.scenario.contract, len(s.scenario.ops), len(s.schedule)),
        )
        finding = Finding(
            verdict,
            cause,
            best.violation.text,
            best.scenario.contract,
            sum(s.count for s in group_),
            tuple(dict.fromkeys(s.scenario.name for s in group_)),
            best.scenario,
            best.schedule,
            best.lines,
        )
        names = [one.id for one in known if one.covers(finding, version)]
        findings.append(replace(finding, known=names[0] if names else ""))
    return findings


@dataclass(frozen=True, slots=True)
class Replay:
    """How a schedule went.

    :ivar violation: what was wrong, ``None`` if nothing
    :ivar followed: whether every step could be taken
    """

    violation: RealViolation | None
    followed: bool
    lines: tuple[str, ...]
    version: tuple[int, ...]

    def shows(self, finding: Finding) -> bool:
        """Whether the finding was seen again."""
        if self.violation is None:
            return False
        return (self.violation.kind, self.violation.cause) == (finding.verdict, finding.cause)


def replay_schedule(
    finding: Finding, build: Build, release: Release = honestly, reuse: bool = False
) -> Replay:
    """Take a finding's exact steps on *build*, in a fresh process.

    :raises BuildError: the build cannot do the scenario
    """
    stage = Stage(build, reuse)
    try:
        return _replay(finding, stage, release)
    finally:
        stage.close()


def _replay(finding: Finding, stage: Stage, release: Release) -> Replay:
    system = RealSystem(
        stage, finding.scenario, errnos=finding.errnos, most_faults=99, release=release
    )
    system.reset()
    version = system.machine.version
    for choice in finding.schedule:
        system.take(choice)
    # The schedule may have been longer on another build: what is left goes in order of arrival.
    followed = not system.now.lost
    while not system.now.lost and system.violation is None and (left := system.enabled()):
        system.take(left[0])
    system.finish()
    return Replay(system.violation, followed, tuple(system.now.lines), version)


def confirm(
    finding: Finding, build: Build, minimise: bool = True, errnos: Sequence[int] = ()
) -> Finding:
    """Make a finding small and run it again on fresh QEMUs."""
    finding = replace(finding, errnos=tuple(errnos), build={"name": build.name})
    if minimise and not finding.known:
        finding = _fewer_operations(finding, build)
    best = _with_past(finding, build)
    if not best.confirmed and minimise and finding.known:
        best = _with_past(_fewer_operations(finding, build), build)
    return best


def _with_past(finding: Finding, build: Build) -> Finding:
    """Run a finding again, if need be after some checkpoints.

    A QEMU that has taken checkpoints before is no artefact of the harness, but then the case has to
    say so: what the reused process had behind it becomes part of the setup.
    """
    best = _run_again(finding, build)
    if best.confirmed or finding.scenario.form is not Form.REPLICATION:
        return best
    for past in range(1, _PAST + 1):
        setup = (Op("checkpoint"),) * past + finding.scenario.setup
        longer = replace(finding, scenario=replace(finding.scenario, setup=setup))
        again = _run_again(longer, build)
        if again.confirmed:
            return again
    return best


def _run_again(finding: Finding, build: Build) -> Finding:
    """Take the schedule in fresh processes and count how often the finding shows itself."""
    seen = 0
    lines = finding.lines
    for _ in range(TIMES):
        again = replay_schedule(finding, build)
        finding.build["version"] = list(again.version)
        if again.shows(finding):
            seen, lines = seen + 1, again.lines
    return replace(finding, replays=(seen, TIMES), lines=lines)


def _fewer_operations(finding: Finding, build: Build) -> Finding:
    """Leave out operations, of the setup too, as long as the same is seen without."""
    stage = Stage(build)
    try:
        again = True
        while again:
            again = False
            for smaller in _without_one(finding.scenario):
                found = _search(smaller, finding, stage)
                if found is not None:
                    finding, again = found, True
                    break
        found = _search(finding.scenario, finding, stage)
        if found is not None and len(found.schedule) <= len(finding.schedule):
            finding = found
    finally:
        stage.close()
    return finding


def _without_one(scenario: RealScenario) -> list[RealScenario]:
    smaller = []
    for index in range(len(scenario.setup)):
        setup = scenario.setup[:index] + scenario.setup[index + 1 :]
        smaller.append(replace(scenario, setup=setup))
    for index in range(len(scenario.ops) if len(scenario.ops) > 1 else 0):
        ops = list(scenario.ops)
        del ops[index]
        if any(op.after == index for op in ops):
            continue
        shifted = [
            replace(op, after=op.after - 1) if op.after is not None and op.after > index else op
            for op in ops
        ]
        smaller.append(replace(scenario, ops=tuple(shifted), name=f"{scenario.name}'"))
    return smaller


def _search(scenario: RealScenario, finding: Finding, stage: Stage) -> Finding | None:
    """The same finding in *scenario*, with its shortest schedule; ``None``: not found."""
    plan: dict[Choice, int] = {
        ("io", *step[1:-1]): int(step[-1]) for step in finding.schedule if step[0] == "fail"
    }
    system = RealSystem(stage, scenario, plan=plan)
    try:
        explore(system, Mode.DPOR, Budget(seconds=_SMALLER), stop=False)
    except MachineError:  # this scenario does not even begin
        return None
    found = system.found.get((finding.verdict, finding.cause))
    if found is None:
        return None
    return replace(
        finding,
        scenario=scenario,
        schedule=found.schedule,
        lines=found.lines,
        text=found.violation.text,
    )


# -- on disk -----------------------------------------------------------------------------------


def save_finding(directory: Path, finding: Finding) -> None:
    """Write a bundle: the case, the trace and what to do with it.

    :param directory: is made; must not hold a bundle yet
    :raises HostError: it cannot be written
    """
    try:
        directory.mkdir(parents=True, exist_ok=False)
        (directory / CASE).write_text(json.dumps(finding.to_json(), indent=1) + "\n")
        (directory / "trace.txt").write_text("\n".join(finding.lines) + "\n")
        (directory / "README").write_text(
            f"{finding.verdict}: {finding.text}\n\n"
            "Replay it:  qmpshim replay THIS-DIRECTORY [--build NAME]\n"
            "For a bug report:  qmpshim export THIS-DIRECTORY > reproducer.py\n"
        )
    except OSError as error:
        raise HostError(f"cannot write the bundle {directory}: {error.strerror}") from error


def is_schedule(path: Path) -> bool:
    """Whether *path* is a bundle of this kind (or its file), and not one of `verify`."""
    if path.is_dir():
        return (path / CASE).is_file()
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and "schedule" in value.get("case", value)


def load_finding(path: Path) -> Finding:
    """Read a bundle, its ``schedule.json``, or a write-up of a known finding.

    :raises InputError: it is none
    """
    file = path / CASE if path.is_dir() else path
    try:
        value = json.loads(file.read_text())
        return finding_from_json(value.get("case", value) if isinstance(value, dict) else value)
    except OSError as error:
        raise InputError(f"{path} is no bundle: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def load_known(directory: Path) -> list[Known]:
    """The findings that are written up in *directory*, one JSON file each.

    :raises InputError: one of the files is damaged
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            value = json.loads(path.read_text())
            found.append(
                Known(
                    path.stem,
                    tuple(Verdict(word) for word in value["verdicts"]),
                    str(value["cause"]),
                    str(value["title"]),
                    _version(value["versions"].get("since", "0")),
                    _version(value["versions"].get("fixed", "999")),
                    bool(value["contract"]),
                    _faulty(value["case"]["schedule"]),
                )
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
