"""Suites of cases: the shipped ones, and files of one's own.

A suite file is JSON or TOML::

    name = "nightly"                    # shown in reports
    include = ["quick"]                 # shipped suites, or files beside this one

    [[cases]]
    kind = "verify"                     # one of kinds.KINDS
    name = "verify/4k-clusters"         # unique; what --case takes
    budget = 300                        # seconds (default 120)
    arguments = { workflow = "replication", cluster = 4096, operations = 20000, seed = 7 }
    shards = 4                          # optional: four cases, with seeds 7, 8, 9 and 10

What a kind's arguments mean is in its function's docstring. Seeds and shares of work are fixed
here, before anything is handed out: a case is the same in whichever process, and wherever.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, case_from_json
from qmpshim.conformance.check.runners.kinds import MORE_QUICK, name_of
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.scenario_sets import follow_ups, pairs, triples, twice
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import array
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.pair.plan import Failover
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.errors import InputError, decoding, no_such, os_errors
from qmpshim.machine.chain.chains import TOPOLOGIES

_MOST_SHARDS = 10_000


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases, by name unique.

    :ivar called: what ``--suite`` finds it by again: a file by its whole path
    """

    name: str
    cases: tuple[Case, ...]
    called: str = ""

    def only(self, wanted: Iterable[str]) -> Suite:
        """The suite with nothing but the named cases; ``explore/*`` names all that begin so.

        :raises InputError: a name stands for none
        """
        chosen: dict[str, Case] = {}
        for name in wanted:
            hits = [
                case
                for case in self.cases
                if case.name == name or (name.endswith("*") and case.name.startswith(name[:-1]))
            ]
            if not hits:
                listing = "qmpshim check --list"
                if self.called not in ("", "quick"):
                    listing = shlex.join([*listing.split(), "--suite", self.called])
                there_are = [case.name for case in self.cases]
                text = no_such("case", name, there_are, listing)
                raise InputError(f"suite {self.name} has {text}")
            chosen |= {case.name: case for case in hits}
        return replace(self, cases=tuple(chosen.values()))


def suite_named(name: str) -> Suite:
    """A shipped suite, or the one in a file.

    :raises InputError: there is none, or the file is wrong
    """
    if name in _SHIPPED:
        return Suite(name, tuple(_SHIPPED[name]()), name)
    path = Path(name)
    if path.suffix in (".json", ".toml") or path.exists():
        return _from_file(path, ())
    raise InputError(
        f"no suite {name!r}: there are {', '.join(_SHIPPED)}, and files (.json, .toml)"
    )


# -- files -------------------------------------------------------------------------------------


def _from_file(path: Path, inside: tuple[Path, ...]) -> Suite:
    if path in inside:
        raise InputError(f"{path} includes itself")
    with os_errors(InputError, str(path)), decoding(str(path)):
        text = path.read_text()
        value: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    if not isinstance(value, dict):
        raise InputError(f"{path}: a suite is an object with cases")
    unknown = value.keys() - {"name", "include", "cases"}
    if unknown:
        raise InputError(f"{path}: nothing is known of {', '.join(sorted(unknown))}")
    cases: list[Case] = []
    for other in _list(path, value, "include"):
        if not isinstance(other, str):
            raise InputError(f"{path}: include must be a list of names")
        if other in _SHIPPED:
            cases += _SHIPPED[other]()
        else:
            cases += _from_file(path.parent / str(other), (*inside, path)).cases
    for one in _list(path, value, "cases"):
        try:
            with decoding("the case"):
                cases += _sharded(one)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: more than one case is called {', '.join(twice)}")
    if not cases:
        raise InputError(f"{path}: no cases")
    return Suite(str(value.get("name", path.stem)), tuple(cases), str(path.absolute()))


def _list(path: Path, value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name, [])
    if not isinstance(found, list):
        raise InputError(f"{path}: {name} must be a list")
    return found


def _sharded(value: Any) -> list[Case]:
    """A case of a file; with ``shards`` that many, with one seed after the other."""
    value = dict(value) if isinstance(value, dict) else value
    shards = value.pop("shards", 1) if isinstance(value, dict) else 1
    case = case_from_json(value)
    name_of(case.kind)
    if type(shards) is not int or not 1 <= shards <= _MOST_SHARDS:
        raise InputError(f"{case.name}: shards must be a positive number, at most {_MOST_SHARDS}")
    if shards == 1:
        return [case]
    first = int(case.arguments.get("seed", 1))
    return [
        replace(
            case,
            name=f"{case.name}/seed{first + shard}",
            arguments={**case.arguments, "seed": first + shard},
        )
        for shard in range(shards)
    ]


# -- what is shipped ---------------------------------------------------------------------------

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
        *(case for form in TOPOLOGIES for case in _grouped(form, pairs(form), "")),
        *_verify(2000, (1,)),
        *_pulls(),
        *_points(150, (1,)),
        Case("pair", "pair/short", {"colo": False, "checkpoints": 3, "failover": "primary"}),
        Case("pair", "pair/short/colo", {"guest": "none", "checkpoints": 3}),
        *_small(),
    ]


def _full() -> list[Case]:
    """What takes hours: triples, faults, qcow2's own I/O, more and longer workloads."""
    faulty = [
        replace(
            case,
            name=f"{case.name}/faults",
            arguments={**case.arguments, "faults": [5, 28]},
            budget=3600.0,
        )
        for form in TOPOLOGIES
        for case in _grouped(form, pairs(form), "")
    ]
    all_io = [
        replace(
            case,
            name=f"{case.name}/all-io",
            arguments={**case.arguments, "all_io": True, "seconds": 600},
            budget=1200.0,
        )
        for form in TOPOLOGIES
        for case in _grouped(form, pairs(form), "")
    ]
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


_SHIPPED = {"quick": _quick, "guest": _guest, "pair": _pair, "full": _full}
