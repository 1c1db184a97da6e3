"""Operations on disks, bitmaps and jobs, as values that can be stored and replayed.

Each can be done in any state: what cannot be carried out is refused, and that is predicted. So an
operation may be left out of a case and the rest still means something.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from errno import ENOSPC, errorcode
from typing import Any

from qmpshim.errors import InputError
from qmpshim.model.operations import smaller_places
from qmpshim.model.pointintime.jobs import BitmapMode, Copying, JobSpec, OnError, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb, JobVerb
from qmpshim.model.units import SECTOR


class PointKind(StrEnum):
    """What an operation does."""

    __hash__ = str.__hash__

    WRITE = "write"
    ZERO = "zero"
    DISCARD = "discard"
    FLUSH = "flush"
    READ = "read"
    BITMAP = "bitmap"  # one block-dirty-bitmap-* command
    BACKUP = "backup"  # one blockdev-backup or drive-backup command
    TRANSACTION = "transaction"  # several of both
    JOB = "job"  # one block-job-* command
    FINISH = "finish"  # let a job run to its end, and wait for that
    RACE = "race"  # a transaction of sync=none on all disks, while all of them are written to
    SNAPSHOT_READ = "snapshot-read"  # of the scratch overlay of a job with sync=none
    SNAPSHOT_MAP = "snapshot-map"  # its bitmaps, by NBD
    CHECK = "check"  # compare everything
    RESTART = "restart"  # quit, and a new QEMU
    KILL = "kill"  # flush, SIGKILL, and a new QEMU


_IO = frozenset(
    (
        PointKind.WRITE,
        PointKind.ZERO,
        PointKind.DISCARD,
        PointKind.READ,
        PointKind.SNAPSHOT_READ,
        PointKind.RACE,
    )
)

Action = BitmapAction | JobSpec


@dataclass(frozen=True, slots=True)
class PointOperation:
    """One operation.

    :ivar number: from 1; the owner of what it writes, kept when others are left out
    :ivar disk: number of the disk
    :ivar start: first sector; :ivar count: sectors
    :ivar actions: of a command or transaction
    :ivar grouped: completion-mode of a transaction
    :ivar verb: of a command about the disk's job
    :ivar force: of a cancellation
    """

    number: int
    kind: PointKind
    disk: int = 0
    start: int = 0
    count: int = 0
    actions: tuple[Action, ...] = ()
    grouped: bool = False
    verb: JobVerb | None = None
    force: bool = False

    @property
    def name(self) -> str:
        """Its kind, with the verb of a command."""
        if self.kind is PointKind.JOB:
            return f"job {self.verb}"
        if self.kind is PointKind.BITMAP and isinstance(self.actions[0], BitmapAction):
            return f"bitmap {self.actions[0].verb}"
        if self.kind is PointKind.BACKUP and isinstance(self.actions[0], JobSpec):
            return f"backup {self.actions[0].sync}"
        return str(self.kind)

    def __str__(self) -> str:
        if self.kind in _IO:
            place = f"{self.start * SECTOR:#x}+{self.count * SECTOR:#x}"
            return f"{self.number}: disk{self.disk} {self.kind} {place}"
        if self.actions:
            grouped = " (grouped)" if self.grouped else ""
            actions = "; ".join(map(_describe, self.actions))
            return f"{self.number}: {self.kind}{grouped} {actions}"
        if self.kind in (PointKind.CHECK, PointKind.RESTART, PointKind.KILL):
            return f"{self.number}: {self.kind}"
        return f"{self.number}: disk{self.disk} {self.name}{' force' if self.force else ''}"

    def smaller(self) -> list[PointOperation]:
        """Simpler forms of it, simplest first."""
        if len(self.actions) > 1:
            left_out = range(len(self.actions))
            return [
                replace(self, actions=self.actions[:i] + self.actions[i + 1 :]) for i in left_out
            ]
        match self.actions:
            case (JobSpec(drive=True) as job,):
                return [replace(self, actions=(replace(job, drive=False),))]
            case (JobSpec() as job,) if job.copying != Copying():
                how = job.copying
                simpler = (
                    Copying(),
                    replace(how, compress=False),
                    replace(how, copy_range=False),
                    replace(how, workers=0),
                    replace(how, chunk=0),
                    replace(how, granule=0),
                )
                return [
                    replace(self, actions=(replace(job, copying=one),))
                    for one in dict.fromkeys(simpler)
                    if one != how
                ]
        places = smaller_places(self.start, self.count) if self.kind in _IO else []
        return [replace(self, start=start, count=count) for start, count in places]

    def to_json(self) -> dict[str, Any]:
        """As JSON, what is not the default; positions in sectors."""
        value: dict[str, Any] = {"number": self.number, "do": self.kind.value, "disk": self.disk}
        if self.count:
            value |= {"start": self.start, "count": self.count}
        if self.actions:
            value["actions"] = [_action_to_json(action) for action in self.actions]
        if self.grouped:
            value["grouped"] = True
        if self.verb is not None:
            value |= {"verb": self.verb.value, "force": self.force}
        return value

    @classmethod
    def from_json(cls, value: Any) -> PointOperation:
        """The reverse of :meth:`to_json`.

        :raises InputError: *value* is no operation
        """
        try:
            verb = value.get("verb")
            operation = cls(
                int(value["number"]),
                PointKind(value["do"]),
                int(value["disk"]),
                int(value.get("start", 0)),
                int(value.get("count", 0)),
                tuple(_action_from_json(one) for one in value.get("actions", ())),
                bool(value.get("grouped", False)),
                None if verb is None else JobVerb(verb),
                bool(value.get("force", False)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"not an operation: {value!r}: {error}") from error
        wants_actions = operation.kind in (
            PointKind.BITMAP,
            PointKind.BACKUP,
            PointKind.TRANSACTION,
        )
        if (
            min(operation.number - 1, operation.disk, operation.start, operation.count) < 0
            or (operation.count > 0) != (operation.kind in _IO)
            or bool(operation.actions) != wants_actions
            or (operation.verb is not None) != (operation.kind is PointKind.JOB)
        ):
            raise InputError(f"not an operation: {value!r}")
        return operation


def _describe(action: Action) -> str:
    if isinstance(action, BitmapAction):
        more = []
        if action.granularity:
            more.append(f"granularity={action.granularity * SECTOR}")
        more += [word for word in ("persistent", "disabled") if getattr(action, word)]
        more += [f"disk{disk}/{name}" for disk, name in action.sources]
        return " ".join([f"bitmap-{action.verb} disk{action.disk}/{action.name}", *more])
    words = [f"{'drive-' if action.drive else ''}backup disk{action.disk} sync={action.sync}"]
    if action.bitmap is not None:
        words.append(f"bitmap={action.bitmap}")
    if action.mode is not None:
        words.append(f"bitmap-mode={action.mode}")
    words += [word for word in ("throttled", "manual") if getattr(action, word)]
    how = action.copying
    words += [word for word in ("compress", "copy_range") if getattr(how, word)]
    numbers = ("workers", "chunk", "granule")
    words += [f"{word}={value}" for word in numbers if (value := getattr(how, word))]
    if action.fault is not None:
        words.append(f"target fails ({errorcode[action.errno]}), on-target-error={action.fault}")
    return " ".join(words)


def _action_to_json(action: Action) -> dict[str, Any]:
    if isinstance(action, BitmapAction):
        return {
            "bitmap": action.verb.value,
            "disk": action.disk,
            "name": action.name,
            "granularity": action.granularity,
            "persistent": action.persistent,
            "disabled": action.disabled,
            "sources": [list(source) for source in action.sources],
        }
    value: dict[str, Any] = {
        "backup": action.sync.value,
        "disk": action.disk,
        "name": action.bitmap,
        "mode": action.mode and action.mode.value,
        "slow": action.slow,
        "fault": action.fault and action.fault.value,
        "manual": action.manual,
    }
    if action.copying != Copying():
        copying = asdict(action.copying)
        if not action.copying.granule:
            del copying["granule"]
        value["copying"] = copying
    if action.drive:
        value["drive"] = True
    if action.errno != ENOSPC:
        value["errno"] = action.errno
    return value


def _action_from_json(value: Any) -> Action:
    if "bitmap" in value:
        return BitmapAction(
            BitmapVerb(value["bitmap"]),
            int(value["disk"]),
            str(value["name"]),
            int(value["granularity"]),
            bool(value["persistent"]),
            bool(value["disabled"]),
            tuple((int(disk), str(name)) for disk, name in value["sources"]),
        )
    return JobSpec(
        int(value["disk"]),
        Sync(value["backup"]),
        None if value["name"] is None else str(value["name"]),
        None if value["mode"] is None else BitmapMode(value["mode"]),
        bool(value["slow"]),
        None if value["fault"] is None else OnError(value["fault"]),
        bool(value["manual"]),
        _copying_from_json(value.get("copying", {})),
        bool(value.get("drive", False)),
        int(value.get("errno", ENOSPC)),
    )


def _copying_from_json(value: Any) -> Copying:
    copying = Copying(
        bool(value.get("compress", False)),
        bool(value.get("copy_range", False)),
        int(value.get("workers", 0)),
        int(value.get("chunk", 0)),
        int(value.get("granule", 0)),
    )
    if min(copying.workers, copying.chunk, copying.granule) < 0:
        raise ValueError("copying has a negative number")
    return copying
