"""``qemu-img map`` and ``qemu-img check``: what QEMU's own tools report of an image."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.errors import HostError, ImageError, MachineHung
from qmpshim.machine.host.programs import run_program
from qmpshim.model.disks.image import Alloc

QEMU_IMG = ("qemu-img",)
_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class MapExtent:
    """One entry of ``qemu-img map``.

    :param start: guest offset, bytes
    :param present: some image of the chain holds it; None before QEMU 6.1, which does not report it
    :param host_offset: where in that image's file, bytes; None if nowhere
    """

    start: int
    length: int
    present: bool | None
    data: bool
    host_offset: int | None

    @property
    def alloc(self) -> Alloc | None:
        """Allocation in that image itself; None where an old QEMU leaves it open."""
        if self.data:
            return Alloc.DATA
        if self.present is None:
            return Alloc.ZERO if self.host_offset is not None else None
        return Alloc.ZERO if self.present else Alloc.UNALLOCATED


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What ``qemu-img check`` counted, and its complaints (empty for a healthy image)."""

    corruptions: int
    leaks: int
    text: str


def qemu_img_map(
    image: str | Path,
    tool: Sequence[str] = QEMU_IMG,
    *,
    driver: str | None = "qcow2",
    timeout: float = _TIMEOUT,
) -> list[MapExtent]:
    """``qemu-img map``: which bytes of the virtual disk are held where, by QEMU's account.

    :param image: a path, or any name that qemu-img opens (``json:{...}``, ``nbd+unix://...``)
    :param tool: the command qemu-img is started with
    :param driver: the image's format; None for a name that contains it (``json:``). Never left to
        QEMU's probing: an overlay with a broken header would pass as a healthy raw image.
    :param timeout: seconds
    :raises HostError: qemu-img is missing
    :raises ImageError: qemu-img refuses the image
    :raises MachineHung: qemu-img did not end in time
    """
    done = _qemu_img(tool, "map", image, driver, timeout)
    if done.returncode:
        raise ImageError(f"qemu-img map refuses the image: {_complaint(done)}")
    return [
        MapExtent(
            start=extent["start"],
            length=extent["length"],
            present=extent.get("present"),
            data=extent["data"],
            host_offset=extent.get("offset"),
        )
        for extent in _json(done)
    ]


def qemu_img_check(
    image: str | Path,
    tool: Sequence[str] = QEMU_IMG,
    *,
    driver: str | None = "qcow2",
    timeout: float = _TIMEOUT,
) -> CheckResult:
    """``qemu-img check``, which repairs nothing; parameters and errors as :func:`qemu_img_map`."""
    done = _qemu_img(tool, "check", image, driver, timeout)
    # qemu-img(1): 0 healthy, 2 corruptions, 3 leaks only; 1 the check did not complete.
    if done.returncode not in (0, 2, 3):
        raise ImageError(f"qemu-img check refuses the image: {_complaint(done)}")
    counted = _json(done)
    return CheckResult(counted.get("corruptions", 0), counted.get("leaks", 0), done.stderr.strip())


def _qemu_img(
    tool: Sequence[str], verb: str, image: str | Path, driver: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    options = [] if driver is None else ["-f", driver]
    command = [*tool, verb, "--output=json", *options, str(image)]
    try:
        return run_program(command, timeout, {**os.environ, "LC_ALL": "C"})
    except subprocess.TimeoutExpired as error:
        raise MachineHung(f"qemu-img {verb} did not end in {timeout:g} s: {image}") from error
    except OSError as error:
        raise HostError(f"cannot start {tool[0]}: {error.strerror} (package qemu-utils)") from error


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise ImageError(f"qemu-img answered no JSON: {_complaint(done)}") from error


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """qemu-img's own first line about itself; hints and other programs' words come after it."""
    own = re.search(r"^\S*qemu-img: (.+)$", done.stderr, re.MULTILINE)
    lines = done.stderr.split("\n") if not own else [own[1]]
    return next(filter(None, lines), f"exit status {done.returncode}")
