"""Runs directed cases on a build: what came of them, and whether it comes again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed, run_directed
from qmpshim.conformance.explore.directed.machine import CaseMachine
from qmpshim.conformance.explore.report.recognition import ExplainsCase
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.uses import Use
from qmpshim.errors import BuildError, InputError, NotStarted, OptionMissing, name_errnos, no_such
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.processors import one_processor
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.walk import OutOfBudget

#: All of them, as a word on the command line; before a slash and the name it is one of them.
ALL = "directed"
TIMES = 3  # how often a finding has to show itself again


@dataclass(frozen=True, slots=True)
class DirectedFinding:
    """What a case did not hold of what QEMU's documents promise.

    :ivar replays: how often it was seen again, of how many times; what is known is not tried again
    :ivar known: id of the write-up that this is; ``""``: there is none
    """

    case: Directed
    violation: RealViolation
    replays: tuple[int, int]
    known: str

    @property
    def verdict(self) -> Verdict:
        """What kind of violation it is."""
        return self.violation.kind

    @property
    def cause(self) -> Cause:
        """Why."""
        return self.violation.cause

    @property
    def contract(self) -> bool:
        """Whether the case keeps to QEMU's documents."""
        return self.case.contract

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that the case stands for."""
        return self.case.uses

    @property
    def confirmed(self) -> bool:
        """Whether it is known, or was seen again every time."""
        return bool(self.known) or (self.tried and self.replays[0] == self.replays[1])

    @property
    def tried(self) -> bool:
        """Whether it was run again at all."""
        return self.replays[1] > 0

    @property
    def text(self) -> str:
        """What is wrong."""
        return self.violation.text

    @property
    def described(self) -> str:
        """Its verdict and what is wrong, for people: errnos have names."""
        return f"{self.verdict}: {name_errnos(self.text)}"

    def to_json(self) -> dict[str, Any]:
        """As in the document of ``explore``."""
        return {
            "case": self.case.id,
            "verdict": self.verdict.value,
            "cause": str(self.violation.cause),
            "text": self.violation.text,
            "contract": self.contract,
            "promise": self.case.about,
            "replays": list(self.replays),
            "known": self.known,
        }


@dataclass(slots=True)
class DirectedResult:
    """What running cases gave.

    :ivar cases: that were to be run
    :ivar run: that were
    :ivar skipped: by id, why the build cannot do it
    :ivar lacking: ids of those that need what the schema of the build does not have
    :ivar findings: in the order of the cases
    """

    cases: tuple[Directed, ...] = ()
    run: list[Directed] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    findings: list[DirectedFinding] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every case that the build can do was run."""
        return len(self.run) + len(self.skipped) == len(self.cases)

    def to_json(self) -> dict[str, Any]:
        """As in the document of ``explore``."""
        return {
            "cases": len(self.cases),
            "run": len(self.run),
            "skipped": self.skipped,
            "findings": [one.to_json() for one in self.findings],
        }


def cases_named(word: str) -> list[Directed]:
    """The cases that a word means; none if it is of something else.

    :param word: :data:`ALL`, or the id of one
    :raises InputError: it is of a case, and there is no such case
    """
    found = [one for one in DIRECTED if word in (ALL, one.id)]
    if not found and word.startswith(f"{ALL}/"):
        names = [one.id for one in DIRECTED]
        raise InputError(no_such("directed case", word, names, "qmpshim explore --list"))
    return found


def run_cases(
    build: Build,
    result: DirectedResult,
    known: Mapping[str, ExplainsCase],
    deadline: float | None = None,
    progress: Callable[[str], None] = lambda case: None,
    jobs: int = 1,
) -> None:
    """Run the cases of *result*, and note there what comes of each.

    :param known: what is written up, by the name of the case
    :param deadline: by time.monotonic(); the cases that are left then are not run, and what was
        seen is tried again once instead of :data:`TIMES`
    :param progress: is given the id of the case that is run, again when something is seen in it
    :param jobs: cases at a time
    :raises NotStarted: QEMU does not even start
    """
    runs = _Runs(build, result, known, deadline, progress)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(runs.run, case) for case in result.cases]):
                done.result()
        finally:
            runs.end()


class _Runs:
    """Runs of cases, each in a thread: the cases wait more than they compute."""

    def __init__(
        self,
        build: Build,
        result: DirectedResult,
        known: Mapping[str, ExplainsCase],
        deadline: float | None,
        progress: Callable[[str], None],
    ) -> None:
        self._build, self._known, self._deadline = build, known, deadline
        self._version = read_version(build)[0]
        self._result, self._progress = result, progress
        self._noting = threading.Lock()
        self._machines: dict[int, CaseMachine] = {}  # by the thread that uses it
        self._ended = False

    def run(self, case: Directed) -> None:
        """Run a case, and once more what it shows, and note it; nothing where the time is over."""
        with contextlib.suppress(OutOfBudget), one_processor():
            if self._late:
                return
            with self._noting:
                self._progress(case.id)
            try:
                found = self._run(case)
            except BuildError as error:
                self._cannot(case, error)
                return
            if found is not None:
                self._found(case, found)
            with self._noting:
                self._result.run.append(case)

    def end(self) -> None:
        """End what runs, and order what there is as the cases are."""
        with self._noting:
            self._ended = True
            for machine in self._machines.values():
                machine.event_loop.deadline = 0.0
            result = self._result
            order = result.cases.index
            result.run.sort(key=order)
            result.findings.sort(key=lambda one: order(one.case))
            names = [one.id for one in result.cases if one.id in result.skipped]
            result.skipped = {name: result.skipped[name] for name in names}

    @property
    def _late(self) -> bool:
        over = self._deadline is not None and time.monotonic() > self._deadline
        return self._ended or over

    def _run(self, case: Directed) -> RealViolation | None:
        return run_directed(case, self._build, self._begin)

    def _begin(self, machine: CaseMachine) -> None:
        with self._noting:
            self._machines[threading.get_ident()] = machine
            if self._ended:
                machine.event_loop.deadline = 0.0

    def _cannot(self, case: Directed, error: BuildError) -> None:
        result = self._result
        with self._noting:
            if isinstance(error, NotStarted) and not result.run:
                raise error
            result.skipped[case.id] = str(error)
            if isinstance(error, OptionMissing):
                result.lacking.add(case.id)

    def _found(self, case: Directed, found: RealViolation) -> None:
        entry = self._known.get(case.name)
        is_known = entry is not None and entry.covers(found.kind, found.cause, self._version)
        finding = DirectedFinding(case, found, (0, 0), case.id if is_known else "")
        findings = self._result.findings
        with self._noting:
            findings.append(finding)
            self._progress(case.id)
        if not is_known:
            again = self._run_again(finding)
            with self._noting:
                findings[findings.index(finding)] = again

    def _run_again(self, finding: DirectedFinding) -> DirectedFinding:
        """Count how often a finding is seen again. A QEMU that hangs takes its time for that."""
        wanted = finding.violation.kind, finding.violation.cause
        seen = tried = 0
        while tried < TIMES and not (tried and self._late):
            tried += 1
            with contextlib.suppress(BuildError):  # not seen, then
                again = self._run(finding.case)
                seen += again is not None and (again.kind, again.cause) == wanted
        return replace(finding, replays=(seen, tried))
