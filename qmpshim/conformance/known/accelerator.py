"""The accelerator of a COLO pair, by what is known of builds."""

from __future__ import annotations

from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.guest.guest import has_kvm


def best_accel(builds: tuple[Build, Build], guest: str) -> str:
    """The accelerator under which COLO has a chance on these builds.

    It is ``kvm``, if this host has it, where a finding is written up that needs ``tcg`` and no
    more: a primary of before 11.0 that deadlocks (``colo-primary-deadlocks-under-tcg``).

    :param builds: of the primary and of the secondary
    :param guest: one of :data:`~qmpshim.conformance.pair.plan.GUESTS`
    """
    plan = PairPlan(guest=guest, accel="tcg")
    one, other = (read_version(build)[0] for build in builds)
    bad = any(
        known.accel == "tcg" and known.contract and known.may_come(plan, versions)
        for known in known_pairs()
        for versions in ((one, other), (other, one))  # the survivor may be a primary later
    )
    return "kvm" if bad and has_kvm() else "tcg"
