"""What is tried with a guest on the chain: each scenario is short, named, and judged throughout.

They start with a guest at its prompt and a chain on which nothing was started, and end with
:class:`~qmpshim.conformance.guest.work.GuestDiverged` when the model predicts otherwise.
:mod:`qmpshim.conformance.guest.run` runs them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.guest.work import GuestDiverged, GuestWork
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.guest.guest import Guest
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb
from qmpshim.model.units import SECTOR

MiB = 1 << 20
_REGION = 4096  # sectors in which both sides meet


@dataclass(frozen=True, slots=True)
class GuestScenario:
    """One scenario.

    :ivar about: what is done, in one line
    :ivar log: it needs a record of the guest's writes
    :ivar size: of the disk, bytes
    """

    name: str
    about: str
    run: Callable[[GuestWork, int], Awaitable[None]]
    log: bool = False
    size: int = 8 * MiB


async def _mixed(work: GuestWork, seed: int) -> None:
    """the guest and the primary at the same places, one after the other, with checkpoints"""
    _fill(work)
    await work.command(Verb.START)
    for turn in range(3):
        work.random(seed + turn, 40, _REGION)
        for number in range(12):
            work.primary(Verb.WRITE, (turn * 331 + number * 173) % 4000, 90)
        work.primary(Verb.ZERO, 128 * turn, 200)
        work.random(seed + turn + 50, 20, _REGION)
        await work.check()
        await work.command(Verb.CHECKPOINT)
        await work.check()
    await _fail_over(work, seed)


async def _both_sides(work: GuestWork, seed: int) -> None:
    """the guest and the primary at the same places at the same time, with checkpoints"""
    _fill(work)
    await work.command(Verb.START)
    for turn in range(3):
        beside = [(Verb.WRITE, (seed + turn * 37 + n * 61) % 4000, 1 + n % 96) for n in range(60)]
        work.random(seed + turn, 60, _REGION, beside)
        await work.check()
        await work.command(Verb.CHECKPOINT)
    await _fail_over(work, seed)


async def _reboot(work: GuestWork, seed: int) -> None:
    """the guest reboots, and is paused again and again in the middle of its work"""
    guest, execute = work.rig.machine, work.rig.qemu.execute
    _fill(work)
    await work.command(Verb.START)
    work.random(seed, 40, _REGION)
    guest.send("reboot -f")
    work.primary(Verb.WRITE, 1024, 64)  # there is no guest to speak of
    guest.wait_for_prompt()
    work.random(seed + 1, 40, _REGION)
    await work.check()
    work.begin(seed + 2, 200, _REGION)
    for turn in range(5):
        await execute("stop")
        work.primary(Verb.WRITE, 1100 + 100 * turn, 64)
        await execute("cont")
    work.end()
    await _fail_over(work, seed)


async def _two_disks(work: GuestWork, seed: int) -> None:
    """two disks with a chain each, on virtio-blk and virtio-scsi, both busy at once"""
    other = await work.add_disk(Attachment("virtio-scsi"))
    _fill(work)
    _fill(other)
    await work.command(Verb.START)
    for turn in range(2):
        one = work.plan(seed + turn, 60, _REGION)
        two = other.plan(seed + turn + 7, 60, _REGION)
        work.rig.machine.send(
            f"{one} >/tmp/1 & {two} >/tmp/2; wait; cat /tmp/1; echo -; cat /tmp/2"
        )
        for number in range(20):
            work.primary(Verb.WRITE, 190 * number, 70)
            other.primary(Verb.WRITE, 170 * number, 40)
        first, _, second = work.rig.machine.finish(check=False).output.partition("\n-\n")
        work.check_output(first)
        other.check_output(second)
        await work.check()
        await work.command(Verb.CHECKPOINT)
        await work.check()
    await _fail_over(work, seed)
    other.random(seed, 20, _REGION)


def _fill(work: GuestWork) -> None:
    """Old contents worth keeping, with gaps."""
    for start in range(0, 8 * MiB // SECTOR, 1024):
        work.primary(Verb.WRITE, start, 512)


async def _fail_over(work: GuestWork, seed: int) -> None:
    work.random(seed + 100, 30, _REGION)
    await work.command(Verb.FAILOVER)
    await work.check()
    work.random(seed + 101, 20, _REGION)


# -- file systems ------------------------------------------------------------------------------


async def _ext4_failover(work: GuestWork, seed: int) -> None:
    """an ext4 that is mounted and written all the time survives a failover"""
    guest, chain = work.rig.machine, work.chain
    await work.command(Verb.START)
    guest.run(f"/sbin/mke2fs -q -t ext4 {chain.disk} && mount -t ext4 {chain.disk} /mnt")
    await _held(work)
    # What the primary writes from here on is not for the guest to see.
    work.primary(Verb.WRITE, 0, 4096)
    before = _make_files(guest, 1)
    _same_files(work, before)
    await _held(work, failover=True)
    # The file system was mounted all the time, and goes on.
    _same_files(work, before)
    after = _make_files(guest, 2)
    guest.run("umount /mnt")
    _is_clean(work, chain.disk)
    guest.run(f"mount -t ext4 {chain.disk} /mnt")
    _same_files(work, after)
    guest.run("umount /mnt")
    await _held(work)


async def _ext4_checkpoint(work: GuestWork, seed: int) -> None:
    """the primary's ext4 comes with the checkpoint, and only then; one guest is both sides"""
    guest, chain = work.rig.machine, work.chain
    source = await work.add_source(chain.spec.size)
    await work.command(Verb.START)
    guest.run(f"/sbin/mke2fs -q -t ext4 {source}")
    before = ""
    for turn in (1, 2):
        guest.run(f"mount -t ext4 {source} /mnt")
        files = _make_files(guest, turn)
        guest.run("umount /mnt")
        await work.send_source()
        await work.check()
        # Between two checkpoints nothing changes: no file system yet, then the first one.
        mounted = guest.run(f"mount -t ext4 -o ro {chain.disk} /mnt", check=False).status == 0
        if mounted is not bool(before):
            raise _wrong(work, "a mount before the checkpoint", not mounted, mounted)
        if mounted:
            _same_files(work, before)
            guest.run("umount /mnt")
        await work.command(Verb.CHECKPOINT)
        await work.check()
        _is_clean(work, chain.disk)
        guest.run(f"mount -t ext4 -o ro {chain.disk} /mnt")
        _same_files(work, files)
        guest.run("umount /mnt")
        before = files
    await work.check()


