"""What each kind of write-up excuses: a class for each command that shows findings.

That a finding is known is decided in ``covers``; what a random workload would show of a known
defect is predicted instead (``KnownDefect``, ``PointDefect``). A thousand schedules may have the
same words for what is wrong and yet not the same reason: so a write-up of the explorer's also names
the form of the chain, the operations it needs and the I/Os that fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from qmpshim.conformance.bundles.any_workload import AnyCase
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.harness.choices import Cut, Fail, failing_kinds, failures
from qmpshim.conformance.explore.harness.io_naming import VERBS
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.known.write_ups import Version, WriteUp, common
from qmpshim.conformance.pair.bundle import PairCase
from qmpshim.conformance.pair.plan import GUESTS, PairFinding, PairPlan
from qmpshim.conformance.pointintime.operations import PointOperation
from qmpshim.conformance.workload.result import MetDefect
from qmpshim.errors import Exit
from qmpshim.machine.chain.chains import DISKS, IMAGES, chain_name
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import NAMES, Operation

AnyOperation = Operation | PointOperation

_OF_TABLES = " of tables"
_GONE = "gone"
_FAILS = frozenset(
    f"{image} {what}"
    for image in {*IMAGES, *DISKS}
    for what in (*VERBS.values(), *(verb + _OF_TABLES for verb in VERBS.values()), _GONE)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorerWriteUp(WriteUp):
    """A finding of the explorer's that is written up. What its file leaves out is as in its case.

    :ivar forms: of the chain
    :ivar needs: concurrent operations: one of each of these sets has to be there, and two where the
        same set stands twice
    :ivar needs_before: operations: one of each, concurrent or done before
    :ivar fails: the I/Os that fail, ``hidden write`` for one, or ``hidden write of tables``, which
        is of no data, or ``hidden gone``, whichever was cut off for good with its disk: something
        does, and only these do; empty: it does not matter
    :ivar errnos: how they fail (an errno, or a Cut): so and not otherwise; empty: it does not
        matter
    :ivar clusters: of the overlays, in sectors: one of these; empty: it does not matter
    :ivar secondary: the format of that disk; ``""``: it does not matter
    :ivar ending: how QEMU ended, whatever it wrote last; ``None``: that does not matter
    """

    kind: ClassVar[str] = "explore"

    case: Finding
    forms: frozenset[str]
    needs: tuple[frozenset[str], ...]
    needs_before: tuple[frozenset[str], ...]
    fails: frozenset[str]
    errnos: frozenset[int]
    clusters: frozenset[int]
    secondary: str
    ending: Exit | None

    def covers(self, finding: Finding, version: Version) -> bool:
        """Whether *finding*, seen on QEMU *version*, is this one."""
        scenario, failed = finding.scenario, failures(finding.schedule)
        ever = _names((*scenario.ops, *scenario.setup))
        errnos = {step.fault for step in failed}
        return (
            self.concerns(version)
            and self.explains(finding.verdict, finding.cause, finding.contract)
            and scenario.form in self.forms
            and all(_many(scenario.ops, ways) >= n for ways, n in Counter(self.needs).items())
            and all(ever & ways for ways in self.needs_before)
            and (not self.fails or bool(failed))
            and all(not self.fails or _kinds(step) & self.fails for step in failed)
            and (not self.errnos or errnos <= self.errnos)
            and (not self.clusters or scenario.cluster in self.clusters)
            and self.secondary in ("", scenario.secondary)
            and self.ending in (None, finding.ending)
        )


def _kinds(step: Fail) -> set[str]:
    """What an I/O that fails may be called in :attr:`ExplorerWriteUp.fails`."""
    io = step.io
    kinds = {io.kind, io.kind + _OF_TABLES} if io.meta else {io.kind}
    return kinds | {f"{io.image} {_GONE}"} if step.fault == Cut.FOR_GOOD else kinds


def _many(ops: Iterable[Operation], ways: frozenset[str]) -> int:
    """How many of the operations are one of these."""
    return sum(bool(_names([op]) & ways) for op in ops)


def _names(ops: Iterable[Operation]) -> set[str]:
    """What the operations are called, with and without their flags."""
    return {name for op in ops for name in (op.name, op.plain.name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectedWriteUp(WriteUp):
    """A directed case that ends otherwise than QEMU's documents promise, as written up."""

    kind: ClassVar[str] = "directed"

    case: None = None

    @property
    def id(self) -> str:
        """As the name of the case in a check."""
        return f"directed/{self.path.stem}"

    def covers(self, verdict: Verdict, cause: Cause, version: Version) -> bool:
        """Whether this is what was seen on QEMU *version*."""
        return self.concerns(version) and self.explains(verdict, cause, self.contract)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWriteUp(WriteUp):
    """A finding of a pair's that is written up.

    :ivar side: whose version counts: ``primary`` or ``secondary``
    :ivar accel: the accelerator it needs, or ``""``
    :ivar guests: with these it was seen, and can be; what others show is another finding
    """

    kind: ClassVar[str] = "pair"

    case: PairCase
    side: str
    accel: str
    guests: tuple[str, ...]

    @property
    def plan(self) -> PairPlan:
        """What shows it."""
        return self.case.plan

    def may_come(self, plan: PairPlan, versions: tuple[Version, Version]) -> bool:
        """Whether a run may show it.

        :param versions: of the primary and of the secondary
        """
        version = versions[0] if self.side == "primary" else versions[1]
        return self.concerns(version) and self._fits(plan)

    def _fits(self, plan: PairPlan) -> bool:
        return (
            plan.colo == self.plan.colo
            and plan.guest in self.guests
            and self.accel in ("", plan.accel)
        )

    def covers(
        self, finding: PairFinding, plan: PairPlan, versions: tuple[Version, Version]
    ) -> bool:
        """Whether *finding* is this one; *versions* as for :meth:`may_come`."""
        return self.may_come(plan, versions) and self.shown_by(finding, plan)

    def shown_by(self, finding: PairFinding, plan: PairPlan) -> bool:
        """As :meth:`covers`, whatever the versions are."""
        return self._fits(plan) and self.explains(finding.verdict, finding.cause, finding.contract)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadWriteUp(WriteUp):
    """What operations one after another show, at random or by hand.

    It excuses by prediction: the model of such a workload does as QEMU with the defect does
    (:class:`~qmpshim.model.chain.behaviour.KnownDefect`,
    :class:`~qmpshim.model.pointintime.points.PointDefect`), so that the run goes on.
    Where nothing was predicted of it, :meth:`covers` recognises it.

    :ivar divergence: what its case shows
    """

    kind: ClassVar[str] = "verify"

    case: AnyCase
    divergence: Divergence

    def covers(self, found: Divergence, operations: Sequence[AnyOperation]) -> bool:
        """Whether *found*, after some of *operations*, is this one, whatever QEMU's version is.

        The operations of the write-up have to be among them, in its order and the last at the
        divergence. Others may lie between; where on a disk one reads or writes does not matter.
        """
        if not replace(self.divergence, operation=found.operation).same_as(found):
            return False
        *before, last = _until(self.divergence, self.case.operations)
        done = _until(found, operations)
        if not done or done.pop() != last:
            return False
        left = iter(done)
        return all(one in left for one in before)

    def met_by(self, found: Divergence, met: Sequence[MetDefect]) -> bool:
        """Whether *found* is this one, where the model of a run is certain that it was met."""
        return any(
            one.id == self.id
            and one.operation <= found.operation
            and replace(self.divergence, where=one.where, operation=one.operation).same_as(found)
            for one in met
        )


