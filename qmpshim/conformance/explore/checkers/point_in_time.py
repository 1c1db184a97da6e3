"""Point in time: the target of a backup job is the disk at T0; what it has not copied is not there.

With ``on-target-error=ignore`` a job copies again what failed: it does not fail, and an event
reports each error (``block_job_error_action``, blockjob.c; ``BlockdevOnError`` in
qapi/block-core.json). With ``stop`` it does so once it is resumed: see :mod:`.job_errors`. While it
is paused it has not ended, and only ``job-cancel`` or ``force`` cancels it.

T0 is the moment at which the job's command is carried out. Which changes are before it depends on
the order of the operations. The same ones have to explain the whole target, since QEMU drains the
disk then (``backup_job_create`` and ``bdrv_drained_begin``); sector by sector the order of
overlapping changes is free. A change that ended with an error may be done or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from errno import EIO
from functools import cached_property, lru_cache

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.linearizability import answers_fit_no_order
from qmpshim.conformance.explore.checkers.orders import Commit, Do, Order, ways
from qmpshim.conformance.explore.checkers.sequential import after_setup
from qmpshim.conformance.explore.harness.choices import CUTS, Fail, IoId
from qmpshim.conformance.explore.harness.choices import failures as failing
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.push import errors_of_job
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import OK, Answer, IoError
from qmpshim.model.chain.behaviour import Behaviour, behaviour_of
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.bitmap import RefusedError
from qmpshim.model.pointintime.jobs import Ending, OnError
from qmpshim.model.pointintime.push import PushChain


@dataclass(slots=True)
class Named:
    """What a bitmap must and may name, in sectors of whole granules, and whether it records.

    :ivar uncopied: as :attr:`.Bitmap.uncopied`
    """

    must: int
    may: int
    uncopied: int
    recording: bool


@dataclass(frozen=True, slots=True)
class Failures:
    """What failed, as far as it matters to what is possible.

    :ivar any: an I/O did
    :ivar end_job: the job may fail by that
    :ivar paused: operations that started while an error had paused the job
    :ivar given_up: the job was cancelled while one had
    """

    any: bool = False
    end_job: bool = False
    paused: frozenset[int] = frozenset()
    given_up: bool = False


NOTHING_FAILED = Failures()


@dataclass
class Possible:
    """What orders with the same changes before T0 leave.

    :ivar t0: by sector, whose it may be at T0; empty: there was no job
    :ivar must: sectors that a completed job has copied, :ivar may: no others are in its target
    :ivar zeroes: what the target does not have reads as zeroes: nothing is behind it
    :ivar endings: the ways in which the job may have ended
    :ivar bitmaps: by name, one entry for each order
    """

    t0: list[set[int]] = field(default_factory=list)
    must: int = -1
    may: int = 0
    zeroes: bool = True
    endings: set[Ending | None] = field(default_factory=set)
    bitmaps: list[dict[str, Named]] = field(default_factory=list)

    @cached_property
    def allowed(self) -> list[frozenset[int | None]]:
        """By sector, whose it may be in the target of a job that has completed, None for nothing.

        A cluster that is larger than the copy is filled up with zeroes.
        """
        found = []
        for sector, owners in enumerate(self.t0):
            if not self.may >> sector & 1:
                found.append(frozenset((0, None)))
            elif self.must >> sector & 1 and not (self.zeroes and 0 in owners):
                found.append(frozenset[int | None](owners))
            else:
                found.append(frozenset((*owners, None)))
        return found


def target_is_point_in_time(end: End) -> RealViolation | None:
    """Whether the target is the disk at one point in time, and the job ended as it may."""
    if not end.scenario.backs_up or end.outcome is None or end.outcome.backup is None:
        return None
    left, scenario, history = end.outcome.backup, end.scenario, end.history
    ends = possible_ends(end)
    if not ends:
        return answers_fit_no_order(end.outcome)
    allowed = set().union(*(one.endings for one in ends))
    if left.ending not in allowed:
        how, predicted = _ending(left.ending), tuple(sorted(map(_ending, allowed)))
        text = f"the backup job ends as {how}, predicted {' or '.join(predicted)}"
        cause = Cause(CauseKind.JOB_ENDS, "backup job", how, predicted)
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    if masked := _masked(end, left):
        return masked
    if history.gone() or left.ending is None:
        return None
    if any(not _wrong(left, one) for one in ends):
        return None
    everywhere = set.intersection(*(set(_wrong(left, one)) for one in ends))
    if not everywhere:
        text = "the target holds the disk of no single point in time"
        cause = Cause(CauseKind.NO_POINT_IN_TIME, "target")
        return RealViolation(Verdict.CONTENT, text, cause=cause)
    sector = min(everywhere)
    found = left.target[sector]
    kind = kind_of_data(scenario, found)
    owners = frozenset().union(*(_permitted(one, sector, left.ending) for one in ends))
    wanted = sorted({kind_of_data(scenario, owner) for owner in owners})
    text = f"the target has {kind} in sector {sector}, predicted {' or '.join(wanted)} of T0"
    cause = Cause(CauseKind.WRONG_DATA, "target", kind, tuple(wanted))
    cluster = sector // scenario.cluster
    return RealViolation(Verdict.CONTENT, text, cluster=cluster, cause=cause)


def _masked(end: End, left: BackupLeft) -> RealViolation | None:
    """Whether an I/O of data failed, and neither a request nor the job reports an error.

    A command that is refused reports no I/O, nor does the job one that it has no part in; nor, on a
    raw disk, a request what is beside it.
    """
    scenario = end.scenario
    answers = zip(scenario.ops, end.history.answers, strict=True)
    failed = [op for op, answer in answers if op.is_request and answer != OK]
    goes_on = any(one.action is not OnError.REPORT for one in errors_of_job(end.machine))
    by_job = goes_on or left.ending in (Ending.FAILED, Ending.CANCELLED)
    for named, _ in end.history.failed:
        requested = not may_be_of_job(named.id)
        if requested and scenario.secondary == "raw":
            reported = any(op.overlaps(named.start, named.start + named.count) for op in failed)
        else:
            reported = bool(failed) or (by_job and not requested)
        if named.meta or reported or _may_be_ignored(scenario, named):
            continue
        what = named.id.kind
        text = f"a {what} failed, and neither a request nor the backup job reports an error"
        index = named.op if requested else None
        subject = "backup job" if index is None else scenario.ops[index].name
        cause = Cause(CauseKind.ERROR_MASKED, subject, what)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)
    return None


def may_be_of_job(io: IoId) -> bool:
    """Whether an I/O may be a backup job's, which changes its target alone."""
    return io.image != "secondary" or io.verb not in ("write", "zero", "discard")


