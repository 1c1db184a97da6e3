"""What a real QEMU may answer and leave behind: the straight model in every order that fits.

A block device promises something for each sector, not for an operation as a whole: two writes may
come out in one order here and in the other there. So the disk is cut into *cells*, the longest
ranges in which the same operations are at work and which no cluster boundary crosses, and in each
cell there must be an order of the operations, in which nobody comes before somebody who had ended
before it started, such that the straight model gives what was seen there: what reads returned and
what the disks hold. For the answers of commands and the errors there must be one order as a whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

from qmpshim.conformance.real_scenarios import (
    BASE,
    COMMANDS,
    PRIMARY,
    READS,
    RealScenario,
    words,
)
from qmpshim.machine.gated_chain import Form
from qmpshim.model.behaviour import Behaviour
from qmpshim.model.chain import Chain, CommandError, Stage, Workflow
from qmpshim.model.co import ModelIOError, OperationError, run_straight
from qmpshim.model.discipline import CopyBeforeWriteDiscipline
from qmpshim.model.disk import Alloc, owned
from qmpshim.model.linearise import fits
from qmpshim.model.scenario import Op
from qmpshim.model.system import Violation
from qmpshim.model.verdict import Verdict

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RealViolation(Violation):
    """A violation on a real QEMU.

    :ivar cause: the same for all schedules that fail in the same way; groups findings
    """

    cause: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The end of an execution, straight or real.

    :ivar answers: by operation: ``ok``, ``errno N`` or an error's text
    :ivar data: by reading operation: the owners of its sectors
    :ivar secondary: owners of all sectors
    :ivar hidden: owners, ``None`` where the image has nothing
    :ivar active: the same
    :ivar view: what is read at the guest's end, ``None`` if it cannot be read
    :ivar alloc: by overlay, by cluster
    :ivar status: the error that replication reports
    """

    answers: tuple[str, ...]
    data: tuple[tuple[int, ...] | None, ...]
    secondary: tuple[int, ...]
    hidden: tuple[int | None, ...]
    active: tuple[int | None, ...]
    view: tuple[int, ...] | None
    alloc: tuple[tuple[int, ...], ...]
    status: str | None


def run_op(chain: Chain, op: Op, number: int) -> Any:
    """Do one operation in the straight model; what a read returns."""
    if op.do == "status":
        return None
    if op.do == "unexport":
        return None
    method = getattr(chain, op.do)
    if op.do in COMMANDS or op.do in ("primary_flush", "guest_flush"):
        return run_straight(method())
    if op.do in READS:
        if op.do == "guest_read" and chain.discipline.name == "copy-before-write":
            method = chain.snapshot_read
        return run_straight(method(op.start, op.count))
    if op.do == "guest_discard" and chain.discipline.name == "copy-before-write":
        method = chain.snapshot_discard
    return run_straight(method(op.start, op.count, number))


