"""The volatile cache of a disk: which effects a loss of power may undo, and what is left then.

A disk keeps what was flushed: the effects of requests that were answered before the flush began,
and of those with FUA. Of the rest it keeps any part (NBD protocol, "Ordering of messages and
writes").
A journal notes each effect on a store with the bytes that were there before it, so that the bytes
of the store as it is now can be turned into those after any loss. Offsets and lengths are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from qmpshim.machine.nbd.gate.store import Store


@dataclass(slots=True)
class Effect:
    """One change of a store.

    :ivar before: the bytes that were there
    :ivar after: the bytes that are there since
    :ivar durable: no loss of power undoes it
    """

    offset: int
    before: bytes
    after: bytes
    durable: bool

    @property
    def length(self) -> int:
        """How many bytes it changes."""
        return len(self.after)


class Journal:
    """The effects on *store* since it was made that may be lost still, in their order.

    :ivar volatile: these effects; a durable one among them follows one that is not
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flushes: dict[Hashable, int] = {}  # under way: effects that it makes durable
        self._dropped = 0  # effects that are durable, at the beginning
        self.volatile: list[Effect] = []

    def restart(self) -> None:
        """From now on everything that is there is durable."""
        self._flushes.clear()
        self._dropped = 0
        self.volatile.clear()

    def note(self, offset: int, before: bytes, fua: bool) -> None:
        """An effect is on the store now.

        :param before: what was at *offset*
        """
        after = self._store.read(offset, len(before))
        self.volatile.append(Effect(offset, before, after, fua))

    def flush_begins(self, flush: Hashable) -> None:
        """A flush was requested: what is answered by now will be durable when it ends."""
        self._flushes[flush] = self._dropped + len(self.volatile)

    def flush_ends(self, flush: Hashable) -> None:
        """A flush is done; one of which no beginning is known makes nothing durable."""
        for effect in self.volatile[: max(0, self._flushes.pop(flush, 0) - self._dropped)]:
            effect.durable = True
        while self.volatile and self.volatile[0].durable:
            del self.volatile[0]
            self._dropped += 1

    def after_loss(
        self, kept: Collection[int] = (), torn: tuple[int, int, int] | None = None
    ) -> bytes:
        """The store's bytes after a loss of power now.

        :param kept: indices of the volatile effects that are not lost
        :param torn: an effect of which only a part is kept: its index, and that part, as bytes
            from its beginning
        """
        image = bytearray(self._store.snapshot())
        for effect in reversed(self.volatile):
            image[effect.offset : effect.offset + effect.length] = effect.before
        for index, effect in enumerate(self.volatile):
            start, end = 0, effect.length if effect.durable or index in kept else 0
            if torn is not None and torn[0] == index:
                _, start, end = torn
            image[effect.offset + start : effect.offset + end] = effect.after[start:end]
        return bytes(image)
