"""What QEMU gets for an action of a transaction: the command and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.pointintime.operations import Action
from qmpshim.model.pointintime.jobs import Copying, JobSpec
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb
from qmpshim.model.units import SECTOR

_SLOW = 1  # bytes a second: after its first chunk a job waits for days


def action_command(action: Action, target: str) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of an action's command.

    :param target: what a job copies to: a node, a file, or options as ``json:``
    """
    if isinstance(action, BitmapAction):
        return f"block-dirty-bitmap-{action.verb}", _bitmap(action)
    if action.drive:
        how = {"mode": "existing"}
        if action.fault is None:  # else the target has its driver among its options
            how["format"] = "qcow2"
        return "drive-backup", {**_backup(action, target), **how}
    return "blockdev-backup", _backup(action, target)


def _bitmap(action: BitmapAction) -> dict[str, Any]:
    node = f"disk{action.disk}"
    if action.verb is BitmapVerb.MERGE:
        sources = [
            name if disk == action.disk else {"node": f"disk{disk}", "name": name}
            for disk, name in action.sources
        ]
        return {"node": node, "target": action.name, "bitmaps": sources}
    arguments: dict[str, Any] = {"node": node, "name": action.name}
    if action.verb is BitmapVerb.ADD:
        arguments |= {"persistent": action.persistent, "disabled": action.disabled}
        if action.granularity:
            arguments["granularity"] = action.granularity * SECTOR
    return arguments


def _backup(spec: JobSpec, target: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "job-id": spec.id,
        "device": f"disk{spec.disk}",
        "target": target,
        "sync": spec.sync.value,
    }
    if spec.bitmap is not None:
        arguments["bitmap"] = spec.bitmap
    if spec.mode is not None:
        arguments["bitmap-mode"] = spec.mode.value
    if spec.throttled:
        arguments["speed"] = _SLOW
    if spec.fault is not None:
        arguments["on-target-error"] = spec.fault.value
    if spec.manual:
        arguments |= {"auto-finalize": False, "auto-dismiss": False}
    if spec.copying.compress:
        arguments["compress"] = True
    if perf := _perf(spec.copying):
        arguments["x-perf"] = perf
    return arguments


def _perf(copying: Copying) -> dict[str, Any]:
    chosen = {
        "use-copy-range": copying.copy_range,
        "max-workers": copying.workers,
        "max-chunk": copying.chunk,
        "min-cluster-size": copying.granule,
    }
    return {name: value for name, value in chosen.items() if value}