def disk_of(io: IoId) -> str:
    """Which disk of a backup job an I/O is about: ``source`` or ``target``."""
    return "source" if io.image == "secondary" else "target"


def may_end_job(scenario: RealScenario, fails: Iterable[Fail]) -> bool:
    """Whether a backup job may fail by one of these."""
    for io, fault in fails:
        cut = fault in CUTS  # whatever is under way there
        if (cut or may_be_of_job(io)) and (
            scenario.on_error(disk_of(io)).at(EIO if cut else fault) is OnError.REPORT
        ):
            return True
    return False


def _failures(end: End) -> Failures:
    """What failed in an execution."""
    history = end.history
    ends_job = may_end_job(end.scenario, failing(history.steps))
    return Failures(history.faults > 0, ends_job, frozenset(history.paused), history.given_up)


def _may_be_ignored(scenario: RealScenario, named: NamedIo) -> bool:
    """Whether QEMU need not report that this I/O failed.

    What is not known of a block status counts as data (``block_copy_block_status``,
    block/block-copy.c), and freed clusters of qcow2 are discarded if that can be done
    (``qcow2_process_discards``, block/qcow2-refcount.c).
    """
    if named.verb == "discard":
        return named.io.image in scenario.topology.qcow2
    return named.verb in ("flush", "status")


def explaining(left: BackupLeft, ends: Sequence[Possible]) -> list[Possible]:
    """Those that explain the target and the end of the job."""
    return [
        one
        for one in ends
        if left.ending in one.endings and (left.ending is None or not _wrong(left, one))
    ]


def _wrong(left: BackupLeft, one: Possible) -> list[int]:
    """The sectors of the target that are not as they must be."""
    return [
        sector
        for sector, owner in enumerate(left.target)
        if owner not in _permitted(one, sector, left.ending)
    ]


