"""What the bundles of all random workloads share: the evidence, and what a replay must show."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.machine.host.files import copy_sparse
from qmpshim.machine.host.process import Qemu

CASE = "case.json"


def same(wanted: Divergence | None, found: Divergence | None) -> bool:
    """Whether a replay that *found* this showed what was *wanted*; None: all went as predicted."""
    return wanted.same_as(found) if wanted and found else wanted is found


def shows(wanted: Divergence | None) -> str:
    """What a bundle shows, in words."""
    return "that all goes as predicted" if wanted is None else str(wanted)


def write_evidence(parts: Path, qemu: Qemu, directory: Path, images: Iterable[Path]) -> None:
    """Copy what the QEMU of a run left: its words, its images.

    :param directory: where its logs are
    :raises OSError: the host cannot
    """
    (parts / "command-line.txt").write_text(" ".join(qemu.argv) + "\n")
    for name in ("qmp.log", "stderr", "stdout"):
        if (directory / name).exists():
            shutil.copyfile(directory / name, parts / name)
    (parts / "images").mkdir()
    for image in images:
        if image.exists():
            copy_sparse(image, parts / "images" / image.name)
