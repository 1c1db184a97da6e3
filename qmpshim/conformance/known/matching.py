"""Which findings of the explorer and of the directed cases are written up.

A thousand schedules may have the same words for what is wrong and yet not the same reason: so a
write-up also says of which form of the chain it is, which operations it needs and which I/Os fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.harness.choices import failures
from qmpshim.conformance.explore.report.findings import Finding, failing, finding_from_json
from qmpshim.conformance.known.write_ups import Version, WriteUp, common, load
from qmpshim.machine.chain.topology import IMAGES, PRIMARY_IMAGES, chain_name
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import NAMES, Operation

_VERBS = ("read", "write", "zero", "discard", "flush", "status")
_FAILS = frozenset(f"{image} {verb}" for image in {*IMAGES, *PRIMARY_IMAGES} for verb in _VERBS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorerWriteUp(WriteUp):
    """A finding of the explorer's that is written up. What its file leaves out its case says.

    :ivar forms: of the chain
    :ivar needs: concurrent operations: one of each of these has to be there
    :ivar needs_before: operations: one of each, concurrent or done before
    :ivar fails: the I/Os that fail, ``hidden write`` for one: something does, and only these do;
        empty: it does not matter
    :ivar errnos: how they fail (an errno, CUT, RECONNECT): so and not otherwise; empty: it does
        not matter
    """

    forms: frozenset[str]
    needs: tuple[frozenset[str], ...]
    needs_before: tuple[frozenset[str], ...]
    fails: frozenset[str]
    errnos: frozenset[int]

    def covers(self, finding: Finding, version: Version) -> bool:
        """Whether *finding*, seen on QEMU *version*, is this one."""
        scenario, failed = finding.scenario, failing(finding.schedule)
        there = _names(scenario.ops)
        ever = there | _names(scenario.setup)
        errnos = {step.fault for step in failures(finding.schedule)}
        return (
            self.concerns(version)
            and self.explains(finding.verdict, finding.cause, finding.contract)
            and scenario.form in self.forms
            and all(there & ways for ways in self.needs)
            and all(ever & ways for ways in self.needs_before)
            and (not self.fails or (bool(failed) and failed <= self.fails))
            and (not self.errnos or errnos <= self.errnos)
        )


def _names(ops: Iterable[Operation]) -> set[str]:
    """What the operations are called; a write with FUA is a write, too."""
    return {name for op in ops for name in (op.name, op.name.removesuffix("_fua"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectedWriteUp(WriteUp):
    """A directed case that ends otherwise than QEMU's documents promise, as written up."""

    case: str

    def covers(self, verdict: Verdict, cause: Cause, version: Version) -> bool:
        """Whether this is what was seen on QEMU *version*."""
        return self.concerns(version) and self.explains(verdict, cause, self.contract)


def load_known(directory: Path) -> tuple[ExplorerWriteUp, ...]:
    """The findings of the explorer that are written up in *directory*.

    :raises InputError: one of the files is damaged
    """
    return load(directory, _known)


def load_directed(directory: Path) -> dict[str, DirectedWriteUp]:
    """Those of the directed cases, by case.

    :raises InputError: one of the files is damaged
    """
    found = load(directory, lambda name, value: DirectedWriteUp(**common(name, value), case=name))
    return {one.case: one for one in found}


def recogniser(known: Sequence[ExplorerWriteUp], version: Version) -> Callable[[Finding], str]:
    """Tells the id of what a finding on QEMU *version* is, ``""`` if nobody has written it up."""

    def recognise(finding: Finding) -> str:
        return next((one.id for one in known if one.covers(finding, version)), "")

    return recognise


def _known(name: str, value: dict[str, Any]) -> ExplorerWriteUp:
    case = finding_from_json(value["case"])
    before = value.get("needs_before", [])
    needs = value.get("needs", [] if before else [[op.name] for op in case.scenario.ops])
    fails = frozenset(value.get("fails", failing(case.schedule)))
    if not fails <= _FAILS or not all(
        ways and set(ways) <= set(NAMES) for ways in (*needs, *before)
    ):
        raise ValueError(f"it needs {needs}, and {sorted(fails)} fail")
    return ExplorerWriteUp(
        **common(name, value),
        forms=frozenset(chain_name(word) for word in value.get("forms", [case.scenario.form])),
        needs=tuple(frozenset(ways) for ways in needs),
        needs_before=tuple(frozenset(ways) for ways in before),
        fails=fails,
        errnos=frozenset(int(errno) for errno in value.get("errnos", ())),
    )
