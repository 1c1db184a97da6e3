"""A guest at its prompt, saved once and restored wherever a test wants one.

The state is what a migration writes, into a file; a QEMU with ``-incoming`` reads it. It is kept in
the cache under a key of everything it depends on: the QEMU, its arguments, the guest image. The key
is also a word of the kernel's command line, so that a restored guest shows which state it is: one
that was mixed up is refused, not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from qmpshim.errors import HostError, MachineError, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.probe import probe
from qmpshim.machine.builds.registry import locked
from qmpshim.machine.guest.console import BOOT_LIMIT
from qmpshim.machine.guest.guest import Guest, GuestSpec, arguments, boot, machine
from qmpshim.machine.guest.image import GuestImage, guests_directory
from qmpshim.machine.host.files import sha256_of, write_file

log = logging.getLogger(__name__)

_FORMAT = 1  # counts up when what is saved is made in another way
_WORD = "qmpshim.state="
_MOST = 12  # states kept; those not used for longest go first
_FAST = 1 << 40  # bytes a second: the default of old QEMUs holds a migration back


class StaleState(MachineError):
    """A saved state is not that of the guest that was wanted."""


def key(build: Build, image: GuestImage, spec: GuestSpec) -> str:
    """What names the state of this guest on this machine of this QEMU."""
    words = [
        *(str(_FORMAT), probe(build).sha256, image.digest, machine(spec.machine)),
        # The image's place may differ, its content does not.
        *(word for word in arguments(image, spec) if str(image.directory) not in word),
    ]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def state_file(name: str) -> Path:
    """Where the state with this key is kept."""
    return guests_directory() / "states" / name


async def ready(
    build: Build, image: GuestImage, directory: Path, spec: GuestSpec | None = None
) -> Guest:
    """A running guest at its prompt: restored, after one boot that is saved if need be.

    :param directory: see :class:`Guest`
    :raises BuildError: this QEMU does not start with these arguments
    :raises StaleState: what was restored is the state of another guest
    :raises MachineError: the guest does not come to its prompt, or cannot be saved
    """
    spec = spec or GuestSpec()
    name = key(build, image, spec)
    path = state_file(name)
    with locked(path.parent, name=name):
        if not _is_whole(path):
            booted = await boot(build, image, directory, _marked(spec, name))
            try:
                await save(booted, path)
            finally:
                await booted.close()
            _prune()
    return await restore(build, image, directory, spec, path)


def _marked(spec: GuestSpec, name: str) -> GuestSpec:
    return replace(spec, words=(*spec.words, _WORD + name))


async def save(guest: Guest, path: Path) -> None:
    """Save a guest at its prompt; it is stopped afterwards, and only good for :meth:`close`.

    :param path: the state's file, made or replaced when all of it is there
    :raises MachineError: QEMU cannot migrate this machine
    :raises HostError: no space
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    os.close(handle)
    try:
        await guest.qemu.execute("stop")
        await guest.qemu.execute("migrate-set-parameters", {"max-bandwidth": _FAST})
        uri = f"exec:exec cat >{shlex.quote(part)}"
        await guest.qemu.execute("migrate", {"uri": uri})
        await _until_migrated(guest)
        _install(Path(part), path)
    except OSError as error:
        raise HostError(f"cannot save the guest in {path.parent}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


async def restore(
    build: Build, image: GuestImage, directory: Path, spec: GuestSpec, path: Path
) -> Guest:
    """A running guest at its prompt, out of a state's file.

    :raises StaleState: it is the state of another guest
    :raises MachineError: QEMU does not take the state
    """
    name = key(build, image, spec)
    guest = Guest(build, image, directory, _marked(spec, name), ["-incoming", "defer"])
    try:
        await guest.start()
        uri = f"exec:exec cat {shlex.quote(str(path))}"
        await guest.qemu.execute("migrate-incoming", {"uri": uri})
        await _until_migrated(guest)
        await guest.qemu.execute("cont")
        words = guest.run("cat /proc/cmdline", BOOT_LIMIT).output.split()
        if _WORD + name not in words:
            found = [word for word in words if word.startswith(_WORD)] or ["no state at all"]
            raise StaleState(
                f"{path} holds the guest with {found[0]}, not {_WORD}{name}: remove that file"
            )
        os.utime(path)
    except BaseException:
        await guest.close()
        raise
    return guest


async def _until_migrated(guest: Guest) -> None:
    deadline = time.monotonic() + BOOT_LIMIT
    while True:
        migration = await guest.qemu.execute("query-migrate")
        match migration.get("status"):
            case "completed":
                return
            case "failed" | "cancelled":
                why = (
                    migration.get("error-desc") or guest.qemu.stderr().strip() or "no reason given"
                )
                raise MachineError(f"the guest's migration {migration['status']}: {why}")
        if time.monotonic() > deadline:
            raise MachineHung(f"the guest's migration did not end in {BOOT_LIMIT:g} s")
        await asyncio.sleep(0.01)


# -- the files ---------------------------------------------------------------------------------


def _check_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _install(part: Path, path: Path) -> None:
    """Make a state count that is all there."""
    write_file(_check_file(path), sha256_of(part).encode())
    os.replace(part, path)


def _is_whole(path: Path) -> bool:
    try:
        return _check_file(path).read_text() == sha256_of(path)
    except OSError:
        return False


def _prune() -> None:
    states = [path for path in state_file("x").parent.glob("[0-9a-f]*") if not path.suffix]
    for path in sorted(states, key=lambda path: path.stat().st_mtime, reverse=True)[_MOST:]:
        log.info("removing the saved state %s", path)
        for file in (path, _check_file(path)):
            file.unlink(missing_ok=True)
