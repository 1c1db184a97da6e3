"""What was done to the QEMUs of a run, step by step, so that a script can do it again.

Files are named without their directory; sectors are of 512 bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from qmpshim.model.operations import Verb


class Began(msgspec.Struct, frozen=True, tag="operation"):
    """An operation of the workload begins."""

    number: int


class BaseImage(msgspec.Struct, frozen=True, tag="base"):
    """A raw image is made: data in its first half, except in each third cluster.

    :ivar owner: whose data that is
    """

    file: str
    owner: int


class NewImage(msgspec.Struct, frozen=True, tag="image"):
    """An empty qcow2 image is made.

    :ivar backing: the file below it, ``""`` for none
    """

    file: str
    backing: str = ""


class CommandSent(msgspec.Struct, frozen=True, tag="command"):
    """A command is sent.

    :ivar needed: the run cannot go on without its success
    """

    name: str
    arguments: dict[str, Any]
    needed: bool = False


class Connected(msgspec.Struct, frozen=True, tag="connect"):
    """A client connects to an export."""

    export: str


class RequestSent(msgspec.Struct, frozen=True, tag="request"):
    """A client sends a request to an export, in sectors.

    :ivar owner: whose data a write brings
    """

    export: str
    verb: Verb
    start: int = 0
    count: int = 0
    owner: int = 0


class JobReached(msgspec.Struct, frozen=True, tag="job"):
    """An event reports a job's status, its end, or its error."""

    job: str
    status: str


class ExportGone(msgspec.Struct, frozen=True, tag="unexported"):
    """An export that was removed is gone."""

    export: str


class NodeClosed(msgspec.Struct, frozen=True, tag="closed"):
    """A node could be removed, at last."""

    node: str


class FileClosed(msgspec.Struct, frozen=True, tag="file"):
    """No node has a file open any more."""

    file: str


class Restarted(msgspec.Struct, frozen=True, tag="restart"):
    """QEMU quits, or is killed, and another one is started."""

    killed: bool


RecordedStep = (
    Began
    | BaseImage
    | NewImage
    | CommandSent
    | Connected
    | RequestSent
    | JobReached
    | ExportGone
    | NodeClosed
    | FileClosed
    | Restarted
)


def without_directory(value: Any, directory: Path) -> Any:
    """A command's arguments, with the names of the files in *directory* alone."""
    match value:
        case dict():
            return {key: without_directory(one, directory) for key, one in value.items()}
        case list():
            return [without_directory(one, directory) for one in value]
        case str():
            return value.replace(f"{directory}/", "")  # also within a name that begins "json:"
    return value