class Judge:
    """Knows every straight outcome of one scenario."""

    def __init__(self, scenario: RealScenario, behaviour: Behaviour) -> None:
        self.scenario = scenario
        self.behaviour = behaviour
        self.cells = _cells(scenario)
        self._seen: dict[Hashable, RealViolation | None] = {}
        self.straight: dict[Order, Seen] = {}
        for order in permutations(range(len(scenario.ops))):
            place = {op: at for at, op in enumerate(order)}
            if all(
                op.after is None
                # Failover's commit goes on after its answer.
                or scenario.ops[op.after].do == "failover"
                or place[op.after] < place[index]
                for index, op in enumerate(scenario.ops)
            ):
                self.straight[order] = self._run(order)

    def _run(self, order: Order) -> Seen:
        scenario = self.scenario
        discipline = CopyBeforeWriteDiscipline() if scenario.form is Form.FLEECING else None
        workflow = Workflow.REPLICATION
        if scenario.form is not Form.REPLICATION:
            workflow = Workflow.BACKUP
        chain = Chain(
            workflow,
            scenario.size,
            scenario.cluster,
            discipline=discipline,
            behaviour=self.behaviour,
        )
        chain.secondary.contents.write(0, owned(BASE, scenario.size))
        run_straight(chain.start())
        for number, op in enumerate(scenario.setup, BASE + 1):
            run_op(chain, op, number)
        answers = ["?"] * len(order)
        data: list[tuple[int, ...] | None] = [None] * len(order)
        gone = False
        for index in order:
            op = scenario.ops[index]
            if op.do == "status":
                if scenario.form is Form.REPLICATION:
                    answers[index] = chain.status() or "ok"
                else:
                    answers[index] = "ok"
                continue
            if gone and op.do in PRIMARY:
                answers[index] = "gone"
                continue
            if op.do == "unexport":
                gone = True
            try:
                result = run_op(chain, op, scenario.number(index))
            except ModelIOError as error:
                # QEMU's NBD server knows no EACCES.
                answers[index] = f"errno {22 if error.errno == 13 else error.errno}"
                continue
            except (CommandError, OperationError) as error:
                answers[index] = str(error)
                continue
            answers[index] = "ok"
            if op.do in READS:
                data[index] = tuple(max(0, owner) for owner in result)
        return self._final(chain, answers, data)

    def _final(self, chain: Chain, answers: list[str], data: list[tuple[int, ...] | None]) -> Seen:
        size, cluster = self.scenario.size, self.scenario.cluster
        held: list[tuple[int | None, ...]] = []
        kinds: list[tuple[int, ...]] = []
        for image in (chain.hidden, chain.active):
            contents = image.contents.read(0, size)
            alloc = [image.alloc.get(n, Alloc.UNALLOCATED) for n in range(-(-size // cluster))]
            kinds.append(tuple(int(kind) for kind in alloc))
            held.append(
                tuple(
                    None if alloc[sector // cluster] is Alloc.UNALLOCATED else max(0, owner)
                    for sector, owner in enumerate(contents)
                )
            )
        view: tuple[int, ...] | None = None
        try:
            if chain.discipline.name == "copy-before-write":
                owners = run_straight(chain.snapshot_read(0, size))
            else:
                owners = run_straight(chain.guest_read(0, size))
            view = tuple(max(0, owner) for owner in owners)
        except OperationError:
            pass
        secondary = tuple(max(0, o) for o in chain.secondary.contents.read(0, size))
        status = chain.status() if chain.workflow is Workflow.REPLICATION else None
        over = chain.stage is Stage.DONE and chain.failed_over
        given_up = scenario_gives_up(self.scenario)
        if given_up:  # nobody may read it any more, so nobody cares what is there
            held[0], kinds[0] = (None,) * size, (-1,) * len(kinds[0])
        if over:  # what the overlays hold is nobody's affair any more
            held = [(None,) * size] * 2
            kinds = [(-1,) * len(kinds[0])] * 2
        return Seen(
            tuple(answers), tuple(data), secondary, held[0], held[1], view, tuple(kinds), status
        )

    # -- judging -----------------------------------------------------------------------------------

    def judge(self, seen: Seen, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        """What is wrong with the end of an execution.

        :param precedence: for each operation those that had ended when it started
        """
        key = (seen, tuple(precedence))
        if key not in self._seen:
            self._seen[key] = self._judge(seen, precedence)
        return self._seen[key]

    def _judge(self, seen: Seen, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        orders = [order for order in self.straight if fits(order, precedence)]
        straight = [self.straight[order] for order in orders]
        for index, op in enumerate(self.scenario.ops):
            answers = {one.answers[index] for one in straight}
            if not any(_same(want, seen.answers[index]) for want in answers):
                return self._wrong_answer(index, op, seen.answers[index], sorted(answers))
        possible = [one for one in straight if all(map(_same, one.answers, seen.answers))]
        if not possible:
            text = f"the answers {seen.answers} fit no order of the operations"
            return RealViolation(Verdict.PROTOCOL, text, cause="answers do not fit together")
        for start, end in self.cells:
            wrong = self._cell(seen, possible, start, end)
            if wrong is not None:
                return wrong
        for image, found in enumerate(seen.alloc):
            for cluster, kind in enumerate(found):
                told = {one.alloc[image][cluster] for one in possible}
                if not any(want == -1 or Alloc(want).admits(Alloc(kind)) for want in told):
                    name = ("hidden", "active")[image]
                    wanted = " or ".join(Alloc(want).name.lower() for want in sorted(told))
                    text = (
                        f"cluster {cluster} of the {name} disk is {Alloc(kind).name.lower()}, "
                        f"predicted {wanted}"
                    )
                    cause = f"{name} cluster {Alloc(kind).name.lower()} instead of {wanted}"
                    return RealViolation(Verdict.ALLOCATION, text, cluster=cluster, cause=cause)
        if all(one.status != seen.status for one in possible):
            wanted = " or ".join(sorted({str(one.status) for one in possible}))
            text = f"replication's status at the end is {seen.status!r}, predicted {wanted}"
            return RealViolation(Verdict.ERROR_CONTRACT, text, cause=f"final status {seen.status}")
        return None

    def _wrong_answer(self, index: int, op: Op, found: str, wanted: list[str]) -> RealViolation:
        text = f"{words(op)} answers {found!r}, predicted {' or '.join(map(repr, wanted))}"
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=f"{op.do} answers {found}")

    def _cell(self, seen: Seen, possible: list[Seen], start: int, end: int) -> RealViolation | None:
        """Whether some order explains one cell."""
        if any(self._explains(one, seen, start, end) for one in possible):
            return None
        return self._explain(seen, possible, start, end)

    def _explains(self, one: Seen, seen: Seen, start: int, end: int) -> bool:
        cut = slice(start, end)
        for index, op in enumerate(self.scenario.ops):
            want, have = one.data[index], seen.data[index]
            if want is None or have is None:
                continue
            low, high = max(start, op.start) - op.start, min(end, op.start + op.count) - op.start
            if low < high and want[low:high] != have[low:high]:
                return False
        if one.secondary[cut] != seen.secondary[cut]:
            return False
        if one.view is not None and seen.view is not None and one.view[cut] != seen.view[cut]:
            return False
        # Where only one of them has something allocated, allocation is what differs.
        return all(
            want is None or have is None or want == have
            for wants, haves in ((one.hidden, seen.hidden), (one.active, seen.active))
            for want, have in zip(wants[cut], haves[cut], strict=True)
        )

    def _explain(self, seen: Seen, possible: list[Seen], start: int, end: int) -> RealViolation:
        """In words what no order explains: the first thing wrong in every one of them."""
        where = f"sectors {start}..{end - 1}"
        cluster = start // self.scenario.cluster
        for index, op in enumerate(self.scenario.ops):
            have = seen.data[index]
            if have is None or not (op.start < end and start < op.start + op.count):
                continue
            low, high = max(start, op.start) - op.start, min(end, op.start + op.count) - op.start
            wanted = {one.data[index][low:high] for one in possible if one.data[index] is not None}  # type: ignore[index]
            if have[low:high] not in wanted:
                return self._wrong(
                    f"{words(op)} returns", op.do, have[low:high], wanted, where, cluster, index
                )
        for name in ("secondary", "view", "hidden", "active"):
            have_all = getattr(seen, name)
            wanted = {
                getattr(one, name)[start:end] for one in possible if getattr(one, name) is not None
            }
            if have_all is not None and wanted and have_all[start:end] not in wanted:
                if name in ("hidden", "active") and (
                    None in have_all[start:end] or any(None in want for want in wanted)
                ):
                    continue
                what = "the guest's view ends as" if name == "view" else f"{name} disk ends as"
                return self._wrong(what, name, have_all[start:end], wanted, where, cluster, None)
        text = f"in {where} what reads returned and what the disks hold fit no order"
        return RealViolation(
            Verdict.ISOLATION, text, cluster=cluster, cause="reads and disks fit no order"
        )

    def _wrong(
        self,
        what: str,
        name: str,
        have: tuple[int | None, ...],
        wanted: set[Any],
        where: str,
        cluster: int,
        index: int | None,
    ) -> RealViolation:
        kinds = [self._kind(owner) for owner in have]
        told = sorted({self._kind(want[0]) for want in wanted})
        verdict = Verdict.CONTENT
        if name in ("guest_read", "view") and "new data" in kinds:
            verdict = Verdict.ISOLATION
        elif name in ("secondary", "active", "primary_read", "view", "guest_read"):
            verdict = Verdict.LOST_WRITE
        text = f"{what} {_runs(kinds)} in {where}, predicted {' or '.join(told)}"
        cause = f"{name}: {kinds[0]} instead of {' or '.join(told)}"
        return RealViolation(verdict, text, index, cluster, cause)

    def _kind(self, owner: int | None) -> str:
        """Whose data, in words that are the same for all scenarios."""
        if owner is None:
            return "nothing"
        if owner == 0:
            zeroed = any(op.do in ("primary_zero", "primary_discard") for op in self.scenario.ops)
            return "new data" if zeroed else "zeroes"
        if owner < 0:
            return "garbage"
        if owner == BASE:
            return "the old data"
        index = owner - BASE - 1
        if index < len(self.scenario.setup):
            return f"earlier {self.scenario.setup[index].do.replace('_', ' ')}'s data"
        index -= len(self.scenario.setup)
        if index < len(self.scenario.ops):
            guest = self.scenario.ops[index].do == "guest_write"
            return "the guest's data" if guest else "new data"
        return "the probe's data"


def scenario_gives_up(scenario: RealScenario) -> bool:
    """Whether the reader of the snapshot discards part of it."""
    fleecing = scenario.form is Form.FLEECING
    return fleecing and any(op.do == "guest_discard" for op in scenario.ops)


def _same(want: str, have: str) -> bool:
    """Whether an answer is the predicted one; who was cut off cannot know whether it was done."""
    return want == have or (have == "gone" and want == "ok")


def _runs(kinds: list[str]) -> str:
    distinct = list(dict.fromkeys(kinds))
    return " and ".join(distinct[:3])


def _cells(scenario: RealScenario) -> list[tuple[int, int]]:
    edges = {0, scenario.size, *range(0, scenario.size, scenario.cluster)}
    for op in (*scenario.setup, *scenario.ops):
        if op.count:
            edges |= {op.start, op.start + op.count}
    ordered = sorted(edges)
    return list(pairwise(ordered))
