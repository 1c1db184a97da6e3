"""Probes what a QEMU build can do; the result is cached by the binary's content.

The queries go over QMP to a QEMU without a machine. Block drivers that matter are opened as well:
a driver can be in the schema and yet be in a module that is not installed, or outside the
distribution's white list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmpshim.codec import decode, encode
from qmpshim.errors import (
    BuildError,
    CommandFailed,
    HostError,
    InputError,
    MachineDied,
    MachineHung,
    ProtocolBroken,
    os_errors,
)
from qmpshim.machine.builds import registry
from qmpshim.machine.builds.build import (
    Build,
    ProtocolName,
    Version,
    protocol_of,
    read_version,
    run_emulator,
)
from qmpshim.machine.host.files import sha256_of, write_file
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.host.workspace import check_temporary_directory, dies_with_owner
from qmpshim.machine.qmp.nonblocking import NonBlockingQmp

logger = logging.getLogger(__name__)

#: Raised when a remembered answer must not be believed any more: a new field, a new question.
_FORMAT = 1
LIMIT = 30.0

_NULL = {"driver": "null-co", "size": 1048576}
#: Driver to the fewest options with which it can be opened. An error about the options still shows
#: that the driver is there.
_TRIALS: dict[str, dict[str, Any]] = {
    "blkdebug": {"image": _NULL},
    "blklogwrites": {"file": _NULL, "log": _NULL},
    "copy-before-write": {"file": _NULL, "target": _NULL},
    "nbd": {"server": {"type": "unix", "path": "/nonexistent/qmpshim"}},
    "null-co": {},
    "qcow2": {"file": _NULL},
    "quorum": {"children": [_NULL], "vote-threshold": 1},
    "raw": {"file": _NULL},
    "replication": {"mode": "primary", "file": _NULL},
    "snapshot-access": {"file": _NULL},
    "throttle": {"throttle-group": "none", "file": _NULL},
}
_ABSENT = ("Unknown driver '{}'", "Driver '{}' is not whitelisted", "Driver '{}' can only be used")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one binary can do.

    :ivar sha256: of the binary, in hexadecimal: the build's identity in reports and bundles
    :ivar version: the numbers; a micro number of 50 and above is development
    :ivar version_text: QEMU's own words, with the distribution's package
    :ivar package: QMP's ``package``: the distribution's or git's words, often empty
    :ivar discipline: the serialization protocol: how copies and new writes are kept apart
    :ivar commands: QMP command to the names of its arguments
    :ivar events: QMP events
    :ivar drivers: block drivers: opened where tried, else as listed in the schema
    :ivar migration: migration capabilities (``x-colo``, ``return-path``, …)
    :ivar accelerators: ``tcg``, ``kvm``, …: made into this build, not necessarily usable here
    :ivar machines: machine types
    :ivar trace_events: events that ``trace-event-set-state`` knows
    """

    sha256: str
    version: Version
    version_text: str
    package: str
    discipline: ProtocolName
    commands: Mapping[str, tuple[str, ...]] = field(hash=False)
    events: frozenset[str]
    drivers: frozenset[str]
    migration: frozenset[str]
    accelerators: frozenset[str]
    machines: frozenset[str]
    trace_events: frozenset[str]

    @property
    def replication(self) -> bool:
        """Block replication is there: the driver and the commands that drive it."""
        return not self.missing(
            commands=("xen-set-replication", "xen-colo-do-checkpoint"), drivers=("replication",)
        )

    def missing(self, *, commands: Iterable[str] = (), drivers: Iterable[str] = ()) -> list[str]:
        """Which of these the build does not have."""
        return [
            *(f"command {name}" for name in commands if name not in self.commands),
            *(f"block driver {name}" for name in drivers if name not in self.drivers),
        ]


def probe(build: Build) -> Capabilities:
    """What the build can do; probed once for each content of the binary.

    :raises BuildError: it does not start, or does not answer, or is the storage daemon
    :raises InputError: it is not a QEMU system emulator
    """
    directory = registry.cache_directory() / "probe"
    remembered = directory / f"{_FORMAT}-{fingerprint(build.binary)}.json"
    try:
        return decode(Capabilities, json.loads(remembered.read_text()), "capabilities")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, InputError) as error:
        logger.info("%s: probing again: %s", remembered, error)
    capabilities = examine(build)
    remember(remembered, json.dumps(encode(capabilities, order=True)))
    return capabilities


