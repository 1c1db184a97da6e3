"""What is tried of each scenario at first: of an operation by itself each request fails once."""

from __future__ import annotations

import random
from errno import EIO

import pytest

from qmpshim.conformance.explore.harness.choices import Cut, IoId
from qmpshim.conformance.explore.scenario_sets import LETTERS, alone, named
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.search import Sample
from qmpshim.conformance.explore.search.settings import FAULTS, Bounds, Settings
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import TOPOLOGIES


@pytest.mark.parametrize("form", TOPOLOGIES)
def test_each_operation_of_a_chain_comes_alone(form: str) -> None:
    ones = alone(form)
    assert all(len(one.ops) == 1 and named(one.name) == [one] for one in ones)
    can = {op.name for op in LETTERS.values()} & {*TOPOLOGIES[form].operations}
    left = {name for name in can if not name.endswith("_vanish")}  # which is one of two
    if form == "pull":
        left = {"start"}  # without which nothing is promised
    if form == "push":
        left.remove("stop")  # of a job that another operation starts
    assert {one.ops[0].name for one in ones} == left


def test_each_io_fails_once() -> None:
    ios = [IoId(0, "hidden", verb, "0+128") for verb in ("read", "write", "flush")]
    plans = Sample(9, faults=1, each_io=True).plans(ios, FAULTS, random.Random(1))
    assert sorted(plans, key=str) == sorted(({io: EIO} for io in ios), key=str)
    some = Sample(2, faults=1, each_io=True).plans(ios, FAULTS, random.Random(1))
    assert len(some) == 2 and all(plan in plans for plan in some)
    assert len(Sample(2, faults=1).plans(ios, FAULTS, random.Random(1))) == 2
    assert Sample(9, each_io=True).plans(ios, FAULTS, random.Random(1)) == [{}]


def test_two_ios_fail_in_one_schedule() -> None:
    """Not where one disk is gone for good and another one's connection is made again."""
    ios = [IoId(0, image, "write", "0+128") for image in ("secondary", "hidden", "active")]
    plans = Sample(99, faults=2).plans(ios, (EIO, *Cut), random.Random(1))
    assert len(plans) == 3 * (3 * 3 - 2) == len({tuple(sorted(plan.items())) for plan in plans})
    assert all(len(plan) == 2 and not {*plan.values()} >= {*Cut} for plan in plans)


def test_whatever_request_of_an_operation_fails_is_tried(qemu_build: Build) -> None:
    """Also one of qcow2's own; the other scenarios of a budget have a few of them by chance."""
    (alone,) = named("G")
    every = explore_real(qemu_build, [alone], settings=Settings(faults=(EIO,), all_io=True))
    mixed = explore_real(
        qemu_build,
        [alone],
        settings=Settings(faults=FAULTS, mixed=True),
        bounds=Bounds(budget=600.0),
    )
    # In the end it is exhausted without faults, which is one more.
    assert mixed.schedules == every.schedules + 1 > 6, (mixed, every)
    # The power was lost after each step of the one in which nothing failed.
    assert mixed.looks.count > every.looks.count == 0


def test_an_operation_by_itself_comes_first(qemu_build: Build) -> None:
    """So that what only a failing request shows is not left out where time is short."""
    two, one = named("PR"), named("G")
    begun: list[str] = []
    explore_real(
        qemu_build,
        [*two, *one],
        settings=Settings(faults=FAULTS, mixed=True),
        bounds=Bounds(budget=600.0),
        progress=lambda at: begun.append(at.doing),
    )
    assert [name for name in dict.fromkeys(begun) if name] == ["G", "PR"]
