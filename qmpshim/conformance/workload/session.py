"""One run: operations done on a real chain and in the model, answers compared one by one."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qmpshim.conformance.compare.crosscheck import CrossCheck
from qmpshim.conformance.compare.divergence import BROKEN, Divergence
from qmpshim.conformance.compare.exchange import (
    answer,
    command,
    submit,
    wrong_data,
    wrong_errno,
    wrong_error,
)
from qmpshim.conformance.compare.oracle import Oracle, Prediction
from qmpshim.conformance.workload import pattern
from qmpshim.conformance.workload.result import WorkloadResult
from qmpshim.conformance.workload.setup import RunSetup
from qmpshim.errors import BuildError, CommandFailed, IOFailed, MachineDied, MachineError
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.nbd.client import BlockClient
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.disks.image import PAGE
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR

_TICK = 0.2  # seconds between two progress reports
_UNPREDICTED = Prediction()
_LONGEST = 2048  # sectors of the writes whose data is made in place
_CHANGES = frozenset({Verb.WRITE, Verb.ZERO, Verb.DISCARD})


@dataclass(frozen=True, slots=True)
class Setup(RunSetup):
    """What to run on, and how.

    :ivar behaviour: what the model knows of this version
    :ivar chain: the class that builds the real chain; mutants come in here
    :ivar oracle: the class that predicts; and here
    """

    spec: ChainSpec
    behaviour: Behaviour = field(default_factory=Behaviour)
    chain: Callable[[Qemu, ChainSpec, Path, Sequence[str]], SecondaryChain] = SecondaryChain
    oracle: Callable[[ChainSpec, Behaviour], Oracle] = Oracle


Result = WorkloadResult[KnownDefect]


@dataclass(slots=True)
class Rig:
    """A started QEMU with a chain on it, and the model beside it."""

    qemu: Qemu
    chain: SecondaryChain
    oracle: Oracle
    directory: Path

    async def build(self, name: str) -> None:
        """Build the chain; if that fails, close the rig.

        :param name: of the QEMU
        :raises BuildError: this QEMU cannot build the chain
        """
        try:
            await self.chain.build()
        except CommandFailed as error:
            await self.close()
            raise BuildError(f"{name} cannot build the chain: {error}") from error
        except MachineDied as error:
            root = await self.qemu.root_error(error, "the building of the chain")
            await self.close()
            raise root from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect, end QEMU, remove the images."""
        self.chain.close()
        await self.qemu.close()
        shutil.rmtree(self.directory, ignore_errors=True)


async def open_rig(setup: Setup, directory: Path) -> Rig:
    """Start QEMU in *directory* (which must exist) and build the chain.

    :raises BuildError: this QEMU cannot build the chain
    """
    qemu = setup.qemu(directory, setup.spec.emptying)
    await qemu.start()
    chain = setup.chain(qemu, setup.spec, directory, setup.qemu_img)
    rig = Rig(qemu, chain, setup.oracle(setup.spec, setup.behaviour), directory)
    await rig.build(setup.command[0])
    return rig


@dataclass(slots=True)
class _Exchange:
    """One I/O on its way: the operation, the predicted answer, the observed one."""

    operation: Operation
    client: BlockClient
    cookie: int
    payload: Any
    prediction: Prediction = _UNPREDICTED
    observed: int = 0


