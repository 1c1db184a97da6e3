"""The directed cases about transactions and bitmap commands see what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, sees
from vmtests.support.mutants.qmp import answering, asking

ERROR_CONTRACT, PROTOCOL = Verdict.ERROR_CONTRACT, Verdict.PROTOCOL
SILENT = "transaction fails silently"
CHANGED = "a refused transaction changes bitmaps"


def before(command: str, act: Mutant, **words: Any) -> Mutant:
    """Something is done before each command of a name that has these arguments."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            if name == command and words.items() <= (arguments or {}).items():
                machine.call = call  # type: ignore[method-assign]
                act(machine)
                machine.call = other  # type: ignore[method-assign, assignment]
            return call(name, arguments)

        machine.call = other  # type: ignore[method-assign, assignment]

    return mutant


def not_undone(kind: str) -> Mutant:
    """What an action of this kind does stays, though its transaction is refused."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            for one in (arguments or {}).get("actions", ()):
                if one["type"] == kind:
                    call(kind, one["data"])
            return call(name, arguments)

        machine.call = other  # type: ignore[method-assign, assignment]

    return mutant


def left_out(kind: str) -> Mutant:
    """Actions of this kind are not done, and the transaction succeeds."""

    def mutant(machine: GatedMachine) -> None:
        call = machine.call

        def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
            words = dict(arguments or {})
            if name == "transaction":
                words["actions"] = [one for one in words["actions"] if one["type"] != kind]
            return call(name, words)

        machine.call = other  # type: ignore[method-assign, assignment]

    return mutant


def bitmaps_shown(change: Any) -> Mutant:
    """The monitor shows other bitmaps of the image; *change* is given those that there are."""

    def changed(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for node in nodes:
            if node["node-name"] == "image":
                node["dirty-bitmaps"] = change(node.get("dirty-bitmaps", []))
        return nodes

    return answering("query-named-block-nodes", changed)


def removed(machine: GatedMachine) -> None:
    """The image loses the bitmap that it keeps."""
    machine.call("block-dirty-bitmap-remove", {"node": "image", "name": "kept"})


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
    ("transaction-is-undone", before("blockdev-del", removed, **{"node-name": "image"}),
     Verdict.LOST_WRITE, "a stored bitmap after aborted transactions"),
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
