"""What checking costs: verified operations against bare ones, and the cross-check of large disks.

Run it: ``python -m vmtests.bench.bench_verify``.  Everything that is compared runs in one process
on one machine in turns, and what is printed is the median of the turns; other work on the machine
hits both sides.  Nothing is asserted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from qmpshim.conformance.compare.crosscheck import CrossCheck
from qmpshim.conformance.workload.session import Rig, Setup, WorkloadRun, open_rig
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import CommandFailed, IOFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR
from vmtests.support.processes import peak_memory

MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40
OPERATIONS = 20_000
TURNS = 3


# -- operations a second -------------------------------------------------------------------------


async def verified(rig: Rig, operations: Sequence[Operation]) -> float:
    """Seconds for all operations with all cross-checks."""
    session = WorkloadRun(rig)
    began = time.perf_counter()
    result = await session.run(operations)
    assert result.divergence is None, result.divergence
    await session.finish()
    took = time.perf_counter() - began
    await session.close()
    assert result.divergence is None, result.divergence
    return took


async def bare(rig: Rig, operations: Sequence[Operation]) -> float:
    """Seconds for the same requests and commands with nothing looked at."""
    chain = rig.chain
    data = memoryview(b"\xa5" * (8 * MiB))
    buffer = bytearray(8 * MiB)
    commands: dict[Verb, Callable[[], Coroutine[Any, Any, object]]] = {
        Verb.STATUS: lambda: chain.status(),
        Verb.START: lambda: chain.start(),
        Verb.CHECKPOINT: lambda: chain.checkpoint(),
        Verb.STOP: lambda: chain.stop(),
        Verb.FAILOVER: lambda: chain.failover(),
        Verb.REBUILD: lambda: chain.rebuild(),
    }
    began = time.perf_counter()
    for operation in operations:
        kind = operation.verb
        if operation.side is Side.CHAIN:
            if kind is not Verb.CHECK:
                with contextlib.suppress(CommandFailed):
                    await commands[kind]()
            continue
        client = chain.primary if operation.side is Side.PRIMARY else chain.guest
        offset, length = operation.start * SECTOR, operation.count * SECTOR
        assert isinstance(client, NbdClient)
        handle = client._handle  # libnbd itself: what a bare client takes
        if kind is Verb.READ:
            with memoryview(buffer)[:length] as part:
                cookie = handle.aio_pread(part, offset)
        elif kind is Verb.WRITE:
            cookie = handle.aio_pwrite(data[:length], offset)
        elif kind is Verb.ZERO:
            cookie = handle.aio_zero(length, offset)
        elif kind is Verb.DISCARD:
            cookie = handle.aio_trim(length, offset)
        else:
            cookie = handle.aio_flush()
        with contextlib.suppress(IOFailed):
            client.wait(cookie)
    return time.perf_counter() - began


def part(pid: int) -> None:
    """Give QEMU's threads and this process a core each."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cores[-1]})
    os.sched_setaffinity(0, {cores[0]})


async def rates(setup: Setup, workspace: Workspace, parted: bool) -> None:
    """Both in turns.

    :param parted: with QEMU on a core of its own. Left to itself the scheduler puts QEMU and an
        idle client on one core, where they wake each other quickest; a checking client has use for
        the other core, and each wake-up across cores costs it what bare I/O then does not pay
    """
    operations = list(Workload(setup.spec, 1).take(OPERATIONS))
    took: dict[str, list[float]] = {"verified": [], "bare": []}
    for turn in range(TURNS):
        order = [("verified", verified), ("bare", bare)]
        for name, run in order if turn % 2 else reversed(order):
            rig = await open_rig(setup, workspace.subdirectory("rate"))
            cores = os.sched_getaffinity(0)
            try:
                if parted:
                    part(rig.qemu.pid)
                gc.collect()
                took[name].append(await run(rig, operations))
            finally:
                os.sched_setaffinity(0, cores)
                await rig.close()
    rate = {name: OPERATIONS / statistics.median(values) for name, values in took.items()}
    ratios = [b / v for v, b in zip(took["verified"], took["bare"], strict=True)]
    where = "a core each" if parted else "as scheduled"
    print(
        f"{setup.spec.workflow:12} {where} verified {rate['verified']:7,.0f} operations/s, "
        f"bare {rate['bare']:7,.0f}; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}; wanted: 0.6)"
    )


