"""When QEMU is still, and who is asked when its threads cannot be seen."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qmpshim.machine.builds import EMULATOR, Build, resolve
from qmpshim.machine.gated_chain import Form, GatedMachine, Shape
from qmpshim.machine.nbd_proto import Op

SHAPE = Shape(Form.BACKUP, 256 << 10, 64 << 10)


@pytest.fixture(params=["itself", "child of a wrapper"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, qemu_build: Build, qemu_on_path: None
) -> Iterator[GatedMachine]:
    build = qemu_build
    if request.param != "itself":
        wrapper = tmp_path / "qemu-system-x86_64"
        wrapper.write_text(
            f"#!{sys.executable}\n"
            "import subprocess, sys\n"
            "from qmpshim.machine.workspace import dies_with_owner\n"
            f"words = dies_with_owner([{shutil.which(EMULATOR)!r}, *sys.argv[1:]])\n"
            "sys.exit(subprocess.run(words, close_fds=False).returncode)\n"
        )
        wrapper.chmod(0o755)
        build = resolve(str(wrapper))
    with closing(GatedMachine(build, SHAPE)) as made:
        yield made


def test_what_was_sent_has_been_handled(machine: GatedMachine) -> None:
    client = machine.clients["primary"]
    for number in range(5):
        machine.gate.hold("secondary")
        cookie = client.send(Op.READ, number * 512, 512)
        machine.settle()
        assert [io.image for io in machine.gate.held] == ["secondary"]
        assert cookie not in client.answers
        machine.gate.release_all()
        machine.settle()
        assert cookie in client.answers
