"""The images of a chain: as files, or as exports of the gate.

Both kinds are made, opened and removed by the node whose image they are.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from errno import EFBIG, EINVAL, ENOSPC
from pathlib import Path
from typing import Any, Protocol

from qmpshim.errors import HostError, OptionMissing
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.parts import EXTENDED, EXTENDED_SINCE, Node
from qmpshim.machine.host.programs import run_program
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.store import MemoryStore

_ROOM = 1 << 20  # bytes: a qcow2 image's file may grow to so many at least
KEPT = 16  # images that are kept of each kind: some MiB each, and a soak meets hundreds
_LIMIT = 60  # seconds that qemu-img may take


class Images(Protocol):
    """The images of one chain."""

    def create(self, node: Node) -> None:
        """Make the image of a node, or the empty log.

        :raises HostError: it cannot be made
        """

    def storage(self, node: Node) -> dict[str, Any]:
        """The options of the protocol node that holds it."""

    def remove(self, node: Node) -> None:
        """Remove it."""


@dataclass(slots=True)
class FileImages:
    """Images that are files of one directory.

    :ivar qemu_img: how to run ``qemu-img``
    :ivar size: bytes of each disk
    :ivar cluster: bytes of a qcow2 cluster, unless the node's image has another
    :ivar initial: what the raw images begin with; zeroes follow
    :ivar options: of the protocol nodes of images. Flushes end in QEMU: the host is not going to
        crash, so waiting for its disk proves nothing
    :ivar env: qemu-img's environment; None: this process's
    """

    directory: Path
    qemu_img: Sequence[str]
    size: int
    cluster: int
    initial: bytes = b""
    options: Mapping[str, Any] = field(default_factory=lambda: {"cache": {"no-flush": True}})
    env: Mapping[str, str] | None = None

    def path(self, node: Node) -> Path:
        """The file of a node's image, or of its log."""
        if node.image is None:
            return self.directory / f"{node.name}.log"
        return self.directory / f"{node.image.file or node.name}.{node.driver}"

    def create(self, node: Node) -> None:
        path = self.path(node)
        if node.image is None:
            path.write_bytes(b"")
        elif node.driver == "raw":
            _create_raw(path, self.size, self.initial)
        else:
            cluster = node.image.cluster or self.cluster
            create_qcow2(self.qemu_img, path, self.size, cluster, node.image.create, self.env)

    def storage(self, node: Node) -> dict[str, Any]:
        options = {} if node.image is None else self.options
        return {"driver": "file", "filename": str(self.path(node)), **options}

    def remove(self, node: Node) -> None:
        self.path(node).unlink()


class GateImages:
    """Images in memory, on a gate that was started.

    :param build: whose ``qemu-img`` makes the qcow2 images
    :param cluster: bytes of a qcow2 cluster, unless the node's image has another
    :param initial: what the raw images hold in the beginning, as long as each disk
    """

    def __init__(self, gate: Gate, build: Build, cluster: int, initial: bytes) -> None:
        self.gate = gate
        self._build = build
        self._cluster = cluster
        self._initial = initial
        self._stores: dict[str, MemoryStore] = {}

    def create(self, node: Node) -> None:
        content = self._initial
        if node.driver != "raw":
            content = blank_image(self._build, node, len(content), self._cluster)
        self._stores[node.name] = store = MemoryStore(content)
        self.gate.add(node.name, store)

    def storage(self, node: Node) -> dict[str, Any]:
        return self.gate.blockdev(node.name)

    def remove(self, node: Node) -> None:
        self._stores.pop(node.name).close()

    async def close(self) -> None:
        """Complete all that is held, and free the images; QEMU must have ended."""
        await self.gate.stop()
        for store in self._stores.values():
            store.close()


