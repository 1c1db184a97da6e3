"""Replay bundles of point-in-time workloads: ``case.json`` with ``kind`` ``points``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qmpshim
from qmpshim.codec import decode, encode
from qmpshim.conformance.bundles.case_file import build_fields, check_format, strings
from qmpshim.conformance.bundles.workload_case import WorkloadCase, save_case, write_evidence
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.pointintime.operations import PointOperation
from qmpshim.conformance.pointintime.session import PointsRun
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.conformance.uses import Use
from qmpshim.errors import InputError, decoding
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.chain.record import RecordedStep
from qmpshim.model.pointintime.points import PointDefect
from qmpshim.model.units import SECTOR

STEPS = "steps.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class PointsCase(WorkloadCase):
    """What a bundle replays.

    :ivar known: the defects whose transactions are left out
    :ivar divergence: what it shows; None: that all goes as predicted
    :ivar build: what it was found on, for the reader
    """

    workflow: PointsWorkflow
    spec: PointsSpec
    known: frozenset[PointDefect]
    operations: tuple[PointOperation, ...]
    divergence: Divergence | None
    seed: int
    build: dict[str, Any]

    @property
    def disks(self) -> str:
        """What it is done on, in words."""
        return f"{self.workflow}, {self.spec.disks} disks"

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that this stands for."""
        return self.workflow.uses

    @property
    def lanes(self) -> dict[str, str]:
        """Where an operation may be done, and the heading of that in a diagram."""
        return {name: name for name in map("disk{}".format, range(self.spec.disks))}

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Where each operation is done, and what it is, in words."""
        return [(f"disk{one.disk}", str(one)) for one in self.operations]

    def to_json(self) -> dict[str, Any]:
        return {
            "qmpshim": qmpshim.__version__,
            "kind": "points",
            "format": FORMAT,
            "workflow": self.workflow.value,
            "size": self.spec.size,
            "cluster": self.spec.cluster,
            "disks": self.spec.disks,
            "known": sorted(self.known),
            "seed": self.seed,
            "build": self.build,
            "operations": [operation.to_json() for operation in self.operations],
            "divergence": self.divergence and self.divergence.to_json(),
        }


def from_json(value: Any, path: Path) -> PointsCase:
    """The reverse of :meth:`PointsCase.to_json`.

    :param path: where it is from, for the error
    :raises InputError: it is none, or damaged
    """
    with decoding(str(path)):
        check_format(value, FORMAT, path)
        spec = PointsSpec(int(value["size"]), int(value["cluster"]), int(value["disks"]))
        return PointsCase(
            PointsWorkflow(value["workflow"]),
            spec,
            frozenset(PointDefect(name) for name in strings(value["known"])),
            tuple(_operation(one, spec) for one in value["operations"]),
            Divergence.from_json(value["divergence"]) if value["divergence"] else None,
            int(value["seed"]),
            build_fields(value["build"]),
        )


def load_steps(path: Path) -> tuple[RecordedStep, ...]:
    """What was done to QEMU in the run that showed it; nothing where there was none.

    :param path: of the bundle's ``case.json``
    :raises InputError: the file is damaged
    """
    file = path.with_name(STEPS)
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error
    steps: tuple[RecordedStep, ...] = decode(tuple[RecordedStep, ...], value, f"{file}")
    return steps


def _operation(value: Any, spec: PointsSpec) -> PointOperation:
    operation = PointOperation.from_json(value)
    disks = [operation.disk, *(action.disk for action in operation.actions)]
    if max(disks) >= spec.disks or operation.start + operation.count > spec.size // SECTOR:
        raise InputError(f"operation {operation} reaches beyond the disks")
    return operation


def save(directory: Path, case: PointsCase, run: PointsRun | None) -> Path:
    """Write a bundle, as :func:`save_case` does.

    :param run: the run on which the divergence was seen last, still running or just dead
    """

    def write_more(parts: Path) -> None:
        if run is not None:
            (parts / STEPS).write_text(json.dumps(encode(run.chain.steps)) + "\n")
            write_evidence(parts, run.qemu, run.directory, _images(run.directory))

    return save_case(directory, case, _README, write_more)


def _images(directory: Path) -> Sequence[Path]:
    return [path for path in sorted(directory.iterdir()) if path.suffix in (".raw", ".qcow2")]


_README = """\
{case.shows}

Replay it:  qmpshim replay THIS-DIRECTORY [--build NAME | --qemu PATH]

case.json         what is replayed: disks, operations, the divergence
operations.txt    the same operations to read
steps.json        what was done to QEMU for them, for `qmpshim findings new`
images/           the disks and targets as they were when it diverged
qmp.log, stderr, stdout, command-line.txt   of the QEMU that showed it
"""
