"""Which use of QEMU each chain stands for."""

from __future__ import annotations

from qmpshim.conformance.known.meaning import Use

#: By the name of the topology. A write-up or scenario of a chain concerns these uses.
USES: dict[str, tuple[Use, ...]] = {
    "replication": (Use.COLO_SECONDARY,),
    "primary": (Use.COLO_PRIMARY,),
    "backup": (Use.SYNC_NONE_BACKUP,),
    "fleecing": (Use.FLEECING,),
}


def uses_of(chain: str) -> tuple[Use, ...]:
    """The uses that a chain of :data:`~qmpshim.machine.chain.topology.TOPOLOGIES` stands for."""
    return USES[chain]
