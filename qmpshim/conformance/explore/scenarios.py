"""What is done at the same time on a real QEMU: scenarios of operations, pairs and triples of them.

Positions and lengths are sectors. The whole secondary disk holds the data of operation 1 before
anything begins; the operations of the setup are numbered from 2 on and the concurrent ones after
them, and each writes traceable data under its number.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qmpshim.errors import InputError, decoding, no_such
from qmpshim.machine.chain.topology import TOPOLOGIES, Options, Topology, chain_name, topology_of
from qmpshim.model.scenario import Op

C = 128  # sectors of a cluster
_LARGEST = 1 << 21  # sectors of a disk that is held in memory
_LARGEST_CLUSTER = 1 << 12  # sectors: 2 MiB, qcow2's largest
BASE = 1  # the operation whose data the secondary disk holds at the beginning

ZEROES = ("primary_zero", "primary_zero_no_hole", "primary_discard")  # what leaves zeroes
PRIMARY = ("primary_write", *ZEROES, "primary_read", "primary_flush")
GUEST = ("guest_read", "guest_write", "guest_zero", "guest_flush", "guest_discard")
DATA = (*PRIMARY, *GUEST)
READS = ("primary_read", "guest_read")
CHANGES = ("primary_write", *ZEROES, "guest_write", "guest_zero", "guest_discard")
HOLES = (*ZEROES, "guest_zero")
COMMANDS = ("start", "checkpoint", "failover", "stop", "status", "unexport")
CHAIN_COMMANDS = ("start", "checkpoint", "failover", "stop", "unexport")  # change the chain
VANISH = ("primary_vanish", "guest_vanish")  # the client of an export is gone at once
FLUSHES = ("primary_flush", "guest_flush")


@dataclass(frozen=True, slots=True)
class RealScenario:
    """Operations that run at the same time on a real chain.

    In fleecing and in plain backup the *guest* is who reads the snapshot; on the primary it is the
    guest that runs there, and nobody else does anything.

    :ivar size: virtual size in sectors
    :ivar cluster: qcow2 cluster in sectors
    :ivar setup: operations done before, one after another, once replication (or backup) runs
    :ivar ops: the concurrent operations
    :ivar secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :ivar options: more options of the chain's nodes
    :ivar contract: within what QEMU's documents allow; otherwise it is about robustness
    """

    name: str
    ops: tuple[Op, ...]
    setup: tuple[Op, ...] = ()
    form: str = "replication"
    size: int = 2 * C
    cluster: int = C
    contract: bool = True
    secondary: str = "raw"
    options: Options = ()

    def number(self, index: int) -> int:
        """The number of concurrent operation *index*."""
        return BASE + len(self.setup) + 1 + index

    @property
    def topology(self) -> Topology:
        """What the chain is made of."""
        return topology_of(self.form, self.secondary, self.options)

    def has(self, driver: str) -> bool:
        """Whether the chain has a node of this driver."""
        return self.topology.has(driver)

    @property
    def replicates(self) -> bool:
        """Whether there is a replication filter, with a status."""
        return self.has("replication")

    @property
    def commits(self) -> bool:
        """Whether a failover leaves a commit running: the secondary's does."""
        return self.topology.commits and any(op.do == "failover" for op in self.ops)

    def to_json(self) -> dict[str, Any]:
        """As :func:`scenario_from_json` reads it."""
        value: dict[str, Any] = {
            "name": self.name,
            "form": self.form,
            "size": self.size,
            "cluster": self.cluster,
            "contract": self.contract,
            "secondary": self.secondary,
            "setup": [_op_to_json(op) for op in self.setup],
            "ops": [_op_to_json(op) for op in self.ops],
        }
        if self.options:
            value["options"] = [list(option) for option in self.options]
        return value


def _op_to_json(op: Op) -> dict[str, Any]:
    value: dict[str, Any] = {"do": op.do}
    if op.count:
        value["at"] = [op.start, op.count]
    if op.after is not None:
        value["after"] = op.after
    return value


def _op_from_json(value: Mapping[str, Any]) -> Op:
    start, count = value.get("at", (0, 0))
    there_are = DATA + COMMANDS + VANISH
    if value["do"] not in there_are:
        raise ValueError(f"no operation {value['do']!r}; there are {', '.join(there_are)}")
    return Op(str(value["do"]), int(start), int(count), value.get("after"))


