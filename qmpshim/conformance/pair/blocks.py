"""Block replication alone: a seeded workload on both ends of a pair without virtual machines.

The primary's writes go through its quorum, the way a guest's would; they reach the secondary by
QEMU's own NBD client. The secondary's guest writes go through its quorum into the active disk.
Checkpoints are ``xen-colo-do-checkpoint`` on both sides, with both stopped.
"""

from __future__ import annotations

from qmpshim.conformance.pair.run import PairRun
from qmpshim.conformance.pair.workload import ExportWorkload
from qmpshim.machine.colo.node import ColoNode


class BlockRun(PairRun):
    """Replicates, checks before and after each checkpoint, fails over."""

    async def play_round(self) -> None:
        pair, workload = self.pair, self.workload
        assert isinstance(workload, ExportWorkload)
        self.doing = "start of replication"
        await workload.join()
        await pair.start_replication()
        self.model.start()
        self.step("replication runs")
        for number in range(1, self.plan.checkpoints + 1):
            self.doing = f"checkpoint {number}"
            await workload.write_both(self.plan.writes)
            await pair.pause()
            self.found(self.checker.all(pair.primary, pair.secondary))
            self.found(await workload.view())
            await pair.checkpoint_disks()
            self.model.checkpoint()
            await pair.pause()  # QEMU writes qcow2's tables when it stops
            self.found(self.checker.all(pair.primary, pair.secondary))
            self.found(await self._errors())
            self.outcome.checkpoints += 1
            self.report(f"checkpoint {number} of {self.plan.checkpoints}")
            await pair.resume()
        self.step(f"{self.plan.checkpoints} checkpoints taken and judged")

    async def _let_run(self, member: ColoNode) -> None:
        await member.qemu.execute("cont")
