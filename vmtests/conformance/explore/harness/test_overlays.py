"""An overlay's bytes are read as what they hold, however they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpshim.conformance.explore.harness.overlays import overlay_in
from qmpshim.conformance.explore.scenarios import BASE
from qmpshim.conformance.workload import pattern
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR
from vmtests.support.failing import one
from vmtests.support.qcow2_images import make_image

pytestmark = pytest.mark.usefixtures("qemu_on_path")


@pytest.mark.parametrize("how", ["write", "write -c"])
def test_whose_each_sector_is(tmp_path: Path, how: str) -> None:
    """Compressed clusters are elsewhere in the file, and hold the same."""
    scenario = one("push-Wf")
    cluster = scenario.cluster_of("hidden")
    data = tmp_path / "data"
    data.write_bytes(bytes(pattern.data_of(BASE, cluster, cluster)))
    place = f"{cluster * SECTOR} {cluster * SECTOR}"
    size = scenario.size * SECTOR
    image = make_image(tmp_path / "image", size, f"{how} -s {data} {place}").read_bytes()
    overlay = overlay_in(image, scenario, "hidden")
    assert overlay.violation is None
    assert overlay.content[: 2 * cluster] == (None,) * cluster + (BASE,) * cluster
    assert overlay.kinds[:2] == (Alloc.UNALLOCATED, Alloc.DATA)