# -- large disks ---------------------------------------------------------------------------------


async def filled(
    setup: Setup, workspace: Workspace, places: Sequence[int], length: int
) -> tuple[Rig, WorkloadRun]:
    """A chain whose hidden disk holds *length* bytes at each of *places*."""
    rig = await open_rig(setup, workspace.subdirectory("large"))
    session = WorkloadRun(rig)
    operations = [
        Operation(Side.PRIMARY, Verb.WRITE, at // SECTOR, length // SECTOR) for at in places
    ]
    start = Operation(Side.CHAIN, Verb.START)
    numbered = [
        Operation(o.side, o.verb, o.start, o.count, number=number)
        for number, o in enumerate([*operations, start, *operations], 1)
    ]
    result = await session.run(numbered)
    assert result.divergence is None, result.divergence
    return rig, session


async def full_disk(setup: Setup, workspace: Workspace) -> None:
    """The hidden disk's file against its prediction, 1 GiB of data."""
    rig, session = await filled(setup, workspace, range(0, setup.spec.size, 2 * MiB), 2 * MiB)
    try:
        await rig.chain.settle()
        check = CrossCheck(rig.chain, rig.oracle, {})
        took = []
        for _ in range(TURNS + 1):
            began = time.perf_counter()
            found = list(check.check_image("hidden"))
            took.append(time.perf_counter() - began)
            assert not found, found
        assert check.clusters * setup.spec.cluster == (TURNS + 1) * setup.spec.size
        seconds = statistics.median(took[1:])
        size = setup.spec.size / GiB
        print(
            f"full disk    {size:.0f} GiB hidden disk compared in {seconds:.2f} s: "
            f"{size / seconds:.2f} GiB/s (wanted: 1)"
        )
        began = time.perf_counter()
        await session.finish()
        assert session.result.divergence is None, session.result.divergence
        print(f"             with all views and tools: {time.perf_counter() - began:.2f} s")
    finally:
        await session.close()
        await rig.close()


async def sparse_disk(setup: Setup, workspace: Workspace) -> None:
    """Every image, view and tool on a 1 TiB disk with 64 MiB in it."""
    places = [setup.spec.size // 64 * n + n * 4096 for n in range(64)]
    rig, session = await filled(setup, workspace, places, MiB)
    try:
        took = []
        for _ in range(TURNS):
            began = time.perf_counter()
            await session.finish()
            took.append(time.perf_counter() - began)
            assert session.result.divergence is None, session.result.divergence
        print(json.dumps({"seconds": statistics.median(took), "MiB": peak_memory()}))
    finally:
        await session.close()
        await rig.close()


def in_a_process_of_its_own() -> None:
    """Peak memory is a process's, so this one's must be new."""
    done = subprocess.run(
        [sys.executable, "-m", "vmtests.bench.bench_verify", "sparse"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(
        f"sparse disk  1 TiB with 64 MiB in it: full cross-check {found['seconds']:.2f} s "
        f"(wanted: 2), peak memory {found['MiB']:.0f} MiB (wanted: 300)"
    )


def main() -> None:
    build = Build.system()
    with Workspace() as workspace:
        if sys.argv[1:] == ["sparse"]:
            spec = ChainSpec(Workflow.BACKUP, TiB)
            asyncio.run(sparse_disk(setup_for(build, spec), workspace))
            return
        print(f"QEMU {setup_for(build, ChainSpec(Workflow.BACKUP)).command[0]}")
        for workflow in Workflow:
            for parted in (False, True):
                asyncio.run(rates(setup_for(build, ChainSpec(workflow)), workspace, parted))
        asyncio.run(full_disk(setup_for(build, ChainSpec(Workflow.BACKUP, GiB)), workspace))
    in_a_process_of_its_own()


if __name__ == "__main__":
    main()