class WorkloadRun:
    """Does operations on a rig and compares every answer with the prediction.

    :param progress: called now and then with the result so far and what is being done
    """

    def __init__(
        self,
        rig: Rig,
        qemu_img: Sequence[str] = ("qemu-img",),
        progress: Callable[[Result, str], None] | None = None,
    ) -> None:
        self.rig = rig
        self.result = Result()
        self._progress = progress
        self._writers: dict[int, str] = {}
        self._check = CrossCheck(rig.chain, rig.oracle, self._writers, qemu_img)
        # Pages that changed since the last check, and between the two checks before it: a
        # checkpoint changes what is read where something was written before it.
        self._touched: set[int] = set()
        self._touched_before: set[int] = set()
        self._buffers: tuple[dict[int, bytearray], dict[int, bytearray]] = ({}, {})
        self._data = [np.empty((_LONGEST, pattern.WORDS), dtype=np.uint64) for _ in range(2)]
        self._turn = 0
        self._comparer = pattern.Comparer()
        self._prepared: tuple[Operation, Any] | None = None
        self._unjudged: _Exchange | None = None
        self._last = 0

    async def run(self, operations: Iterable[Operation]) -> Result:
        """Do *operations* until the first divergence or the end."""
        began = time.monotonic()
        now, slowest = began, 0.0
        tick = began + _TICK
        operation = None
        counts: Counter[tuple[Side, Verb]] = Counter()
        source = iter(operations)
        coming = next(source, None)
        try:
            while coming is not None:
                operation, self._last = coming, coming.number
                counts[operation.side, operation.verb] += 1
                if operation.side is Side.CHAIN:
                    found = self._judge() or await self._command(operation)
                    coming = next(source, None)
                else:
                    exchange = self._submit(operation)
                    # While QEMU works: predict this answer, judge the one before, and make the
                    # next operation's data.  No answer is looked at before it was predicted.
                    exchange.prediction = self.rig.oracle.predict(operation)
                    found = self._judge()
                    coming = next(source, None)
                    self._prepare(coming)
                    exchange.observed = answer(exchange.client, exchange.cookie)
                    self._unjudged = exchange
                if found is None and coming is None:
                    found = self._judge()
                if found is not None:
                    self.result.divergence = found
                    break
                before, now = now, time.monotonic()
                if now - before > slowest:
                    self.result.slowest = slowest = now - before
                if now > tick:
                    tick = now + _TICK
                    self.result.seconds = now - began
                    self._count(counts)
                    self._report(str(operation))
                    await asyncio.sleep(0)  # lets Ctrl-C and events through
        except (*BROKEN, CommandFailed, IOFailed) as error:
            self.result.divergence = await self._machine(operation, error)
        self.result.seconds = time.monotonic() - began
        self._count(counts)
        self.result.clusters = self._check.clusters
        self.result.known = self.rig.oracle.chain.relied_on
        return self.result

    def _count(self, counts: Counter[tuple[Side, Verb]]) -> None:
        named = {f"{side} {kind}": number for (side, kind), number in counts.items()}
        self.result.operations = Counter(named)

    def _report(self, doing: str) -> None:
        self.result.clusters = self._check.clusters
        if self._progress is not None:
            self._progress(self.result, doing)

    async def _machine(self, operation: Operation | None, error: MachineError) -> Divergence:
        error = await self.rig.qemu.root_error(error, str(operation or "the start"))
        number = operation.number if operation else 0
        return Divergence.of_error(error, "QEMU", number, "an answer")

    # -- I/O ------------------------------------------------------------

    def _submit(self, operation: Operation) -> _Exchange:
        chain = self.rig.chain
        client = chain.primary if operation.side is Side.PRIMARY else chain.guest
        payload = self._payload(operation)
        cookie = submit(client, operation, payload)
        if operation.verb in _CHANGES:
            self._writers[operation.number] = operation.side.value
            first, last = operation.start // PAGE, (operation.start + operation.count - 1) // PAGE
            self._touched.update(range(first, last + 1))
        return _Exchange(operation, client, cookie, payload)

    def _prepare(self, coming: Operation | None) -> None:
        if coming is not None and coming.side is not Side.CHAIN:
            self._prepared = (coming, self._make_payload(coming))

    def _payload(self, operation: Operation) -> Any:
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is operation:
            return prepared[1]
        return self._make_payload(operation)

    def _make_payload(self, operation: Operation) -> Any:
        """The data of a write, a buffer for a read; never what the request before still uses."""
        if operation.verb is Verb.WRITE:
            self._turn ^= 1
            into = self._data[self._turn] if operation.count <= _LONGEST else None
            return pattern.data_of(operation.number, operation.start, operation.count, into)
        if operation.verb is not Verb.READ:
            return None
        length = operation.count * SECTOR
        self._turn ^= 1
        pool = self._buffers[self._turn]
        buffer = pool.get(length)
        if buffer is None:
            if len(pool) > 64:
                pool.clear()
            buffer = pool[length] = bytearray(length)
        return buffer

    def _judge(self) -> Divergence | None:
        """Hold the last exchange's answer against its prediction."""
        exchange, self._unjudged = self._unjudged, None
        if exchange is None:
            return None
        operation, prediction = exchange.operation, exchange.prediction
        directory = self.rig.directory
        if found := wrong_errno(operation, prediction, exchange.observed, directory):
            return found
        if operation.verb is not Verb.READ or prediction.owners is None:
            return None
        if self._comparer.same(exchange.payload, prediction.owners, operation.start):
            return None
        wrong = pattern.mismatches(exchange.payload, prediction.owners, operation.start)
        return wrong_data(operation, exchange.payload, prediction.owners, wrong, self._check)

    # -- commands ------------------------------------------------------------

    async def _command(self, operation: Operation) -> Divergence | None:
        if operation.verb is Verb.CHECK:
            return await self.check(operation.number)
        prediction = self.rig.oracle.predict(operation)
        return wrong_error(operation, prediction, await command(self.rig.chain, operation.verb))

    async def finish(self) -> None:
        """The last cross-check: everything, everywhere."""
        try:
            self.result.divergence = await self.check(self._last, full=True)
        except BROKEN as error:
            self.result.divergence = await self._machine(None, error)
        self.result.clusters = self._check.clusters

    async def close(self) -> None:
        """Leave nothing running beside the session."""
        await self._check.close()

    async def check(self, number: int, full: bool = False) -> Divergence | None:
        """Cross-check now, after operation *number*.

        :param full: read the views everywhere, not only where something may have changed
        """
        self.result.checks += 1
        touched = None if full else self._touched | self._touched_before
        self._touched_before, self._touched = self._touched, set()
        found = await self._check.run(number, touched)
        return found[0] if found else None


async def run_case(
    setup: Setup,
    operations: Iterable[Operation],
    directory: Path,
    progress: Callable[[Result, str], None] | None = None,
    at_end: Callable[[Rig | None, Result], None] | None = None,
    opener: Callable[[Setup, Path], Awaitable[Rig]] = open_rig,
) -> Result:
    """Run *operations* on a fresh chain in *directory* and finish with a full cross-check.

    :param at_end: called before the rig is taken down, e.g. to save its images; there is no rig
        when QEMU did not survive the building of the chain
    :param opener: starts QEMU and builds the chain
    """
    try:
        rig = await opener(setup, directory)
    except BROKEN as error:
        where = "QEMU, building the chain"
        result = Result(Divergence.of_error(error, where, 0, "a chain"))
        if at_end is not None:
            at_end(None, result)
        return result
    try:
        session = WorkloadRun(rig, setup.qemu_img, progress)
        try:
            result = await session.run(operations)
            if result.divergence is None:
                await session.finish()
        finally:
            await session.close()
        if at_end is not None:
            at_end(rig, result)
        return result
    finally:
        await rig.close()
