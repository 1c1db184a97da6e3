"""The state that a scenario's setup leaves: where another build gets to another one, the schedule
after it is another case, and from what it does not show there nothing follows."""

from __future__ import annotations

from collections.abc import Mapping

from qmpshim.conformance.explore.checkers.sequential import after_setup
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.errors import MachineError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.parts import EXTENDED_SINCE, on_disk
from qmpshim.machine.images.qcow2 import Clusters, Qcow2Reader
from qmpshim.model.chain.behaviour import VERSIONS, behaviour_of
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.disks.image import Alloc, Qcow2Image

#: By image, a letter for each cluster, or subcluster: ``D`` data, ``Z`` zeroes that keep their
#: place in the file, ``z`` zeroes that have none, ``-`` nothing.
Allocation = Mapping[str, str]
LETTERS = "D data, Z zeroes with a place in the file, z zeroes without, - nothing"


def allocation_after_setup(finding: Finding, build: Build) -> Allocation:
    """What a process of its own has in its qcow2 images when the setup is over.

    It is another process since the images have to be flushed for it, which is no part of the case.

    :returns: nothing where there is no setup, or it fails
    :raises BuildError: the build cannot do the scenario
    """
    if not finding.scenario.setup:
        return {}
    pool = QemuPool(build, reuse=False)
    try:
        system = RealSystem(pool, finding.scenario, injection=Injection(errnos=finding.errnos))
        system.reset()
        if system.violation is not None:
            return {}
        machine = system.machine
        machine.gate.open()
        for name in machine.qcow2_images:
            machine.flush(name)
        parsed = {
            name: Qcow2Reader.parse(machine.gate.snapshot(name)) for name in machine.qcow2_images
        }
        return {name: _letters(one.clusters(), one.guest_units) for name, one in parsed.items()}
    except MachineError:
        return {}
    finally:
        pool.close()


def _letters(clusters: Clusters, count: int) -> str:
    letters = ["-"] * count
    entries = zip(
        clusters.index.tolist(), clusters.kind.tolist(), clusters.host.tolist(), strict=True
    )
    for index, kind, host in entries:
        letters[index] = "D" if kind == Alloc.DATA else "z" if host < 0 else "Z"
    return "".join(letters)


def predicted_after_setup(scenario: RealScenario, version: tuple[int, ...]) -> Allocation:
    """What the model has in its qcow2 images when the setup is over, in a QEMU *version*.

    :raises InputError: the setup cannot be done
    """
    found: dict[str, str] = {}
    for disk in range(scenario.disks):
        chain = after_setup(scenario, behaviour_of(version), disk)
        if not isinstance(chain, Chain):
            return {}
        for image in (chain.secondary, chain.hidden, chain.active):
            if isinstance(image, Qcow2Image):
                found[on_disk(image.name, disk)] = "".join(
                    _predicted_letter(image, index) for index in image.clusters(0, image.size)
                )
    return found


def _predicted_letter(image: Qcow2Image, index: int) -> str:
    match image.alloc.get(index, Alloc.UNALLOCATED):
        case Alloc.DATA:
            return "D"
        case Alloc.ZERO:
            return "Z" if image.is_preallocated(index) else "z"
        case Alloc.UNALLOCATED:
            return "-"
    return "?"  # something outside the model decides


def depends_on_version(scenario: RealScenario, version: tuple[int, ...]) -> str:
    """How the state that the setup leaves in a QEMU *version* differs from that in another.

    From what such a scenario does not show on the one nothing follows for the other.

    :returns: one line, or ``""``: it is the same in all
    :raises InputError: the setup cannot be done
    """
    if not scenario.setup:
        return ""
    here = predicted_after_setup(scenario, version)
    topology = scenario.topology
    extended = any(topology.image(name).extended for name in topology.qcow2)
    for one in VERSIONS:
        if extended and one < EXTENDED_SINCE:
            continue
        for name, there in predicted_after_setup(scenario, one).items():
            if here.get(name) != there:
                return (
                    f"{scenario.name}: the setup leaves another state here than in QEMU "
                    f"{'.'.join(map(str, one[:2]))}: the {name} disk's clusters are "
                    f"{here.get(name, 'not known')}, there {there} ({LETTERS})"
                )
    return ""


def other_state(finding: Finding, build: Build) -> str:
    """How the state that the setup leaves on *build* differs from what the finding began with.

    A finding that did not record it began with what the model predicts for the version it was
    seen on; where that was not recorded either, for any.

    :returns: one line, or ``""``: it does not differ
    :raises BuildError: the build cannot do the scenario
    """
    if finding.allocation:
        here, word = allocation_after_setup(finding, build), "recorded"
        recorded: list[Allocation] = [finding.allocation]
    elif finding.scenario.setup:
        here, word = predicted_after_setup(finding.scenario, read_version(build)[0]), "predicted"
        seen_on = finding.build.get("version")
        versions = VERSIONS if seen_on is None else (tuple(seen_on),)
        recorded = [predicted_after_setup(finding.scenario, one) for one in versions]
    else:
        return ""
    for allocation in recorded:
        for name, wanted in allocation.items():
            if here.get(name) != wanted:
                return (
                    f"the setup leaves another state on this build: the {name} disk's clusters "
                    f"are {here.get(name, 'not known')}, {word} were {wanted} ({LETTERS})"
                )
    return ""
