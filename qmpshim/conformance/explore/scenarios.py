"""What is done at the same time on a real QEMU: scenarios of operations, pairs and triples of them.

Positions and lengths are sectors. The whole secondary disk holds the data of operation 1 before
anything begins; the operations of the setup are numbered from 2 on and the concurrent ones after
them, and each writes traceable data under its number.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.errors import InputError, decoding, no_such
from qmpshim.machine.chain.chains import TOPOLOGIES, chain_name, topology_of
from qmpshim.machine.chain.topology import Options, Topology
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.operations import (
    Operation,
    Side,
    Verb,
    does,
    operation,
    operation_from_json,
)
from qmpshim.model.units import SECTOR

C = 128  # sectors of a cluster
_LARGEST = 1 << 21  # sectors of a disk that is held in memory
_LARGEST_CLUSTER = 1 << 12  # sectors: 2 MiB, qcow2's largest
BASE = 1  # the operation whose data the secondary disk holds at the beginning


@dataclass(frozen=True, slots=True)
class RealScenario:
    """Operations that run at the same time on a real chain.

    In fleecing and in plain backup the *guest* is the reader of the snapshot; on the primary it is
    the guest that runs there, and nothing else does anything.

    :ivar size: virtual size in sectors
    :ivar cluster: qcow2 cluster in sectors
    :ivar setup: operations done before, one after another, once replication (or backup) runs
    :ivar ops: the concurrent operations
    :ivar secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :ivar options: more options of the chain's nodes
    :ivar contract: within what QEMU's documents allow; otherwise it is about robustness
    """

    name: str
    ops: tuple[Operation, ...]
    setup: tuple[Operation, ...] = ()
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

    def cluster_of(self, image: str) -> int:
        """Sectors of a cluster of a qcow2 image."""
        topology = self.topology
        own = topology.image(image).cluster if image in topology.images else None
        return own // SECTOR if own else self.cluster

    @property
    def granule(self) -> int:
        """Sectors that are copied at once."""
        least = self.topology.min_copy // SECTOR
        return backup_calculate_cluster_size(self.cluster_of("hidden"), least)

    @property
    def accessible(self) -> frozenset[int] | None:
        """The granules that a snapshot has, where its filter goes by a bitmap; else None.

        The bitmap's granules are rounded outwards to those of copying (``hbitmap_sparse_merge``,
        util/hbitmap.c), and both what is copied and what may be read is what it names
        (``cbw_open``, block/copy-before-write.c, QEMU 7.2 and 10.0).
        """
        bitmap = next(iter(self.topology.bitmaps), None)
        if bitmap is None:
            return None
        fine, unit = bitmap.granularity, self.granule * SECTOR
        return frozenset(
            granule
            for start, end in bitmap.written
            for granule in range(
                start // fine * fine // unit, ((end - 1) // fine * fine + fine - 1) // unit + 1
            )
            if granule * unit < self.size * SECTOR
        )

    def given_up(self, ops: Iterable[Operation]) -> frozenset[int]:
        """The granules that a reader of the snapshot discards, as a whole or up to the disk's end.

        Of others it keeps what it did not discard (``cbw_co_pdiscard_snapshot``, 9.1; before, QEMU
        aborts).
        """
        found: set[int] = set()
        for op in ops:
            if op.is_guest and op.verb is Verb.DISCARD and self.has("snapshot-access"):
                first, end = -(-op.start // self.granule), op.start + op.count
                last = -(-end // self.granule) if end == self.size else end // self.granule
                found.update(range(first, last))
        return frozenset(found)

    @property
    def view_parts(self) -> list[tuple[int, int]]:
        """In which parts, first sector and count, the guest's end can be read: at once or not."""
        if self.accessible is None:
            return [(0, self.size)]
        starts = range(0, self.size, self.granule)
        return [(start, min(self.granule, self.size - start)) for start in starts]

    def has(self, driver: str) -> bool:
        """Whether the chain has a node of this driver."""
        return self.topology.has(driver)

    @property
    def replicates(self) -> bool:
        """Whether there is a replication filter, with a status."""
        return self.has("replication")

    @property
    def breaks_snapshot(self) -> bool:
        """Whether a copy that fails breaks the snapshot, and not the write that it is for."""
        nodes = self.topology.nodes
        return any(node.options.get("on-cbw-error") == "break-snapshot" for node in nodes)

    @property
    def leaves_holes(self) -> bool:
        """Whether an operation leaves zeroes on a raw disk, which may be holes of its file."""
        every = (*self.setup, *self.ops)
        return any(op.zeroes and (op.is_primary or op.verb is Verb.ZERO) for op in every)

    @property
    def commits(self) -> bool:
        """Whether a failover leaves a commit running: the secondary's does."""
        return self.topology.commits and does(self.ops, Verb.FAILOVER)

    @property
    def backs_up(self) -> bool:
        """Whether backup jobs may be started, which go on when their command is answered."""
        return self.topology.backs_up

    @property
    def ignores(self) -> frozenset[str]:
        """Of which disks, ``source`` and ``target``, a backup job ignores errors.

        What fails there is copied again.
        """
        return frozenset(
            disk
            for job in self.topology.backups
            for disk in ("source", "target")
            if job.get(f"on-{disk}-error") == "ignore"
        )

    @property
    def retries(self) -> bool:
        """Whether a backup job copies again whatever fails, and does not fail itself."""
        return self.ignores == {"source", "target"}

    def goes_on(self, op: Operation) -> bool:
        """Whether something goes on in the background when an operation is answered."""
        return op.backs_up or (self.topology.commits and op.verb is Verb.FAILOVER)

    def to_json(self) -> dict[str, Any]:
        """As :func:`scenario_from_json` reads it."""
        value: dict[str, Any] = {
            "name": self.name,
            "form": self.form,
            "size": self.size,
            "cluster": self.cluster,
            "contract": self.contract,
            "secondary": self.secondary,
            "setup": [op.to_json() for op in self.setup],
            "ops": [op.to_json() for op in self.ops],
        }
        if self.options:
            value["options"] = [list(option) for option in self.options]
        return value


