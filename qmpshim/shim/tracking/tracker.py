"""The reference model of one chain, kept in step with what passes, and what is not known of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import Answered, Evidence
from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.errors import HostError, InputError, errno_words
from qmpshim.machine.chain.block_graph import BlockGraph
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Chain, CommandError, Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Image
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.runtime.coroutines import Co, run_sequentially
from qmpshim.model.units import SECTOR
from qmpshim.shim.tracking.applied_changes import AppliedChanges, Change
from qmpshim.shim.tracking.discovery import ChainNodes
from qmpshim.shim.tracking.payload_store import PayloadStore
from qmpshim.shim.tracking.writers import ChainSubgraph, Export, Writer, WriterKind

if TYPE_CHECKING:  # a start of QEMU need not wait for them
    from qmpshim.machine.host.files import BytesLike
    from qmpshim.shim.gated.io_controller import IoController
    from qmpshim.shim.tracking.baseline import ImageFiles

log = logging.getLogger(__name__)

_QUIET = (Verb.READ, Verb.FLUSH)
#: What commands do in a chain's model.
_STEPS: Mapping[Verb, Callable[[Chain], Co[None]]] = {
    Verb.START: lambda chain: chain.start(),
    Verb.CHECKPOINT: lambda chain: chain.checkpoint(),
    Verb.FAILOVER: lambda chain: chain.failover(),
    Verb.STOP: lambda chain: chain.stop(),
}


@dataclass(frozen=True, slots=True)
class Unobserved:
    """A writer whose writes the shim does not see.

    :ivar node: the chain's disk that it may have written to
    :ivar time: since when it may, ISO 8601
    :ivar operation: the number of the last operation that was seen before
    :ivar at_start: it may have written while the chain was started
    """

    writer: Writer
    node: str
    time: str
    operation: int
    at_start: bool


class ModelTracker:
    """One chain.

    :param found: its disks
    :param emit: reports a divergence to all clients
    :param controller: holds the I/O, where the chain is gated
    :ivar job: the backup job's id while it runs; ``""`` in replication
    :ivar ending: the job is about to end: what is written now may or may not be copied
    :ivar divergences: what was found so far
    :ivar doubts: why the model's predictions may no longer hold
    :ivar unobserved: the writers that may have written unobserved, however long ago
    :ivar deferred: what the logs have of the time in which a job is started: whether it came before
        the job's T0 is not known yet. None: nothing is being started
    """

    def __init__(
        self,
        found: ChainNodes,
        behaviour: Behaviour,
        payloads: PayloadStore,
        emit: Callable[[Divergence], None],
        controller: IoController | None = None,
    ) -> None:
        spec = ChainSpec(found.workflow, found.size, found.cluster, found.secondary)
        self.found = found
        self.applied = AppliedChanges(Oracle(spec, behaviour), payloads)
        self.payloads = payloads
        self.controller = controller
        self.job = ""
        self.ending = False
        self.divergences: list[Divergence] = []
        self.doubts: list[str] = []
        self.unobserved: dict[Writer, Unobserved] = {}
        self.deferred: list[Change] | None = None
        self._emit = emit
        self._followed = False  # its baseline was read, and what runs on it was started
        self._attached: set[Writer] = set()  # as of the last survey
        self._guest_runs = False

    @property
    def oracle(self) -> Oracle:
        """The model."""
        return self.applied.oracle

    @property
    def name(self) -> str:
        """What users choose it by: the node of the disk that is read through."""
        nodes = self.found.nodes
        return nodes.get("top", nodes["hidden"])

    def has_name(self, name: str) -> bool:
        """Whether users mean this chain by *name*: its job, or a node of it."""
        return bool(name) and (name == self.job or name in self.found.nodes.values())

    def doubt(self, why: str) -> None:
        """Record why the model's predictions may no longer hold."""
        if why not in self.doubts:
            self.doubts.append(why)

    def answered(self, where: str, predicted: str | int | None, observed: str | int | None) -> None:
        """Record that an answer differs from its prediction, and report it to all clients.

        :param predicted: a command's error, or a request's errno; None: success
        :param observed: the same
        """
        wanted, seen = (
            (errno_words(one) if isinstance(one, int) else one) or "success"
            for one in (predicted, observed)
        )
        evidence = Answered(predicted, observed)
        self.record(self.divergence(Verdict.ERROR_CONTRACT, where, wanted, seen, evidence))

    def divergence(
        self,
        verdict: Verdict,
        where: str,
        predicted: str,
        observed: str,
        evidence: Evidence | None = None,
    ) -> Divergence:
        """What is wrong now, after the operations that were seen so far."""
        operations = self.payloads.operations
        return Divergence(verdict, where, operations, predicted, observed, evidence=evidence)

    def record(self, divergence: Divergence) -> None:
        """Record a divergence and report it to all clients."""
        self.divergences.append(divergence)
        self._emit(divergence)

    # -- unobserved writers -----------------------------------------------------------

    def followed(self) -> None:
        """From now on the model knows the disks' contents, but for what it did not see."""
        self._followed = True

    def survey(
        self,
        graph: BlockGraph,
        exports: Sequence[Export],
        jobs: Collection[str],
        guest_ran: bool,
        guest_runs: bool,
    ) -> None:
        """Record the writers that are attached now.

        :param exports: those that may be writable
        :param jobs: those of all chains
        :param guest_ran: the guest may have run since the last survey
        :param guest_runs: it may run now
        """
        seen = {(e.id, self.found.role(e.disk)) for e in exports if e.seen}
        self._attached = set(ChainSubgraph(graph, self.found.nodes, exports, jobs).writers())
        self._guest_runs = guest_runs
        for writer in self._attached:
            if writer.kind is WriterKind.DEVICE:
                unseen = guest_ran
            else:
                unseen = (writer.name, writer.role) not in seen
            if unseen:
                self.suspect(writer)

    def guest_runs(self) -> None:
        """The guest begins to run: its devices may write."""
        self._guest_runs = True
        for writer in self._attached:
            if writer.kind is WriterKind.DEVICE:
                self.suspect(writer)

    def exports_bypassed(self, exports: Collection[str]) -> None:
        """A client is at QEMU's own NBD server, and may be writing to one of these exports."""
        for writer in self._attached:
            if writer.kind is WriterKind.EXPORT and writer.name in exports:
                self.suspect(writer)

    def suspect(self, writer: Writer) -> None:
        """*writer* may write unseen from now on."""
        if writer not in self.unobserved:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            at_start = not self._followed
            node = self.found.nodes[writer.role]
            operation = self.payloads.operations
            self.unobserved[writer] = Unobserved(writer, node, now, operation, at_start)
            log.info("%s may write unseen to %s", writer.describe(), node)

    def suspects(self, role: str, verdict: Verdict) -> list[Unobserved]:
        """The writers that may be why the disk of a *role* is not as predicted.

        :param verdict: what it would be called
        """
        return [one for one in self.unobserved.values() if self._explains(one, role, verdict)]

    def _explains(self, one: Unobserved, role: str, verdict: Verdict) -> bool:
        """Whether writes that were not seen explain a divergence.

        While the backup job runs what is read through the hidden disk is the disk as it was at the
        job's start, whatever writes to the secondary disk: that is the promise, and is judged once
        no client writes any more. (A read that races with a write may see new data in plain
        backup.)
        """
        writer = one.writer
        active = writer in self._attached and (
            writer.kind is not WriterKind.DEVICE or self._guest_runs
        )
        if verdict is Verdict.ERROR_CONTRACT:
            return False
        if verdict is Verdict.CORRUPTION:
            return active or writer.role == role  # the file was read while it was written
        if one.at_start or self.found.workflow is Workflow.REPLICATION or writer.role == role:
            return True
        if writer.role != "secondary":
            return False
        kept = verdict is Verdict.ISOLATION and self.oracle.chain.job is not None
        return active or not kept

    # -- I/O ------------------------------------------------------------

    def side(self, node: str) -> Side | None:
        """Whose side *node* is; None when it is no disk that may be written to."""
        role = self.found.role(node)
        if role == "secondary":
            return Side.PRIMARY
        top = "top" if self.found.workflow is Workflow.REPLICATION else "hidden"
        return Side.GUEST if role == top else None

    def changed(self, node: str, change: Change, error: int) -> None:
        """A request to *node* was answered: do it in the model.

        :param error: the errno it was answered with
        """
        role, quiet = self.found.role(node), change.kind in _QUIET
        if role is None:
            return
        if not quiet and role not in ("secondary", "top"):
            self.doubt(f"the {role} disk was written to directly")
            return
        side = self.side(node)
        if side is None:
            return
        if self.controller is not None and self.controller.failed:
            self.doubt("an I/O of QEMU's was ended with an error by hand")
        if not quiet and self.ending:
            self.doubt("I/O was under way when the job ended")
        try:
            predicted = self.applied.request(dataclasses.replace(change, side=side))
        except HostError as failure:
            self.doubt(str(failure))
            return
        if predicted != error and not quiet and not self.doubts:
            where = f"write to the {role} at byte {change.offset}"
            self.answered(where, predicted or None, error or None)

    def logged(self, node: str, change: Change) -> None:
        """A write log has a change to *node*."""
        role = self.found.role(node)
        if role == "hidden" and self.found.workflow is Workflow.BACKUP:
            self.doubt("the hidden disk was written to directly")
        if role not in ("secondary", "top"):
            return
        side = Side.PRIMARY if role == "secondary" else Side.GUEST
        change = dataclasses.replace(change, side=side)
        if self.deferred is not None:
            self.deferred.append(change)
        else:
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Do in the model what a write log has of the secondary disk, or of the top."""
        side = change.side
        if self.ending:
            self.doubt("I/O was under way when the job ended")
        if self.applied.request(change):
            self.doubt("a logged request must have failed, which the log does not tell")
        if change.kind is Verb.ZERO:
            chain = self.oracle.chain
            image = chain.secondary if side is Side.PRIMARY else chain.active
            start, count = change.offset // SECTOR, change.length // SECTOR
            self.applied.forget_how(image, start, count)

    def lost(self, node: str, change: Change) -> None:
        """A request to *node* will not be answered."""
        side = self.side(node)
        if side is not None:
            self.doubt("QEMU's NBD server hung up during a request: who knows what it did")
            with contextlib.suppress(HostError):
                self.applied.request(dataclasses.replace(change, side=side))

    def apply_deferred(self) -> None:
        """Do all that was deferred, and defer no more."""
        deferred, self.deferred = self.deferred or (), None
        for change in deferred:
            self.apply(change)

    # -- commands ------------------------------------------------------------

    def step(self, kind: Verb) -> str | None:
        """Do a command in the model; gives the error it must end with."""
        self.applied.command(kind)
        try:
            run_sequentially(_STEPS[kind](self.oracle.chain))
        except CommandError as failure:
            return failure.desc
        return None

    def job_started(self, job: str) -> None:
        """The chain's backup job was started."""
        self.job, self.ending = job, False
        predicted = self.step(Verb.START)
        if predicted is not None and not self.doubts:
            self.answered(Verb.START.value, predicted, None)

    def job_ended(self) -> None:
        """The chain's backup job is over."""
        self.job, self.ending = "", False
        self.applied.command(Verb.STOP)
        self.oracle.chain.job = None

    # -- questions ------------------------------------------------------------

    def image(self, role: str) -> Image:
        """The model's image of a role."""
        image = getattr(self.oracle.chain, role)
        assert isinstance(image, Image)
        return image

    def content(self, role: str) -> BytesLike | None:
        """The bytes of a role's image; None when they are out of our reach.

        :raises OSError: they cannot be read
        """
        files = self.files(role)
        return None if files is None else files.image

    def files(self, role: str) -> ImageFiles | None:
        """The bytes of a role's image and data file; None when they are out of our reach.

        :raises OSError: they cannot be read
        """
        from qmpshim.machine.host.files import map_file
        from qmpshim.shim.tracking.baseline import ImageFiles

        if self.controller is not None:
            return ImageFiles(self.controller.gate.snapshot(role))
        path, data = self.found.files.get(role), self.found.data_files.get(role)
        if path is None:
            return None
        return ImageFiles(map_file(path), None if data is None else map_file(data))

    def operations(self) -> tuple[Operation, ...]:
        """What was done since the chain was started.

        :raises InputError: not all of it is known
        """
        if not self.applied.whole:
            raise InputError("too much was done for a bundle")
        if self.applied.unrecordable:
            raise InputError(f"a bundle cannot begin with {self.applied.unrecordable}")
        return tuple(self.applied.operations)
