"""Mutants are tried on a cluster as they are here, also when a worker dies."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
from mutation import run
from mutation_build import MutatedQemu, mutated_qemu
from mutation_kill import verified

from qmpshim.conformance.cluster import Cluster
from qmpshim.errors import HostError, QmpshimError
from qmpshim.machine.builds.build import Build
from vmtests.support.clusters import local_cluster


@pytest.fixture(scope="module")
def qemu() -> MutatedQemu:
    try:
        return mutated_qemu(print)
    except QmpshimError as error:
        pytest.skip(str(error))


@pytest.mark.full
def test_where_they_are_tried_decides_nothing(qemu: MutatedQemu, tmp_path: Path) -> None:
    """One of four workers is killed while it tries one: that is tried once more."""
    chosen = [one for one in qemu.mutants if one.file == "reqlist.c"][:4]
    here = {one.mutant: bool(one.killed_by) for one in run(qemu, chosen, 10.0, False, 2)}
    assert any(here.values())
    with local_cluster(tmp_path, 4) as made, closing(Cluster(made.scheduler_address)) as connected:
        outcomes = run(qemu, chosen, 10.0, False, 1, connected)
        first = next(outcomes)
        os.kill(next(iter(made.workers.values())).pid, signal.SIGKILL)
        there = {one.mutant: bool(one.killed_by) for one in (first, *outcomes)}
    assert there == here


@pytest.mark.parametrize("workflow", ["replication", "nonsense"])
def test_a_workload_runs_or_is_refused_aloud(workflow: str, qemu_build: Build) -> None:
    """It shows nothing on the QEMU that is no mutant; a wrong command of ours is no answer."""
    if workflow == "replication":
        assert verified(qemu_build.binary, workflow, qemu_build.binary) == ""
        return
    with pytest.raises(HostError, match="--workflow"):
        verified(qemu_build.binary, workflow, qemu_build.binary)


def test_a_busy_host_kills_nothing(qemu_build: Build, tmp_path: Path) -> None:
    """A workload that takes too long on a sound QEMU as well shows nothing."""
    slow = tmp_path / qemu_build.binary.name
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {qemu_build.binary} "$@"\n')
    slow.chmod(0o755)
    assert verified(slow, "replication", slow, 1.0) == ""
