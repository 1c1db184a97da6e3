"""Which of the writes that came while a backup job was started came before its T0.

The job is started while nothing is in flight, so its T0 has a place in the write log. Where that is
the target shows, an overlay that was empty: it has a cluster as soon as that cluster is to be
written, and keeps the contents of T0 in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qmpshim.errors import ImageError, MachineError
from qmpshim.machine.images.image_view import ImageView
from qmpshim.model.disks.image import Alloc, Qcow2Image
from qmpshim.model.operations import Verb
from qmpshim.model.units import SECTOR, touched
from qmpshim.shim.tracking.applied_changes import Change
from qmpshim.shim.tracking.baseline import ImageFiles
from qmpshim.shim.tracking.tracker import ModelTracker


def apply_before_start(tracker: ModelTracker) -> None:
    """Do in the model those of the deferred changes that came before T0; the others stay deferred.

    Where no place of T0 explains what the overlay holds, all are taken to have come before: then a
    verification finds what is wrong.

    QEMU writes to the overlay meanwhile, so that another try may succeed.

    :raises ImageError: it changed while its tables were read; nothing was done
    :raises MachineError: the overlay cannot be judged; nothing was done
    """
    target = tracker.image("hidden")
    assert isinstance(target, Qcow2Image)
    if target.alloc:
        raise MachineError("the target was not empty")
    files = tracker.files("hidden")
    if files is None:
        raise MachineError("the target's file is out of reach")
    overlay = _Overlay(tracker, files)
    changes = tracker.deferred or []
    least = overlay.least(changes)
    if any(one.kind is Verb.DISCARD and not overlay.has(one) for one in changes[least:]):
        raise MachineError("the overlay does not show which discards came before")
    wrong = overlay.wrong({unit for change in changes for unit in overlay.units(change)})
    done = 0
    while done < len(changes) and (done < least or wrong):
        tracker.apply(changes[done])
        touched = set(overlay.units(changes[done]))
        wrong = (wrong - touched) | overlay.wrong(touched)
        done += 1
    tracker.deferred = changes[done:]


class _Overlay:
    """What the target holds, against the disk as the model has it; units are its clusters.

    :raises ImageError: as :class:`ImageView`, and where a cluster is not in the file yet
    """

    def __init__(self, tracker: ModelTracker, files: ImageFiles) -> None:
        self._tracker = tracker
        self._view = view = ImageView(files.image, data=files.data)
        self._unit = view.unit_size
        size = len(files.image if files.data is None else files.data)
        held = [run for run in view.runs() if run.alloc is not Alloc.UNALLOCATED]
        hosts = [run.host_offset + run.length for run in held if run.host_offset is not None]
        if any(end - self._unit >= size for end in hosts):
            raise ImageError("a cluster is beyond the file's end")
        self._held = {unit for run in held for unit in touched(run.offset, run.length, self._unit)}

    def units(self, change: Change) -> range:
        """What a change touches."""
        return touched(change.offset, change.length, self._unit)

    def has(self, change: Change) -> bool:
        """Whether all that a change touches is here."""
        return self._held.issuperset(self.units(change))

    def least(self, changes: Sequence[Change]) -> int:
        """How many changes came before T0 at least: those after it have their clusters here.

        The job's filter may ignore a discard, and then copies nothing.
        """
        missing = (
            number
            for number, one in enumerate(changes, 1)
            if one.kind is not Verb.DISCARD and not self.has(one)
        )
        return max(missing, default=0)

    def wrong(self, units: Iterable[int]) -> set[int]:
        """Those that are here with other contents than the disk has in the model now."""
        return {unit for unit in units if unit in self._held and not self._same(unit)}

    def _same(self, unit: int) -> bool:
        at = unit * self._unit
        length = min(self._unit, self._tracker.found.size - at)
        owners = self._tracker.oracle.primary_view.read(at // SECTOR, length // SECTOR)
        wanted = self._tracker.payloads.data(owners, at // SECTOR)
        return self._view.read(at, length).data == wanted
