"""Containers for the state that the model's coroutines share; these are the plain ones.

Sequential execution uses :data:`PLAIN`, which costs nothing.  An explored run passes containers
that record each task's accesses (:mod:`qmpshim.model.runtime.instrumented`).
"""

from __future__ import annotations

from typing import Any, TypeVar

from qmpshim.model.disks.request_list import RequestList
from qmpshim.model.runtime.coroutines import Co

C = TypeVar("C")


class StateContainers:
    """Makes containers.  Each gets a name, unique within one chain of disks."""

    def contents(self, name: str, fresh: C) -> C:
        """Where an image keeps the owners of its sectors; *fresh* is an empty ``Contents``."""
        return fresh

    def table(self, name: str) -> dict[int, Any]:
        """A table by cluster index."""
        return {}

    def bits(self, name: str) -> set[int]:
        """A bitmap, as the set of its bits."""
        return set()

    def requests(self, name: str, kind: type[RequestList] = RequestList) -> Any:
        """A list of requests, an instance of *kind*."""
        return kind()

    def aside(self, co: Co[None]) -> Co[None]:
        """Do *co*, of which the coroutine around it keeps nothing: no result, no changed local."""
        return co


PLAIN = StateContainers()
