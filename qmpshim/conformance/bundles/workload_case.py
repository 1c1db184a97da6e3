"""What the bundles of all random workloads share: the evidence, and what a replay must show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.harness.history import stable
from qmpshim.machine.host.files import copy_sparse
from qmpshim.machine.host.process import Qemu
from qmpshim.model.check.verdict import Verdict

CASE = "case.json"
_ENDING = re.compile(r"QEMU (.*?) during (?:\d+: [^:]*|the start)(?:: (.*))?", re.DOTALL)


def same(wanted: Divergence | None, found: Divergence | None) -> bool:
    """Whether a replay that *found* this showed what was *wanted*; None: all went as predicted.

    QEMU may end or hang for many reasons: it has to do so in the same operation, and to end in the
    same way, with the same words.
    """
    if found is None or wanted is None:
        return found is wanted
    if found.signature != wanted.signature:
        return False
    if found.verdict in (Verdict.CRASH, Verdict.HANG) and found.operation != wanted.operation:
        return False
    return found.verdict is not Verdict.CRASH or _ending(found) == _ending(wanted)


def shows(wanted: Divergence | None) -> str:
    """What a bundle shows, in words."""
    return "that all goes as predicted" if wanted is None else str(wanted)


def _ending(crash: Divergence) -> tuple[str, str]:
    """How QEMU ended, and its last words."""
    found = _ENDING.fullmatch(crash.observed)
    return (found[1], stable(found[2] or "")) if found else (stable(crash.observed), "")


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