def scenario_from_json(value: Any) -> RealScenario:
    """The reverse of :meth:`RealScenario.to_json`; only ``ops`` is required.

    :raises InputError: it is no scenario
    """
    with decoding("the scenario"):
        scenario = RealScenario(
            str(value.get("name", "unnamed")),
            tuple(_op_from_json(op) for op in value["ops"]),
            tuple(_op_from_json(op) for op in value.get("setup", ())),
            chain_name(value.get("form", "replication")),
            int(value.get("size", 2 * C)),
            int(value.get("cluster", C)),
            bool(value.get("contract", True)),
            str(value.get("secondary", "raw")),
            tuple((str(node), str(name), what) for node, name, what in value.get("options", ())),
        )
        _ = scenario.topology  # a node that there is
        _check(scenario)
        return scenario


def _check(scenario: RealScenario) -> None:
    """Whether a scenario makes sense.

    :raises InputError: it does not
    """
    if not scenario.ops:
        raise InputError("a scenario needs an operation")
    if not 0 < scenario.size <= _LARGEST:
        raise InputError(f"a disk has 1 to {_LARGEST} sectors, not {scenario.size}")
    if not 0 < scenario.cluster <= _LARGEST_CLUSTER or scenario.cluster & (scenario.cluster - 1):
        raise InputError(f"a cluster has a power of two of sectors, not {scenario.cluster}")
    if scenario.secondary not in ("raw", "qcow2"):
        raise InputError(f"the secondary disk is raw or qcow2, not {scenario.secondary}")
    topology = scenario.topology
    if scenario.secondary not in topology.formats:
        raise InputError(f"the {scenario.form}'s chain has {topology.formats[0]} disks only")
    for op in (*scenario.setup, *scenario.ops):
        if op.do not in topology.operations:
            raise InputError(f"a chain of the form {scenario.form} cannot do: {words(op)}")
        inside = op.start >= 0 and op.start + op.count <= scenario.size
        if not inside or (op.do in DATA and op.do not in FLUSHES and not op.count):
            raise InputError(f"{words(op)} is not inside the disk's {scenario.size} sectors")
    for index, op in enumerate(scenario.ops):
        if op.after is not None and not (type(op.after) is int and 0 <= op.after < index):
            raise InputError(f"{words(op)}: what it comes after must be an operation before it")


def cut_off(ops: Sequence[Op]) -> tuple[str, ...]:
    """What can be done no more once all of *ops* are: the client or the export is gone."""
    does = {op.do for op in ops}
    primary = PRIMARY if does & {"unexport", "primary_vanish"} else ()
    return primary + (GUEST if "guest_vanish" in does else ())


def words(op: Op) -> str:
    """An operation to read: what, and where in sectors."""
    what = op.do.replace("_", " ")
    return f"{what} [{op.start}, {op.start + op.count})" if op.count else what


def described(scenario: RealScenario) -> str:
    """A scenario to read: its operations, what was before them, on which side of the contract."""
    ops = ", ".join(
        words(op) + (f" after operation {op.after}" if op.after is not None else "")
        for op in scenario.ops
    )
    before = ", ".join(words(op) for op in scenario.setup)
    side = "" if scenario.contract else "; robustness"
    return ops + (f"; before: {before}" if before else "") + side


