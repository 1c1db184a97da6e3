"""What the bundles of all random workloads share: the evidence, and what a replay must show."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.machine.host.files import copy_sparse
from qmpshim.machine.host.process import Qemu

CASE = "case.json"


class Shows:
    """What the case of a bundle shows; None: that all goes as predicted."""

    __slots__ = ()
    divergence: Divergence | None

    @property
    def shows(self) -> str:
        """The same, in words."""
        return "that all goes as predicted" if self.divergence is None else str(self.divergence)

    def shown_by(self, found: Divergence | None) -> bool:
        """Whether a replay that *found* this showed the same."""
        if self.divergence is None or found is None:
            return self.divergence is found
        return self.divergence.same_as(found)


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
