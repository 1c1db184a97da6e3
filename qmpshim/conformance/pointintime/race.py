"""Snapshots of all disks begin in one transaction while the disks are written to: T0 is one."""

from __future__ import annotations

import asyncio

from qmpshim.conformance.pointintime.commands import action_command
from qmpshim.conformance.pointintime.jobs import Jobs
from qmpshim.conformance.pointintime.operations import PointOperation
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.record import RequestSent
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.jobs import JobSpec, Sync
from qmpshim.model.pointintime.sectors import sectors
from qmpshim.model.units import SECTOR


async def race(jobs: Jobs, operation: PointOperation) -> None:
    """Start snapshots of all disks in one transaction while the disks are written to.

    Writes of one sector go to one disk after the other, each after the answer to the one
    before. What the snapshots hold of them shows T0, which has to be one: a write is in them
    only if all before it are.
    """
    await jobs.poll()
    sides, snapshots = jobs.sides, jobs.snapshots
    chain, model, disks = sides.chain, sides.model, range(sides.setup.spec.disks)
    if model.jobs:
        return
    specs = [JobSpec(disk, Sync.NONE) for disk in disks]
    made = {spec.id: await jobs.open_target(spec, operation) for spec in specs}
    commands = [action_command(spec, f"target{spec.disk}") for spec in specs]
    data = [{"type": name, "data": dict(more)} for name, more in commands]
    before = [disk.now.copy() for disk in model.disks]
    started = asyncio.create_task(chain.transaction(data, False))
    written: list[tuple[int, int]] = []
    after = 0
    for index in range(operation.count):
        disk, sector = index % len(disks), operation.start + index
        sent = pattern.data_of(operation.number, sector, 1)
        chain.clients[disk].write(sent, sector * SECTOR)
        chain.steps.append(RequestSent(f"disk{disk}", Verb.WRITE, sector, 1, operation.number))
        model.disks[disk].write(sector, 1, operation.number)
        sides.rotation.touch(disk, sector, 1)
        written.append((disk, sector))
        after += started.done()
        if after > 2 * len(disks):
            break
        await asyncio.sleep(0)
    await started
    model.transact(specs)
    jobs.targets.update(made)
    for disk in disks:
        await snapshots.export(disk)
    length, offset = len(written) * SECTOR, operation.start * SECTOR
    found = [memoryview(chain.read(f"snapshot{disk}", length, offset)) for disk in disks]
    held = 0
    for disk, sector in written:
        at = (sector - operation.start) * SECTOR
        if found[disk][at : at + SECTOR] != pattern.data_of(operation.number, sector, 1):
            break
        held += 1
    # The model's T0 was taken after all of them.
    for disk, sector in written[held:]:
        model.jobs[f"job{disk}"].t0.write(sector, before[disk].read(sector, 1))
    for disk in disks:
        t0 = model.jobs[f"job{disk}"].t0
        where, export = "snapshots of one transaction", f"snapshot{disk}"
        part = sectors(operation.start, len(written))
        sides.compare(Verdict.ISOLATION, where, export, t0, part)
