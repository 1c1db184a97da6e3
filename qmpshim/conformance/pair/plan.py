"""What is done to a pair, and how it went: data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qmpshim.codec import decode
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.uses import USES_OF_PAIR, Use
from qmpshim.errors import InputError
from qmpshim.machine.colo.linux_guest import LinuxGuest
from qmpshim.machine.colo.pair import PairSpec
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.boot_sector import BootGuest
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

MIB = 1 << 20


class Failover(StrEnum):
    """How a run ends: what is taken away, or nothing."""

    NONE = "none"
    PRIMARY = "primary"  # SIGKILL of the primary: the secondary takes over
    SECONDARY = "secondary"  # SIGKILL of the secondary: the primary goes on
    CUT = "cut"  # the NBD link breaks: the primary goes on
    STALL = "stall"  # the NBD link falls silent: the primary goes on
    CUT_LATE = "cut-late"  # the NBD link breaks, and COLO takes one more checkpoint


#: The boot-sector guest; Linux, booted before COLO begins, or afterwards on both sides; none.
GUESTS = ("boot", "linux", "linux-booting", "none")
#: Messages of the secondary at which a primary can be killed (ColoMessage, QEMU's spelling).
MOMENTS = ("checkpoint-reply", "vmstate-received", "vmstate-loaded")


@dataclass(frozen=True, slots=True)
class PairPlan:
    """One run of a pair; with the builds it determines all that is done.

    :ivar colo: real COLO; else block replication alone
    :ivar guest: with COLO, what runs in both machines: one of :data:`GUESTS`; ``none``: they have
        no CPU, and the writes come over NBD
    :ivar checkpoints: how many are taken before what :attr:`failover` names
    :ivar writes: of the primary between two checkpoints, at least
    :ivar seed: of the workload, where there is no guest
    :ivar accel: ``tcg`` or ``kvm``
    :ivar moment: the primary is killed in a checkpoint, when the secondary sends this: one of
        :data:`MOMENTS`, or ``""``
    :ivar resume: after the failover, replicate to a new secondary
    :ivar size: of the disks, bytes
    :ivar cluster: of hidden and active disk, bytes
    :ivar limit: seconds any one step may take
    """

    colo: bool = True
    guest: str = "boot"
    checkpoints: int = 10
    writes: int = 20
    failover: Failover = Failover.NONE
    moment: str = ""
    resume: bool = False
    seed: int = 1
    accel: str = "tcg"
    size: int = 16 * MIB
    cluster: int = 64 << 10
    limit: float = 30.0

    def __post_init__(self) -> None:
        if min(self.checkpoints, self.writes, self.size, self.cluster, self.limit) <= 0:
            raise InputError("a pair's numbers must be positive")
        if self.accel not in ("tcg", "kvm"):
            raise InputError(f"{self.accel!r} is neither tcg nor kvm")
        if self.moment and (not self.colo or self.failover is not Failover.PRIMARY):
            raise InputError("only a COLO primary can be killed in a checkpoint")
        if self.guest not in GUESTS:
            raise InputError(f"{self.guest!r} is none of the guests {', '.join(GUESTS)}")
        if self.moment not in ("", *MOMENTS):
            raise InputError(f"{self.moment!r} is none of {', '.join(MOMENTS)}")
        if self.failover is Failover.CUT_LATE and (not self.colo or self.resume):
            raise InputError("cut-late is for COLO, and ends there")

    @property
    def spec(self) -> PairSpec:
        """The pair this plan needs."""
        guest: BootGuest | LinuxGuest | None = None
        if self.colo and self.guest == "boot":
            guest = BootGuest()
        elif self.colo and self.guest != "none":
            image, booting = guest_image.build(), self.guest == "linux-booting"
            guest = LinuxGuest(image, self.size // SECTOR, seed=self.seed, booting=booting)
        return PairSpec(self.size, self.cluster, self.colo, guest, accel=self.accel)

    @property
    def wanted(self) -> int:
        """How many checkpoints are to be taken in all."""
        return self.checkpoints * (2 if self.resume else 1)

    @classmethod
    def from_json(cls, value: Any) -> PairPlan:
        """A plan as JSON; what is left out is as by default.

        :raises InputError: it is none
        """
        return decode(cls, value, "a plan of a pair")


@dataclass(frozen=True, slots=True)
class PairFinding:
    """Something that went otherwise than it must.

    :ivar cause: stable across runs and machines
    :ivar contract: seen within QEMU's documented contract
    :ivar known: id of the written-up finding that this is, or ``""``
    :ivar post_mortem: the state of both sides then
    """

    divergence: Divergence
    cause: Cause
    contract: bool = True
    known: str = ""
    post_mortem: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What kind of violation it is."""
        return self.divergence.verdict

    @property
    def described(self) -> str:
        """What is wrong, one line."""
        return str(self.cause)

    @property
    def confirmed(self) -> bool:
        """A run of a pair takes too long to be done again: what it shows counts."""
        return True

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that a pair stands for."""
        return USES_OF_PAIR


@dataclass(slots=True)
class PairOutcome:
    """How a run went.

    :ivar versions: QEMU's version text of the primary and of the secondary
    :ivar checkpoints: taken and judged
    :ivar writes: of the primary that passed the link
    :ivar compared: bytes
    :ivar steps: what was done, a line a step
    :ivar figures: others, by name with the unit in it
    :ivar unsaved: why there is no bundle of what was found, or ``""``
    """

    plan: PairPlan
    versions: tuple[str, str]
    checkpoints: int = 0
    writes: int = 0
    compared: int = 0
    checks: int = 0
    seconds: float = 0.0
    findings: list[PairFinding] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    unsaved: str = ""
