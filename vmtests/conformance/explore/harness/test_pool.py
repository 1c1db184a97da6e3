"""A QEMU that was used is brought to the beginning of another scenario, or a new one is started."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.search.search import ScenarioTask, explore_scenario
from qmpshim.errors import OptionMissing
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.chains import topology_of
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.model.explore.explorer import Mode

NAMES = ("WR", "backup-WR", "push-Wf", "backup-WQ", "WV")
CLUSTER = 64 << 10


def test_one_process_does_scenarios_of_several_chains(qemu_build: Build) -> None:
    """What each shows is what a process of its own shows, and nothing is wrong in these."""
    scenarios = [one for name in NAMES for one in named(name)]
    task = ScenarioTask(qemu_build, read_version(qemu_build)[0], Mode.STATEFUL, (), None, 0)
    with closing(QemuPool(qemu_build)) as pool:
        shared = [explore_scenario(pool, one, task, None) for one in scenarios]
    assert pool.resets["reshape"] >= 3 and pool.resets["fresh"] < len(scenarios)
    for scenario, result in zip(scenarios, shared, strict=True):
        with closing(QemuPool(qemu_build)) as own:
            alone = explore_scenario(own, scenario, task, None)
        assert (result.schedules, result.exhaustive) == (alone.schedules, alone.exhaustive)
        assert not result.sightings and not alone.sightings


def test_a_chain_in_the_place_of_another(qemu_build: Build) -> None:
    first = Shape(topology_of("replication"), 4 * CLUSTER, CLUSTER)
    second = Shape(topology_of("push"), 2 * CLUSTER, CLUSTER)
    with closing(GatedMachine(qemu_build, first)) as machine:
        pid = machine.pid
        machine.tear_down()
        machine.reshape(second)
        assert machine.pid == pid and machine.images == second.topology.images
        machine.stores["secondary"].write(0, b"1" * CLUSTER)
        client = machine.clients["primary"]
        assert client.size == 2 * CLUSTER
        assert client.call(NbdCommand.READ, 0, CLUSTER).data == b"1" * CLUSTER


def test_a_chain_that_the_build_cannot_open_costs_the_process(qemu_build: Build) -> None:
    (good,), (other,) = named("WR"), named("backup-WR")
    impossible = replace(other, options=(("hidden", "no-such-option", True),))
    with closing(QemuPool(qemu_build)) as pool:
        pool.prepare(good)
        pool.back(apart=True)
        with pytest.raises(OptionMissing, match="no-such-option"):
            pool.prepare(impossible)
        assert pool.machine is None
        pool.prepare(other)
        assert pool.resets["fresh"] == 2 and pool.resets["reshape"] == 1
