"""Tries which of the written-up findings a build shows now.

Nothing is concluded from its version: each write-up's case is run on the binary itself, in
processes of their own, so that a QEMU that hangs or takes the check with it costs its batch alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import replay_case
from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import Cancelled, Order, carry_out
from qmpshim.conformance.check.run.identity import Identity, identify
from qmpshim.conformance.cluster import Cluster, spread
from qmpshim.conformance.explore.directed.cases import run_directed
from qmpshim.conformance.explore.directed.run import cases_named
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.known.folder import known_pairs, recognised, shown_instead, write_up
from qmpshim.conformance.known.matching import (
    DirectedWriteUp,
    ExplorerWriteUp,
    PairWriteUp,
    WorkloadWriteUp,
)
from qmpshim.conformance.known.meaning import SEVERITY_OF
from qmpshim.conformance.known.tracker import script_of
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.pair.plan import PairFinding, PairPlan
from qmpshim.conformance.pair.run_plan import run_plan
from qmpshim.conformance.uses import Use
from qmpshim.errors import BuildError, MachineError, NotStarted, WorkerLost
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.builds.programs import environment_with, write_programs
from qmpshim.machine.host.programs import run_program
from qmpshim.machine.host.safe_path import python_script
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.cause_reader import cause_from_json
from qmpshim.model.check.verdict import Verdict

_BATCH = 4  # findings tried by one process: it takes a second to start
_PAIR_LIMIT = 10.0  # seconds for a step of a pair
_BOOTING = "linux-booting"  # takes longer to boot than there is time
_LATE = "no time was left to try it"


class Seen(StrEnum):
    """What came of trying a finding on a build."""

    SHOWN = "shown"
    NOT_SEEN = "not seen here"
    OTHER = "something else went wrong"  # that no write-up explains
    UNSURE = "cannot tell"  # it could not be followed to its end
    NOT_TRIED = "not tried"  # the time was over
    IMPOSSIBLE = "not possible here"  # the build cannot do what it takes


@dataclass(frozen=True, slots=True)
class Trial:
    """A finding that was tried.

    :ivar why: what was seen, or why nothing follows, one line
    :ivar wrong: the verdict of something else that went wrong within QEMU's documents
    :ivar uses: that this concerns, of those that the finding affects
    :ivar again: it went wrong once more when it was tried again
    :ivar causes: of what went wrong
    """

    entry: WriteUp
    seen: Seen
    why: str = ""
    wrong: Verdict | None = None
    uses: tuple[Use, ...] = ()
    again: bool = False
    causes: frozenset[Cause] = frozenset()

    @property
    def new(self) -> bool:
        """Whether it shows something that no write-up explains, each time it is tried."""
        return self.wrong is not None and self.again


#: What the status of a stand-alone script means; any other: nothing is known.
_OF_STATUS = {1: Seen.SHOWN, 0: Seen.NOT_SEEN}


def try_findings(
    build: Build,
    wanted: Sequence[WriteUp],
    jobs: int,
    seconds: float,
    progress: Callable[[], None] = lambda: None,
    cluster: Cluster | None = None,
    found: dict[str, Trial] | None = None,
) -> list[Trial]:
    """Try them all, as far as the time suffices; what was not come to is unsure.

    :param jobs: processes at a time
    :param progress: called whenever some are done
    :param cluster: try them there, with all its workers
    :param found: what comes of each is put there at once, by its name
    :raises BuildError: the build does not start
    :raises ExecutorLost: the cluster went away
    """
    identity = identify(build)
    found = {} if found is None else found
    ordered = sorted(wanted, key=_urgency)  # should the time be short
    quick = [one for one in ordered if one.kind != "pair"]
    split = pairs_alike(ordered)  # first, since each takes as long as many others
    split += [quick[at : at + _BATCH] for at in range(0, len(quick), _BATCH)]
    split.sort(key=lambda batch: not any(one.meaning.disqualifies for one in batch))
    batches = [[one.name for one in batch] for batch in split]
    for names, record in _records(build, identity, batches, jobs, seconds, cluster):
        note(found, names, record)
        progress()
    return [found[one.name] for one in wanted]


def pairs_alike(ordered: Sequence[WriteUp]) -> list[list[WriteUp]]:
    """The pairs, those together of which one run may decide all, that of most checkpoints first.

    :param ordered: write-ups, others among them
    """
    found: dict[PairPlan, list[PairWriteUp]] = {}
    for one in ordered:
        if isinstance(one, PairWriteUp):
            found.setdefault(_in_outline(one.plan), []).append(one)
    for alike in found.values():
        alike.sort(key=lambda one: -one.plan.checkpoints)
    return [[*alike] for alike in found.values()]


def _in_outline(plan: PairPlan) -> PairPlan:
    """A plan without how long it takes: two that are equal here do the same to begin with."""
    return replace(plan, checkpoints=1, writes=1, limit=1.0)


def _urgency(one: WriteUp) -> tuple[bool, int]:
    """What can make a build unreliable comes first, and of that the worst."""
    return not one.meaning.disqualifies, one.meaning.severity.rank


@dataclass(frozen=True, slots=True)
class Record:
    """What is left of a batch.

    :ivar lines: what it recorded of each finding at once, also if it was ended then
    :ivar why: why nothing follows for those that it did not come to
    :ivar late: because the time was over
    """

    lines: tuple[str, ...]
    why: str
    late: bool = False


def _records(
    build: Build,
    identity: Identity,
    batches: Sequence[list[str]],
    jobs: int,
    seconds: float,
    cluster: Cluster | None,
) -> Iterator[tuple[list[str], Record]]:
    """Carry out the batches, and give what each left when it is done."""
    end = time.monotonic() + seconds

    def arguments(names: list[str]) -> tuple[Build, Identity, list[str], float]:
        return build, identity, names, end - time.monotonic()

    calls = [partial(arguments, names) for names in batches]
    for place, result in spread(carry_out_batch, calls, jobs, cluster):
        try:
            yield batches[place], result()
        except WorkerLost as error:
            yield batches[place], Record((), str(error))


def carry_out_batch(
    build: Build,
    identity: Identity,
    names: Sequence[str],
    seconds: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> Record:
    """Try findings in a process of its own, which is ended when the time is over."""
    end = time.monotonic() + seconds
    if seconds <= 0:
        return Record((), _LATE, True)
    with Workspace() as workspace:
        record = workspace.path / "record"
        arguments = {"names": list(names), "record": str(record)}
        case = Case("trial", names[0], arguments, seconds)
        runner = f"{run_batch.__module__}:{run_batch.__qualname__}"
        try:
            order = Order(build, identity, case, runner)
            over = lambda: cancelled() or time.monotonic() > end  # noqa: E731
            why, late = carry_out(order, over).outcome.text, False
        except Cancelled:
            why, late = _LATE, True
        lines = record.read_text().splitlines() if record.exists() else []
    return Record(tuple(lines), why, late)


def note(found: dict[str, Trial], names: Sequence[str], record: Record) -> None:
    """Add what came of a batch. A finding that any batch showed is shown."""
    for line in record.lines:
        trial = _from_json(line)
        name = trial.entry.name
        if name not in found or trial.seen is Seen.SHOWN or trial.again:
            found[name] = trial
    nothing = Seen.NOT_TRIED if record.late else Seen.UNSURE
    for name in names:
        found.setdefault(name, Trial(write_up(name), nothing, record.why))


def run_batch(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``names``: of write-ups. Tries each, and adds a line to the file ``record`` at once."""
    with Path(case.arguments["record"]).open("a") as record:
        done: set[str] = set()
        for name in case.arguments["names"]:
            if name in done:  # it was decided with another
                continue
            for trial in try_finding(build, write_up(name), directory):
                record.write(f"{json.dumps(_to_json(trial))}\n")
                record.flush()
                done.add(trial.entry.name)
                if trial.wrong is not None and _again(build, trial, directory):
                    record.write(f"{json.dumps(_to_json(replace(trial, again=True)))}\n")
                    record.flush()
    return CaseOutcome(Status.OK)


