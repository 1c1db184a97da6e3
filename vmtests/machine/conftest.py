"""Fixtures of the machine's tests."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.machine.builds import Build


@pytest.fixture(scope="module")
def tools(qemu_build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The build's qemu-img, qemu-io and qemu-nbd are the first on PATH; gives their directory."""
    place = tmp_path_factory.mktemp("tools")
    env = [f"{name}={value}" for name, value in qemu_build.env.items()]
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        words = shlex.join(["env", *env, *qemu_build.tool(name)])
        (place / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (place / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
        yield place
