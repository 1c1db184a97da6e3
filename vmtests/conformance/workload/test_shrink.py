"""Shrinking: what is left is minimal, still diverges, and is the same finding."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload.shrink import shrink
from qmpshim.errors import InputError
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb

Test = Callable[[Sequence[Operation]], Divergence | None]
AT = Divergence(Verdict.CONTENT, "hidden disk (file)", 100, "this", "that")
ELSEWHERE = Divergence(Verdict.CRASH, "QEMU", 100, "an answer", "none")


def operations(count: int = 100) -> list[Operation]:
    return [
        Operation(Side.PRIMARY, Verb.WRITE, n * 10, 1 + n % 40, number=n)
        for n in range(1, count + 1)
    ]


def run(
    test: Test, divergence: Divergence = AT, seconds: float = 60.0, count: int = 100
) -> tuple[list[Operation], Divergence, int]:
    runs = 0

    async def reproduce(candidate: Sequence[Operation]) -> Divergence | None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return test(candidate)

    best, found = asyncio.run(shrink(operations(count), divergence, reproduce, seconds))
    return best, found, runs


def has(*numbers: int) -> Test:
    def test(candidate: Sequence[Operation]) -> Divergence | None:
        return AT if {o.number for o in candidate} >= set(numbers) else None

    return test


@pytest.mark.parametrize("needed", [(1,), (100,), (50, 51), (1, 100), (7, 33, 34, 80)])
def test_only_what_is_needed_is_left(needed: tuple[int, ...]) -> None:
    best, found, runs = run(has(*needed))
    assert tuple(o.number for o in best) == needed
    assert all(o.count == 1 for o in best)
    assert found == AT
    assert runs < 120


def test_random_needs() -> None:
    for seed in range(20):
        needed = sorted(random.Random(seed).sample(range(1, 101), 5))
        assert [o.number for o in run(has(*needed))[0]] == needed


def test_lengths_shrink_as_far_as_they_can() -> None:
    def reaches(candidate: Sequence[Operation]) -> Divergence | None:
        return AT if any(o.start <= 405 < o.start + o.count for o in candidate) else None

    best, _, _ = run(reaches)
    assert len(best) == 1
    assert best[0].start <= 405 < best[0].start + best[0].count


def test_what_comes_after_the_divergence_is_left_out_at_once() -> None:
    seen: list[int] = []

    def test(candidate: Sequence[Operation]) -> Divergence | None:
        seen.append(max(o.number for o in candidate))
        return has(3)(candidate)

    run(test, Divergence(Verdict.CONTENT, AT.where, 40, "", ""))
    assert max(seen) == 40


def test_another_finding_does_not_count() -> None:
    """Without operation 20 it crashes; that is not what is being shrunk."""

    def test(candidate: Sequence[Operation]) -> Divergence | None:
        if not any(o.number == 20 for o in candidate):
            return ELSEWHERE
        return has(5)(candidate)

    best, found, _ = run(test)
    assert [o.number for o in best] == [5, 20]
    assert found == AT


def test_the_last_divergence_is_reported() -> None:
    """Its place and words change while operations go; the report must fit the minimal case."""

    def test(candidate: Sequence[Operation]) -> Divergence | None:
        if not has(9)(candidate):
            return None
        return Divergence(Verdict.CONTENT, AT.where, candidate[-1].number, "x", str(len(candidate)))

    best, found, _ = run(test)
    assert (found.operation, found.observed) == (9, "1")
    assert [o.number for o in best] == [9]


def test_what_does_not_come_back_is_kept_whole() -> None:
    best, found, runs = run(lambda _: None)
    assert (len(best), found, runs) == (100, AT, 1)


def test_time_is_limited() -> None:
    """No time at all still gives a case that diverges."""
    best, found, runs = run(has(7), seconds=0)
    assert has(7)(best) is not None
    assert found == AT
    assert runs <= 2


def test_a_divergence_as_json() -> None:
    assert Divergence.from_json(AT.to_json()) == AT
    assert "hidden disk (file)" in str(AT)
    values: tuple[object, ...] = (None, [], {}, {**AT.to_json(), "verdict": "guilty"})
    for value in values:
        with pytest.raises(InputError, match="not a divergence"):
            Divergence.from_json(value)
