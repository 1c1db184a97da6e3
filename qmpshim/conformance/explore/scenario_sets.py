"""Scenarios by name: a letter for each operation, and sets of them, pairs and triples first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

from qmpshim.conformance.explore.scenarios import C, RealScenario, check_scenario, is_sensible
from qmpshim.errors import InputError, no_such
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.model.operations import Operation, Verb, operation

# The letters of the quick set. Two clusters; everything overlaps with everything.
LETTERS: dict[str, Operation] = {
    "W": operation("primary_write", 0, C),
    "V": operation("primary_write", C // 2, C),  # half of either cluster
    "D": operation("primary_discard", 0, C),
    "Z": operation("primary_zero", 0, C),
    "N": operation("primary_zero_no_hole", 0, C),
    "R": operation("guest_read", 0, 2 * C),
    "P": operation("guest_write", 16, 8),
    "G": operation("guest_write", 0, C),
    "F": operation("guest_flush"),
    "H": operation("primary_flush"),
    "C": operation("checkpoint"),
    "O": operation("failover"),
    "S": operation("stop"),
    "Q": operation("status"),
    "X": operation("unexport"),
    "T": operation("guest_discard", 0, C),
    "U": operation("guest_discard", 32, 64),  # part of a cluster
    "M": operation("guest_write", C // 2, C),  # half of either cluster
    "E": operation("guest_zero", 0, C),
    "A": operation("start"),  # again
    "K": operation("primary_vanish"),
    "L": operation("guest_vanish"),
    "r": operation("primary_read", 0, 2 * C),
    "f": operation("backup_full"),
    "i": operation("backup_incremental"),
    "a": operation("backup_always"),
    "n": operation("backup_never"),
    "t": operation("backup_and_bitmap"),
    "c": operation("bitmap_clear"),
    "d": operation("bitmap_disable"),
}
_QCOW2 = "qcow2-"
_LETTERS = {
    "replication": "WVDZRPGFHCOSQX",
    "backup": "WVDZRHSQX",
    "fleecing": "WVDZRHTUX",
    "primary": "RPGMEFCOSAQ",
    "push": "WVDZrHSfiantcd",
    "pull": "WVDZRHA",
    "votes": "RPGMEFT",
}
_CLIENTS_GONE = "KL"
_NOT_IN_PAIRS = f"{_CLIENTS_GONE}N"
# What a command or a flush by itself finds: a copied cluster in the hidden disk, a written one in
# the active disk.
_PAST = (operation("primary_write", C + 64, 32), operation("guest_write", C + 16, 8))
# What the bitmap of a push chain names: a part of the first and of the last cluster.
_DIRTY = (operation("primary_write", 64, 32), operation("primary_write", 2 * C + 64, 32))


def _possible(form: str) -> str:
    """The letters of all that a chain can do."""
    operations = TOPOLOGIES[form].operations
    return "".join(letter for letter in LETTERS if LETTERS[letter].name in operations)


def _letters(form: str) -> str:
    """The letters of the pairs of a chain: what it can do, where no choice of them is made."""
    can = (letter for letter in _possible(form) if letter not in _NOT_IN_PAIRS)
    return _LETTERS.get(form) or "".join(can)


def _scenario(letters: tuple[str, ...], form: str) -> RealScenario:
    ops = tuple(LETTERS[letter] for letter in letters)
    topology = TOPOLOGIES[form]
    contract = topology.keeps_contract([op.name for op in ops])
    setup: tuple[Operation, ...] = ()
    size = 2 * C
    if topology.backs_up:  # two clusters apart are dirty: they are copied side by side
        setup, size = _DIRTY, 3 * C
    elif any(op.reconfigures for op in ops) or (len(ops) == 1 and ops[0].verb is Verb.FLUSH):
        setup = tuple(op for op in _PAST if op.name in topology.operations)
    prefix = "" if form == "replication" else f"{form}-"
    return RealScenario(prefix + "".join(letters), ops, setup, form, size, contract=contract)


def alone(form: str = "replication") -> list[RealScenario]:
    """Each operation by itself, for what a request of it does that fails."""
    letters = (letter for letter in _possible(form) if letter not in _CLIENTS_GONE)
    return [one for letter in letters if is_sensible(one := _scenario((letter,), form))]


def pairs(form: str = "replication") -> list[RealScenario]:
    """Every pair of different operations (W and V are one that overlaps the other)."""
    found = (_scenario(two, form) for two in itertools.combinations(_letters(form), 2))
    return [one for one in found if is_sensible(one)]


def triples(form: str = "replication") -> list[RealScenario]:
    """Every triple of different operations."""
    found = (_scenario(three, form) for three in itertools.combinations(_letters(form), 3))
    return [one for one in found if is_sensible(one)]


def disconnections() -> list[RealScenario]:
    """A client of an export that is gone in the middle of its request, by form and request."""
    return [
        _scenario((letter, client), form)
        for form in TOPOLOGIES
        for client, letters in (("K", "WVZHD"), ("L", "RPGFTU"))
        for letter in letters
        if letter in _letters(form) and client in _possible(form)
    ]


_THEN = {
    "replication": (
        "CWR", "CVR", "CGR", "CPR", "CRR", "CWV", "OWR", "OGR", "OPW", "SWR", "WRV", "PWV",
        "OCQ", "ORQ", "CPG", "CQO",
    ),
    "primary": ("GPR", "MGR", "PGF", "GRQ", "OGR", "SGR", "OPG", "SRA", "OGQ"),
    "votes": ("RGR", "PGF"),
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


# The same operation twice beside another one. A request that waited and goes on is in the way of
# the next one as if it had never waited; a flush waits for one of its node that is under way.
_TWICE = {
    "replication": ("RVR", "FGF", "HWH"),
    "backup": ("RWR", "HWH"),
    "fleecing": ("RWR", "TRT"),
    "primary": ("GRG", "FGF"),
    "votes": ("FGF",),
}


def twice() -> list[RealScenario]:
    """An operation that is done twice at the same time, with another one."""
    return [_scenario(tuple(three), form) for form, threes in _TWICE.items() for three in threes]


def _all() -> list[RealScenario]:
    every = [s for form in TOPOLOGIES for s in (*pairs(form), *triples(form))]
    return every + follow_ups() + disconnections() + twice()


SETS: Mapping[str, Callable[[], list[RealScenario]]] = {
    "pairs": lambda: [s for form in TOPOLOGIES for s in pairs(form)],
    "triples": lambda: [s for form in TOPOLOGIES for s in triples(form)],
    "alone": lambda: [s for form in TOPOLOGIES for s in alone(form)],
    "follow-ups": follow_ups,
    "vanishing": disconnections,
    "twice": twice,
    **{form: functools.partial(pairs, form) for form in TOPOLOGIES},
    "all": _all,
}


def named(name: str) -> list[RealScenario]:
    """The scenarios a name stands for: one of :data:`SETS`, or letters like ``WR``.

    ``backup-``, ``fleecing-`` and so on in front choose the form, ``qcow2-`` before all that the
    format of the secondary disk.

    :raises InputError: it stands for none
    """
    if name.startswith(_QCOW2):
        plain = [s for s in named(name.removeprefix(_QCOW2)) if "qcow2" in s.topology.formats]
        if not plain:
            raise InputError(f"no scenario {name!r}: such a chain has raw disks only")
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
    if not letters or not set(letters) <= {*_possible(form)}:
        there_are = [*SETS, *(one.name for one in _all())]
        raise InputError(no_such("scenario", name, there_are, "qmpshim explore --scenario list"))
    scenario = _scenario(tuple(letters), form)
    check_scenario(scenario)
    return [scenario]
