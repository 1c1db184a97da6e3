"""Sequential execution: what a scenario gives in one order of its operations, with failing I/Os."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from errno import EACCES, EINVAL
from typing import Any

from qmpshim.conformance.compare.model_chain import model_chain, unmaps
from qmpshim.conformance.explore.checkers.orders import Commit, Do, Order, StatusOver, Step
from qmpshim.conformance.explore.checkers.placements import AnyChain, FaultPlacement
from qmpshim.conformance.explore.outcome import GAP, NO_CLUSTER, UNREADABLE, Outcome
from qmpshim.conformance.explore.scenarios import BASE, RealScenario, cut_off
from qmpshim.errors import InputError
from qmpshim.model.answers import (
    ANY_ERROR,
    DISCONNECTED,
    JOB_ENDING,
    NO_JOB,
    OK,
    UNANSWERED,
    Prediction,
    ReportedError,
    io_error,
)
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.primary import PrimaryChain
from qmpshim.model.chain.protocols import CopyBeforeWriteProtocol
from qmpshim.model.chain.secondary import Chain, CommandError, Stage, Workflow
from qmpshim.model.chain.votes import VotingDisks
from qmpshim.model.check.observables import MARKED, UNMARKED
from qmpshim.model.disks.image import Alloc, Contents, owned, whose
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.pointintime.bitmap import RefusedError
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.push import PushChain
from qmpshim.model.runtime.coroutines import Io, ModelIOError, OperationError, run_sequentially


def run_op(
    chain: AnyChain, op: Operation, number: int, errno_for: Callable[[Io], int] | None = None
) -> Any:
    """Do one operation in the sequential model; what a read returns."""
    if isinstance(chain, PushChain):
        return chain.do(op, number)
    if op.disconnects or op.verb in (Verb.STATUS, Verb.UNEXPORT):
        return None
    method = getattr(chain, op.name)
    if op.is_command or op.flushes:
        return run_sequentially(method(), errno_for)
    if isinstance(chain, Chain) and isinstance(chain.protocol, CopyBeforeWriteProtocol):
        snapshot = {
            Verb.READ: chain.snapshot_read,
            # cbw_co_snapshot_block_status() locks what it looks at as a read does
            Verb.BLOCK_STATUS: chain.snapshot_read,
            Verb.DISCARD: chain.snapshot_discard,
        }
        if op.is_guest and op.verb in snapshot:
            method = snapshot[op.verb]
    if op.reads:
        return run_sequentially(method(op.start, op.count), errno_for)
    return run_sequentially(method(op.start, op.count, number), errno_for)


def run_in_order(
    scenario: RealScenario,
    behaviour: Behaviour,
    order: Order,
    placements: Sequence[FaultPlacement] = (),
    copied: Mapping[int, Sequence[int]] | None = None,
) -> Outcome:
    """Run the scenario's operations one after another and look at the end.

    Two disks have nothing in common but the commands that are about both: each is run by itself.

    :param order: each operation once, and for each failover when its commit runs and is over
    :param copied: by operation, clusters that it copies even though it fails: the copies of one
        write go on side by side, and not all of them need to fail
    """
    ends = [
        _run_disk(scenario, behaviour, disk, order, placements, copied or {})
        for disk in range(scenario.disks)
    ]
    return ends[0] if len(ends) == 1 else _side_by_side(scenario, ends)


def _run_disk(
    scenario: RealScenario,
    behaviour: Behaviour,
    disk: int,
    order: Order,
    placements: Sequence[FaultPlacement],
    copied: Mapping[int, Sequence[int]],
) -> Outcome:
    """The end of one disk; its sectors are counted from its own beginning on."""
    chain = after_setup(scenario, behaviour, disk)
    if isinstance(chain, PushChain):
        return _pushed(scenario, chain, order)
    run = _InOrder(scenario, chain, disk, placements, copied)
    for step in order:
        run.take(step)
    if isinstance(chain, PrimaryChain):
        return _primarys_end(scenario, chain, run.answers, run.data)
    if isinstance(chain, VotingDisks):
        return _voted_end(scenario, chain, run.answers, run.data)
    return _final(scenario, chain, run.answers, run.data)


def _side_by_side(scenario: RealScenario, ends: Sequence[Outcome]) -> Outcome:
    """The end of two disks, by the end of each.

    A command that is about both succeeds when it does on both.
    """
    units = scenario.unit_of("hidden"), scenario.cluster  # the second image is nowhere
    answers = (
        next((end.answers[n] for end in ends if end.answers[n] not in (OK, UNANSWERED)), OK)
        for n in range(len(scenario.ops))
    )
    data = (
        next((end.data[n] for end in ends if end.data[n] is not None), None)
        for n in range(len(scenario.ops))
    )
    return replace(
        ends[0],
        answers=tuple(answers),
        data=tuple(data),
        secondary=scenario.laid_out((end.secondary for end in ends), GAP),
        hidden=scenario.laid_out((end.hidden for end in ends), None),
        active=scenario.laid_out((end.active for end in ends), None),
        view=scenario.views_laid_out([end.view for end in ends]),
        alloc=tuple(
            scenario.laid_out((end.alloc[image] for end in ends), NO_CLUSTER, unit)
            for image, unit in enumerate(units)
        ),
    )


class _InOrder:
    """A sequential execution under way, on one disk.

    :ivar answers: by operation; :ivar data: by reading operation
    """

    def __init__(
        self,
        scenario: RealScenario,
        chain: Chain | PrimaryChain | VotingDisks,
        disk: int,
        placements: Sequence[FaultPlacement],
        copied: Mapping[int, Sequence[int]],
    ) -> None:
        self._scenario, self._chain, self._disk = scenario, chain, disk
        self._first = disk * scenario.apart
        self._placements = [one for one in placements if one.meets(disk)]
        self._copied = copied
        self._gone: frozenset[Side] = frozenset()  # exports whose clients are no more
        self.answers: list[Prediction] = [UNANSWERED] * len(scenario.ops)
        self.data: list[tuple[int, ...] | None] = [None] * len(scenario.ops)

    def take(self, step: Step) -> None:
        """Do the next step."""
        chain = self._chain
        match step:
            case Do(index) if not self._scenario.is_about(self._scenario.ops[index], self._disk):
                pass
            case Do(index):
                self.answers[index] = self._do(index)
            case Commit(index):
                errno_for = self._begins(index)
                if isinstance(chain, Chain):
                    run_sequentially(chain.end_failover(), errno_for)
            case StatusOver():
                if isinstance(chain, Chain):
                    chain.forget_error()

    def _do(self, index: int) -> Prediction:
        """Do an operation; its answer."""
        op = self._scenario.ops[index]
        if op.queries:
            return self._status()
        if op.is_request and op.side in self._gone and not op.queries_status:
            return DISCONNECTED
        self._gone |= cut_off([op])
        errno_for = self._begins(index)
        if op.verb is Verb.FAILOVER and not isinstance(self._chain, VotingDisks):
            self._chain.begin_failover()
            return OK
        try:
            there = self._scenario.on_own_disk(op)
            result = run_op(self._chain, there, self._scenario.number(index), errno_for)
        except ModelIOError as error:
            return self._failed(index, error, errno_for)
        except (CommandError, OperationError) as error:
            return ReportedError(str(error))
        if op.reads:
            self.data[index] = _returned(op, result)
        return OK

    def _begins(self, index: int) -> Callable[[Io], int]:
        """Operation or commit *index* begins; with which errno each of its I/Os is to fail."""
        for placement in self._placements:
            placement.begins(index, self._chain)
        if self._scenario.ops[index].queries_status:
            # What is known of a block status is no data: QEMU may have it cached, or need no I/O.
            return lambda io: 0
        ways = [placement.of(index) for placement in self._placements]
        first = self._first

        def errno_for(io: Io) -> int:
            placed = Io(io.op, io.disk, first + io.start, io.count, io.perform) if first else io
            return next((errno for way in ways if (errno := way(placed))), 0)

        return errno_for

    def _status(self) -> Prediction:
        """The answer of a query: replication's status, or which block jobs there are."""
        scenario, chain = self._scenario, self._chain
        assert not isinstance(chain, VotingDisks)  # which have no command
        if scenario.replicates:
            error = chain.status()
            return ReportedError(error) if error else OK
        if scenario.has("snapshot-access") or isinstance(chain, PrimaryChain):
            return NO_JOB
        return OK if chain.job is not None else JOB_ENDING

    def _failed(
        self, index: int, error: ModelIOError, errno_for: Callable[[Io], int]
    ) -> Prediction:
        """The answer of an operation of which an I/O failed, once its other copies are done."""
        if self._scenario.ops[index].is_command:
            return ANY_ERROR
        for cluster in self._copied.get(index, ()):
            if isinstance(self._chain, Chain):
                _copy(self._chain, cluster - self._first // self._scenario.granule, errno_for)
        # QEMU's NBD server knows no EACCES.
        return io_error(EINVAL if error.errno == EACCES else error.errno)


def _returned(op: Operation, result: Iterable[int]) -> tuple[int, ...]:
    """What an operation returns by sector, as the harness gives it."""
    if op.verb is Verb.DIRTY_BITMAP:
        return tuple(MARKED if named else UNMARKED for named in result)
    return whose(result)


def _copy(chain: Chain, cluster: int, errno_for: Callable[[Io], int]) -> None:
    """Copy one backup cluster, if that is still to be done and can be."""
    if chain.job is not None:
        size = chain.job.cluster_size
        count = min(size, chain.size - cluster * size)
        with contextlib.suppress(ModelIOError):
            run_sequentially(
                chain.protocol.before_write(chain.job, cluster * size, count), errno_for
            )


def after_setup(scenario: RealScenario, behaviour: Behaviour, disk: int = 0) -> AnyChain:
    """The chain with which a scenario's operations begin, of one of its disks.

    :raises InputError: the setup cannot be done
    """
    chain: AnyChain
    if scenario.backs_up:
        pushes = PushChain(
            Disk(
                scenario.size,
                1 if scenario.secondary == "raw" else scenario.cluster,
                Contents.of(owned(BASE, scenario.size)),
                backed=False,
            ),
            scenario.granule,
            unmaps(scenario.topology.node("secondary")),
            behaviour.discard_passes_job,
        )
        for number, op in enumerate(scenario.setup, BASE + 1):
            pushes.do(op, number)
        return pushes
    if voters := scenario.topology.voters:
        chain = VotingDisks(voters, scenario.size, scenario.topology.threshold)
        for voter in chain.disks:
            voter.contents.write(0, owned(BASE, scenario.size))
    elif scenario.has("quorum"):
        chain = PrimaryChain(scenario.size, behaviour)
        chain.primary.contents.write(0, owned(BASE, scenario.size))
        chain.secondary.contents.write(0, owned(BASE, scenario.size))
    else:
        chain = _secondarys(scenario, behaviour)
    if not (scenario.topology.begins_late or isinstance(chain, VotingDisks)):
        run_sequentially(chain.start())
    for number, op in enumerate(scenario.setup, BASE + 1):
        if not scenario.is_about(op, disk):
            continue
        try:
            run_op(chain, scenario.on_own_disk(op), number)
        except OperationError as error:
            text = f"{scenario.name}: the setup cannot be done: {op}: {error}"
            raise InputError(text) from error
    return chain


def _secondarys(scenario: RealScenario, behaviour: Behaviour) -> Chain:
    protocol = (
        CopyBeforeWriteProtocol(scenario.breaks_snapshot, bitmap=scenario.accessible)
        if scenario.has("snapshot-access")
        else None
    )
    chain = model_chain(
        scenario.topology,
        scenario.disk_size,
        scenario.cluster,
        scenario.secondary,
        behaviour,
        protocol,
    )
    run_sequentially(chain.secondary.write(0, owned(BASE, chain.size)))
    return chain


def _pushed(scenario: RealScenario, chain: PushChain, order: Order) -> Outcome:
    """The end of an order on a disk that is backed up.

    What the job leaves is predicted in :mod:`.point_in_time`.
    """
    answers: list[Prediction] = [UNANSWERED] * len(scenario.ops)
    data: list[tuple[int, ...] | None] = [None] * len(scenario.ops)
    for step in order:
        if isinstance(step, Commit):
            chain.end_job()
        if not isinstance(step, Do):
            continue
        index, op = step.op, scenario.ops[step.op]
        try:
            found = chain.do(op, scenario.number(index))
        except RefusedError:
            answers[index] = ANY_ERROR
            continue
        answers[index] = OK
        if op.reads:
            data[index] = whose(found)
    nothing = (None,) * scenario.size
    disk = whose(chain.disk.now.read(0, scenario.size))
    return Outcome(tuple(answers), tuple(data), disk, nothing, nothing, None, (), None)


def _primarys_end(
    scenario: RealScenario,
    chain: PrimaryChain,
    answers: list[Prediction],
    data: list[tuple[int, ...] | None],
) -> Outcome:
    size = scenario.size
    view = whose(run_sequentially(chain.guest_read(0, size)))
    primary = whose(chain.primary.contents.read(0, size))
    secondary = whose(chain.secondary.contents.read(0, size))
    nothing = (None,) * size
    return Outcome(
        tuple(answers), tuple(data), secondary, nothing, nothing, view, (), chain.status(), primary
    )


def _voted_end(
    scenario: RealScenario,
    chain: VotingDisks,
    answers: list[Prediction],
    data: list[tuple[int, ...] | None],
) -> Outcome:
    size = scenario.size
    view: tuple[int, ...] | None = None
    with contextlib.suppress(ModelIOError):  # no two of them agree
        view = tuple(run_sequentially(chain.guest_read(0, size)))
    primary, secondary, tertiary = (whose(disk.contents.read(0, size)) for disk in chain.disks)
    nothing = (None,) * size
    return Outcome(
        tuple(answers), tuple(data), secondary, nothing, nothing, view, (), None, primary, tertiary
    )


def _final(
    scenario: RealScenario,
    chain: Chain,
    answers: list[Prediction],
    data: list[tuple[int, ...] | None],
) -> Outcome:
    size = chain.size
    held: list[tuple[int | None, ...]] = []
    kinds: list[tuple[int, ...]] = []
    for image in (chain.hidden, chain.active):
        contents, cluster = image.contents.read(0, size), image.cluster
        alloc = [image.alloc.get(n, Alloc.UNALLOCATED) for n in range(-(-size // cluster))]
        kinds.append(tuple(int(kind) for kind in alloc))
        held.append(
            tuple(
                None if alloc[sector // cluster] is Alloc.UNALLOCATED else max(0, owner)
                for sector, owner in enumerate(contents)
            )
        )
    view = _view(scenario, chain)
    secondary = whose(chain.secondary.contents.read(0, size))
    status = chain.status() if chain.workflow is Workflow.REPLICATION else None
    given_up = scenario.given_up(scenario.ops)  # nothing may read it any more
    if given_up:
        granule, cluster = scenario.granule, chain.hidden.cluster
        held[0] = tuple(
            None if sector // granule in given_up else owner for sector, owner in enumerate(held[0])
        )
        kinds[0] = tuple(
            -1 if index * cluster // granule in given_up else kind
            for index, kind in enumerate(kinds[0])
        )
    if chain.stage is Stage.DONE and chain.failed_over:
        # What the overlays hold is not checked any more.
        held = [(None,) * size] * 2
        kinds = [(-1,) * len(one) for one in kinds]
    return Outcome(
        tuple(answers), tuple(data), secondary, held[0], held[1], view, tuple(kinds), status
    )


def _view(scenario: RealScenario, chain: Chain) -> tuple[int, ...] | None:
    """What is read at the guest's end, in parts where it has gaps; ``None``: it cannot be read."""
    snapshot = isinstance(chain.protocol, CopyBeforeWriteProtocol)
    read = chain.snapshot_read if snapshot else chain.guest_read
    view: list[int] = []
    readable = False
    for start, count in scenario.view_parts:
        try:
            view += whose(run_sequentially(read(start, count)))
            readable = True
        except OperationError:
            view += [UNREADABLE] * count
    return tuple(view) if readable else None