def _to_json(trial: Trial) -> list[Any]:
    wrong, uses = trial.wrong, [use.value for use in trial.uses]
    name, causes = trial.entry.name, [cause.to_json() for cause in trial.causes]
    return [name, trial.seen.value, trial.why, wrong and wrong.value, uses, trial.again, causes]


def _from_json(line: str) -> Trial:
    name, seen, why, wrong, uses, again, written = json.loads(line)
    verdict = Verdict(wrong) if wrong else None
    causes = frozenset(map(cause_from_json, written))
    return Trial(write_up(name), Seen(seen), why, verdict, tuple(map(Use, uses)), again, causes)


def _again(build: Build, first: Trial, directory: Path) -> bool:
    """Whether the same goes wrong when it is tried once more."""
    trials = try_finding(build, first.entry, directory)
    return any((one.wrong, one.causes) == (first.wrong, first.causes) for one in trials)


def try_finding(build: Build, one: WriteUp, directory: Path) -> list[Trial]:
    """Try a single finding, here and now; others that show themselves with it are reported, too.

    :param directory: for what a pair leaves
    """
    try:
        match one:
            case DirectedWriteUp():
                return [_directed(build, one)]
            case PairWriteUp() if one.plan.guest == _BOOTING:
                return [_steps(build, one)]
            case PairWriteUp():
                return _pair(build, one, directory)
            case WorkloadWriteUp():
                return [_workload(build, one)]
        assert isinstance(one, ExplorerWriteUp)
        return _schedule(build, one)
    except NotStarted as error:  # which is no sign of what the build can do
        return [Trial(one, Seen.UNSURE, str(error))]
    except BuildError as error:
        return [Trial(one, Seen.IMPOSSIBLE, str(error))]
    except MachineError as error:
        return [Trial(one, Seen.OTHER, str(error))]


