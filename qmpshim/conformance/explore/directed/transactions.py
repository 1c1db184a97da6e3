"""Directed cases about transactions and bitmap commands: what is refused changes nothing.

"If any operation fails, then the entire set of actions will be abandoned and the appropriate error
returned" (``transaction`` in qapi/transaction.json, QEMU 5.2 to 11.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.explore.directed.machine import (
    BACKUP,
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
)
from qmpshim.model.check.verdict import Verdict

_ABORT = {"type": "abort", "data": {}}
_JOB = {**BACKUP, "sync": "full"}


def _action(verb: str, **data: Any) -> dict[str, Any]:
    """What is done to a bitmap of the image, in a transaction."""
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": "image", **data}}


#: One of each kind, on the bitmaps of :func:`_with_bitmaps`.
_ACTIONS = (
    _action("add", name="new"),
    _action("add", name="new", persistent=True),
    _action("clear", name="on"),
    _action("enable", name="off"),
    _action("disable", name="on"),
    _action("merge", target="off", bitmaps=["on"]),
    _action("merge", target="on", bitmaps=[{"node": "image", "name": "kept"}, "off"]),
    _action("remove", name="on"),
    _action("remove", name="kept"),
)


def _with_bitmaps(machine: CaseMachine) -> None:
    """An image with a bitmap that records, ``on``, one that does not, and one that it keeps.

    All of them name cluster 0, ``on`` and ``kept`` cluster 1, too.
    """
    machine.add_image("image", SIZE)
    machine.add_client("image")
    for name, persistent in (("on", False), ("off", False), ("kept", True)):
        words = {"node": "image", "name": name, "granularity": CLUSTER, "persistent": persistent}
        machine.call("block-dirty-bitmap-add", words)
    machine.written("image", 2, 0, COUNT)
    machine.call("block-dirty-bitmap-disable", {"node": "image", "name": "off"})
    machine.written("image", 3, COUNT, COUNT)
    machine.settle()


def _state(machine: CaseMachine) -> dict[str, Mapping[str, Any]]:
    return {one["name"]: one for one in machine.bitmaps("image")}


def _unchanged(machine: CaseMachine, before: Mapping[str, Any], after: str) -> None:
    """All bitmaps are as they were."""
    if (found := _state(machine)) != before:
        changed = sorted(name for name in {*found, *before} if found.get(name) != before.get(name))
        text = f"after {after} the bitmaps {', '.join(changed)} are not as they were"
        raise Broken(Verdict.PROTOCOL, text, "a refused transaction changes bitmaps")


def undone(machine: CaseMachine) -> None:
    """A transaction that is aborted leaves all bitmaps as they were, each kind of action by itself
    and all that go together; the image keeps its bitmap, and those that record go on.
    """
    _with_bitmaps(machine)
    before = _state(machine)
    together = (_ACTIONS[0], *_ACTIONS[2:6], _ACTIONS[8])
    for actions in (*((one,) for one in _ACTIONS), together):
        machine.fails("transaction", {"actions": [*actions, _ABORT]})
        names = ", ".join(one["type"].removeprefix("block-dirty-bitmap-") for one in actions)
        _unchanged(machine, before, f"an aborted transaction of {names}")
    machine.call("block-dirty-bitmap-clear", {"node": "image", "name": "on"})
    machine.written("image", 4, 0, 1)
    machine.settle()
    counts = {name: one["count"] for name, one in _state(machine).items()}
    if counts != {"on": CLUSTER, "off": CLUSTER, "kept": SIZE}:
        text = f"after a write that followed aborted transactions the bitmaps name {counts} bytes"
        raise Broken(Verdict.LOST_WRITE, text, "bitmaps after aborted transactions")
    machine.remove_client("image")
    machine.call("blockdev-del", {"node-name": "image"})
    machine.open_image("image")
    found = {name: one["count"] for name, one in _state(machine).items()}
    if found != {"kept": SIZE}:
        text = f"an image whose bitmap was not removed, since that was aborted, has {found}"
        raise Broken(Verdict.LOST_WRITE, text, "a stored bitmap after aborted transactions")


def done(machine: CaseMachine) -> None:
    """A transaction that succeeds has done all its actions, one after the other."""
    _with_bitmaps(machine)
    actions = [
        _action("add", name="new", granularity=CLUSTER, disabled=True),
        _action("merge", target="new", bitmaps=["on", {"node": "image", "name": "off"}]),
        _action("clear", name="on"),
        _action("enable", name="off"),
        _action("disable", name="on"),
        _action("remove", name="kept"),
    ]
    machine.call("transaction", {"actions": actions})
    machine.written("image", 4, COUNT, 1)
    machine.settle()
    state = _state(machine)
    found = {name: (one["count"], one["recording"], one["busy"]) for name, one in state.items()}
    wanted = {"new": (SIZE, False, False), "on": (0, False, False), "off": (SIZE, True, False)}
    if found != wanted:
        text = f"after a transaction and a write the bitmaps are {found}, predicted {wanted}"
        raise Broken(Verdict.PROTOCOL, text, "bitmaps after a transaction")
    machine.remove_client("image")
    machine.call("blockdev-del", {"node-name": "image"})
    machine.open_image("image")
    if left := sorted(_state(machine)):
        text = f"an image whose bitmap was removed by a transaction has {', '.join(left)}"
        raise Broken(Verdict.PROTOCOL, text, "a stored bitmap that was removed")


def backup_undone(machine: CaseMachine) -> None:
    """A transaction of a backup and of an action that is refused, or that can be in none whose jobs
    end together, leaves no job, and neither disk in use.
    """

    def started(**words: Any) -> dict[str, Any]:
        return {"type": "blockdev-backup", "data": {**_JOB, "auto-dismiss": False, **words}}

    added = {"node": "secondary", "name": "new"}
    last = [
        _ABORT,
        started(),
        started(device="nowhere"),
        started(target="nowhere"),
        started(sync="incremental"),
        started(speed=-1),
        {"type": "block-dirty-bitmap-add", "data": added},
    ]
    grouped = {"properties": {"completion-mode": "grouped"}}
    for action in last:
        machine.fails("transaction", {"actions": [started(), action], **grouped})
        if machine.call("query-jobs"):  # one that has ended among them: it is not dismissed
            text = "an aborted transaction left a backup job"
            raise Broken(Verdict.PROTOCOL, text, "a job of an aborted transaction")
    machine.written("primary", 2, 0, COUNT)
    machine.call("blockdev-backup", _JOB)
    ended = machine.job_ended()
    if len(ended) != 1 or "error" in ended[0]:
        text = f"a backup after one that was aborted ends as {ended}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a backup after an aborted transaction")


def refused(machine: CaseMachine) -> None:
    """Bitmap commands, and the same as actions, are refused for a name, a node or a granularity
    that makes no sense, and for a bitmap in use; what is refused changes nothing.
    """
    _with_bitmaps(machine)
    machine.call("block-dirty-bitmap-add", {"node": "image", "name": "used", "disabled": True})
    machine.add_export("image", "offers", bitmaps=["used"])
    before = _state(machine)
    wrong = [
        _action("add", name=""),
        _action("add", name="on"),
        _action("add", name="small", granularity=256),
        _action("add", name="odd", granularity=3 * CLUSTER),
        _action("add", name="kept", persistent=True),
        _action("add", node="nowhere", name="new"),
        _action("merge", target="missing", bitmaps=["on"]),
        _action("merge", target="off", bitmaps=["on", "missing"]),
        _action("merge", target="off", bitmaps=["on", {"node": "secondary", "name": "on"}]),
        _action("merge", target="used", bitmaps=["on"]),
    ]
    for verb in ("clear", "disable", "remove"):
        wrong += [_action(verb, name=name) for name in ("missing", "used")]
        wrong += [_action(verb, node="nowhere", name="on")]
    for one in wrong:
        machine.fails(one["type"], one["data"])
        machine.fails("transaction", {"actions": [_action("clear", name="on"), one]})
        _unchanged(machine, before, f"a refused {one['type']} of {one['data']}")
    for name in ("missing", "used"):  # as an action: two known defects
        machine.fails("block-dirty-bitmap-enable", {"node": "image", "name": name})
        _unchanged(machine, before, f"a refused block-dirty-bitmap-enable of {name}")
    machine.call("block-export-del", {"id": "offers", "mode": "hard"})
    machine.remove_client("image")