def _operation(value: Mapping[str, Any]) -> Operation:
    op = operation_from_json(value)
    if op.side is Side.SNAPSHOT:
        raise ValueError(f"no operation {op.name!r} on a real chain")
    return op


def _fixed(value: Any) -> Any:
    """A value of JSON that can be a key: lists are tuples."""
    return tuple(map(_fixed, value)) if isinstance(value, list | tuple) else value


def scenario_objects(path: str) -> list[Any]:
    """The JSON objects in a file that holds one scenario or a list of them.

    :raises InputError: it cannot be read, or holds none
    """
    try:
        with decoding(path):
            value = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{path}: no scenarios")
    return values


def scenario_from_json(value: Any) -> RealScenario:
    """The reverse of :meth:`RealScenario.to_json`; only ``ops`` is required.

    :raises InputError: it is no scenario
    """
    with decoding("the scenario"):
        scenario = RealScenario(
            str(value.get("name", "unnamed")),
            tuple(map(_operation, value["ops"])),
            tuple(map(_operation, value.get("setup", ()))),
            chain_name(value.get("form", "replication")),
            int(value.get("size", 2 * C)),
            int(value.get("cluster", C)),
            bool(value.get("contract", True)),
            str(value.get("secondary", "raw")),
            tuple(
                (str(node), str(name), _fixed(what))
                for node, name, what in value.get("options", ())
            ),
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
    if not _sensible(scenario):
        raise InputError("one backup job is started at most, and none is cancelled without it")
    if scenario.secondary not in topology.formats:
        raise InputError(f"the {scenario.form}'s chain has {topology.formats[0]} disks only")
    for op in (*scenario.setup, *scenario.ops):
        if op.name not in topology.operations:
            raise InputError(f"a chain of the form {scenario.form} cannot do: {op}")
        inside = op.start >= 0 and op.start + op.count <= scenario.size
        if not inside or (op.is_request and not op.flushes and not op.count):
            raise InputError(f"{op} is not inside the disk's {scenario.size} sectors")
    for index, op in enumerate(scenario.ops):
        if op.after is not None and not (type(op.after) is int and 0 <= op.after < index):
            raise InputError(f"{op}: what it comes after must be an operation before it")


def cut_off(ops: Collection[Operation]) -> frozenset[Side]:
    """The exports by which nothing can be done once all of *ops* are: it or its client is gone."""
    gone = {op.side for op in ops if op.disconnects}
    return frozenset(gone | {Side.PRIMARY} if does(ops, Verb.UNEXPORT) else gone)


def described(scenario: RealScenario) -> str:
    """A scenario to read: its operations, what was before them, on which side of the contract."""
    ops = ", ".join(
        f"{op} after operation {op.after}" if op.after is not None else str(op)
        for op in scenario.ops
    )
    before = ", ".join(map(str, scenario.setup))
    side = "" if scenario.contract else "; robustness"
    return ops + (f"; before: {before}" if before else "") + side


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
}
_NOT_IN_PAIRS = "KLN"
# What a command finds: a copied cluster in the hidden disk, a written one in the active disk.
_PAST = (operation("primary_write", C + 64, 32), operation("guest_write", C + 16, 8))
# What the bitmap of a push chain names: a part of the first and of the last cluster.
_DIRTY = (operation("primary_write", 64, 32), operation("primary_write", 2 * C + 64, 32))