def _schedule(build: Build, one: ExplorerWriteUp) -> list[Trial]:
    shown = show_again(one.case, build)
    if shown.finding is not None:
        return [Trial(one, Seen.SHOWN, shown.finding.text)]
    found = recognised(shown.others, read_version(build)[0])
    new = found.pop("", None)
    trials = [Trial(write_up(id_), Seen.SHOWN, other.text) for id_, other in found.items()]
    if one.id in found:
        return trials
    if new is not None:
        own = tuple(use for use in new.uses if use in one.meaning.affects)
        wrong = new.verdict if new.contract else None
        causes = frozenset([new.cause])
        return [*trials, Trial(one, Seen.OTHER, new.described, wrong, own, causes=causes)]
    if shown.unsure:
        return [*trials, Trial(one, Seen.UNSURE, shown.unsure)]
    return [*trials, Trial(one, Seen.NOT_SEEN, shown.unrequested)]


def _directed(build: Build, one: DirectedWriteUp) -> Trial:
    (case,) = cases_named(one.name)
    found = run_directed(case, build)
    if found is None:
        return Trial(one, Seen.NOT_SEEN)
    if one.explains(found.kind, found.cause, case.contract):
        return Trial(one, Seen.SHOWN, found.text)
    return Trial(one, Seen.OTHER, found.text)


def _pair(build: Build, one: PairWriteUp, directory: Path) -> list[Trial]:
    plan = replace(one.plan, limit=min(one.plan.limit, _PAIR_LIMIT))
    outcome, _ = asyncio.run(run_plan(plan, (build, build), directory))
    trials: list[Trial] = []
    others: list[PairFinding] = []
    for finding in outcome.findings:
        shown = [known for known in known_pairs() if known.shown_by(finding, plan)]
        trials += [Trial(known, Seen.SHOWN, str(finding.cause)) for known in shown]
        others += [] if shown else [finding]
    shown_ones = [trial.entry for trial in trials]
    for known in known_pairs():  # what the run went through, and did not show
        shorter = _in_outline(known.plan) == _in_outline(plan) and known != one
        if shorter and known.plan.checkpoints <= outcome.checkpoints and known not in shown_ones:
            trials.append(Trial(known, Seen.NOT_SEEN))
    if one in shown_ones:
        return trials
    if others:
        wrong = [other.verdict for other in others if other.contract]
        worst = min(wrong, key=lambda verdict: SEVERITY_OF[verdict].rank, default=None)
        why = "; ".join(str(other.cause) for other in others)
        causes = frozenset(other.cause for other in others)
        return [*trials, Trial(one, Seen.OTHER, why, worst, one.meaning.affects, causes=causes)]
    if shown_ones:  # and it is over with that
        return [*trials, Trial(one, Seen.UNSURE, f"{shown_ones[0].name} shows itself instead")]
    return [*trials, Trial(one, Seen.NOT_SEEN)]


def _steps(build: Build, one: PairWriteUp) -> Trial:
    """By its stand-alone script, whose guest has no kernel to boot."""
    with Workspace() as workspace:
        write_programs(build, workspace.path)
        script = workspace.path / "steps.py"
        script.write_text(script_of(one))
        env = environment_with(workspace.path) | {"TMPDIR": str(workspace.path)}
        done = run_program(python_script(str(script)), None, env)
    seen = _OF_STATUS.get(done.returncode, Seen.UNSURE)
    lines = [line for line in done.stderr.splitlines() if line]
    return Trial(one, seen, lines[-1] if lines and seen is Seen.UNSURE else "")


def _workload(build: Build, one: WorkloadWriteUp) -> Trial:
    found = asyncio.run(replay_case(one.case, build)).divergence
    if found is None:
        return Trial(one, Seen.NOT_SEEN)
    if one.case.shown_by(found):
        return Trial(one, Seen.SHOWN, str(found))
    if (other := shown_instead(one, found)) is not None:
        return Trial(one, Seen.NOT_SEEN, f"{other.name} shows itself instead: {found}")
    return Trial(one, Seen.OTHER, str(found))
