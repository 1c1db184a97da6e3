"""The sequential model as an oracle: what each operation must answer, before QEMU does it."""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.conformance.compare.model_chain import equip, model_chain
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.chain.protocols import CopyBeforeWriteProtocol
from qmpshim.model.chain.secondary import Chain, CommandError, Stage, Workflow
from qmpshim.model.disks.image import PAGE, Image, Owners
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.runtime.coroutines import Co, ModelIOError, run_sequentially
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an operation must answer.

    :ivar errno: the error an I/O must end with, 0 for success
    :ivar error: the text a command must fail with, ``None`` for success; for a status query the
        error that must be reported
    :ivar owners: what a read must return
    """

    errno: int = 0
    error: str | None = None
    owners: Owners | None = None


_DONE = Prediction()


class View:
    """What is read through some images of the chain, with the interface of ``Contents.read``.

    :ivar most: sectors that one request of QEMU may have to see the same; None: any number
    """

    def __init__(self, chain: Chain, images: tuple[Image, ...], most: int | None = None) -> None:
        self._chain = chain
        self.most = most
        self._images = images

    def read(self, start: int, count: int) -> Owners:
        """The owners of *count* sectors from sector *start*."""
        return run_sequentially(self._chain.read_through(self._images, start, count))

    def pages(self) -> set[int]:
        """The pages of owners in which any of the images holds something."""
        return set().union(*(image.contents.pages.keys() for image in self._images))


class Oracle:
    """The model of one chain, advanced operation by operation."""

    def __init__(self, spec: ChainSpec, behaviour: Behaviour) -> None:
        self.spec = spec
        topology = spec.topology
        #: What is read through ``snapshot-access`` needs no start: it runs with its chain.
        self._snapshot = topology.has("snapshot-access")
        self._misreads = KnownDefect.SNAPSHOT_READS_NEW_DATA in behaviour.known
        misreads = self._misread if self._misreads else None
        self.chain: Chain = model_chain(
            topology,
            spec.size // SECTOR,
            spec.cluster // SECTOR,
            spec.secondary,
            behaviour,
            CopyBeforeWriteProtocol(misreads=misreads) if self._snapshot else None,
        )
        chain = self.chain
        self._guest_read = chain.snapshot_read if self._snapshot else chain.guest_read
        if self._snapshot:
            run_sequentially(chain.start())
        self._primary_changes = {
            Verb.WRITE: chain.primary_write,
            Verb.ZERO: chain.primary_zero,
            Verb.DISCARD: chain.primary_discard,
        }
        self._guest_changes = {
            Verb.WRITE: chain.guest_write,
            Verb.ZERO: chain.guest_zero,
            Verb.DISCARD: chain.guest_discard,
        }

    def _misread(self) -> None:
        self.chain.relied_on[KnownDefect.SNAPSHOT_READS_NEW_DATA] += 1

    def predict(self, operation: Operation) -> Prediction:
        """Do *operation* in the model; what the real one must answer."""
        if operation.side is Side.CHAIN:
            return self._command(operation.verb)
        try:
            owners = run_sequentially(self._io(operation))
        except ModelIOError as error:
            return Prediction(errno=error.errno)
        return _DONE if owners is None else Prediction(owners=owners)

    def _io(self, operation: Operation) -> Co[Owners | None]:
        chain, start, count, number = (
            self.chain,
            operation.start,
            operation.count,
            operation.number,
        )
        primary, verb = operation.side is Side.PRIMARY, operation.verb
        if verb is Verb.READ:
            return (chain.primary_read if primary else self._guest_read)(start, count)
        if verb is Verb.FLUSH:
            return chain.primary_flush() if primary else chain.guest_flush()
        change = (self._primary_changes if primary else self._guest_changes)[verb]
        return change(start, count, number)

    def _command(self, verb: Verb) -> Prediction:
        chain = self.chain
        match verb:
            case Verb.REBUILD:
                chain.rebuild()
                equip(chain, self.spec.topology)
                if not self._snapshot:
                    return _DONE
                command = chain.start()
            case Verb.STATUS:
                return Prediction(error=chain.status())
            case Verb.START:
                command = chain.start()
            case Verb.CHECKPOINT:
                command = chain.checkpoint()
            case Verb.STOP:
                command = chain.stop()
            case Verb.FAILOVER:
                command = chain.failover()
            case _:
                return _DONE
        try:
            run_sequentially(command)
        except CommandError as error:
            return Prediction(error=error.desc)
        return _DONE

    @property
    def guest_view(self) -> View:
        """What the guest reads; in the backup workflow a reader of the hidden disk."""
        # Within a page, which is one cluster of the copy or less, no snapshot is misread.
        most = PAGE if self._misreads else None
        return View(self.chain, self.chain.top, most)

    @property
    def hidden_view(self) -> View:
        """What is read through the hidden disk."""
        return View(self.chain, (self.chain.hidden, self.chain.secondary))

    @property
    def primary_view(self) -> View:
        """What the secondary disk holds."""
        return View(self.chain, (self.chain.secondary,))

    @property
    def readable(self) -> bool:
        """Whether the guest's export answers reads at all."""
        return self.chain.workflow is Workflow.BACKUP or self.chain.stage is not Stage.NONE
