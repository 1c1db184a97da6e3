"""The directed cases about transactions and bitmap commands see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, sees
from vmtests.support.mutants.qmp import (
    Arguments,
    Call,
    answering,
    asking,
    asking_otherwise,
    calling,
)

ERROR_CONTRACT, PROTOCOL = Verdict.ERROR_CONTRACT, Verdict.PROTOCOL
SILENT = "transaction fails silently"
CHANGED = "a refused transaction changes bitmaps"


def not_undone(kind: str) -> Mutant:
    """What an action of this kind does stays, though its transaction is refused."""

    def other(call: Call, name: str, arguments: Arguments) -> Any:
        for one in arguments.get("actions", ()):
            if one["type"] == kind:
                call(kind, one["data"])
        return call(name, arguments)

    return calling(other)


def left_out(kind: str) -> Mutant:
    """Actions of this kind are not done, and the transaction succeeds."""

    def change(name: str, arguments: Arguments) -> Arguments:
        if name != "transaction":
            return arguments
        actions = [one for one in arguments["actions"] if one["type"] != kind]
        return {**arguments, "actions": actions}

    return asking_otherwise(change)


def bitmaps_shown(change: Any) -> Mutant:
    """The monitor shows other bitmaps of the image; *change* is given those that there are."""

    def changed(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for node in nodes:
            if node["node-name"] == "image":
                node["dirty-bitmaps"] = change(node.get("dirty-bitmaps", []))
        return nodes

    return answering("query-named-block-nodes", changed)


@calling
def removed(call: Call, name: str, arguments: Arguments) -> Any:
    """The image loses the bitmap that it keeps when it is closed."""
    if name == "blockdev-del":
        call("block-dirty-bitmap-remove", {"node": "image", "name": "kept"})
    return call(name, arguments)


def job_fails(machine: GatedMachine) -> None:
    """Backup jobs end with an error."""
    machine.job_ended = lambda: [{"error": "none"}]  # type: ignore[attr-defined]


test_a_case_sees = sees(
    ("transaction-is-undone", asking("transaction"), ERROR_CONTRACT, SILENT),
    ("transaction-is-undone", left_out("abort"), ERROR_CONTRACT, SILENT),
    *(("transaction-is-undone", not_undone(f"block-dirty-bitmap-{verb}"), PROTOCOL, CHANGED)
      for verb in ("add", "clear", "enable", "disable", "merge", "remove")),
    ("transaction-is-undone", bitmaps_shown(lambda them: [{**one, "count": 0} for one in them]),
     Verdict.LOST_WRITE, "bitmaps after aborted transactions"),
    ("transaction-is-undone", removed, Verdict.LOST_WRITE,
     "a stored bitmap after aborted transactions"),
    *(("transaction-is-done", left_out(f"block-dirty-bitmap-{verb}"), PROTOCOL,
       "bitmaps after a transaction")
      for verb in ("clear", "enable", "disable", "merge", "remove")),
    ("transaction-is-done", bitmaps_shown(lambda them: them or [{"name": "kept"}]), PROTOCOL,
     "a stored bitmap that was removed"),
    ("backup-is-undone", asking("transaction"), ERROR_CONTRACT, SILENT),
    ("backup-is-undone", left_out("abort"), ERROR_CONTRACT, SILENT),
    ("backup-is-undone", not_undone("blockdev-backup"), PROTOCOL,
     "a job of an aborted transaction"),
    ("backup-is-undone", job_fails, ERROR_CONTRACT, "a backup after an aborted transaction"),
    *(("bitmap-commands-refused", asking(f"block-dirty-bitmap-{verb}"), ERROR_CONTRACT,
       f"block-dirty-bitmap-{verb} fails silently") for verb in ("merge", "clear", "remove")),
    ("bitmap-commands-refused", asking("transaction"), ERROR_CONTRACT, SILENT),
    ("bitmap-commands-refused", not_undone("block-dirty-bitmap-clear"), PROTOCOL, CHANGED),
)  # fmt: skip