async def _held(work: GuestWork, failover: bool = False) -> None:
    """Stop the guest, feed the model with what it wrote, and cross-check."""
    await work.chain.hold()
    if work.observe() == 0:
        raise _wrong(work, "the write log", "the guest's writes", "nothing")
    await work.check()
    if failover:
        await work.command(Verb.FAILOVER)
        await work.check()
    await work.chain.release()


def _make_files(guest: Guest, seed: int) -> str:
    """Write, rename, link and remove files in /mnt; the sums of what is there."""
    place = f"/mnt/d{seed}"
    guest.run(f"mkdir -p {place}")
    guest.run(
        f"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do dd if=/dev/urandom of={place}/f$n"
        " bs=4k count=$((n * 3)) 2>/dev/null || exit 1; done"
    )
    guest.run(f"cd {place} && rm f3 f6 && mv f9 renamed && ln f1 linked; cd /")
    guest.run(f"dd if=/dev/zero of={place}/f2 bs=1k count=7 2>/dev/null; sync")
    return _sums(guest)


def _sums(guest: Guest) -> str:
    return guest.run("cd /mnt && find . -type f | sort | xargs sha256sum; cd /").output


def _same_files(work: GuestWork, wanted: str) -> None:
    """Read all files again, from the disk."""
    guest = work.rig.machine
    guest.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    seen = _sums(guest)
    if seen == wanted:
        return
    lines = zip([*wanted.splitlines(), ""], [*seen.splitlines(), ""], strict=False)
    first = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
    raise _wrong(work, "the guest's files", *first)


def _is_clean(work: GuestWork, disk: str) -> None:
    """e2fsck finds nothing to mend."""
    ran = work.rig.machine.run(f"/sbin/e2fsck -fn {disk}", check=False)
    if ran.status == 0:
        return
    last_line = (ran.output.strip().splitlines() or ["nothing"])[-1]
    raise _wrong(work, "e2fsck", "a clean file system", last_line, Verdict.CORRUPTION)


def _wrong(
    work: GuestWork,
    where: str,
    predicted: object,
    observed: object,
    verdict: Verdict = Verdict.CONTENT,
) -> GuestDiverged:
    return GuestDiverged(Divergence(verdict, where, work.number, str(predicted), str(observed)))


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        GuestScenario("mixed", _mixed.__doc__ or "", _mixed),
        GuestScenario("both-sides", _both_sides.__doc__ or "", _both_sides),
        GuestScenario("reboot", _reboot.__doc__ or "", _reboot),
        GuestScenario("two-disks", _two_disks.__doc__ or "", _two_disks),
        GuestScenario(
            "ext4-failover", _ext4_failover.__doc__ or "", _ext4_failover, True, 32 * MiB
        ),
        GuestScenario(
            "ext4-checkpoint", _ext4_checkpoint.__doc__ or "", _ext4_checkpoint, size=32 * MiB
        ),
    )
}
