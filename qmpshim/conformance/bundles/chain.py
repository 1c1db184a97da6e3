"""The bundle of a workload on a chain: a directory with all it takes to show a divergence again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qmpshim
from qmpshim.codec import decode_all, encode, read_json
from qmpshim.conformance.bundles.case_file import build_fields, check_format
from qmpshim.conformance.bundles.workload_case import (
    WorkloadCase,
    save_case,
    write_evidence,
    write_json,
)
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.conformance.uses import Use, uses_of
from qmpshim.conformance.workload.session import Rig
from qmpshim.conformance.workload.workload import from_json as operation_from_json
from qmpshim.conformance.workload.workload import to_json as operation_to_json
from qmpshim.errors import decoding
from qmpshim.machine.chain.chains import chain_name
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.disks.image import PAGE, Qcow2Image
from qmpshim.model.operations import Operation
from qmpshim.model.units import SECTOR

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ChainCase(WorkloadCase):
    """What a bundle replays.

    :ivar divergence: what it shows; None: that all goes as predicted
    :ivar build: what the divergence was found on, for the reader: command, version, machine
    """

    spec: ChainSpec
    behaviour: Behaviour
    operations: tuple[Operation, ...]
    divergence: Divergence | None
    seed: int
    build: dict[str, Any]

    @property
    def disks(self) -> str:
        """What it is done on, in words."""
        return f"{self.spec.workflow}, {self.spec.secondary} secondary"

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that this stands for."""
        return uses_of(self.spec.workflow)

    @property
    def lanes(self) -> dict[str, str]:
        """Where an operation may be done, and the heading of that in a diagram."""
        return {"primary": "primary (NBD)", "guest": "guest", "chain": "monitor (QMP)"}

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Where each operation is done, and what it is, in words."""
        return [(one.side.value, str(one)) for one in self.operations]

    def to_json(self) -> dict[str, Any]:
        spec = self.spec
        model = encode(self.behaviour, order=True)
        # No operation here discards through a snapshot, and no I/O fails.
        for name in ("snapshot_discard_rounds", "filter_flushes_all", "forgets_fast_zeroes"):
            del model[name]
        return {
            "qmpshim": qmpshim.__version__,
            "format": FORMAT,
            "chain": {
                "workflow": spec.workflow,
                "size": spec.size,
                "cluster": spec.cluster,
                "secondary": spec.secondary,
                **({"options": [list(one) for one in spec.options]} if spec.options else {}),
            },
            "model": model,
            "seed": self.seed,
            "build": self.build,
            "operations": [operation_to_json(one) for one in self.operations],
            "divergence": self.divergence and self.divergence.to_json(),
        }


def save(directory: Path, case: ChainCase, rig: Rig | None) -> Path:
    """Write a bundle, as :func:`save_case` does.

    :param rig: the rig on which the divergence was seen last, still running or just dead
    """

    def write_more(parts: Path) -> None:
        write_json(parts / "observation.json", case.divergence and case.divergence.to_json())
        if rig is not None:
            write_json(parts / "prediction.json", _prediction(rig.oracle))
            images = (rig.chain.image(node) for node in ("secondary", *rig.chain.overlays))
            write_evidence(parts, rig.qemu, rig.directory, images)

    return save_case(directory, case, _README, write_more)


_README = """\
{case.shows}

Replay it:  qmpshim replay THIS-DIRECTORY [--build NAME | --qemu PATH]

case.json         what is replayed: chain, model, {count} operations, the divergence
operations.txt    the same operations to read: number, side, what, offset+length in bytes
prediction.json   the model: allocation and owners of every disk when it diverged
observation.json  what QEMU did instead
images/           the disks as they were when it diverged
qmp.log, stderr, stdout, command-line.txt   of the QEMU that showed it
"""


def _prediction(oracle: Oracle) -> dict[str, Any]:
    chain = oracle.chain
    disks: dict[str, Any] = {}
    for image in (chain.secondary, chain.hidden, chain.active):
        disks[image.name] = {
            "allocation": {str(i): kind.name.lower() for i, kind in sorted(image.alloc.items())}
            if isinstance(image, Qcow2Image)
            else "raw",
            "owners": _runs(image.contents.pages),
        }
    return {"stage": chain.stage.value, "backup job": chain.job is not None, "disks": disks}


def _runs(pages: Any) -> list[list[int]]:
    """[first sector, sectors, owner] of everything that has an owner."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        for offset, owner in enumerate(pages[page]):
            sector = page * PAGE + offset
            if not owner:
                continue
            if runs and runs[-1][2] == owner and sum(runs[-1][:2]) == sector:
                runs[-1][1] += 1
            else:
                runs.append([sector, 1, owner])
    return runs


def from_json(value: Any, path: Path) -> ChainCase:
    """The reverse of :meth:`ChainCase.to_json`.

    :param path: where it is from, for the error
    :raises InputError: it is no bundle, or one of another format
    """
    with decoding(str(path)):
        check_format(value, FORMAT, path)
        chain, model = value["chain"], value["model"]
        sectors = int(chain["size"]) // SECTOR
        return ChainCase(
            ChainSpec(
                chain_name(chain["workflow"]),
                int(chain["size"]),
                int(chain["cluster"]),
                str(chain["secondary"]),
                tuple((str(node), str(key), what) for node, key, what in chain.get("options", ())),
            ),
            decode_all(Behaviour, model, "the behaviour of a QEMU"),
            tuple(operation_from_json(one, sectors) for one in value["operations"]),
            Divergence.from_json(value["divergence"]) if value["divergence"] else None,
            int(value["seed"]),
            build_fields(value["build"]),
        )


def load_prediction(directory: Path) -> dict[str, Any]:
    """The model's disks at the divergence, by name, as :func:`save` wrote them.

    :raises InputError: there is no prediction: QEMU ended before there was a chain
    """
    path = directory / "prediction.json"
    value = read_json(path)
    with decoding(str(path)):
        return dict(value["disks"])