def create_qcow2(
    qemu_img: Sequence[str],
    path: Path,
    size: int,
    cluster: int,
    options: Sequence[tuple[str, str]] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Create an empty qcow2 image.

    :param size: bytes of its disk
    :param cluster: bytes
    :param options: more of ``qemu-img create -o``, names and values
    :param env: qemu-img's environment; None: this process's
    :raises HostError: it cannot be created
    """
    chosen = _listed(cluster, options)
    command = [*qemu_img, "create", "-q", "-f", "qcow2", "-o", chosen, str(path), str(size)]
    _run(command, env)


def _listed(cluster: int, options: Sequence[tuple[str, str]]) -> str:
    """What follows ``-o``."""
    return ",".join(f"{name}={value}" for name, value in (("cluster_size", cluster), *options))


def _run(command: Sequence[str], env: Mapping[str, str] | None) -> None:
    try:
        done = run_program(command, _LIMIT, env)
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} is missing: apt-get install qemu-utils") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{' '.join(command)} did not end in {_LIMIT} s") from error
    if done.returncode:
        full = "; free some space, or set TMPDIR to another disk"
        raise HostError(
            (done.stderr.strip() or f"{' '.join(command)} failed")
            + (full if os.strerror(ENOSPC) in done.stderr else "")
        )


def _create_raw(path: Path, size: int, initial: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(initial.rstrip(b"\0"))
            file.truncate(size)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in (EFBIG, EINVAL):
            if error.errno == ENOSPC:  # the command knows what can be done about a full disk
                raise
            raise HostError(f"{path}: {error.strerror}") from error
        raise HostError(
            f"no file of {size} bytes can be made in {path.parent}: "
            "choose a smaller --size, or set TMPDIR to another file system"
        ) from error


def blank_image(build: Build, node: Node, size: int, cluster: int) -> bytes:
    """The bytes of a node's image that is empty, with room to grow behind it.

    :param size: bytes of its disk
    :param cluster: bytes of a cluster, unless the image has another
    :raises HostError: it cannot be made
    """
    assert node.image is not None
    return blank_qcow2(build, size, node.image.cluster or cluster, node.image.create)


def _check(build: Build, create: Sequence[tuple[str, str]]) -> None:
    """Whether a build's qemu-img has all options.

    :raises OptionMissing: it has not
    """
    if EXTENDED in create and read_version(build)[0] < EXTENDED_SINCE:
        raise OptionMissing("this QEMU has no qcow2 images with subclusters")


@functools.lru_cache(KEPT)
def blank_qcow2(
    build: Build, size: int, cluster: int, create: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """The bytes of an empty qcow2 image as a build makes it, with room to grow behind it.

    :param size: bytes of its disk, :param cluster: bytes of a cluster
    :param create: more options of ``qemu-img create -o``
    :raises OptionMissing: this build does not have one
    :raises HostError: it cannot be made
    """
    _check(build, create)
    with Workspace() as workspace:
        path = workspace.path / "blank"
        create_qcow2(build.tool("qemu-img"), path, size, cluster, create, build.environment())
        content = path.read_bytes()
    room = max(_ROOM, len(content) + 2 * size + 8 * cluster)
    return content + bytes(room - len(content))


@functools.lru_cache(KEPT)
def filled_qcow2(
    build: Build, content: bytes, cluster: int, create: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """The bytes of a qcow2 image whose disk holds *content*, with room to grow behind it.

    :param create: more options of ``qemu-img convert -o``
    :raises OptionMissing: this build does not have one
    :raises HostError: it cannot be made
    """
    _check(build, create)
    with Workspace() as workspace:
        raw, made = workspace.path / "raw", workspace.path / "qcow2"
        raw.write_bytes(content)
        convert = [*build.tool("qemu-img"), "convert", "-q", "-f", "raw", "-O", "qcow2"]
        _run([*convert, "-o", _listed(cluster, create), str(raw), str(made)], build.environment())
        image = made.read_bytes()
    room = len(blank_qcow2(build, len(content), cluster, create))
    return image + bytes(max(0, room - len(image)))
