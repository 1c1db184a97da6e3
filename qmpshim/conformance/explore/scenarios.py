"""What is done at the same time on a real QEMU: scenarios of operations, as values and as JSON.

Positions and lengths are sectors. The whole secondary disk holds the data of operation 1 before
anything begins; the operations of the setup are numbered from 2 on and the concurrent ones after
them, and each writes traceable data under its number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qmpshim.codec import read_json
from qmpshim.conformance.explore.outcome import GAP
from qmpshim.errors import InputError, decoding
from qmpshim.machine.chain.chains import chain_name, topology_of
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import Options
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.disks.subclusters import SUBCLUSTERS
from qmpshim.model.operations import OF_JOB, Operation, Side, Verb, does, operation_from_json
from qmpshim.model.pointintime.jobs import OnError
from qmpshim.model.scenario import Scenario
from qmpshim.model.units import SECTOR, inside, outwards

_T = TypeVar("_T")

C = 128  # sectors of a cluster
_LARGEST = 1 << 21  # sectors of a disk that is held in memory
_LARGEST_CLUSTER = 1 << 12  # sectors: 2 MiB, qcow2's largest
BASE = 1  # the operation whose data the secondary disk holds at the beginning


@dataclass(frozen=True, slots=True)
class RealScenario:
    """Operations that run at the same time on a real chain.

    In fleecing and in plain backup the *guest* is the reader of the snapshot; on the primary it is
    the guest that runs there, and above disks that vote whose disk they are; nothing else does
    anything.

    :ivar size: virtual size in sectors; of two disks the end of the second one, which begins with
        the granule that follows the first one's end
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

    @property
    def disks(self) -> int:
        """How many secondary disks there are; the sectors of one come after those of another."""
        return self.topology.disks

    @property
    def apart(self) -> int:
        """Sectors from the first one of a disk to the first one of the next: whole granules."""
        if self.disks == 1:
            return self.size
        return outwards(0, -(-self.size // self.disks), self.granule)[1]

    @property
    def disk_size(self) -> int:
        """Sectors of each of them."""
        return self.size - (self.disks - 1) * self.apart

    def disk_of(self, sector: int) -> int:
        """On which disk a sector is; beyond all of them, as a granule may reach: on the last."""
        return min(sector // self.apart, self.disks - 1)

    def place_of(self, sector: int) -> tuple[int, int]:
        """The disk of a sector, and its number there."""
        disk = self.disk_of(sector)
        return disk, sector - disk * self.apart

    def is_about(self, op: Operation, disk: int) -> bool:
        """Whether an operation is about a disk: one with a range about its own, others about the
        first one, and what starts, ends or queries jobs about all.
        """
        if op.count:
            return self.disk_of(op.start) == disk
        return disk == 0 or op.queries or op.verb in (Verb.START, Verb.STOP)

    def on_own_disk(self, op: Operation) -> Operation:
        """The same operation, counted from the beginning of its disk on."""
        return replace(op, start=self.place_of(op.start)[1]) if self.disks > 1 else op

    def end_of(self, sector: int) -> int:
        """The end of the disk that a sector is on."""
        return self.disk_of(sector) * self.apart + self.disk_size

    def laid_out(self, by_disk: Iterable[Iterable[_T]], gap: _T, unit: int = 1) -> tuple[_T, ...]:
        """What there is of each disk, in the places of all.

        :param gap: what is between one disk's end and the next one
        :param unit: sectors that each item is about
        """
        found: list[_T] = []
        for disk, own in enumerate(by_disk):
            found += [gap] * (disk * self.apart // unit - len(found))
            found += own
        return tuple(found)

    def views_laid_out(
        self, by_disk: Sequence[Sequence[int | None] | None]
    ) -> tuple[int | None, ...] | None:
        """What is read of each disk at the guest's end, in the places of all.

        :param by_disk: None: it cannot be read
        :returns: None where none can be read; a sector is None where its disk cannot
        """
        if all(one is None for one in by_disk):
            return None
        nothing = [None] * self.disk_size
        return self.laid_out((nothing if one is None else one for one in by_disk), GAP)

    def cluster_of(self, image: str) -> int:
        """Sectors of a cluster of a qcow2 image."""
        topology = self.topology
        own = topology.image(image).cluster if image in topology.images else None
        return own // SECTOR if own else self.cluster

    def unit_of(self, image: str) -> int:
        """Sectors that a qcow2 image allocates at once: a subcluster where it has some."""
        topology, cluster = self.topology, self.cluster_of(image)
        extended = image in topology.images and topology.image(image).extended
        return cluster // SUBCLUSTERS if extended else cluster

    @property
    def smallest_unit(self) -> int:
        """The least of these."""
        return min(map(self.unit_of, self.topology.qcow2), default=self.cluster)

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
        if bitmap is None or bitmap == self.topology.frozen:
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
                found.update(inside(op.start, op.count, self.granule, self.size))
        return frozenset(found)

    @property
    def view_parts(self) -> list[tuple[int, int]]:
        """In which parts, first sector and count, a disk can be read at the guest's end: at once or
        not.
        """
        if self.accessible is None:
            return [(0, self.disk_size)]
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
    def on_primary(self) -> bool:
        """Whether the guest is that of a primary, which forwards what it writes."""
        return self.topology.replication_mode == "primary"

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

    def on_error(self, disk: str) -> OnError:
        """What a backup job does at an error of a disk, ``source`` or ``target``."""
        given = (job.get(f"on-{disk}-error") for job in self.topology.backups)
        return next((OnError(one) for one in given if one), OnError.REPORT)

    @property
    def ignores(self) -> bool:
        """Whether a backup job ignores errors of a disk: what fails there is copied again."""
        return OnError.IGNORE in (self.on_error("source"), self.on_error("target"))

    @property
    def stops(self) -> bool:
        """Whether an error may pause a backup job."""
        stopping = {OnError.STOP, OnError.ENOSPC}
        return bool(stopping & {self.on_error("source"), self.on_error("target")})

    def preceding(
        self, index: int, over: Collection[int], started: Collection[int]
    ) -> frozenset[int]:
        """The operations that come before operation *index*, which starts now.

        :param over: those that have ended: they do
        :param started: those that have started: of these requests end before a command that drains
            does anything
        """
        if not self.topology.drains(self.ops[index].name):
            return frozenset(over)
        return frozenset((*over, *(other for other in started if self.ops[other].is_request)))

    def changes_chain(self, op: Operation) -> bool:
        """Whether an operation changes the chain: a command does, or one that makes an export."""
        return op.reconfigures or (op.verb is Verb.DIRTY_BITMAP and self.topology.begins_late)

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
    value = read_json(Path(path))
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
        check_scenario(scenario)
        return scenario


def is_sensible(scenario: RealScenario) -> bool:
    """Whether a scenario has one backup job at most, and one where it cancels or resumes one.

    QEMU stacks the filters of several jobs on one disk, which is not modelled.
    """
    if scenario.topology.begins_late:
        grouped = not scenario.topology.bitmaps
        stops = [op.after for op in scenario.ops if op.verb is Verb.STOP]
        return _begins_once(scenario.ops) and (
            not stops or ((grouped or scenario.disks == 1) and stops == _starts(scenario.ops))
        )
    if not scenario.backs_up:
        return True
    jobs = sum(op.backs_up for op in scenario.ops)
    return jobs == 1 or (jobs == 0 and not does(scenario.ops, *OF_JOB))


def _begins_once(ops: Sequence[Operation]) -> bool:
    """Whether one operation starts the job, and a frozen bitmap is read after that, once."""
    starts = _starts(ops)
    reads = [op.after for op in ops if op.verb is Verb.DIRTY_BITMAP]
    return len(starts) == 1 and reads in ([], starts)


def _starts(ops: Sequence[Operation]) -> list[int]:
    return [index for index, op in enumerate(ops) if op.verb is Verb.START]


def check_scenario(scenario: RealScenario) -> None:
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
    if not is_sensible(scenario):
        raise InputError(
            "one backup job is started at most, and none is ended or resumed without it; a pull is "
            "started once, and the bitmap that it freezes is read after that"
        )
    if scenario.disk_size <= 0:
        raise InputError(f"two disks do not fit in {scenario.size} sectors")
    if scenario.secondary not in topology.formats:
        raise InputError(f"the {scenario.form}'s chain has {topology.formats[0]} disks only")
    for op in (*scenario.setup, *scenario.ops):
        if op.name not in topology.operations:
            raise InputError(f"a chain of the form {scenario.form} cannot do: {op}")
        end = min(scenario.size, scenario.end_of(op.start))
        inside = op.start >= 0 and op.start + op.count <= end
        if not inside or (op.is_request and not op.flushes and not op.count):
            raise InputError(f"{op} is not inside the disk's {scenario.disk_size} sectors")
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


def _operation_object(op: Operation) -> dict[str, Any]:
    """An operation of a scenario in a document: positions in bytes."""
    value: dict[str, Any] = {"do": op.name}
    if op.count:
        value |= {"offset_bytes": op.start * SECTOR, "length_bytes": op.count * SECTOR}
    if op.after is not None:
        value["after"] = op.after
    return value


def scenario_object(scenario: Scenario | RealScenario) -> dict[str, Any]:
    """A scenario in a document: positions and sizes in bytes, where bundles have sectors."""
    value = {
        **scenario.to_json(),
        "size_bytes": scenario.size * SECTOR,
        "cluster_bytes": scenario.cluster * SECTOR,
        "setup": [_operation_object(op) for op in scenario.setup],
        "ops": [_operation_object(op) for op in scenario.ops],
    }
    del value["size"], value["cluster"]
    for fault in value.get("faults", ()):
        if "sector" in fault:
            fault["offset_bytes"] = fault.pop("sector") * SECTOR
    return value
