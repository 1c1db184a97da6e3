"""Online: order of I/O, copies and flushes, which hold at every step and not only at the end.

* *order*: new data comes to the secondary disk only when the hidden disk has the old (or, with
  ``on-cbw-error=break-snapshot``, when a copy failed, and the snapshot is given up);
* *copies*: what is sent to the hidden disk is old data (or the snapshot is given up);
* *flushes*: what had been written before a flush began outlives a loss of power when it ends, and
  so does a FUA write; on the primary that disk was flushed meanwhile, too, and so was each disk
  that votes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.io_naming import IoNames, NamedIo, owners, tags
from qmpshim.conformance.explore.harness.overlays import overlay_in
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.chains import DISKS
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import first_of, on_disk
from qmpshim.machine.nbd.gate.events import EventKind, HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Verb, does
from qmpshim.model.units import SECTOR, outwards, touched

_EFFECTS = (EventKind.PASS, EventKind.RELEASE, EventKind.APPLY)
_CHANGES = (Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM)


class OnlineChecker:
    """Watches one execution of *scenario*.

    :param names: knows the places of the overlays' data
    :ivar quiet: no command changes the chain meanwhile; otherwise little can be checked here
    :ivar begun: an operation has started a pull, and none ends it: copies come before changes
    """

    def __init__(self, scenario: RealScenario, machine: GatedMachine, names: IoNames) -> None:
        self._scenario = scenario
        self._machine = machine
        self._names = names
        self._cluster = scenario.cluster_of("hidden")
        self._copies: dict[int, HeldIO] = {}  # by cluster, the write that brings its old data
        self._done: set[int] = set()  # writes that reached their image
        self._read = 0  # how far in the gate's trace
        self._broken = False  # the snapshot: a copy failed, and the option demands it
        self._primaries = {
            scenario.number(index)
            for index, op in enumerate(scenario.ops)
            if op.is_primary and op.writes
        }
        changing = (Verb.CHECKPOINT, Verb.FAILOVER, Verb.STOP, Verb.START)
        self.quiet = not (does(scenario.ops, *changing) or scenario.backs_up)
        self.begun = False
        named, many = scenario.accessible, scenario.granule // self._cluster
        given_up = scenario.given_up((*scenario.setup, *scenario.ops))
        # What the bitmap does not name needs no copy, nor does what is given up.
        self._uncopied = {
            cluster
            for cluster in range(-(-scenario.size // self._cluster))
            if (named is not None and cluster // many not in named) or cluster // many in given_up
        }

    def answered(self, io: HeldIO) -> None:
        """This request was answered as done; whether it is, is checked when it matters."""
        start, cluster = self._names.guest_sector(io), self._cluster
        if first_of(io.image) == "hidden" and io.op is Nbd.WRITE and start is not None:
            end = start + io.length // SECTOR
            # Subclusters behind the disk's end are not written.
            if end >= self._scenario.end_of(start):
                end = outwards(start, end - start, cluster)[1]
            for n in range(-(-start // cluster), end // cluster):
                self._copies[n] = io

    def pull_has_begun(self) -> None:
        """The operation that starts a pull has ended well; what arrives from now on is after T0.

        Zeroes need not be written to the hidden disk: what has some is left out.
        """
        scenario = self._scenario
        if scenario.secondary != "raw" or does(scenario.ops, Verb.STOP):
            return
        self.begun = True
        granule = scenario.granule
        zeroes = {
            (disk * scenario.apart + sector) // granule
            for disk in range(scenario.disks)
            for sector, owner in enumerate(
                owners(
                    self._machine.gate.snapshot(on_disk("secondary", disk)), disk * scenario.apart
                )
            )
            if owner == 0
        }
        many = granule // self._cluster
        self._uncopied |= {n for one in zeroes for n in range(one * many, (one + 1) * many)}

    def failed(self, named: NamedIo, fault: InjectedFault) -> None:
        """A request fails; with ``on-cbw-error=break-snapshot`` one of a copy ends the promise."""
        op = self._scenario.ops[named.op]
        if self._scenario.breaks_snapshot and fault.may_be_of_copy and op.is_primary and op.changes:
            self._broken = True

    def _saved(self, cluster: int) -> bool:
        """Whether the hidden disk has the old data of a cluster: by the gate's effects."""
        trace = self._machine.gate.trace
        for event in trace[self._read :]:
            if event.kind in _EFFECTS and event.op is Nbd.WRITE:
                self._done.add(event.io)
        self._read = len(trace)
        copy = self._copies.get(cluster)
        return copy is not None and copy.seq in self._done

    def arrived(self, io: HeldIO) -> RealViolation | None:
        """What is wrong with a request that is at the gate now."""
        start, cluster = self._names.guest_sector(io), self._cluster
        if not (self.quiet or self.begun) or start is None or self._scenario.has("quorum"):
            return None  # the primary copies nothing
        if first_of(io.image) == "secondary" and io.op in _CHANGES and not self._broken:
            clusters = set(touched(start, io.length // SECTOR, cluster))
            for n in sorted(clusters - self._uncopied):
                if not self._saved(n):
                    text = "new data is sent to the secondary disk before the old is saved"
                    return RealViolation(
                        Verdict.ORDER, text, cluster=n, cause=Cause(CauseKind.NEW_BEFORE_OLD)
                    )
        elif (
            self.quiet
            and not self._broken
            and any(number in self._primaries for _, number, _ in self._copied(io))
        ):
            text = "the copy that goes to the hidden disk holds new data"
            return RealViolation(
                Verdict.CONTENT,
                text,
                cluster=start // cluster,
                cause=Cause(CauseKind.COPY_OF_NEW_DATA),
            )
        return None

    @staticmethod
    def _copied(io: HeldIO) -> tuple[tuple[int, int, int], ...]:
        """What a request writes to the hidden disk."""
        return tags(io.data) if io.image == "hidden" and io.op is Nbd.WRITE else ()

    def made_durable(self, now: History, index: int) -> RealViolation | None:
        """What is wrong now that the flush, or the FUA write, with this index ended well."""
        if not self.quiet or now.gone():
            return None
        scenario = self._scenario
        op = scenario.ops[index]
        failed = {named.io.image for named, _ in now.failed}
        durable = self._acknowledged(now, index)
        for name in self._disks_of(op):
            if name not in self._machine.images or (scenario.has("quorum") and name in failed):
                continue  # what a quorum masks is reported by its own checker
            if op.flushes and scenario.has("quorum") and self._never_flushed(now, index, name):
                text = f"{op} ends, and the {name} disk was not flushed"
                cause = Cause(CauseKind.PRIMARY_NOT_FLUSHED, "guest_flush")
                if not scenario.on_primary:
                    cause = Cause(CauseKind.VOTER_NOT_FLUSHED, "guest_flush", name)
                return RealViolation(Verdict.LOST_WRITE, text, index, cause=cause)
            if durable:
                left = self._machine.gate.journal(name).after_loss()
                if wrong := self._missing(now, index, durable, name, left):
                    return wrong
        return None

    def lost(self, now: History, name: str, image: bytes) -> RealViolation | None:
        """What is missing in a disk that a flush or a FUA write which is over has acknowledged.

        :param image: the bytes that a loss of power left of the disk *name*
        """
        if not self.quiet or now.gone() or now.failed:
            return None
        for index in sorted(now.over):
            op = self._scenario.ops[index]
            if op.makes_durable and now.answers[index] == OK and name in self._disks_of(op):
                durable = self._acknowledged(now, index)
                if wrong := self._missing(now, index, durable, name, image):
                    return wrong
        return None

    def _missing(
        self, now: History, durable: int, writes: Sequence[int], name: str, image: bytes
    ) -> RealViolation | None:
        """Which of the *writes* that operation *durable* acknowledged is not in a disk's bytes."""
        scenario = self._scenario
        if name in DISKS and scenario.secondary == "raw":
            found: Sequence[int | None] = owners(image, 0)
        else:
            found = overlay_in(image, scenario, name).content
        for index in writes:
            op = scenario.ops[index]
            behind = "" if index == durable else " after the flush behind it"
            for sector in range(op.start, op.start + op.count):
                if found[sector] not in self._may_be_there(now, index, sector):
                    return RealViolation(
                        Verdict.LOST_WRITE,
                        f"{op} may be lost from the {name} disk{behind}",
                        index,
                        sector // scenario.cluster,
                        cause=Cause(CauseKind.NOT_ON_DISK, op.name, scenario.ops[durable].name),
                    )
        return None

    def _disks_of(self, op: Operation) -> tuple[str, ...]:
        """The disks that a flush or a write is for."""
        if op.is_primary:
            return ("secondary",)
        if self._scenario.on_primary:
            return ("primary",)
        return self._scenario.topology.voters or ("active",)

    def _acknowledged(self, now: History, durable: int) -> list[int]:
        """The writes that an operation made durable.

        Itself, or those of a flush's client that were answered before it began.
        """
        if self._scenario.ops[durable].writes:
            return [durable]
        side = self._scenario.ops[durable].side
        return [
            index
            for index in now.precedence[durable]
            if (op := self._scenario.ops[index]).side is side
            and op.writes
            and now.answers[index] == OK
        ]

    def _never_flushed(self, now: History, flush: int, name: str) -> bool:
        """Whether what had been written to a disk before a flush was not flushed."""
        writers = [
            index
            for index in now.precedence[flush]
            if self._scenario.ops[index].is_guest
            and self._scenario.ops[index].changes
            and now.answers[index] == OK
        ]
        return left_unflushed(self._machine, now, name, writers)

    def _may_be_there(self, now: History, write: int, sector: int) -> set[int | None]:
        """Whose a sector may be once a write to it is done: its own, or a later change's.

        Later is one that had not ended when the write began.
        """
        ops, side = self._scenario.ops, self._scenario.ops[write].side
        allowed: set[int | None] = set()
        for index in now.started - now.precedence[write]:
            op = ops[index]
            if sector in op.sectors and op.side is side:
                if op.writes:
                    allowed.add(self._scenario.number(index))
                elif op.changes:
                    allowed |= {0, None}
        return allowed


def left_unflushed(
    machine: GatedMachine, now: History, image: str, writers: Collection[int]
) -> bool:
    """Whether no flush of an image that began after the last write of *writers* to it is done."""
    written = False
    flushes: set[int] = set()  # those that began after the last write
    for event in machine.gate.trace:
        if event.image != image:
            continue
        if now.wrote.get(event.io) in writers and event.kind in _EFFECTS:
            written, flushes = True, set()
        if event.op is Nbd.FLUSH and event.kind in (EventKind.ARRIVE, EventKind.PASS):
            flushes.add(event.io)
        if event.io in flushes and event.kind in _EFFECTS:
            written = False
    return written
