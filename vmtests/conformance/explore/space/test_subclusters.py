"""Images with subclusters in the space: mutants of their model are killed, and scripts see them."""

from __future__ import annotations

from typing import Any

import pytest

from qmpshim.conformance.compare.evidence import Allocated
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.setup_state import (
    allocation_after_setup,
    depends_on_version,
    predicted_after_setup,
)
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.errors import OptionMissing
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain import images
from qmpshim.machine.chain.images import blank_qcow2, filled_qcow2
from qmpshim.machine.chain.parts import EXTENDED
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Qcow2Image
from qmpshim.model.disks.subclusters import SUBCLUSTERS, ExtendedQcow2
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.units import SECTOR
from vmtests.support.failing import explored
from vmtests.support.reproducer import NOT_SEEN, SEEN, Reproducer

CLUSTER, UNIT = 128, 4  # sectors


def _scenario(name: str) -> RealScenario:
    return scenario_of(point_named(name))


def found(pool: QemuPool, name: str, most: int = 12) -> set[Verdict]:
    """What is wrong in the first schedules of a point of the space."""
    system = explored(pool, _scenario(name), mode=Mode.DPOR, most=most, online=True)
    return {verdict for verdict, _ in system.found}


def _whole_cluster_allocated(self: ExtendedQcow2, start: int, count: int) -> range:
    size = self.info_cluster
    low = start // size * SUBCLUSTERS
    last = min(-(-(start + count) // size) * size, self.size)
    return range(low, -(-last // self.cluster))


def _subclusters_discarded(self: ExtendedQcow2, *args: Any) -> None:
    Qcow2Image.apply_discard(self, *args)


@pytest.mark.parametrize(
    ("name", "attribute", "mutant", "verdict"),
    [
        ("guest_write+primary_read,place=small,subclusters=overlays", "clusters",
         _whole_cluster_allocated, Verdict.LOST_WRITE),
        ("primary_discard+start,form=pull,place=ragged,subclusters=all,secondary=qcow2",
         "apply_discard", _subclusters_discarded, Verdict.LOST_WRITE),
    ],
)  # fmt: skip
def test_mutants_of_the_model_are_killed(
    pool: QemuPool,
    name: str,
    attribute: str,
    mutant: Any,
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert found(pool, name) == set()
    monkeypatch.setattr(ExtendedQcow2, attribute, mutant)
    assert found(pool, name) == {verdict}


def test_what_a_setup_leaves_is_predicted(qemu_build: Build) -> None:
    """A letter for each subcluster, by the model and by our own reader."""
    one = _scenario(
        "primary_write+guest_write,subclusters=all,secondary=qcow2,history=both,place=small"
    )
    finding = Finding(Verdict.ALLOCATION, Cause(CauseKind.ALLOCATION), "", True, 1, (), one, (), ())
    predicted = predicted_after_setup(one, read_version(qemu_build)[0])
    assert allocation_after_setup(finding, qemu_build) == predicted
    assert len(predicted["active"]) == one.size // UNIT
    assert predicted["active"][CLUSTER // UNIT :].startswith("----DD")  # 8 sectors from the 16th on


@pytest.mark.parametrize(("allowed", "status"), [("data", NOT_SEEN), ("zero", SEEN)])
def test_a_script_sees_the_allocation_of_a_subcluster(
    pool: QemuPool, reproducer: Reproducer, allowed: str, status: int
) -> None:
    """Of the sixth of the second cluster, which a small write has made."""
    one = _scenario("guest_write+primary_read,place=small,subclusters=overlays")
    system = explored(pool, one, mode=Mode.DPOR, most=1, online=True)
    first = one.ops[0].start // UNIT
    finding = Finding(
        Verdict.ALLOCATION, Cause(CauseKind.ALLOCATION), "", True, 1, (one.name,), one,
        tuple(system.now.steps), tuple(system.now.events),
        build={"version": list(read_version(pool.build)[0])},
        evidence=Allocated("active", first, (allowed,)),
    )  # fmt: skip
    seen, output = reproducer(export_script(finding))
    assert seen == status, output


def test_a_build_without_subclusters_cannot_do_it(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 125, and not as a host that lacks something."""
    monkeypatch.setattr(images, "read_version", lambda build: ((5, 1, 0), "5.1.0"))
    with pytest.raises(OptionMissing, match="subclusters"):
        blank_qcow2(qemu_build, 77 * SECTOR, CLUSTER * SECTOR, (EXTENDED,))
    with pytest.raises(OptionMissing, match="subclusters"):
        filled_qcow2(qemu_build, bytes(77 * SECTOR), CLUSTER * SECTOR, (EXTENDED,))


def test_what_other_versions_leave_is_of_those_that_have_subclusters() -> None:
    """4.1 has no such image."""
    name = "primary_write+guest_read,form=backup,secondary=qcow2,history=zeroed"
    assert "4.1" in depends_on_version(_scenario(name), (10, 0, 0))
    extended = depends_on_version(_scenario(f"{name},subclusters=all"), (10, 0, 0))
    assert "4.1" not in extended and "5.2" in extended
