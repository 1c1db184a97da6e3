"""Findings: grouped by cause.

A thousand schedules that hit one assertion are one finding. It is shown by its shortest schedule of
the fewest operations, and it counts only when fresh QEMUs show it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import qmpshim
from qmpshim.codec import decode, encode
from qmpshim.conformance.bundles.case_file import integers, strings
from qmpshim.conformance.compare.evidence import Evidence
from qmpshim.conformance.explore.harness.choices import (
    RealChoice,
    choice_from_json,
    choice_to_json,
    failures,
)
from qmpshim.conformance.explore.harness.events import (
    Event,
    event_from_json,
    event_to_json,
    events_from_lines,
)
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.uses import Use, uses_of_operations
from qmpshim.errors import Exit, InputError, decoding, name_errnos
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.cause_reader import cause_from_text, cause_of_finding
from qmpshim.model.check.verdict import Verdict

FORMAT = 1


_NAMES = 160  # characters of the names of scenarios that are shown


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, with the smallest case that shows it.

    :ivar verdict: None in a schedule that was recorded by hand and showed nothing wrong
    :ivar contract: seen in a scenario that keeps to QEMU's documents
    :ivar count: schedules in which it was seen
    :ivar ending: how QEMU ended, where it did
    :ivar scenarios: names of those it was seen in
    :ivar schedule: of :attr:`scenario`, the steps to take
    :ivar events: what happened
    :ivar replays: how often it showed itself again, of how many times
    :ivar known: id of the known finding this is, or ``""``
    :ivar crash_points: how the images are looked at, as in :class:`~.crash_points.CrashPoints`
    :ivar all_io: qcow2's own I/O is held, too
    :ivar needs: what of its scenario is not the default, and not seen without
    :ivar evidence: what was seen, as data, where a script can look for it
    :ivar may_need: what was not found out to be needed or not
    :ivar allocation: what the setup left in each qcow2 image, as in :mod:`~.setup_state`; empty:
        not recorded
    """

    verdict: Verdict | None
    cause: Cause
    text: str
    contract: bool
    count: int
    scenarios: tuple[str, ...]
    scenario: RealScenario
    schedule: tuple[RealChoice, ...]
    events: tuple[Event, ...]
    replays: tuple[int, int] = (0, 0)
    known: str = ""
    errnos: tuple[int, ...] = ()
    build: dict[str, Any] = field(default_factory=dict)
    crash_points: str = "none"
    all_io: bool = False
    allocation: dict[str, str] = field(default_factory=dict)
    ending: Exit | None = None
    needs: tuple[str, ...] = ()
    may_need: tuple[str, ...] = ()
    evidence: Evidence | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """The version of its QEMU; a recent one where that is not recorded."""
        return tuple(self.build.get("version", ())) or (10, 0, 0)

    @property
    def lines(self) -> tuple[str, ...]:
        """What happened, as text."""
        return tuple(map(str, self.events))

    @property
    def confirmed(self) -> bool:
        """Whether it showed itself every time."""
        return self.tried and self.replays[0] == self.replays[1]

    @property
    def tried(self) -> bool:
        """Whether it was run again at all: there may have been no time for that."""
        return self.replays[1] > 0

    @property
    def several_failed(self) -> bool:
        """Whether several I/Os fail in its schedule."""
        return len(failures(self.schedule)) > 1

    @property
    def described(self) -> str:
        """Its verdict and what is wrong, for people: errnos have names."""
        return f"{self.verdict}: {name_errnos(self.text)}"

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that its scenario stands for."""
        return uses_of_operations(self.scenario.form, self.scenario.ops)

    @property
    def where(self) -> str:
        """Some of its scenarios, one at least: of generated ones a name may take three lines."""
        shown = [*self.scenarios[:1]]
        for name in self.scenarios[1:6]:
            if len(", ".join([*shown, name])) > _NAMES:
                break
            shown.append(name)
        more = len(self.scenarios) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    @property
    def needed(self) -> str:
        """What of its scenario it needs, as text; ``""``: nothing beyond the default."""
        parts = [f"needs {', '.join(self.needs)}"] if self.needs else []
        parts += [f"may need {', '.join(self.may_need)}"] if self.may_need else []
        return "; ".join(parts)

    def joined(self, other: Finding) -> Finding:
        """Both, which turned out to be one: that which was confirmed, with all scenarios."""
        best = max(self, other, key=lambda one: one.confirmed)
        names = tuple(dict.fromkeys((*self.scenarios, *other.scenarios)))
        return replace(best, count=self.count + other.count, scenarios=names)

    def to_json(self) -> dict[str, Any]:
        """As :func:`finding_from_json` reads it."""
        return {
            "qmpshim": qmpshim.__version__,
            "format": FORMAT,
            "kind": "schedule",
            "verdict": None if self.verdict is None else self.verdict.value,
            "cause": str(self.cause),
            "cause_fields": self.cause.to_json(),
            "text": self.text,
            "contract": self.contract,
            "count": self.count,
            "scenarios": list(self.scenarios),
            "scenario": self.scenario.to_json(),
            "errnos": list(self.errnos),
            "schedule": [choice_to_json(choice) for choice in self.schedule],
            "trace": list(self.lines),
            "events": [event_to_json(event) for event in self.events],
            "replays": list(self.replays),
            "known": self.known,
            "build": self.build,
            "crash_points": self.crash_points,
            "all_io": self.all_io,
            **({"allocation": self.allocation} if self.allocation else {}),
            **({"ending": str(self.ending)} if self.ending is not None else {}),
            **({"needs": list(self.needs)} if self.needs else {}),
            **({"may_need": list(self.may_need)} if self.may_need else {}),
            **({"evidence": encode(self.evidence)} if self.evidence is not None else {}),
        }


def finding_from_json(value: Any) -> Finding:
    """The reverse of :meth:`Finding.to_json`.

    :raises InputError: it is no finding, or one of another format
    """
    with decoding("the finding"):
        if value["format"] != FORMAT or value["kind"] != "schedule":
            raise InputError(f"a finding of format {value['format']}; this reads {FORMAT}")
        scenario = scenario_from_json(value["scenario"])
        return Finding(
            None if value["verdict"] is None else Verdict(value["verdict"]),
            cause_of_finding(value, cause_from_text),
            str(value["text"]),
            bool(value["contract"]),
            int(value.get("count", 1)),
            strings(value.get("scenarios", [])),
            scenario,
            tuple(_choice(choice, len(scenario.ops)) for choice in value["schedule"]),
            _events(value, scenario),
            (int(value["replays"][0]), int(value["replays"][1])),
            str(value.get("known", "")),
            integers(value.get("errnos", [])),
            _build(value.get("build", {})),
            str(value.get("crash_points", "none")),
            bool(value.get("all_io", False)),
            {str(name): str(where) for name, where in dict(value.get("allocation", {})).items()},
            _ending(value),
            strings(value.get("needs", [])),
            strings(value.get("may_need", [])),
            _evidence(value.get("evidence")),
        )


def _evidence(value: Any) -> Evidence | None:
    """What was seen, as data; findings from before this was kept have none.

    :raises InputError: it is none
    """
    kind = cast("type[Evidence]", Evidence)
    return None if value is None else decode(kind, value, "evidence of a finding")


def _choice(value: Any, operations: int) -> RealChoice:
    """A step of a schedule.

    :param operations: how many there are, concurrent ones
    :raises TypeError, ValueError: it is none
    """
    choice = choice_from_json(value)
    if not -1 <= choice.op < operations:
        raise ValueError(f"{value!r}: there are {operations} operations")
    return choice


#: How older findings have it, in their text.
_ENDING = re.compile(r"QEMU (was killed by \w+|exited with status \d+)")


def _ending(value: dict[str, Any]) -> Exit | None:
    """How QEMU ended; older findings have it in their text alone.

    :raises ValueError: there is no such ending
    """
    if "ending" in value:
        return Exit.parse(str(value["ending"]))
    found = _ENDING.search(str(value["text"]))
    return Exit.parse(found[1]) if found else None


def _build(value: Any) -> dict[str, Any]:
    """The build it was found on; its version is a list of numbers."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no build")
    integers(value.get("version", []))
    return value


