"""What nobody chose is predicted, too: mkfs and an ext4 at work, seen in the guest's write log."""

from __future__ import annotations

from guest_rigs import MiB, at_work

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.guest_work import GuestWork
from qmpshim.conformance.workload import Kind
from qmpshim.machine.guest import Guest
from qmpshim.machine.guest_chain import Attachment
from qmpshim.machine.guest_image import GuestImage
from qmpshim.machine.secondary import ChainSpec
from qmpshim.machine.workspace import Workspace
from qmpshim.model.chain import Workflow

SPEC = ChainSpec(Workflow.REPLICATION, 32 * MiB)
LOGGED = Attachment(log=True)


def make_files(guest: Guest, seed: int) -> str:
    """Write, rename and remove files in /mnt; the sums of what is left."""
    guest.run(f"mkdir -p /mnt/d{seed}; cd /mnt/d{seed}")
    guest.run(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do"
        " dd if=/dev/urandom of=f$n bs=4k count=$((n * 3)) 2>/dev/null || exit 1; done"
    )
    guest.run("rm f3 f6; mv f9 renamed; ln f1 linked; dd if=/dev/zero of=f2 bs=1k count=7; cd /")
    return sums(guest)


def sums(guest: Guest) -> str:
    return guest.run("cd /mnt && find . -type f | sort | xargs sha256sum; cd /").output


def is_clean(guest: Guest, disk: str) -> None:
    """e2fsck finds nothing to mend."""
    guest.run(f"/sbin/e2fsck -fn {disk}")


def test_a_file_system_on_the_chain_survives_a_failover(
    image: GuestImage, workspace: Workspace
) -> None:
    async def scenario(work: GuestWork) -> Divergence | None:
        guest, chain = work.rig.machine, work.chain
        found = await work.command(Kind.START)
        guest.run(f"/sbin/mke2fs -q -t ext4 {chain.disk} && mount -t ext4 {chain.disk} /mnt")
        await chain.hold()
        assert work.observe() > 10
        # The primary's writes to come must not be seen by the guest.
        found = found or await work.check() or work.primary(Kind.WRITE, 0, 4096)
        await chain.release()
        before = make_files(guest, 1)
        guest.run("sync; echo 3 >/proc/sys/vm/drop_caches")
        assert sums(guest) == before
        await chain.hold()
        assert work.observe() > 10
        found = found or await work.check() or await work.command(Kind.FAILOVER)
        found = found or await work.check()
        await chain.release()
        # The file system was mounted all the time, and goes on.
        guest.run("echo 3 >/proc/sys/vm/drop_caches")
        assert sums(guest) == before
        after = make_files(guest, 2)
        guest.run("umount /mnt")
        is_clean(guest, chain.disk)
        guest.run(f"mount -t ext4 {chain.disk} /mnt")
        assert sums(guest) == after
        await chain.hold()
        work.observe()
        return found or await work.check()

    assert (found := at_work(image, workspace, scenario, LOGGED, spec=SPEC)) is None, str(found)


def test_a_file_system_of_the_primary_comes_with_the_checkpoint(
    image: GuestImage, workspace: Workspace
) -> None:
    """One guest is both: what it writes to a disk of its own is what the primary sends."""

    async def scenario(work: GuestWork) -> Divergence | None:
        guest, chain = work.rig.machine, work.chain
        source = await work.add_source(SPEC.size)
        found = await work.command(Kind.START)
        guest.run(f"/sbin/mke2fs -q -t ext4 {source} && mount -t ext4 {source} /mnt")
        first = make_files(guest, 1)
        guest.run("umount /mnt")
        found = found or await work.send_source() or await work.check()
        # Not seen yet: the disk is as empty as it was.
        assert guest.run(f"mount -t ext4 {chain.disk} /mnt", check=False).status != 0
        found = found or await work.command(Kind.CHECKPOINT) or await work.check()
        guest.run(f"mount -t ext4 -o ro {chain.disk} /mnt")
        assert sums(guest) == first
        guest.run(f"umount /mnt; mount -t ext4 {source} /mnt")
        second = make_files(guest, 2)
        guest.run("umount /mnt")
        found = found or await work.send_source() or await work.check()
        guest.run(f"mount -t ext4 -o ro {chain.disk} /mnt")
        assert sums(guest) == first  # between two checkpoints nothing changes
        guest.run("umount /mnt")
        found = found or await work.command(Kind.CHECKPOINT)
        is_clean(guest, chain.disk)
        guest.run(f"mount -t ext4 -o ro {chain.disk} /mnt")
        assert sums(guest) == second
        guest.run("umount /mnt")
        return found or await work.check()

    assert (found := at_work(image, workspace, scenario, spec=SPEC)) is None, str(found)
