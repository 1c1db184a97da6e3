"""The legend of a chain: roles for all, and options that a real QEMU takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.legend import legend

EACH = pytest.mark.parametrize("chain", TOPOLOGIES)


@EACH
def test_every_part_has_a_role(chain: str) -> None:
    topology = TOPOLOGIES[chain]
    assert topology.roles.keys() == {part.name for part in topology.parts}
    lines = dict(zip((part.name for part in topology.parts), legend(topology), strict=True))
    for name, (text, _) in lines.items():
        assert f"`{name}`" in text and topology.roles[name] in text


@EACH
def test_a_real_qemu_takes_the_options(chain: str, qemu_build: Build, tmp_path: Path) -> None:
    topology = TOPOLOGIES[chain]
    if topology.has("snapshot-access") and read_version(qemu_build)[0] < (7, 0):
        pytest.skip("no snapshot-access")
    qemu_img = shutil.which("qemu-img")
    assert qemu_img
    for name in topology.images:
        driver = topology.node(name).driver
        words = ["create", "-q", "-f", driver, f"{name}.{driver}", "1M"]
        subprocess.run([qemu_img, *words], cwd=tmp_path, check=True)
    options = [word for _, option in legend(topology) if option for word in ("-blockdev", option)]
    command = [*qemu_build.command(), "-nodefaults", "-machine", "none", "-display", "none"]

    def ends(*more: str) -> subprocess.CompletedProcess[str]:
        quit_it = '{"execute": "qmp_capabilities"}{"execute": "quit"}'
        return subprocess.run(
            [*command, "-qmp", "stdio", *more],
            cwd=tmp_path,
            input=quit_it,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = ends(*options)
    assert done.returncode == 0 and "SHUTDOWN" in done.stdout, done
    name = topology.images[0]
    (tmp_path / f"{name}.{topology.node(name).driver}").unlink()
    assert ends(*options).returncode != 0