def _events(value: dict[str, Any], scenario: RealScenario) -> tuple[Event, ...]:
    """What happened; older findings have the lines alone."""
    if "events" in value:
        return tuple(event_from_json(event, scenario.ops) for event in value["events"])
    return events_from_lines(strings(value.get("trace", [])), scenario.ops)


def group(
    sightings: Sequence[Sighting], known: Callable[[Finding], str] = lambda finding: ""
) -> list[Finding]:
    """One finding for each verdict and cause; contract scenarios speak for it if there are any.

    What is known and what is not are not one, though they have the same cause: that is decided
    for each sighting. Nor is one that several failures led to: which of them matter is not known.

    :param known: the id of the known finding that this is, or ``""``
    """
    groups: dict[tuple[Verdict, Cause, str, bool], list[Finding]] = {}
    for sighting in sightings:
        finding = _alone(sighting)
        finding = replace(finding, known=known(finding))
        key = (sighting.violation.kind, finding.cause, finding.known, finding.several_failed)
        groups.setdefault(key, []).append(finding)
    findings = []
    for same in groups.values():
        best = min(same, key=lambda f: (not f.contract, len(f.scenario.ops), len(f.schedule)))
        scenarios = tuple(dict.fromkeys(name for one in same for name in one.scenarios))
        count = sum(one.count for one in same)
        findings.append(replace(best, count=count, scenarios=scenarios))
    return findings


def _alone(sighting: Sighting) -> Finding:
    violation, scenario = sighting.violation, sighting.scenario
    return Finding(
        violation.kind,
        violation.cause,
        violation.text,
        scenario.contract,
        sighting.count,
        (scenario.name,),
        scenario,
        sighting.schedule,
        sighting.events,
        ending=violation.ending,
        all_io=sighting.all_io,
        evidence=violation.evidence,
    )
