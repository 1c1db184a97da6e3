"""What dirty bitmaps have to name, by the commands that passed and the writes that were seen.

It is the least that a bitmap may name. What is not known of one can only be more: what it held
before, and what was written unobserved. Where it may be less (a job used it, its disk is no longer
the one that is written to) it is not followed any more.

Restates block/dirty-bitmap.c and block/monitor/bitmap-qmp-cmds.c of QEMU 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmpshim.model.operations import Verb
from qmpshim.model.units import inside, touched
from qmpshim.shim.tracking.applied_changes import Change

_MOST = 1 << 20  # granules of one bitmap that are remembered
#: A discard is no sure change: a node may ignore it.
_CHANGING = (Verb.WRITE, Verb.ZERO)

#: A bitmap's name, and the name of its node before it.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class BitmapAction:
    """A ``block-dirty-bitmap-*`` command, alone or in a transaction.

    :ivar verb: the rest of its name
    :ivar key: what it changes
    :ivar disabled: of *add*
    :ivar sources: of *merge*
    """

    verb: str
    key: Key
    disabled: bool = False
    sources: tuple[Key, ...] = ()


@dataclass(slots=True)
class _Bitmap:
    """One that is followed.

    :ivar granularity: bytes
    :ivar enabled: it records what is written
    :ivar named: granules
    """

    granularity: int
    enabled: bool
    named: set[int] = field(default_factory=set)

    def name(self, offset: int, length: int) -> None:
        """Name what holds these bytes."""
        self.named.update(touched(offset, length, self.granularity))

    def merge(self, other: _Bitmap) -> None:
        """Name what another one does, whose granules may be of another size."""
        for granule in other.named:
            self.name(granule * other.granularity, other.granularity)


class DirtyBitmaps:
    """The bitmaps of one QEMU that were made while they were watched."""

    def __init__(self) -> None:
        self._bitmaps: dict[Key, _Bitmap] = {}
        self._waiting: list[tuple[str, Change]] | None = None  # while a command changes them
        self._before: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._bitmaps)

    def record(self, node: str, change: Change) -> None:
        """*node* was written to."""
        if self._waiting is not None:
            self._waiting.append((node, change))
        else:
            self._record(node, change)

    def _record(self, node: str, change: Change, but: Iterable[Key] = ()) -> None:
        if change.kind not in _CHANGING or not change.length:
            return
        for key, bitmap in list(self._bitmaps.items()):
            if key[0] == node and bitmap.enabled and key not in but:
                bitmap.name(change.offset, change.length)
                if len(bitmap.named) > _MOST:
                    del self._bitmaps[key]

    # -- commands ------------------------------------------------------------

    def begin(self) -> None:
        """A command that changes bitmaps begins: what is written now waits for :meth:`finish`."""
        self._waiting, self._before = [], {}

    def settle(self) -> None:
        """What waits so far came before the command."""
        if self._waiting:
            for node, change in self._waiting:
                self._record(node, change)
            self._waiting = []

    def came_before(self, node: str, count: int) -> None:
        """So many at least of the writes to *node* that wait came before the command."""
        self._before[node] = count

    def finish(self, actions: Iterable[BitmapAction], granularity: Mapping[Key, int]) -> None:
        """The command is over.

        What was written meanwhile, and perhaps before and perhaps after it, need not be in what it
        changed.

        :param actions: what it did; none if it failed
        :param granularity: in bytes, of all bitmaps that there are now
        """
        waiting, self._waiting = self._waiting or [], None
        left = dict(self._before)
        unsure = []
        for node, change in waiting:
            if left.get(node, 0) > 0:
                left[node] -= 1
                self._record(node, change)
            else:
                unsure.append((node, change))
        changed = set()
        for action in actions:
            self.apply(action, granularity)
            changed.add(action.key)
        for node, change in unsure:
            self._record(node, change, changed)

    def apply(self, action: BitmapAction, granularity: Mapping[Key, int]) -> None:
        """Do to the bitmaps what QEMU did; *granularity* is in bytes."""
        key = action.key
        if action.verb == "add" and key in granularity:
            self._bitmaps[key] = _Bitmap(granularity[key], not action.disabled)
            return
        bitmap = self._bitmaps.get(key)
        if bitmap is None:  # perhaps one that is followed, by another name of its node
            if action.verb not in ("add", "merge", "enable"):
                self.forget_named(key[1])
            return
        match action.verb:
            case "remove":
                del self._bitmaps[key]
            case "clear":
                bitmap.named.clear()
            case "enable" | "disable":
                bitmap.enabled = action.verb == "enable"
            case "merge":
                for source in action.sources:
                    if source in self._bitmaps:
                        bitmap.merge(self._bitmaps[source])

    def forget_named(self, name: str) -> None:
        """Follow no bitmap of that name any more."""
        self._bitmaps = {key: one for key, one in self._bitmaps.items() if key[1] != name}

    def forget_node(self, node: str) -> None:
        """Follow no bitmap of *node* any more."""
        self._bitmaps = {key: one for key, one in self._bitmaps.items() if key[0] != node}

    def forget(self) -> None:
        """Follow none of them any more."""
        self._bitmaps.clear()

    # -- questions ------------------------------------------------------------

    def missing(self, key: Key, named: Iterable[tuple[int, int]], size: int) -> int | None:
        """The offset of the first granule that a bitmap has to name and does not, in bytes.

        :param named: what it names: (offset, length) in bytes
        :param size: of its disk, in bytes
        """
        bitmap = self._bitmaps[key]
        granules: set[int] = set()
        for offset, length in named:
            granules.update(inside(offset, length, bitmap.granularity, size))
        lost = bitmap.named - granules
        return min(lost) * bitmap.granularity if lost else None

    def follows(self, key: Key) -> bool:
        """Whether it is known what a bitmap has to name."""
        return key in self._bitmaps


def actions_of(parts: Iterable[tuple[str, Mapping[str, Any]]]) -> list[BitmapAction]:
    """What commands do to bitmaps.

    :param parts: a command's, or its actions', names and arguments
    """
    prefix = "block-dirty-bitmap-"
    found = []
    for name, arguments in parts:
        if not name.startswith(prefix):
            continue
        node, verb = str(arguments.get("node")), name.removeprefix(prefix)
        bitmap = str(arguments.get("target" if verb == "merge" else "name"))
        sources = arguments.get("bitmaps")
        found.append(
            BitmapAction(
                verb,
                (node, bitmap),
                arguments.get("disabled") is True,
                tuple(bitmap_key(one, node) for one in sources or ()),
            )
        )
    return found


def bitmap_key(named: Any, node: str) -> Key:
    """Which bitmap a ``BlockDirtyBitmapOrStr`` (qapi/block-core.json) means.

    :param node: whose bitmap it is by default
    """
    if isinstance(named, Mapping):
        return str(named.get("node")), str(named.get("name"))
    return node, str(named)
