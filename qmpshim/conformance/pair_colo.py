"""Real COLO: two virtual machines, their disks compared at each checkpoint, and failover.

A checkpoint is judged while the secondary's ``vmstate-loaded`` is held on its way to the primary:
the primary stands still then, and the secondary, which has gone on a moment ago, is stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.pair_diary import Diary
from qmpshim.conformance.pair_plan import Failover
from qmpshim.conformance.pair_run import PairRun, Stuck
from qmpshim.machine.boot_guest import BLOCK, BootGuest
from qmpshim.machine.colo_link import ColoMessage
from qmpshim.machine.pair import NEVER
from qmpshim.machine.pair_member import Member
from qmpshim.model.verdict import Verdict

_BETWEEN = 4  # every so many checkpoints both sides are stopped and judged in between, too
_BOOT_LIMIT = 90.0  # seconds until the first write; KVM inside a virtual machine takes 10
_AHEAD = 15  # writes by which the side that is going to die is ahead


class ColoRun(PairRun):
    """Runs COLO, judges every checkpoint, fails over, and goes on."""

    async def _act(self) -> None:
        plan = self.plan
        guest = plan.spec.guest
        assert guest is not None
        self.guest: BootGuest = guest
        self.here = Diary(self.pair.primary)
        await self._round(plan.checkpoints)
        self.outcome.figures["checkpoints/s"] = self._rate
        await self._by_the_clock()
        if plan.failover is Failover.NONE:
            return
        survivor = await self._fail_over()
        if plan.resume:
            self.here = self.there if survivor is self.pair.secondary else self.here
            await self._resume(survivor)
            await self._round(plan.checkpoints)

    async def _round(self, checkpoints: int) -> None:
        """COLO from its start, and so many checkpoints."""
        pair = self.pair
        self.there = Diary(pair.secondary)
        self._first = 1  # the first number that the secondary's guest writes anew
        self._fed = 0  # how many of its writes the model was told
        self._cut = 0
        pair.channel.on_message = self._message
        self.doing = "start of COLO"
        since = [len(member.events) for member in pair.members]
        await pair.start_colo()
        await self._colo_runs(since)
        self.model.start()
        self._taken_over()
        self.step("COLO runs, both guests run")
        await self._progress_of(self.here, 1, _BOOT_LIMIT)
        self.step("the guest writes")
        began = time.monotonic()
        for number in range(1, checkpoints + 1):
            await self._progress_of(self.here, self.plan.writes)
            if number % _BETWEEN == 0:
                await self._between()
            await self._checkpoint(number)
            self.outcome.checkpoints += 1
            self.tell(f"checkpoint {number} of {checkpoints}")
        self._rate = checkpoints / (time.monotonic() - began)
        self.step(f"{checkpoints} checkpoints taken and judged")

    # -- starting ---------------------------------------------------------------------------

    def _message(self, message: ColoMessage) -> None:
        if message is ColoMessage.CHECKPOINT_REPLY:
            self._cut = self.there.size()  # its guest was stopped before it sent this

    async def _until(
        self, condition: Callable[[], bool], where: str, predicted: str, seconds: float = 0.0
    ) -> None:
        """Wait for ``condition()``, as long as both sides live.

        :raises Stuck: it does not come
        """
        deadline = time.monotonic() + (seconds or self.plan.limit)
        while not condition():
            if time.monotonic() > deadline or not all(
                member.qemu.alive() for member in self.pair.members
            ):
                raise Stuck(where, predicted)
            await self.pair.channel.until(condition, 0.05)

    async def _colo_runs(self, since: list[int]) -> None:
        pair = self.pair

        def runs() -> bool:
            failed = any(
                event.data.get("status") in ("failed", "completed", "cancelled")
                for event in pair.primary.heard("MIGRATION", since[0])
            ) or bool(pair.secondary.heard("COLO_EXIT", since[1]))
            if failed:
                raise Stuck("start of COLO", "both sides in COLO, and running")
            return all(
                member.heard("RESUME", first)
                for member, first in zip(pair.members, since, strict=True)
            )

        await self._until(runs, "start of COLO", "both sides in COLO, and running")

    # -- the guests ---------------------------------------------------------------------------

    async def _progress_of(self, diary: Diary, writes: int, seconds: float = 0.0) -> None:
        """Let a guest acknowledge so many more writes.

        :param seconds: how long that may take, if not the plan's limit
        """
        target = len(diary.written()) + writes
        deadline = time.monotonic() + max(seconds, self.plan.limit)
        while len(diary.written()) < target:
            member = diary.member
            if time.monotonic() > deadline or not member.qemu.alive():
                raise Stuck(
                    f"guest of the {member.name}", f"{writes} more writes (number {target})"
                )
            await asyncio.sleep(0.01)
        self.found(self._complaints())

    def _complaints(self) -> Iterable[Divergence]:
        for diary in (self.here, self.there):
            for line in diary.complaints():
                wrong = line.kind == "E"
                yield Divergence(
                    Verdict.CONTENT if wrong else Verdict.ERROR_CONTRACT,
                    f"guest of the {diary.member.name}",
                    self.model.checkpoints,
                    f"write {line.number} reads back as written" if wrong else "writes succeed",
                    "it read something else" if wrong else f"write {line.number} failed",
                )

    def _on_disk(self, disk: bytes | bytearray | memoryview, number: int) -> bool:
        """Whether a disk holds what write *number* writes."""
        at = self.guest.place(number) * 512
        return disk[at : at + BLOCK] == self.guest.block(number)

    def _taken_over(self) -> None:
        """The secondary's guest has the primary's state now: its diary begins anew."""
        self.there.cut(self._cut, self.here.begun())
        last = max(self.here.written(), default=0)
        # A write can be on the disks before its guest was told: then nobody writes it again.
        done = last + 1 if self._on_disk(self.model.disk, last + 1) else last
        self._first = done + 1
        self._fed = 0

    def _tell_model(self) -> None:
        """Tell the model what the secondary's guest wrote, as far as it was acknowledged.

        And the next write, if it is there: it was under way when the guest stopped.
        """
        written = [number for number in self.there.written() if number >= self._first]
        following = written[-1] + 1 if written else self._first
        for number in written[self._fed :]:
            self.model.guest_wrote(self.guest.place(number) * 512, self.guest.block(number))
        self._fed = len(written)
        if self._reached(following):
            self.model.guest_wrote(self.guest.place(following) * 512, self.guest.block(following))
            self._fed += 1  # when it is acknowledged it is not told again

    def _reached(self, number: int) -> bool:
        """Whether write *number* of the secondary's guest is where it goes to."""
        secondary = self.pair.secondary
        if self.model.overlaid:
            return self._on_disk(secondary.disk.read_bytes(), number)
        return self.judge.holds(
            secondary.active, self.guest.place(number) * 512, self.guest.block(number)
        )

    # -- checkpoints ----------------------------------------------------------------------------

    async def _checkpoint(self, number: int) -> None:
        pair, channel = self.pair, self.pair.channel
        where = self.doing = f"checkpoint {number}"
        channel.hold(ColoMessage.VMSTATE_LOADED)
        resumed = len(pair.primary.heard("RESUME"))
        await pair.set_delay(NEVER)
        await self._until(
            lambda: channel.waiting is ColoMessage.VMSTATE_LOADED, where, "vmstate-loaded"
        )
        await pair.stop_secondary()
        self.model.checkpoint()
        self._taken_over()
        self._tell_model()
        self.found(self.judge.all(pair.primary, pair.secondary))
        self.found(await self._errors())
        self.found(self._complaints())
        await pair.secondary.qemu.execute("cont")
        channel.hold()
        channel.release()
        await self._until(
            lambda: len(pair.primary.heard("RESUME")) > resumed,
            where,
            "the primary going on after vmstate-loaded",
        )

    async def _between(self) -> None:
        """Stop both and judge: the promise holds at any time, not only at checkpoints."""
        pair = self.pair
        await pair.pause()
        self._tell_model()
        self.found(self.judge.all(pair.primary, pair.secondary))
        await pair.resume()

    async def _errors(self) -> list[Divergence]:
        return [
            Divergence(
                Verdict.ERROR_CONTRACT,
                f"query-xen-replication-status of the {member.name}",
                self.model.checkpoints,
                "no error",
                error,
            )
            for member in self.pair.members
            if (error := await member.replication_error()) is not None
        ]

    async def _by_the_clock(self) -> None:
        """Some checkpoints that ``x-checkpoint-delay`` alone brings, then one more to judge."""
        self.doing = "checkpoints by the clock"
        channel = self.pair.channel
        before = channel.loaded
        await self.pair.set_delay(50)
        await self._until(
            lambda: channel.loaded >= before + 4, "checkpoints by the clock", "four of them"
        )
        channel.hold(ColoMessage.VMSTATE_LOADED)  # else the last of them overtakes the next line
        await self._until(
            lambda: channel.waiting is not None, "checkpoints by the clock", "another one"
        )
        resumed = len(self.pair.primary.heard("RESUME"))
        await self.pair.stop_secondary()
        self.model.checkpoint()
        self._taken_over()
        self._tell_model()
        self.found(self.judge.all(self.pair.primary, self.pair.secondary))
        await self.pair.secondary.qemu.execute("cont")
        await self.pair.set_delay(NEVER)
        channel.release()
        await self._until(
            lambda: len(self.pair.primary.heard("RESUME")) > resumed,
            "checkpoints by the clock",
            "the primary going on",
        )
        # Setting the delay asked for one more checkpoint, and so may have the clock.
        await self._quiet()
        self.step("checkpoints by the clock taken")

    async def _quiet(self) -> None:
        """Let checkpoints that were asked for be taken; the last is judged."""
        channel, pair = self.pair.channel, self.pair
        while await channel.until(lambda: channel.waiting is not None, 0.5):
            resumed = len(pair.primary.heard("RESUME"))
            await pair.stop_secondary()
            self.model.checkpoint()
            self._taken_over()
            self._tell_model()
            self.found(self.judge.all(pair.primary, pair.secondary))
            await pair.secondary.qemu.execute("cont")
            channel.release()
            if not await channel.until(
                lambda before=resumed: len(pair.primary.heard("RESUME")) > before,  # type: ignore[misc]
                self.plan.limit,
            ):
                raise Stuck("checkpoints by the clock", "the primary going on")
        channel.hold()

    # -- failover -------------------------------------------------------------------------------

    async def _fail_over(self) -> Member:
        """What the plan takes away; the survivor is stopped in the end."""
        kind = self.plan.failover
        self.doing = f"failover ({kind})"
        await self._progress_of(self.here, 3)
        if kind is Failover.PRIMARY:
            await self._secondary_takes_over()
            return self.pair.secondary
        await self._primary_goes_on(kind)
        return self.pair.primary

    async def _secondary_takes_over(self) -> None:
        pair = self.pair
        acknowledged = self._at_checkpoint
        await pair.stop_secondary()  # it lags behind, as a loaded host does
        self._tell_model()
        await self._progress_of(self.here, _AHEAD)
        pair.primary.qemu.kill()
        self.step("the primary was killed, ahead of its secondary")
        await pair.promote_secondary()
        self.model.failover()
        # Twice: at once, since its guest will write again what the primary's wrote and lost; then
        # after it has gone on.
        await self._until_running(pair.secondary)
        await pair.secondary.qemu.execute("stop")
        self._judge_promoted()
        await pair.secondary.qemu.execute("cont")
        await self._goes_on(pair.secondary, self.there)
        self._judge_promoted()
        self.found(self._acknowledged(pair.secondary, self.there, acknowledged))
        self.step("the secondary took over; nothing acknowledged before the checkpoint is lost")

    def _judge_promoted(self) -> None:
        self._tell_model()
        self.found(
            self.judge.disk_alone(
                self.pair.secondary.disk, self.model.disk, "promoted secondary's disk"
            )
        )

    @property
    def _at_checkpoint(self) -> int:
        """The last write that was on the disks at the last checkpoint."""
        return self._first - 1

    async def _goes_on(self, member: Member, diary: Diary) -> None:
        """The side that is left runs alone, writes on, and is stopped to be judged."""
        status = await member.status()
        if status != "running":
            await self._until_running(member)
        if not member.heard("COLO_EXIT"):
            await self._wait(lambda: bool(member.heard("COLO_EXIT")), member, "COLO_EXIT")
        await self._progress_of(diary, self.plan.writes)
        await member.qemu.execute("stop")

    async def _until_running(self, member: Member) -> None:
        async def running() -> bool:
            return await member.status() == "running"

        await member.until(running, "the failover of the virtual machine")

    async def _wait(self, condition: Callable[[], bool], member: Member, what: str) -> None:
        deadline = time.monotonic() + self.plan.limit
        while not condition():
            if time.monotonic() > deadline:
                raise Stuck(f"failover of the {member.name}", what)
            await asyncio.sleep(0.01)

    def _acknowledged(self, member: Member, diary: Diary, promised: int) -> Iterable[Divergence]:
        """Every write up to *promised*, and all that this side acknowledged, is on its disk."""
        last = max([promised, *diary.written()])
        disk = member.disk.read_bytes()
        if self._on_disk(disk, last + 1):
            last += 1
        newest = {self.guest.place(number): number for number in range(1, last + 1)}
        lost = [number for number in newest.values() if not self._on_disk(disk, number)]
        self.judge.compared += len(newest) * BLOCK
        if lost:
            yield Divergence(
                Verdict.LOST_WRITE,
                f"acknowledged writes on the disk of the {member.name}",
                self.model.checkpoints,
                f"write {lost[0]} of {last}, promised up to {promised}",
                f"{len(lost)} of {len(newest)} blocks are not as they were acknowledged",
            )

    async def _primary_goes_on(self, kind: Failover) -> None:
        pair = self.pair
        if kind is Failover.SECONDARY:
            pair.secondary.qemu.kill()
            self.step("the secondary was killed")
        elif kind is Failover.CUT:
            pair.link.cut()
            self.step("the link was cut")
            await self._progress_of(self.here, 3)
            self.found(await self._reported())
        else:
            pair.link.stall()
            self.step("the link fell silent")
            await self._stalls()
            if not await pair.yank():
                pair.link.cut()
        await pair.carry_on()
        await self._goes_on(pair.primary, self.here)
        self.found(self._acknowledged(pair.primary, self.here, 0))
        self.step("the primary goes on alone; nothing it acknowledged is lost")

    async def _stalls(self) -> None:
        """A write cannot end while the link is silent: the guest waits."""
        deadline = time.monotonic() + self.plan.limit
        while not self.pair.link.waiting:
            if time.monotonic() > deadline:
                raise Stuck("stalled link", "a write of the primary's guest")
            await asyncio.sleep(0.01)
        before = len(self.here.written())
        await asyncio.sleep(0.3)
        after = len(self.here.written())
        if after > before:
            self.found(
                [
                    Divergence(
                        Verdict.ERROR_CONTRACT,
                        "guest of the primary",
                        self.model.checkpoints,
                        "no write is acknowledged while the secondary does not have it",
                        f"{after - before} writes were",
                    )
                ]
            )

    async def _reported(self) -> list[Divergence]:
        """The primary must tell that its writes no longer arrive."""
        if await self.pair.primary.replication_error() is not None:
            return []
        return [
            Divergence(
                Verdict.ERROR_CONTRACT,
                "query-xen-replication-status of the primary",
                self.model.checkpoints,
                "an error, since writes did not reach the secondary",
                "no error",
            )
        ]