# The letters of the quick set. Two clusters; everything overlaps with everything.
LETTERS: dict[str, Op] = {
    "W": Op("primary_write", 0, C),
    "V": Op("primary_write", C // 2, C),  # half of either cluster
    "D": Op("primary_discard", 0, C),
    "Z": Op("primary_zero", 0, C),
    "N": Op("primary_zero_no_hole", 0, C),
    "R": Op("guest_read", 0, 2 * C),
    "P": Op("guest_write", 16, 8),
    "G": Op("guest_write", 0, C),
    "F": Op("guest_flush"),
    "H": Op("primary_flush"),
    "C": Op("checkpoint"),
    "O": Op("failover"),
    "S": Op("stop"),
    "Q": Op("status"),
    "X": Op("unexport"),
    "T": Op("guest_discard", 0, C),
    "U": Op("guest_discard", 32, 64),  # part of a cluster
    "M": Op("guest_write", C // 2, C),  # half of either cluster
    "E": Op("guest_zero", 0, C),
    "A": Op("start"),  # again
    "K": Op("primary_vanish"),
    "L": Op("guest_vanish"),
}
_QCOW2 = "qcow2-"
_LETTERS = {
    "replication": "WVDZRPGFHCOSQX",
    "backup": "WVDZRHSQX",
    "fleecing": "WVDZRHTUX",
    "primary": "RPGMEFCOSAQ",
}
_NOT_IN_PAIRS = "KLN"
# What a command finds: a copied cluster in the hidden disk, a written one in the active disk.
_PAST = (Op("primary_write", C + 64, 32), Op("guest_write", C + 16, 8))


def _letters(form: str) -> str:
    """The letters of the pairs of a chain: what it can do, where no choice of them is made."""
    if form in _LETTERS:
        return _LETTERS[form]
    can = (letter for letter in LETTERS if LETTERS[letter].do in TOPOLOGIES[form].operations)
    return "".join(letter for letter in can if letter not in _NOT_IN_PAIRS)


def _more(form: str) -> str:
    """The letters of a chain that are not in pairs."""
    operations = TOPOLOGIES[form].operations
    return "".join(letter for letter in _NOT_IN_PAIRS if LETTERS[letter].do in operations)


def _scenario(letters: tuple[str, ...], form: str) -> RealScenario:
    ops = tuple(LETTERS[letter] for letter in letters)
    topology = TOPOLOGIES[form]
    contract = topology.keeps_contract([op.do for op in ops])
    setup: tuple[Op, ...] = ()
    if any(op.do in CHAIN_COMMANDS for op in ops):
        setup = tuple(op for op in _PAST if op.do in topology.operations)
    prefix = "" if form == "replication" else f"{form}-"
    return RealScenario(prefix + "".join(letters), ops, setup, form, contract=contract)


def pairs(form: str = "replication") -> list[RealScenario]:
    """Every pair of different operations (W and V are one that overlaps the other)."""
    return [_scenario(two, form) for two in itertools.combinations(_letters(form), 2)]


def triples(form: str = "replication") -> list[RealScenario]:
    """Every triple of different operations."""
    return [_scenario(three, form) for three in itertools.combinations(_letters(form), 3)]


def vanishing() -> list[RealScenario]:
    """A client of an export that is gone in the middle of its request, by form and request."""
    return [
        _scenario((letter, client), form)
        for form in TOPOLOGIES
        for client, letters in (("K", "WVZHD"), ("L", "RPGFTU"))
        for letter in letters
        if letter in _letters(form) and client in _more(form)
    ]


_THEN = {
    "replication": (
        "CWR", "CVR", "CGR", "CPR", "CRR", "CWV", "OWR", "OGR", "OPW", "SWR", "WRV", "PWV",
        "OCQ", "ORQ", "CPG", "CQO",
    ),
    "primary": ("GPR", "MGR", "PGF", "GRQ", "OGR", "SGR", "OPG", "SRA", "OGQ"),
}  # fmt: skip


def follow_ups() -> list[RealScenario]:
    """Pairs, and an operation after the first of them: what the first left behind is seen."""
    found = []
    for form, threes in _THEN.items():
        for first, other, then in map(tuple, threes):
            made = _scenario((first, other, then), form)
            ops = (*made.ops[:2], replace(made.ops[2], after=0))
            contract = made.contract and (first != "C" or other == "Q")
            name = made.name.removesuffix(then) + f"-{first}{then}"
            found.append(replace(made, name=name, ops=ops, contract=contract))
    return found


def _all() -> list[RealScenario]:
    every = [s for form in TOPOLOGIES for s in (*pairs(form), *triples(form))]
    return every + follow_ups() + vanishing()


SETS: Mapping[str, Callable[[], list[RealScenario]]] = {
    "pairs": lambda: [s for form in TOPOLOGIES for s in pairs(form)],
    "triples": lambda: [s for form in TOPOLOGIES for s in triples(form)],
    "follow-ups": follow_ups,
    "vanishing": vanishing,
    **{form: functools.partial(pairs, form) for form in TOPOLOGIES},
    "all": _all,
}


def named(name: str) -> list[RealScenario]:
    """The scenarios a name stands for: one of :data:`SETS`, or letters like ``WR``.

    ``backup-``, ``fleecing-`` and ``primary-`` in front choose the form, ``qcow2-`` before all that
    the format of the secondary disk.

    :raises InputError: it stands for none
    """
    if name.startswith(_QCOW2):
        plain = [s for s in named(name.removeprefix(_QCOW2)) if "qcow2" in s.topology.formats]
        if not plain:
            raise InputError(f"no scenario {name!r}: the primary's chain has raw disks only")
        return [replace(one, name=_QCOW2 + one.name, secondary="qcow2") for one in plain]
    if name in SETS:
        return SETS[name]()
    for scenario in follow_ups():
        if scenario.name == name:
            return [scenario]
    form, letters = "replication", name
    for other in TOPOLOGIES:
        if other != form and name.startswith(f"{other}-"):
            form, letters = other, name[len(other) + 1 :]
    known = _letters(form) + _more(form)
    if not letters or not all(letter in known for letter in letters):
        there_are = [*SETS, *(one.name for one in _all())]
        raise InputError(no_such("scenario", name, there_are, "qmpshim explore --scenario list"))
    return [_scenario(tuple(letters), form)]