def _sensible(scenario: RealScenario) -> bool:
    """Whether a scenario has one backup job at most, and one where it cancels one.

    QEMU stacks the filters of several jobs on one disk, which is not modelled.
    """
    if not scenario.backs_up:
        return True
    jobs = sum(op.backs_up for op in scenario.ops)
    return jobs == 1 or (jobs == 0 and not does(scenario.ops, Verb.STOP))


def _letters(form: str) -> str:
    """The letters of the pairs of a chain: what it can do, where no choice of them is made."""
    if form in _LETTERS:
        return _LETTERS[form]
    can = (letter for letter in LETTERS if LETTERS[letter].name in TOPOLOGIES[form].operations)
    return "".join(letter for letter in can if letter not in _NOT_IN_PAIRS)


def _more(form: str) -> str:
    """The letters of a chain that are not in pairs."""
    operations = TOPOLOGIES[form].operations
    return "".join(letter for letter in _NOT_IN_PAIRS if LETTERS[letter].name in operations)


def _scenario(letters: tuple[str, ...], form: str) -> RealScenario:
    ops = tuple(LETTERS[letter] for letter in letters)
    topology = TOPOLOGIES[form]
    contract = topology.keeps_contract([op.name for op in ops])
    setup: tuple[Operation, ...] = ()
    size = 2 * C
    if topology.backs_up:  # two clusters apart are dirty: they are copied side by side
        setup, size = _DIRTY, 3 * C
    elif any(op.reconfigures for op in ops):
        setup = tuple(op for op in _PAST if op.name in topology.operations)
    prefix = "" if form == "replication" else f"{form}-"
    return RealScenario(prefix + "".join(letters), ops, setup, form, size, contract=contract)


def pairs(form: str = "replication") -> list[RealScenario]:
    """Every pair of different operations (W and V are one that overlaps the other)."""
    found = (_scenario(two, form) for two in itertools.combinations(_letters(form), 2))
    return [one for one in found if _sensible(one)]


def triples(form: str = "replication") -> list[RealScenario]:
    """Every triple of different operations."""
    found = (_scenario(three, form) for three in itertools.combinations(_letters(form), 3))
    return [one for one in found if _sensible(one)]


def disconnections() -> list[RealScenario]:
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


# The same operation twice beside another one. A request that waited and goes on is in the way of
# the next one as if it had never waited; a flush waits for one of its node that is under way.
_TWICE = {
    "replication": ("RVR", "FGF", "HWH"),
    "backup": ("RWR", "HWH"),
    "fleecing": ("RWR", "TRT"),
    "primary": ("GRG", "FGF"),
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
    "follow-ups": follow_ups,
    "vanishing": disconnections,
    "twice": twice,
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
    known = _letters(form) + _more(form)
    if not letters or not all(letter in known for letter in letters):
        there_are = [*SETS, *(one.name for one in _all())]
        raise InputError(no_such("scenario", name, there_are, "qmpshim explore --scenario list"))
    scenario = _scenario(tuple(letters), form)
    _check(scenario)
    return [scenario]
