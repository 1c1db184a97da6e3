"""Scenarios: small values of what happens at the same time, on which disks, with which fault.

Positions and lengths are sectors.  A scenario has a JSON form; :func:`scenario_from_json` accepts
what :meth:`Scenario.to_json` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EIO
from typing import Any

from qmpshim.errors import InputError, decoding
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import NAMES, Operation, operation, operation_from_json

#: What the model's explorer does: all but what changes and reads no disk.
MODELLED = tuple(
    name
    for name in NAMES
    if (op := operation(name)).reconfigures != (op.changes or (op.reads and not op.is_primary))
    and name not in ("guest_discard", "unexport")
)


@dataclass(frozen=True, slots=True)
class Fault:
    """The *nth* I/O that fits fails; what is ``None`` fits everything.

    :ivar disk: ``secondary``, ``hidden`` or ``active``
    :ivar op: the I/O: ``read``, ``write``, ``zero``, ``discard`` or ``empty``
    :ivar sector: a sector that the I/O touches
    :ivar by: index of the concurrent operation whose I/O it is
    """

    disk: str | None = None
    op: str | None = None
    sector: int | None = None
    by: int | None = None
    nth: int = 1
    errno: int = EIO

    def to_json(self) -> dict[str, Any]:
        """As :func:`scenario_from_json` reads it."""
        names = ("disk", "op", "sector", "by", "nth", "errno")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclass(frozen=True, slots=True)
class Scenario:
    """Operations that run at the same time on a chain of disks.

    :ivar size: virtual size in sectors
    :ivar cluster: qcow2 cluster in sectors
    :ivar secondary: format of the secondary disk
    :ivar setup: operations done before, one after another
    :ivar ops: the concurrent operations
    :ivar faults: which I/Os of the concurrent operations fail
    :ivar contract: commands run in a drained section, as the contract demands
    :ivar protocols: those it makes sense with; empty: all
    """

    name: str
    ops: tuple[Operation, ...]
    setup: tuple[Operation, ...] = ()
    about: str = ""
    workflow: Workflow = Workflow.REPLICATION
    size: int = 256
    cluster: int = 128
    secondary: str = "raw"
    faults: tuple[Fault, ...] = ()
    contract: bool = True
    protocols: tuple[str, ...] = ()

    def number(self, index: int) -> int:
        """The owner that concurrent operation *index* writes as."""
        return len(self.setup) + index + 1

    def to_json(self) -> dict[str, Any]:
        """As :func:`scenario_from_json` reads it."""
        value: dict[str, Any] = {
            "name": self.name,
            "about": self.about,
            "workflow": self.workflow.value,
            "size": self.size,
            "cluster": self.cluster,
            "secondary": self.secondary,
            "setup": [op.to_json() for op in self.setup],
            "ops": [op.to_json() for op in self.ops],
            "faults": [fault.to_json() for fault in self.faults],
            "contract": self.contract,
        }
        if self.protocols:
            value["disciplines"] = list(self.protocols)
        return value


def scenario_from_json(value: Any) -> Scenario:
    """A scenario from decoded JSON; only ``ops`` is required.

    :raises InputError: it is none; the text names what is wrong
    """
    with decoding("the scenario"):
        scenario = _scenario(dict(value))
        check(scenario)
        return scenario


def _scenario(value: dict[str, Any]) -> Scenario:
    known = {
        f: value[f]
        for f in ("name", "about", "size", "cluster", "secondary", "contract")
        if f in value
    }
    unknown = set(value) - set(known) - {"workflow", "setup", "ops", "faults", "disciplines"}
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    return Scenario(
        **{"name": "unnamed", **known},
        workflow=Workflow(value.get("workflow", "replication")),
        setup=tuple(_operation(op) for op in value.get("setup", [{"do": "start"}])),
        ops=tuple(_operation(op) for op in value["ops"]),
        faults=tuple(Fault(**fault) for fault in value.get("faults", [])),
        protocols=tuple(value.get("disciplines", ())),
    )


def _operation(value: Mapping[str, Any]) -> Operation:
    unknown = set(value) - {"do", "at", "after"}
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r} of an operation")
    return operation_from_json(value)


def check(scenario: Scenario) -> None:
    """Whether the scenario makes sense.

    :raises InputError: it does not
    """
    for index, op in enumerate((*scenario.setup, *scenario.ops)):
        if op.name not in MODELLED:
            raise InputError(f"no such operation: {op.name!r}; there are {MODELLED}")
        inside = op.start >= 0 and op.start + op.count <= scenario.size
        if not op.is_command and not (inside and op.count > 0):
            raise InputError(f"{op} is not inside the disk's {scenario.size} sectors")
        if op.after is not None and not 0 <= op.after < index - len(scenario.setup):
            raise InputError(f"{op}: 'after' must name an earlier concurrent operation")
    if not scenario.ops:
        raise InputError("a scenario needs at least one concurrent operation")
    if scenario.secondary not in ("raw", "qcow2"):
        raise InputError(f"no such format: {scenario.secondary!r}")
    if scenario.cluster < 1 or scenario.cluster & (scenario.cluster - 1):
        raise InputError("the cluster size must be a power of two (of sectors)")
