"""The shipped suites: quick, guest, pair and full."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from qmpshim.conformance.check.case import Case
from qmpshim.conformance.check.runners.kinds import MORE_QUICK
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.scenario_sets import follow_ups, pairs, triples, twice
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import array
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.pair.plan import Failover
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.machine.chain.chains import TOPOLOGIES

#: Pairs of operations by what they are about: the first whose letters occur has the pair.
_ABOUT = (
    ("full-backup", "ft"),
    ("incremental-backup", "ian"),
    ("bitmaps", "cdr"),
    ("checkpoint", "C"),
    ("failover", "O"),
    ("stop", "SA"),
    ("unexport", "X"),
    ("status-flush", "QFH"),
    ("zero-discard", "DZTUE"),
    ("read-write", "WVRPGM"),
)


_START = "start"
_POINTS = 16  # of the scenario space in a case


def _grouped(form: str, scenarios: Iterable[RealScenario], what: str) -> list[Case]:
    groups: dict[str, list[str]] = {}
    for scenario in scenarios:
        letters = scenario.name.rpartition("-")[2]
        late = TOPOLOGIES[form].begins_late  # all of its pairs are about that
        about = (
            _START if late else next(name for name, marks in _ABOUT if set(marks) & set(letters))
        )
        groups.setdefault(about, []).append(scenario.name)
    return [
        Case("explore", f"explore/{form}/{what}{about}", {"scenarios": groups[about]}, 300.0)
        for about in (*dict(_ABOUT), _START)
        if about in groups
    ]


def _pairs_of_operations() -> list[Case]:
    return [case for form in TOPOLOGIES for case in _grouped(form, pairs(form), "")]


def _pairs_with(what: str, budget: float, **more: Any) -> list[Case]:
    """All pairs again with more arguments."""
    return [
        replace(
            case, name=f"{case.name}/{what}", arguments={**case.arguments, **more}, budget=budget
        )
        for case in _pairs_of_operations()
    ]


def _pulls() -> list[Case]:
    """What pairs of the pulls do not have: frozen bitmaps, two disks, and grouped jobs."""
    more = "primary_write+guest_dirty_bitmap,form=backup,bitmap=ends"
    start = "primary_write+start,form=pull"
    two = "primary_write+primary_write,form=pull,third=with_start"
    scenarios = {
        "frozen": [more, f"{start},third=start_then_dirty_bitmap,history=dirty"],
        "readers": [f"{start},third=start_then_guest_read", f"{start},third=with_guest_read"],
        "two-disks": [f"{two},history=dirty,disks=two", f"{two},disks=two-grouped"],
        "grouped": ["guest_read+start,form=pull,third=start_then_stop,disks=two-grouped"],
    }
    return [
        Case("explore", f"explore/pull/{name}", {"scenarios": names})
        for name, names in scenarios.items()
    ]


def _all_pulls() -> list[Case]:
    """The scenarios of a covering array that are pulls, as they are and with I/Os that fail."""
    names = [one.name for one in array(2) if one.form == "pull" or one.topology.frozen is not None]
    found = []
    for number, first in enumerate(range(0, len(names), _POINTS)):
        some = {"scenarios": names[first : first + _POINTS], "seconds": 600}
        name = f"explore/pull/points/{number + 1}"
        found.append(Case("explore", name, some, 900.0))
        found.append(Case("explore", f"{name}/faults", {**some, "faults": [5, 28]}, 900.0))
    return found


def _verify(operations: int, seeds: Iterable[int]) -> list[Case]:
    mib = 1 << 20
    shapes = {
        "raw-64k": {"size": 64 * mib, "cluster": 65536, "secondary": "raw"},
        "qcow2-4k": {"size": 8 * mib + 1536, "cluster": 4096, "secondary": "qcow2"},
        "raw-2m": {"size": 16 * mib + 512, "cluster": 2 * mib, "secondary": "raw"},
        "qcow2-64k": {"size": 64 * mib, "cluster": 65536, "secondary": "qcow2"},
    }
    return [
        Case(
            "verify",
            f"verify/{workflow}/{shape}/seed{seed}",
            {"workflow": workflow, "operations": operations, "seed": seed, **words},
        )
        for workflow in ("replication", "backup")
        for seed in seeds
        for shape, words in shapes.items()
    ]


def _points(operations: int, seeds: Iterable[int]) -> list[Case]:
    return [
        Case(
            "points",
            f"points/{workflow}/seed{seed}",
            {"workflow": workflow.value, "operations": operations, "seed": seed},
        )
        for workflow in PointsWorkflow
        for seed in seeds
    ]


def _small() -> list[Case]:
    return [
        *(Case("known", f"known/{one.id}", {"id": one.id}) for one in known_findings()),
        *(Case("directed", f"directed/{one.name}", {"case": one.name}) for one in DIRECTED),
        Case("protocol", "protocol/schema"),
        *MORE_QUICK.values(),
    ]


def _quick() -> list[Case]:
    """What takes about two minutes a build: every pair, every known finding, usual workloads."""
    return [
        *_pairs_of_operations(),
        *_verify(2000, (1,)),
        *_pulls(),
        *_points(150, (1,)),
        Case("pair", "pair/short", {"colo": False, "checkpoints": 3, "failover": "primary"}),
        Case("pair", "pair/short/colo", {"guest": "none", "checkpoints": 3}),
        *_small(),
    ]


def _full() -> list[Case]:
    """What takes hours: triples, faults, qcow2's own I/O, more and longer workloads."""
    faulty = _pairs_with("faults", 3600.0, faults=[5, 28])
    all_io = _pairs_with("all-io", 1200.0, all_io=True, seconds=600)
    threes = [
        replace(case, budget=7200.0)
        for form in TOPOLOGIES
        for case in _grouped(form, triples(form), "triples/")
    ]
    then = [
        Case("explore", f"explore/{name}", {"scenarios": [s.name for s in some]}, 1800.0)
        for name, some in (("follow-ups", follow_ups()), ("twice", twice()))
    ]
    more = [*_verify(20_000, range(2, 7)), *_points(20_000, range(2, 5))]
    long = [replace(case, budget=900.0) for case in more]
    return [*threes, *faulty, *all_io, *then, *_all_pulls(), *_quick(), *long, *_guest(), *_pair()]


