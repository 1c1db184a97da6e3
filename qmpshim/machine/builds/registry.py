"""The registered builds on disk: one directory each, with a ``build.json``.

One rename adds or removes an entry, so readers need no lock; writers hold one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qmpshim.errors import HostError, InputError

#: What the names of fetched builds begin with.
FETCHED = "debian:"
_DELETIONS = 50
_BETWEEN_DELETIONS_S = 0.1


@dataclass(frozen=True, slots=True)
class RegisteredBuild:
    """What is on record about a build.

    :ivar name: the name it is registered under
    :ivar kind: see :data:`qmpshim.machine.builds.build.Kind`
    :ivar place: its file or directory; relative: inside the entry's directory
    :ivar origin: for a fetched build, where it came from: mirror, time, packages
    """

    name: str
    kind: str
    place: str
    origin: dict[str, str | list[str]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """``place`` as an absolute path."""
        return entry_directory(self.name) / self.place


def cache_directory() -> Path:
    """Where qmpshim keeps what it can get again: ``$QMPSHIM_CACHE``, or qmpshim's XDG place.

    Source: XDG Base Directory Specification; a relative ``$XDG_CACHE_HOME`` does not count.
    """
    if chosen := os.environ.get("QMPSHIM_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return Path(base).absolute() / "qmpshim"


def builds_directory() -> Path:
    """The registry's directory; it need not exist."""
    return cache_directory() / "builds"


def entry_directory(name: str) -> Path:
    """A registered build's own directory.

    ``debian:SUITE`` is stored in ``debian-SUITE``, since ':' splits library paths; an epoch in a
    Debian version is left out.
    """
    if name.startswith(FETCHED):
        name = FETCHED[:-1] + "-" + re.sub(r"@\d+:", "@", name.removeprefix(FETCHED))
    return builds_directory() / name


def names() -> list[str]:
    """Names of the registered builds, sorted."""
    found = (record.parent.name for record in builds_directory().glob("[!.]*/build.json"))
    return sorted(re.sub("^debian-", FETCHED, name) for name in found)


def has(name: str) -> bool:
    """Whether a build is registered under this name."""
    return "/" not in name and os.path.isfile(entry_directory(name) / "build.json")


def read(name: str) -> RegisteredBuild:
    """The record of a registered build.

    :raises HostError: it is damaged
    """
    path = entry_directory(name) / "build.json"
    try:
        record = json.loads(path.read_text())
        return RegisteredBuild(
            name, str(record["kind"]), str(record["place"]), record.get("origin", {})
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise HostError(f"{path} is damaged: remove {name} and register it again") from error


def write(entry: RegisteredBuild, directory: Path) -> None:
    """Write the record of a build to be; :func:`install` makes it count."""
    (directory / "build.json").write_text(json.dumps(asdict(entry), indent=2) + "\n")


def install(ready: Path, name: str, *, replace: bool = False) -> None:
    """Make a finished entry visible under ``name``; the caller holds :func:`lock`.

    :param ready: the entry's directory, in a :func:`workspace`
    :raises InputError: the name is taken and ``replace`` is not set
    """
    target = entry_directory(name)
    if target.exists():
        if not replace:
            raise InputError(f"a build named {name} is registered already: remove it first")
        target.rename(ready.parent / "replaced")
    ready.rename(target)


def remove(name: str) -> None:
    """Forget a build; what a fetch unpacked is deleted with it, other places stay as they are.

    :raises InputError: no such name is registered
    """
    with lock(), workspace() as place:
        if not has(name):
            raise InputError(f"no build named {name} is registered")
        entry_directory(name).rename(place / "removed")


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory beside the entries that is gone at the end; the caller holds :func:`lock`."""
    for stale in builds_directory().glob(".work-*"):  # its owner was killed, or it would be gone
        _delete(stale)
    place = Path(tempfile.mkdtemp(prefix=".work-", dir=builds_directory()))
    try:
        yield place
    finally:
        _delete(place)


def lock(waiting: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """Hold the registry; see :func:`locked`."""
    return locked(builds_directory(), waiting)


@contextlib.contextmanager
def locked(
    directory: Path, waiting: Callable[[], None] | None = None, name: str = ""
) -> Iterator[None]:
    """Hold a directory of the cache against other writers, in this process or another.

    :param waiting: called once when another one holds it
    :param name: hold only what has this name in the directory
    :raises HostError: the directory cannot be written
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if name:
            handle = os.open(directory / f".lock-{name}", os.O_RDWR | os.O_CREAT, 0o600)
        else:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(directory, error.strerror) from error
    try:
        if not os.access(directory, os.W_OK | os.X_OK):
            raise _unwritable(directory, "Permission denied")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unwritable(directory: Path, reason: str | None) -> HostError:
    return HostError(f"cannot write {directory} ({reason}): set QMPSHIM_CACHE to another directory")


def _delete(place: Path) -> None:
    """Delete a workspace.

    A program that an interruption met as it was started has no handle that could end it. It dies
    with this process and may write here until then: what it adds during the deletion is deleted
    by another one.
    """
    for _ in range(_DELETIONS - 1):
        try:
            return _delete_once(place)
        except FileNotFoundError:  # it moved a file meanwhile
            if not place.exists():
                return None
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        time.sleep(_BETWEEN_DELETIONS_S)
    return _delete_once(place)


def _delete_once(place: Path) -> None:
    for directory, folders, _files in os.walk(place):
        for folder in folders:  # a package may hold a directory its owner cannot write
            path = os.path.join(directory, folder)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(place)
