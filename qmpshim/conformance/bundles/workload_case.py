"""What the bundles of all random workloads share: the evidence, and what a replay must show."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.errors import InputError
from qmpshim.machine.host.files import copy_sparse, write_directory
from qmpshim.machine.host.process import Qemu

CASE = "case.json"


class WorkloadCase(ABC):
    """What a bundle replays.

    :ivar divergence: what it shows; None: that all goes as predicted
    """

    __slots__ = ()
    operations: tuple[Any, ...]
    divergence: Divergence | None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """As JSON; sizes in bytes, positions in sectors."""

    @property
    def shows(self) -> str:
        """What it shows, in words."""
        return "that all goes as predicted" if self.divergence is None else str(self.divergence)

    @property
    def wrong(self) -> Divergence:
        """What it shows.

        :raises InputError: that all goes as predicted
        """
        if self.divergence is None:
            raise InputError("these operations were recorded as ones that show nothing wrong")
        return self.divergence

    def shown_by(self, found: Divergence | None) -> bool:
        """Whether a replay that *found* this showed the same."""
        if self.divergence is None or found is None:
            return self.divergence is found
        return self.divergence.same_as(found)


def save_case(
    directory: Path, case: WorkloadCase, readme: str, write_more: Callable[[Path], None]
) -> Path:
    """Write a bundle; it appears whole or not at all.

    :param directory: what it is to be called; a number is added when that is taken
    :param readme: with the case's fields in braces
    :param write_more: writes what else belongs into it
    :returns: where it is
    :raises HostError: the directory cannot be written
    """

    def write(parts: Path) -> None:
        write_json(parts / CASE, case.to_json())
        (parts / "README").write_text(readme.format(case=case, count=len(case.operations)))
        (parts / "operations.txt").write_text("".join(f"{one}\n" for one in case.operations))
        write_more(parts)

    return write_directory(directory, write)


def write_json(path: Path, value: Any) -> None:
    """Write a file to be read by people, too."""
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_evidence(parts: Path, qemu: Qemu, directory: Path, images: Iterable[Path]) -> None:
    """Copy what the QEMU of a run left: its command line, its logs, its images.

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
