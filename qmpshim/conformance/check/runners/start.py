"""The kind of check that every run begins with, apart from those that import what it does not need.

A run waits for it, on each build.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.runners.arguments import only
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import Qemu


def start(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """No arguments. Whether QEMU starts at all and greets: what every run needs first."""
    only(case)
    asyncio.run(_start(build, directory, case.budget / 2))
    return CaseOutcome(Status.OK, "QEMU greets")


async def _start(build: Build, directory: Path, limit: float) -> None:
    machine = build.no_machine
    qemu = Qemu(build.command(), directory, machine=machine, env=build.env, start_limit=limit)
    await qemu.start()
    await qemu.close()
