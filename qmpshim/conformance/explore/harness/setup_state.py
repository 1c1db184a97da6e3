"""The state that a scenario's setup leaves: where another build gets to another one, the schedule
after it is another case, and what it does not show there says nothing."""

from __future__ import annotations

from collections.abc import Mapping

from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.errors import MachineError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.images.qcow2 import Clusters, Qcow2Reader
from qmpshim.model.disks.image import Alloc

#: By image, a letter for each cluster: ``D`` data, ``Z`` zeroes that keep their place in the file,
#: ``z`` zeroes that have none, ``-`` nothing.
Allocation = Mapping[str, str]


def allocation_after_setup(finding: Finding, build: Build) -> Allocation:
    """What a process of its own has in its qcow2 images when the setup is over.

    It is another process since the images have to be flushed for it, which is no part of the case.

    :returns: nothing where there is no setup, or it fails
    :raises BuildError: the build cannot do the scenario
    """
    if not finding.scenario.setup:
        return {}
    stage = QemuPool(build, reuse=False)
    try:
        system = RealSystem(stage, finding.scenario, errnos=finding.errnos)
        system.reset()
        if system.violation is not None:
            return {}
        machine = system.machine
        machine.gate.open()
        for name in machine.overlays:
            flush = {"command-line": f"qemu-io {name} flush"}
            machine.call("human-monitor-command", flush)
        parsed = {name: Qcow2Reader.parse(machine.gate.snapshot(name)) for name in machine.overlays}
        return {name: _letters(one.clusters(), one.guest_clusters) for name, one in parsed.items()}
    except MachineError:
        return {}
    finally:
        stage.close()


def _letters(clusters: Clusters, count: int) -> str:
    letters = ["-"] * count
    entries = zip(
        clusters.index.tolist(), clusters.kind.tolist(), clusters.host.tolist(), strict=True
    )
    for index, kind, host in entries:
        letters[index] = "D" if kind == Alloc.DATA else "z" if host < 0 else "Z"
    return "".join(letters)


def other_state(finding: Finding, build: Build) -> str:
    """How the state that the setup leaves on *build* differs from what the finding recorded.

    :returns: one line, or ``""``: it does not differ, or nothing was recorded
    :raises BuildError: the build cannot do the scenario
    """
    if not finding.allocation:
        return ""
    here = allocation_after_setup(finding, build)
    for name, wanted in finding.allocation.items():
        if here.get(name) != wanted:
            return (
                f"the setup leaves another state on this build: the {name} disk's clusters are "
                f"{here.get(name, 'not known')}, recorded were {wanted} (D data, Z zeroes with a "
                "place in the file, z zeroes without, - nothing)"
            )
    return ""
