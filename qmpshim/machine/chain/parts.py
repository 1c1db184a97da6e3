"""What a chain is opened from, as data: nodes with their images, exports, devices, bitmaps.

Names of drivers and options are QEMU's own (qapi/block-core.json).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: The option of ``qemu-img create -o`` for subclusters, and the first QEMU that has it.
EXTENDED = ("extended_l2", "on")
EXTENDED_SINCE = 5, 2


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How the image of a node is made.

    :ivar overlay: it is empty in the beginning; the others hold what the run begins with
    :ivar cluster: bytes of a qcow2 cluster; None: the chain's
    :ivar create: more options of ``qemu-img create -o``, names and values
    :ivar file: the name of its file, without the suffix; empty: the node's
    """

    overlay: bool = False
    cluster: int | None = None
    create: tuple[tuple[str, str], ...] = ()
    file: str = ""

    @property
    def extended(self) -> bool:
        """Whether it has extended L2 entries: subclusters that are allocated one by one."""
        return EXTENDED in self.create


@dataclass(frozen=True, slots=True)
class Node:
    """A block node.

    :ivar options: of ``blockdev-add``, beyond ``driver``, ``node-name``, ``file`` of an image and
        ``log``; one that is a node itself is opened with this one
    :ivar image: its own image, of the same name; its format is the driver
    :ivar log: what is written through it is recorded in a file of its own (``blklogwrites``)
    :ivar backend: the id of its block backend, where ``-drive`` opens it; empty: it has none
    :ivar placeholder: it is there from the beginning, on the node of this name, and put on its
        ``file`` by ``blockdev-reopen``; empty: it is not
    """

    name: str
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    image: ImageSpec | None = None
    log: bool = False
    backend: str = ""
    placeholder: str = ""

    @property
    def within(self) -> Iterator[Node]:
        """The nodes that are opened with it, those below first, and itself."""
        for value in self.options.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Node):
                    yield from one.within
        yield self

    def mapped(self, change: Callable[[Node], Node]) -> Node:
        """It with a change made to each node that is opened with it, and to itself."""

        def mapped(value: Any) -> Any:
            if isinstance(value, list):
                return [mapped(one) for one in value]
            return value.mapped(change) if isinstance(value, Node) else value

        options = {key: mapped(value) for key, value in self.options.items()}
        return change(replace(self, options=options))

    @property
    def overlay(self) -> bool:
        """Whether it has an image that is empty in the beginning."""
        return self.image is not None and self.image.overlay


@dataclass(frozen=True, slots=True)
class Export:
    """An NBD export, under the name of its client.

    :ivar bitmaps: dirty bitmaps of a node below that it offers as metadata contexts. It is made
        once they are frozen: when what the chain begins with is done
    """

    name: str
    node: str
    writable: bool
    bitmaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """A dirty bitmap of a node that names something from the beginning.

    :ivar granularity: bytes of a granule
    :ivar written: of what was written, by which it has granules: first byte and end
    """

    name: str
    node: str
    granularity: int
    written: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class QemuDevice:
    """A device of the virtual machine, or an object that devices use.

    :ivar name: its id
    :ivar driver: of the device, or the type of the object
    :ivar options: of ``device_add`` or ``object-add``, beyond id and driver or type
    :ivar is_object: it is made by ``object-add``
    """

    name: str
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_object: bool = False


Part = Node | Export | QemuDevice | DirtyBitmap


#: Options that are names of nodes below, or of what a device uses.
BELOW = frozenset({"file", "backing", "target", "children", "drive", "bus", "iothread"})
#: Options and arguments that are names of nodes, exports, jobs or devices.
REFERENCES = BELOW | {"top-id", "device", "job-id", "id", "node-name", "node"}

#: Before the names of a chain's second disk and of all that belongs to it.
OTHER = "other-"


def on_disk(name: str, disk: int) -> str:
    """The name of a part on the first disk (0), or of the same on the second one (1)."""
    return OTHER + name if disk else name


def disk_of(name: str) -> int:
    """On which disk a part of this name is."""
    return int(name.startswith(OTHER))


def first_of(name: str) -> str:
    """The name of the same part on the first disk."""
    return name.removeprefix(OTHER)


def below(part: Part) -> set[str]:
    """The names of the parts that a part refers to."""
    if isinstance(part, Export | DirtyBitmap):
        return {part.node}
    found: set[str] = set()
    for one in part.within if isinstance(part, Node) else (part,):
        for key in BELOW & set(one.options):
            value = one.options[key]
            names = value if isinstance(value, list) else [value]
            found.update(name for name in names if isinstance(name, str))
    return found