def examine(build: Build) -> Capabilities:
    """As :func:`probe`, without remembering.

    :raises BuildError: it does not start, or does not answer
    :raises InputError: it is not a QEMU system emulator
    """
    version, words = read_version(build)
    # Not qom-list-types: it loads every module, and 10.0 and 11.1 abort (util/module.c,
    # dso_init_list not empty) when one is of another build, as the host's may be.
    accelerators = frozenset(
        re.findall(r"(?m)^(\w+)$", run_emulator(build, "-accel", "help").stdout)
    )
    try:
        with _monitor(build) as monitor:
            commands, events, drivers = _read_schema(monitor.call("query-qmp-schema"))
            greeting = (monitor.greeting or {}).get("QMP", {})
            return Capabilities(
                sha256=_digest(build.binary),
                version=version,
                version_text=words,
                package=greeting.get("version", {}).get("package", "").strip(" ()"),
                discipline=protocol_of(version),
                commands=commands,
                events=events,
                drivers=drivers - set(absent_drivers(monitor, drivers)),
                migration=_names(monitor, "query-migrate-capabilities", "capability"),
                accelerators=accelerators,
                machines=_names(monitor, "query-machines", "name"),
                trace_events=_names(monitor, "trace-event-get-state", "name", name="*"),
            )
    except (MachineDied, MachineHung, CommandFailed, ProtocolBroken) as error:
        raise BuildError(f"{build.binary} cannot be asked what it can do: {error}") from error


def fingerprint(binary: Path) -> str:
    """SHA-256 of a binary in hexadecimal; remembered for as long as size and time stay.

    :raises InputError: it cannot be read
    """
    with os_errors(InputError, f"{binary} cannot be read"):
        status = binary.stat()
    mark = f"{binary}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(mark)).hexdigest()[:32]
    remembered = registry.cache_directory() / "probe" / name
    try:
        if re.fullmatch("[0-9a-f]{64}", known := remembered.read_text()):
            return known
    except (OSError, ValueError):
        logger.debug("%s: not seen before", binary)
    digest = _digest(binary)
    remember(remembered, digest)
    return digest


def _digest(binary: Path) -> str:
    with os_errors(InputError, f"{binary} cannot be read"):
        return sha256_of(binary)


# -- questions -------------------------------------------------------------------------------


def _names(monitor: NonBlockingQmp, command: str, member: str, **arguments: str) -> frozenset[str]:
    """One member of each object of the answer; nothing when the build lacks the command."""
    try:
        return frozenset(item[member] for item in monitor.call(command, arguments))
    except CommandFailed as error:
        logger.debug("%s", error)
        return frozenset()


def _read_schema(
    schema: list[dict[str, Any]],
) -> tuple[dict[str, tuple[str, ...]], frozenset[str], frozenset[str]]:
    """Commands with their arguments, events and declared block drivers.

    Source: QEMU docs/devel/qapi-code-gen, "Client JSON Protocol introspection".
    """
    types = {entity["name"]: entity for entity in schema}

    def members(name: str) -> tuple[str, ...]:
        kind = types[name]
        own = [member["name"] for member in kind.get("members", [])]
        branches = [other for one in kind.get("variants", []) for other in members(one["type"])]
        return tuple(dict.fromkeys(own + branches))

    commands = {
        entity["name"]: members(entity["arg-type"])
        for entity in schema
        if entity["meta-type"] == "command"
    }
    events = frozenset(entity["name"] for entity in schema if entity["meta-type"] == "event")
    drivers: frozenset[str] = frozenset()
    if "blockdev-add" in commands:
        options = types[types["blockdev-add"]["arg-type"]]
        (tag,) = (member for member in options["members"] if member["name"] == options["tag"])
        # The values of an enumeration moved from "values" to "members" in QEMU 6.2.
        drivers = frozenset(types[tag["type"]]["values"])
    return commands, events, drivers


def absent_drivers(monitor: NonBlockingQmp, declared: frozenset[str]) -> Iterator[str]:
    """Drivers that QEMU's schema declares and that it lacks: Debian's modules, for one."""
    for driver in declared & _TRIALS.keys():
        node = f"probe-{driver}"
        try:
            monitor.call("blockdev-add", {"driver": driver, "node-name": node, **_TRIALS[driver]})
        except CommandFailed as error:
            if any(text.format(driver) in error.desc for text in _ABSENT):
                yield driver
        else:
            monitor.call("blockdev-del", {"node-name": node})


@contextlib.contextmanager
def _monitor(build: Build) -> Iterator[NonBlockingQmp]:
    """A QEMU without a machine, its QMP on stdin and stdout, killed at the end.

    :raises MachineDied: it went away
    """
    check_temporary_directory()
    bare = ("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none")
    ours, theirs = socket.socketpair()
    with (
        tempfile.TemporaryFile() as complaints,
        contextlib.closing(ManualEventLoop()) as loop,
        contextlib.closing(NonBlockingQmp(loop, ours)) as monitor,
    ):
        with theirs:
            process = subprocess.Popen(
                dies_with_owner([*build.emulator_command(), *bare, "-qmp", "stdio"]),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=complaints,
                env=build.environment(),
            )
        try:
            monitor.call("qmp_capabilities", limit=LIMIT)
            yield monitor
        except MachineDied as error:
            status = process.wait(timeout=5)
            complaints.seek(0)
            output = complaints.read().decode(errors="replace").strip().splitlines()
            why = f"exit status {status}, {output[-1] if output else 'without a word'}"
            raise MachineDied(why) from error
        finally:
            process.kill()
            process.wait()


# -- memory ----------------------------------------------------------------------------------


def remember(path: Path, text: str) -> None:
    """Write a cache file whole or not at all; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    except (OSError, HostError) as error:
        logger.info("%s is not remembered: %s", path.name, error)
