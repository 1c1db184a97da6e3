"""Shrinks a list of operations to a minimal one that still shows the same divergence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self, TypeVar

from qmpshim.conformance.compare.divergence import Divergence


class Shrinkable(Protocol):
    """An operation of a workload: one that may be left out or made smaller."""

    @property
    def number(self) -> int:
        """Its place in the workload, kept when others are left out."""

    def smaller(self) -> list[Self]:
        """Simpler forms of it, simplest first."""


_Op = TypeVar("_Op", bound=Shrinkable)


async def shrink(
    operations: Sequence[_Op],
    divergence: Divergence,
    reproduce: Callable[[Sequence[_Op]], Awaitable[Divergence | None]],
    seconds: float = 60.0,
    progress: Callable[[Sequence[_Op], Divergence, int], None] | None = None,
) -> tuple[list[_Op], Divergence]:
    """Leave out operations, then make the rest smaller, as long as the signature stays.

    Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input",
    2002): halves first, then smaller pieces, until no single operation can be left out.

    :param reproduce: runs a list of operations on a fresh chain and gives what diverged
    :param seconds: stop after this long, with the smallest list so far; a run that does not end
        by then shows nothing
    :param progress: called with the operations that are left, what they showed, and runs done
    """
    deadline = time.monotonic() + seconds
    # Nothing after the operation that showed it matters; a check after it may be what shows it.
    best = [operation for operation in operations if operation.number <= divergence.operation]
    found = divergence
    runs = 0

    async def still(candidate: list[_Op]) -> bool:
        nonlocal best, found, runs
        runs += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                seen = await reproduce(candidate)
        except TimeoutError:
            return False
        if seen is None or seen.signature != divergence.signature:
            return False
        best, found = candidate, seen
        if progress is not None:
            progress(best, found, runs)
        return True

    if not await still(list(best)):
        return list(best), divergence  # it does not come back on its own; keep all of it
    size = max(1, len(best) // 2)
    while time.monotonic() < deadline:
        at, shorter = 0, False
        while at < len(best) and time.monotonic() < deadline:
            candidate = best[:at] + best[at + size :]
            if candidate and await still(candidate):
                shorter = True
            else:
                at += size
        if size > 1:
            size //= 2
        elif not shorter:
            break
    for index in range(len(best)):
        for smaller in best[index].smaller():
            if time.monotonic() > deadline:
                return best, found
            if await still([*best[:index], smaller, *best[index + 1 :]]):
                break
    return best, found
