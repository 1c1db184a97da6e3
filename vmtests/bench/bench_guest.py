"""The guest: seconds to a prompt, booted and restored, by build; its verified I/O against bare.

Run by hand: ``python -m vmtests.bench.bench_guest``.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

from qmpshim.conformance.guest.program import PROGRAM
from qmpshim.conformance.guest.rig import GuestOpener
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds import registry
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest import saved_state
from qmpshim.machine.guest.guest import Guest, GuestSpec, boot
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Verb

BUILDS = ("system", "debian:bullseye", "debian:trixie", "debian:sid")
RUNS = 3
WANTED_BOOT = 4.0  # seconds from exec to prompt
OPERATIONS = 400


def processor_seconds(guest: Guest) -> float:
    """What QEMU has used of the processor: the wall's clock also shows how busy the machine is."""
    fields = Path(f"/proc/{guest.qemu.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def timed_boot(build: Build, image: GuestImage, machine: str) -> tuple[float, float]:
    with Workspace() as workspace:
        began = time.monotonic()
        guest = await boot(build, image, workspace.path, GuestSpec(machine))
        took = time.monotonic() - began, processor_seconds(guest)
        await guest.close()
        return took


async def timed_restore(build: Build, image: GuestImage) -> tuple[float, float]:
    with Workspace() as workspace:
        began = time.monotonic()
        guest = await saved_state.ready(build, image, workspace.path)
        took = time.monotonic() - began, processor_seconds(guest)
        await guest.close()
        return took


def medians(runs: list[tuple[float, float]]) -> tuple[float, str]:
    """The median of the wall's clock, and both medians in words."""
    wall, processor = (statistics.median(column) for column in zip(*runs, strict=True))
    return wall, f"{wall:.2f} ({processor:.2f})"


async def rate(build: Build, image: GuestImage, verified: bool) -> float:
    """Operations/s of the guest's program: alone, or predicted, judged and cross-checked."""
    with Workspace() as workspace:
        setup = setup_for(build, ChainSpec(Workflow.REPLICATION, 8 << 20))
        rig = await GuestOpener(build, image)(setup, workspace.path)
        work = GuestWork(rig, setup.qemu_img)
        work.primary(Verb.WRITE, 0, 4096)
        await work.command(Verb.START)
        found = []
        for turn in range(RUNS):
            began = time.monotonic()
            if verified:
                work.random(turn, OPERATIONS, 4096)
                await work.check()
            else:
                _bare(rig.machine, work.plan(turn, OPERATIONS, 4096))
            found.append(OPERATIONS / (time.monotonic() - began))
        if verified:
            await work.close()
        await rig.close()
        return statistics.median(found)


def _bare(guest: Guest, command: str) -> None:
    assert PROGRAM in command
    guest.run(command, 120)


async def main() -> None:
    image = guest_image.build(print)
    print(
        f"seconds to the prompt, medians of {RUNS}, in brackets the processor's (wanted: a boot "
        f"within {WANTED_BOOT:g})"
    )
    for name in BUILDS:
        if name != "system" and not registry.has(name):
            print(f"  {name:16} not fetched")
            continue
        build = builds.resolve(name)
        await timed_restore(build, image)  # makes the state, if need be
        pc = medians([await timed_boot(build, image, "pc") for _ in range(RUNS)])
        q35 = medians([await timed_boot(build, image, "q35") for _ in range(RUNS)])
        restored = medians([await timed_restore(build, image) for _ in range(RUNS)])
        verdict = "ok" if max(pc[0], q35[0]) <= WANTED_BOOT else "MISSED"
        print(f"  {name:16} boot pc {pc[1]}, q35 {q35[1]} {verdict}; restore {restored[1]}")
    bare = await rate(Build.system(), image, verified=False)
    verified = await rate(Build.system(), image, verified=True)
    print(
        f"guest operations/s: bare {bare:.0f}, verified {verified:.0f}, ratio {verified / bare:.2f}"
    )


if __name__ == "__main__":
    asyncio.run(main())
