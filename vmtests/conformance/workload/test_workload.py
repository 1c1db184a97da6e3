"""Seeded workloads: the same seed gives the same operations, and every shape does occur."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.conformance.workload.workload import Workload, all_kinds, from_json, to_json
from qmpshim.errors import InputError
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR

MiB = 1 << 20
SPECS = [
    ChainSpec(Workflow.BACKUP),
    ChainSpec(Workflow.REPLICATION),
    ChainSpec(Workflow.REPLICATION, SECTOR),
    ChainSpec(Workflow.BACKUP, 3 * MiB + 512, 2 * MiB, "qcow2"),
    ChainSpec(Workflow.REPLICATION, 10 * MiB + 1536, 4096),
    ChainSpec(Workflow.REPLICATION, 1 << 40, 512),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_operations_stay_on_the_disk(spec: ChainSpec) -> None:
    operations = list(Workload(spec, 5).take(3000))
    assert [o.number for o in operations] == list(range(1, 3001))
    for o in operations:
        if o.side is Side.CHAIN or o.verb is Verb.FLUSH:
            assert (o.start, o.count) == (0, 0)
        else:
            assert o.count > 0
            assert 0 <= o.start < o.start + o.count <= spec.size // SECTOR
    assert operations[-1].verb is Verb.CHECK


def test_a_seed_is_a_workload() -> None:
    spec = ChainSpec(Workflow.REPLICATION)
    first = list(Workload(spec, 1).take(500))
    assert list(Workload(spec, 1).take(500)) == first
    assert list(Workload(spec, 2).take(500)) != first
    assert list(Workload(ChainSpec(Workflow.BACKUP), 1).take(500)) != first


@pytest.mark.parametrize("workflow", Workflow)
def test_every_kind_occurs_and_commands_come_in_order(workflow: Workflow) -> None:
    operations = list(
        itertools.chain(*(Workload(ChainSpec(workflow), seed).take(1000) for seed in range(3)))
    )
    seen = Counter((o.side, o.verb) for o in operations)
    io = {Verb.WRITE, Verb.ZERO, Verb.DISCARD, Verb.FLUSH, Verb.READ}
    wanted = {(Side.PRIMARY, kind) for kind in io} | {
        (Side.CHAIN, kind) for kind in (Verb.START, Verb.STOP, Verb.REBUILD, Verb.CHECK)
    }
    if workflow is Workflow.REPLICATION:
        wanted |= {(Side.GUEST, kind) for kind in io}
        wanted |= {(Side.CHAIN, k) for k in (Verb.CHECKPOINT, Verb.FAILOVER, Verb.STATUS)}
    else:
        wanted |= {(Side.GUEST, Verb.READ)}
    assert set(seen) == wanted
    # After a rebuild nothing runs, so that there is always a start before the next stop counts.
    commands = [o.verb for o in operations if o.side is Side.CHAIN]
    assert commands.count(Verb.START) >= commands.count(Verb.REBUILD)


@pytest.mark.parametrize("count", [40, 100, 700, 2000])
@pytest.mark.parametrize("workflow", Workflow)
def test_each_workload_has_every_kind(workflow: Workflow, count: int) -> None:
    """Whatever the seed is; and a command where something runs, so that it is not just refused."""
    for seed in range(1, 12):
        seen, running = set[tuple[Side, Verb]](), False
        for one in Workload(ChainSpec(workflow), seed).take(count):
            needs = one.verb in (Verb.CHECKPOINT, Verb.STOP, Verb.FAILOVER)
            if running or not needs:
                seen.add((one.side, one.verb))
            ends = one.verb in (Verb.STOP, Verb.FAILOVER, Verb.REBUILD)
            running = one.verb is Verb.START or (running and not ends)
        assert seen == all_kinds(TOPOLOGIES[workflow.value]), seed


@pytest.mark.parametrize(
    ("workflow", "command"),
    [(Workflow.BACKUP, Verb.STOP), (Workflow.REPLICATION, Verb.CHECKPOINT)],
)
def test_a_longer_workload_has_more_of_the_commands(workflow: Workflow, command: Verb) -> None:
    """Their share grows with the number of operations: none is left to luck."""
    for seed in range(1, 4):
        few, many = (
            Counter(o.verb for o in Workload(ChainSpec(workflow), seed).take(count))[command]
            for count in (4000, 32_000)
        )
        assert many >= 3 * few, (seed, few, many)


def test_every_shape_occurs() -> None:
    """Sector-sized and whole clusters, across edges, several clusters, the end of the disk."""
    spec = ChainSpec(Workflow.REPLICATION, 8 * MiB + 1536)
    cluster, size = spec.cluster // SECTOR, spec.size // SECTOR
    shapes: Counter[str] = Counter()
    for o in Workload(spec, 1).take(2000):
        if not o.count:
            continue
        first, last = o.start // cluster, (o.start + o.count - 1) // cluster
        shapes["a sector"] += o.count == 1
        shapes["a cluster"] += o.start % cluster == 0 and o.count == cluster
        shapes["inside"] += first == last and o.count < cluster
        shapes["across an edge"] += first + 1 == last and o.count <= cluster
        shapes["several"] += last - first > 1
        shapes["the end"] += o.start + o.count == size
        shapes["odd"] += o.start % 8 != 0
    assert all(shapes.values()), shapes


def test_operations_meet() -> None:
    """Most clusters that are touched are touched many times: else nothing could go wrong."""
    spec = ChainSpec(Workflow.REPLICATION, 1 << 40)
    touched: Counter[int] = Counter()
    for o in Workload(spec, 1).take(2000):
        if o.count:
            touched.update(
                range(
                    o.start * SECTOR // spec.cluster, (o.start + o.count) * SECTOR // spec.cluster
                )
            )
    assert max(touched.values()) > 20


numbers = st.integers(0, 1 << 40)


pairs = sorted({pair for spec in SPECS for pair in all_kinds(spec.topology)})


@given(st.integers(1, 1 << 20), st.sampled_from(pairs), numbers, st.integers(1, 1 << 40))
def test_operations_as_json(number: int, pair: tuple[Side, Verb], start: int, count: int) -> None:
    operation = Operation(*pair, number=number)
    if not operation.is_command and not operation.flushes:
        operation = replace(operation, start=start, count=count)
    assert from_json(to_json(operation), 1 << 41) == operation


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1, "guest", "read", 0],
        [1, "guest", "read", 0, 1, 2],
        [0, "guest", "read", 0, 1],
        [1, "elsewhere", "read", 0, 1],
        [1, "guest", "think", 0, 1],
        [1, "guest", "read", -1, 1],
        [1, "guest", "read", 0, -1],
        [1, "guest", "read", 0, "many"],
        {"number": 1},
        [1, "guest", "start", 0, 0],
        [1, "chain", "write", 0, 1],
        [1, "snapshot", "read", 0, 1],
        [1, "guest", "vanish", 0, 0],
        [1, "chain", "unexport", 0, 0],
    ],
)
def test_what_is_no_operation(value: object) -> None:
    with pytest.raises(InputError, match="not an operation"):
        from_json(value, 8)


def test_operations_in_words() -> None:
    assert str(Operation(Side.GUEST, Verb.WRITE, 2, 4, number=3)) == "3: guest write 0x400+0x800"
    assert str(Operation(Side.PRIMARY, Verb.FLUSH, number=4)) == "4: primary flush"
    assert str(Operation(Side.CHAIN, Verb.CHECKPOINT, number=5)) == "5: checkpoint"
