"""A kind of check: QMP answers and events against what the build's own schema promises.

On a running replication chain (a plain backup where there is no replication): every ``query-``
command that needs no argument is asked and its answer held against its return type; every command
must refuse arguments it does not know, miss those it needs, and refuse what has the wrong type,
with an error object and without dying of it; every event that comes must be in the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmpshim.conformance import pattern
from qmpshim.conformance.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.explore.stage import BACKUP_JOB
from qmpshim.errors import BuildError, CommandFailed, MachineDied, MachineError
from qmpshim.machine.builds import Build
from qmpshim.machine.gated_chain import Form, GatedMachine, Shape
from qmpshim.machine.nbd_proto import Op
from qmpshim.machine.qapi import Schema
from qmpshim.model.verdict import Verdict

_SHAPE = 256 << 10, 64 << 10
#: Commands whose arguments are open (``'gen': false`` in QEMU's schema): they say less than they
#: take.
_OPEN = {"device_add", "netdev_add", "object-add", "qmp_capabilities", "query-qmp-schema"}
#: QEMU qapi/error.json
_CLASSES = {
    "GenericError",
    "CommandNotFound",
    "DeviceNotActive",
    "DeviceNotFound",
    "KVMMissingCap",
}


def run(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """No arguments."""
    machine, form = _machine(build)
    found: dict[str, CaseFinding] = {}

    def report(verdict: Verdict, cause: str, predicted: str, observed: str) -> None:
        found.setdefault(
            f"{verdict}{cause}",
            CaseFinding(
                verdict,
                cause,
                f"{cause}: {observed}",
                predicted,
                observed,
                replay=f"qmpshim check --case {case.name}",
            ),
        )

    asked = 0
    doing = "query-qmp-schema"
    try:
        schema = Schema(machine.call(doing))
        for type_ in schema.dangling():
            report(Verdict.PROTOCOL, "query-qmp-schema", "types that are there", f"no {type_}")
        for doing, arguments in _use_the_chain(machine, form):
            machine.call(doing, arguments)
        for doing in schema.commands:
            if doing.startswith("query-") and not schema.required(doing):
                asked += 1
                for fault in _asked(machine, schema, doing):
                    report(Verdict.PROTOCOL, doing, "an answer as its schema promises", fault)
            for words in _wrong(schema, doing):
                asked += 1
                told = _refused(machine, doing, words)
                if told:
                    report(Verdict.PROTOCOL, doing, "an error object", told)
        doing = "x-no-such-command"
        told = _refused(machine, doing, {}, "CommandNotFound")
        if told:
            report(Verdict.PROTOCOL, doing, "CommandNotFound", told)
        machine.settle()
        for event in machine.qmp.events:
            for fault in schema.event_faults(event):
                cause = f"event {event['event']}"
                report(Verdict.PROTOCOL, cause, "an event as its schema promises", fault)
        events = len(machine.qmp.events)
    except MachineDied as error:
        report(Verdict.CRASH, f"{doing}: crash", "an answer", str(error))
        events = len(machine.qmp.events)
    except MachineError as error:
        dead = not machine.alive()
        verdict = Verdict.CRASH if dead else Verdict.HANG
        text = str(machine.died()) if dead else str(error)
        report(verdict, f"{doing}: {verdict}", "an answer", text)
        events = len(machine.qmp.events)
    finally:
        machine.close()
    return CaseOutcome(
        Status.DIVERGED if found else Status.OK,
        f"{asked} requests, {events} events, {form}",
        tuple(found.values()),
        {"requests": asked, "events": events},
    )


def _machine(build: Build) -> tuple[GatedMachine, Form]:
    try:
        return GatedMachine(build, Shape(Form.REPLICATION, *_SHAPE)), Form.REPLICATION
    except BuildError:
        return GatedMachine(build, Shape(Form.BACKUP, *_SHAPE)), Form.BACKUP


def _use_the_chain(machine: GatedMachine, form: Form) -> list[tuple[str, Mapping[str, Any]]]:
    """What is done to the chain, so that there is something to be told of."""
    data = bytes(pattern.data_of(1, 0, 128))
    machine.clients["primary"].call(Op.WRITE, 0, 0, data)
    if form is Form.BACKUP:
        return [("blockdev-backup", BACKUP_JOB)]
    return [
        ("xen-set-replication", {"enable": True, "primary": False}),
        ("stop", {}),
        ("xen-colo-do-checkpoint", {}),
        ("cont", {}),
    ]


def _asked(machine: GatedMachine, schema: Schema, command: str) -> list[str]:
    try:
        value = machine.call(command)
    except CommandFailed as error:
        return [] if error.error_class in _CLASSES else [f"error class {error.error_class}"]
    return schema.answer_faults(command, value)[:3]


def _wrong(schema: Schema, command: str) -> list[dict[str, Any]]:
    """Arguments that must be refused before anything is done."""
    if command in _OPEN:
        return []
    found: list[dict[str, Any]] = [{"x-no-such-argument": 1}]
    for member in schema.members(command):
        wanted = schema.json_type(str(member["type"]))
        if wanted in ("string", "int", "boolean"):
            # All that is needed may be missing, too: either is reason enough.
            found.append({str(member["name"]): {"wrong": []}})
            break
    return found


def _refused(
    machine: GatedMachine, command: str, words: dict[str, Any], error_class: str = "GenericError"
) -> str:
    """What is wrong with how the command refuses, or ''."""
    try:
        value = machine.call(command, words)
    except CommandFailed as error:
        if error.error_class != error_class:
            return f"{words} is refused with {error.error_class}, not {error_class}"
        return "" if error.desc else f"{words} is refused without a word"
    return f"{words} is accepted, and answered {str(value)[:80]}"