def _until(found: Divergence, operations: Sequence[AnyOperation]) -> list[AnyOperation]:
    """The operations up to the divergence, without their numbers and places."""
    return [
        replace(one, number=0, start=0, count=0)
        for one in operations
        if one.number <= found.operation
    ]


def check_shown(case: AnyCase, found: Divergence) -> None:
    """Check that there are operations up to what was found: it is recognised by them.

    :raises ValueError: there are none
    """
    if not _until(found, case.operations):
        raise ValueError("it has no operation up to what it shows")


def pair_write_up(path: Path, value: dict[str, Any], case: PairCase) -> PairWriteUp:
    """The write-up with the content of the file *path*, and so of the other kinds below.

    :raises KeyError, TypeError, ValueError, re.error, InputError: it is damaged
    """
    fields = common(path, value)
    side, guests = str(value["side"]), tuple(value.get("guests", [case.plan.guest]))
    if side not in ("primary", "secondary") or not set(guests) <= set(GUESTS):
        raise ValueError(f"side {side!r}, guests {', '.join(guests)}")
    accel = str(value.get("accel", ""))
    return PairWriteUp(**fields, case=case, side=side, accel=accel, guests=guests)


def workload_write_up(path: Path, value: dict[str, Any], case: AnyCase) -> WorkloadWriteUp:
    """Of operations one after another."""
    check_shown(case, case.wrong)
    return WorkloadWriteUp(**common(path, value), case=case, divergence=case.wrong)


def explorer_write_up(path: Path, value: dict[str, Any], case: Finding) -> ExplorerWriteUp:
    """Of a schedule."""
    before = value.get("needs_before", [])
    needs = value.get("needs", [] if before else [[op.name] for op in case.scenario.ops])
    fails = frozenset(value.get("fails", failing_kinds(case.schedule)))
    if not fails <= _FAILS or not all(
        ways and set(ways) <= set(NAMES) for ways in (*needs, *before)
    ):
        raise ValueError(f"it needs {needs}, and {sorted(fails)} fail")
    return ExplorerWriteUp(
        **common(path, value),
        case=case,
        forms=frozenset(chain_name(word) for word in value.get("forms", [case.scenario.form])),
        needs=tuple(frozenset(ways) for ways in needs),
        needs_before=tuple(frozenset(ways) for ways in before),
        fails=fails,
        errnos=frozenset(int(errno) for errno in value.get("errnos", ())),
        clusters=frozenset(int(sectors) for sectors in value.get("clusters", ())),
        secondary=str(value.get("secondary", "")),
        ending=Exit.parse(str(value["ending"])) if "ending" in value else None,
    )