def _pair() -> list[Case]:
    """What takes about four minutes a build: block replication and COLO, each way to fail over."""
    blocks: dict[str, Any] = {"colo": False, "checkpoints": 20}
    return [
        Case("pair", "pair/blocks", blocks),
        Case("pair", "pair/blocks/resume", {**blocks, "failover": "primary", "resume": True}),
        *(
            Case("pair", f"pair/colo/{failover}", {"checkpoints": 5, "failover": failover}, 240.0)
            for failover in Failover
        ),
        Case("pair", "pair/colo/no-guest", {"guest": "none", "checkpoints": 20}),
        Case("pair", "pair/colo/linux", {"guest": "linux", "failover": "primary"}, 600.0),
    ]


def _guest() -> list[Case]:
    """What takes about two minutes a build: each guest scenario, and each way to attach a disk."""
    ways: dict[str, dict[str, Any]] = {
        "virtio-scsi": {"device": "virtio-scsi"},
        "ide": {"device": "ide"},
        "iothread": {"iothread": True},
        "scsi-iothread": {"device": "virtio-scsi", "iothread": True},
        "native": {"cache": "none", "aio": "native"},
        "writethrough": {"cache": "writethrough"},
        "io_uring": {"aio": "io_uring"},
    }
    return [
        *(Case("guest", f"guest/{name}", {"scenario": name}, 300.0) for name in SCENARIOS),
        *(
            Case("guest", f"guest/mixed/{way}", {"scenario": "mixed", **words}, 300.0)
            for way, words in ways.items()
        ),
    ]


#: By name, what makes the cases of a suite.
SHIPPED = {"quick": _quick, "guest": _guest, "pair": _pair, "full": _full}