def _permitted(one: Possible, sector: int, ending: Ending | None) -> frozenset[int | None]:
    """Whose it may be in the target; a job that has not completed need not have copied it."""
    allowed = one.allowed[sector]
    return allowed if ending is Ending.COMPLETED else allowed | {None}


def possible_ends(end: End) -> list[Possible]:
    """What the orders that fit the answers leave, by the changes before T0."""
    outcome = end.outcome
    assert outcome is not None and outcome.backup is not None
    return list(
        possible(
            end.scenario,
            behaviour_of(end.machine.version),
            outcome.answers,
            tuple(end.history.precedence),
            outcome.backup.ending,
            _failures(end),
        )
    )


@lru_cache(maxsize=4096)
def possible(
    scenario: RealScenario,
    behaviour: Behaviour,
    answers: tuple[Answer, ...],
    precedence: tuple[frozenset[int], ...],
    ending: Ending | None,
    failures: Failures = NOTHING_FAILED,
) -> tuple[Possible, ...]:
    """What the orders that fit these answers leave, by the changes before T0.

    :param precedence: for each operation those that had ended when it started
    :param ending: how the job ended; None: as it must where nothing fails
    """
    found: dict[frozenset[int], Possible] = {}
    zeroes = scenario.topology.node("hidden").options.get("backing") is None
    uncertain = [
        index
        for index, answer in enumerate(answers)
        if failures.any and isinstance(answer, IoError)
    ]
    numbers = {scenario.number(index) for index in uncertain}
    for order, undone in ways(scenario, behaviour, precedence, uncertain):
        pushes = _run(scenario, behaviour, order, answers, undone, ending, failures.paused)
        if pushes is not None:
            end = found.setdefault(pushes.before - numbers, Possible(zeroes=zeroes))
            _add(end, pushes, failures)
    return tuple(found.values())


def _run(
    scenario: RealScenario,
    behaviour: Behaviour,
    order: Order,
    answers: tuple[Answer, ...],
    undone: Collection[int],
    ending: Ending | None,
    paused: frozenset[int],
) -> PushChain | None:
    """The end of an order; None: it is not what was seen: the answers, or that a job was paused."""
    pushes = after_setup(scenario, behaviour)
    assert isinstance(pushes, PushChain)
    for step in order:
        if isinstance(step, Commit):
            pushes.end_job(ending)
        if not isinstance(step, Do):
            continue
        index, op = step.op, scenario.ops[step.op]
        pushes.paused = index in paused
        if pushes.paused and not (pushes.job is not None and pushes.job.active):
            return None
        if index in undone:
            continue
        refused = False
        try:
            pushes.do(op, scenario.number(index))
        except RefusedError:
            refused = True
        if op.is_command and refused != (answers[index] != OK):
            return None
    return pushes


def _add(to: Possible, pushes: PushChain, failures: Failures) -> None:
    job = pushes.job
    if job is None:
        to.endings.add(None)
    else:
        if job.cancelled or failures.given_up:
            to.endings.add(Ending.CANCELLED)
        if not (job.doomed or failures.given_up):
            to.endings.add(Ending.COMPLETED)
        if failures.end_job:
            to.endings.add(Ending.FAILED)
        t0 = job.t0.read(0, pushes.disk.size)
        to.t0 = to.t0 or [set() for _ in t0]
        for owners, owner in zip(to.t0, t0, strict=True):
            owners.add(max(0, owner))
        to.must, to.may = to.must & job.must.mask, to.may | job.may.mask
    to.bitmaps.append(
        {
            name: Named(bitmap.must.mask, bitmap.may.mask, bitmap.uncopied.mask, bitmap.recording)
            for name, bitmap in pushes.disk.bitmaps.items()
        }
    )


def _ending(ending: Ending | None) -> str:
    return "no job" if ending is None else ending.name.lower()


def kind_of_data(scenario: RealScenario, owner: int | None) -> str:
    """Whose data, in words that are the same for all scenarios."""
    if owner is None:
        return "nothing"
    if owner == 0:
        return "zeroes"
    if owner < 0:
        return "garbage"
    return "the old data" if owner < scenario.number(0) or owner == BASE else "new data"
