"""Steps that a QEMU does not offer now: it may by a timer of its own, or it never does."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.harness.choices import Complete, Start, io_id
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.scenario_sets import LETTERS
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.builds.build import Build, read_version

#: The write whose copy takes longer than a second is done, and the snapshot is given up.
TIMES_OUT = (("filter", "cbw-timeout", 1), ("filter", "on-cbw-error", "break-snapshot"))


def test_what_comes_by_a_timer_is_waited_for(qemu_build: Build) -> None:
    """Also while other steps can be taken: the copy is held, and the second operation can begin."""
    if read_version(qemu_build)[0] < (7, 1):
        pytest.skip("this QEMU has no cbw-timeout")
    scenario = RealScenario(
        "WV", (LETTERS["W"], LETTERS["V"]), contract=False, form="fleecing", options=TIMES_OUT
    )
    pool = QemuPool(qemu_build)
    try:
        system = RealSystem(pool, scenario)
        system.reset()
        system.take(Start(0))
        copy, written = io_id(0, "secondary read 0+128"), io_id(0, "secondary write 0+128")
        assert {Start(1), Complete(copy)} == set(system.enabled())
        assert not system.offers(Complete(io_id(0, "hidden write 0+128")))
        assert written in system.now.held  # by then; that a copy is given up is no model's step
    finally:
        pool.close()
