"""A kind of check: QMP answers and events against what the build's own schema promises.

On a running replication chain (a plain backup where there is no replication): every ``query-``
command that needs no argument is sent and its answer held against its return type; every command
must refuse arguments it does not know, miss those it needs, and refuse what has the wrong type,
with an error object and without dying of it; every event that comes must be in the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.compare.divergence import verdict_of
from qmpshim.conformance.workload import pattern
from qmpshim.errors import BuildError, CommandFailed, MachineError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.qapi import Schema
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.model.check.verdict import Verdict

_SHAPE = 256 << 10, 64 << 10
_DATA = bytes(pattern.data_of(1, 0, 128))
#: What is done to the chain once it runs, so that there is something to report.
_USES: Mapping[str, list[tuple[str, Mapping[str, Any]]]] = {
    "backup": [],
    "replication": [("stop", {}), ("xen-colo-do-checkpoint", {}), ("cont", {})],
}
#: Commands whose arguments are open (``'gen': false`` in QEMU's schema): they take more than they
#: promise.
_OPEN = {"device_add", "netdev_add", "object-add", "qmp_capabilities", "query-qmp-schema"}
#: QEMU qapi/error.json
_CLASSES = {"GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"}


def run(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """No arguments."""
    machine, form = _machine(build)
    check = _Check(machine)
    try:
        check.everything(form)
    except MachineError as error:
        misdeed = machine.root_error(error)
        verdict = verdict_of(misdeed)
        check.report(verdict, f"{check.doing}: {verdict}", "an answer", str(misdeed))
    finally:
        machine.close()
    events = len(machine.qmp.events)
    return CaseOutcome(
        Status.DIVERGED if check.found else Status.OK,
        f"{check.requests} requests, {events} events, {form}",
        tuple(check.found.values()),
        {"requests": check.requests, "events": events},
    )


class _Check:
    """Requests to one machine, whose answers and events are held against its schema.

    :ivar doing: what is being done to it
    :ivar requests: how many requests were held against the schema
    :ivar found: by verdict and cause
    """

    def __init__(self, machine: GatedMachine) -> None:
        self.machine = machine
        self.doing = ""
        self.requests = 0
        self.found: dict[str, CaseFinding] = {}

    def report(self, verdict: Verdict, cause: str, predicted: str, observed: str) -> None:
        """Keep a finding, the first of its cause."""
        self.found.setdefault(
            f"{verdict}{cause}",
            CaseFinding(verdict, cause, f"{cause}: {observed}", predicted, observed),
        )

    def everything(self, form: str) -> None:
        """Hold every query, wrong arguments to every command, and all events against the schema.

        :raises MachineError: QEMU ended, or does not answer
        """
        self.doing = "query-qmp-schema"
        schema = Schema(self.machine.call(self.doing))
        for type_ in schema.dangling():
            self.report(Verdict.PROTOCOL, self.doing, "types that are there", f"no {type_}")
        if self.found:
            return  # nothing can be held against that
        self._use_the_chain(form)
        for self.doing in schema.commands:
            if self.doing.startswith("query-") and not schema.required(self.doing):
                self.requests += 1
                for fault in _faults_of(self.machine, schema, self.doing):
                    self.report(
                        Verdict.PROTOCOL, self.doing, "an answer as its schema promises", fault
                    )
            for words in _wrong(schema, self.doing):
                self._refused(words, "GenericError")
        self.doing = "x-no-such-command"
        self._refused({}, "CommandNotFound")
        self.machine.settle()
        for event in self.machine.qmp.events:
            for wrong in schema.event_mismatches(event):
                cause = f"event {event['event']}"
                self.report(Verdict.PROTOCOL, cause, "an event as its schema promises", str(wrong))

    def _use_the_chain(self, form: str) -> None:
        """Set up state that queries report."""
        self.doing = "a primary write"
        errno = self.machine.clients["primary"].call(NbdCommand.WRITE, 0, 0, _DATA).errno
        if errno:
            self.report(Verdict.ERROR_CONTRACT, self.doing, "no error", f"errno {errno}")
        begins = self.machine.topology.begins
        assert begins is not None
        for self.doing, arguments in [(begins.name, begins.arguments), *_USES[form]]:
            self.machine.call(self.doing, arguments)

    def _refused(self, words: dict[str, Any], error_class: str) -> None:
        """Send arguments that must be refused, with that class of error."""
        self.requests += 1
        wrong = ""
        try:
            value = self.machine.call(self.doing, words)
            wrong = f"{words} is accepted, and answered {str(value)[:80]}"
        except CommandFailed as error:
            if error.error_class != error_class:
                wrong = f"{words} is refused with {error.error_class}, not {error_class}"
            elif not error.desc:
                wrong = f"{words} is refused without a word"
        if wrong:
            self.report(Verdict.PROTOCOL, self.doing, f"an error of class {error_class}", wrong)


def _machine(build: Build) -> tuple[GatedMachine, str]:
    try:
        return GatedMachine(build, Shape(TOPOLOGIES["replication"], *_SHAPE)), "replication"
    except BuildError:
        return GatedMachine(build, Shape(TOPOLOGIES["backup"], *_SHAPE)), "backup"


def _faults_of(machine: GatedMachine, schema: Schema, command: str) -> list[str]:
    try:
        value = machine.call(command)
    except CommandFailed as error:
        return [] if error.error_class in _CLASSES else [f"error class {error.error_class}"]
    return [str(fault) for fault in schema.answer_mismatches(command, value)[:3]]


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
