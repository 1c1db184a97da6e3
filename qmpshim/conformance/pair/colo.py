"""Real COLO: two machines, their disks compared at each checkpoint, and failover.

A checkpoint is judged while the secondary's ``vmstate-loaded`` is held on its way to the primary:
the primary stands still then, and the secondary, which has gone on a moment ago, is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qmpshim.conformance.pair.plan import Failover
from qmpshim.conformance.pair.run import PairRun
from qmpshim.conformance.pair.workload import Stuck
from qmpshim.machine.colo.migration_channel import ColoMessage
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import NEVER
from qmpshim.model.check.cause import Cause, CauseKind

_BETWEEN = 4  # every so many checkpoints both sides are stopped and judged in between, too
_BOOT_LIMIT = 90.0  # seconds until the first write; KVM inside a virtual machine takes 20
_BY_THE_CLOCK = 50  # ms between the checkpoints that come by themselves


class ColoRun(PairRun):
    """Runs COLO, judges every checkpoint, fails over, and goes on."""

    async def play_round(self) -> None:
        pair, plan, workload = self.pair, self.plan, self.workload
        self.doing = "start of COLO"
        await workload.join()
        await workload.prepare()
        pair.channel.on_message = self._message
        since = [len(member.events) for member in pair.members]
        await pair.start_colo()
        await self.until_colo_runs(since)
        self.step("COLO runs")
        await workload.write(pair.primary, 1, _BOOT_LIMIT)
        self.step("the guest writes")
        began = time.monotonic()
        for number in range(1, plan.checkpoints + 1):
            await workload.write_both(plan.writes)
            self.found(workload.complaints())
            if number % _BETWEEN == 0:
                await self._between()
            await self._checkpoint(number)
            self.outcome.checkpoints += 1
            self.report(f"checkpoint {number} of {plan.checkpoints}")
        rate = plan.checkpoints / (time.monotonic() - began)
        self.outcome.figures.setdefault("checkpoints/s", rate)
        self.step(f"{plan.checkpoints} checkpoints taken and judged")
        await self._by_the_clock()

    # -- waiting ----------------------------------------------------------------------------

    def _message(self, message: ColoMessage) -> None:
        if message is ColoMessage.CHECKPOINT_READY:
            # The secondary replicates and has the primary's state; the primary has stood still
            # since it sent that, and goes on when this arrives.
            self.model.start()
            self.workload.taken_over()
        elif message is ColoMessage.CHECKPOINT_REPLY:  # its guest was stopped before it sent this
            self.workload.secondary_stopped()

    async def until(self, condition: Callable[[], bool], where: str, predicted: str) -> None:
        """Wait for ``condition()``, as long as both sides live.

        :raises Stuck: it does not come
        """
        deadline = time.monotonic() + self.plan.limit
        while not condition():
            if time.monotonic() > deadline or not all(
                member.qemu.alive() for member in self.pair.members
            ):
                raise Stuck(where, predicted)
            await self.pair.channel.until(condition, 0.004)  # events do not wake it

    async def until_colo_runs(self, since: list[int]) -> None:
        """Wait until both sides run in COLO.

        :param since: by side, how many events it had sent before
        :raises Stuck: it does not come
        """
        pair, predicted = self.pair, "both sides in COLO, and running"

        def runs() -> bool:
            failed = any(
                event.data.get("status") in ("failed", "completed", "cancelled")
                for event in pair.primary.events_of("MIGRATION", since[0])
            ) or bool(pair.secondary.events_of("COLO_EXIT", since[1]))
            if failed:
                raise Stuck(self.doing, predicted)
            return all(
                member.events_of("RESUME", first)
                for member, first in zip(pair.members, since, strict=True)
            )

        await self.until(runs, self.doing, predicted)

    # -- checkpoints ----------------------------------------------------------------------------

    async def _checkpoint(self, number: int) -> None:
        channel = self.pair.channel
        self.doing = f"checkpoint {number}"
        channel.hold(ColoMessage.VMSTATE_LOADED)
        await self.pair.set_delay(NEVER)
        await self.until(
            lambda: channel.waiting is ColoMessage.VMSTATE_LOADED, self.doing, "vmstate-loaded"
        )
        await self._check_held(last=True)

    async def _check_held(self, last: bool) -> None:
        """``vmstate-loaded`` is held: judge the checkpoint, and let both sides go on.

        :param last: do not hold the next one
        """
        pair, channel, workload = self.pair, self.pair.channel, self.workload
        resumed = len(pair.primary.events_of("RESUME"))
        await pair.stop_secondary()
        self.model.checkpoint()
        workload.taken_over()
        workload.update_model()
        self.found(self.checker.all(pair.primary, pair.secondary))
        self.found(await self._errors())
        self.found(workload.complaints())
        await pair.secondary.qemu.execute("cont")
        if last:
            channel.hold()
        channel.release()
        await self.until(
            lambda: len(pair.primary.events_of("RESUME")) > resumed,
            self.doing,
            "the primary going on after vmstate-loaded",
        )

    async def _between(self) -> None:
        """Stop both and judge: the promise holds at any time, not only at checkpoints."""
        pair = self.pair
        await pair.pause()
        self.workload.update_model()
        self.found(self.checker.all(pair.primary, pair.secondary))
        await pair.resume()

    async def _by_the_clock(self) -> None:
        """Some checkpoints that ``x-checkpoint-delay`` alone brings; the last ones are judged."""
        channel = self.pair.channel
        self.doing = "checkpoints by the clock"
        before = channel.loaded
        await self.pair.set_delay(_BY_THE_CLOCK)
        await self.until(lambda: channel.loaded >= before + 4, self.doing, "four of them")
        channel.hold(ColoMessage.VMSTATE_LOADED)
        await self.until(lambda: channel.waiting is not None, self.doing, "another one")
        # This requests a last one, and so may the clock have done.
        await self.pair.set_delay(NEVER)
        await self._check_held(last=False)
        while await channel.until(lambda: channel.waiting is not None, 0.5):
            await self._check_held(last=False)
        channel.hold()
        self.step("checkpoints by the clock taken")

    # -- failover -------------------------------------------------------------------------------

    async def _let_run(self, member: ColoNode) -> None:
        async def running() -> bool:
            return bool(member.events_of("COLO_EXIT")) and await member.status() == "running"

        await member.until(running, "the failover of the virtual machine")

    async def _kill_primary(self) -> None:
        if not self.plan.moment:
            return await super()._kill_primary()
        pair, channel, workload = self.pair, self.pair.channel, self.workload
        message = ColoMessage[self.plan.moment.upper().replace("-", "_")]
        self.doing = f"checkpoint that is to break at {message.spelling}"
        channel.hold(message)
        resumed = len(pair.secondary.events_of("RESUME"))
        await pair.set_delay(NEVER)
        await self.until(lambda: channel.waiting is message, self.doing, message.spelling)
        if message is not ColoMessage.CHECKPOINT_REPLY:
            # It has all it needs by now, and takes the checkpoint whatever becomes of the primary.
            await self.until(
                lambda: len(pair.secondary.events_of("RESUME")) > resumed,
                self.doing,
                "vmstate loaded",
            )
        await pair.stop_secondary()
        if message is not ColoMessage.CHECKPOINT_REPLY:
            self.model.checkpoint()
            workload.taken_over()
        workload.update_model()
        pair.primary.kill()
        channel.hold()
        channel.release()
        self.step(f"the primary was killed in a checkpoint, at {message.spelling}")

    async def _primary_goes_on(self, kind: Failover) -> None:
        if kind is not Failover.CUT_LATE:
            return await super()._primary_goes_on(kind)
        pair, channel = self.pair, self.pair.channel
        pair.link.cut()
        self.step("the link was cut")
        await self.workload.write(pair.primary, 3)
        self.found(await self._reported())
        # What supervises the pair has not looked yet.
        self.doing = "checkpoint after the link was cut"
        channel.hold(ColoMessage.VMSTATE_LOADED)
        await pair.set_delay(NEVER)
        await self.until(
            lambda: channel.waiting is not None or bool(pair.primary.events_of("COLO_EXIT")),
            self.doing,
            "a checkpoint, or the end of COLO",
        )
        if channel.waiting is None:
            self.step("COLO took no checkpoint without the writes")
            return None
        await pair.stop_secondary()
        self.model.checkpoint()
        self.found(
            self.checker.disks(pair.primary, pair.secondary),
            Cause(CauseKind.PAIR_WRITES_LEFT_OUT),
            contract=False,
        )
        return None
