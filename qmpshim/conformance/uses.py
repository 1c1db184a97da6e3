"""What QEMU's block layer is used for, and which of it a word, a chain and a pair stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from qmpshim.model.operations import Operation, Verb, does


class Use(StrEnum):
    """What QEMU's block layer is used for."""

    COLO_PRIMARY = "colo-primary"
    COLO_SECONDARY = "colo-secondary"
    SYNC_NONE_BACKUP = "sync-none-backup"
    FLEECING = "fleecing"
    FULL_BACKUP = "full-backup"
    INCREMENTAL_BACKUP = "incremental-backup"
    BITMAPS = "bitmaps"
    NBD_EXPORT = "nbd-export"
    QUORUM = "quorum"

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return _WORDS[self]


_WORDS = {
    Use.COLO_PRIMARY: "the COLO primary",
    Use.COLO_SECONDARY: "the COLO secondary",
    Use.SYNC_NONE_BACKUP: "backup with sync=none",
    Use.FLEECING: "image fleecing",
    Use.FULL_BACKUP: "full backup",
    Use.INCREMENTAL_BACKUP: "incremental backup",
    Use.BITMAPS: "dirty bitmaps",
    Use.NBD_EXPORT: "NBD export",
    Use.QUORUM: "a quorum of disks that vote",
}

#: A pair with COLO, or without.
USES_OF_PAIR = (Use.COLO_PRIMARY, Use.COLO_SECONDARY)

#: Both sides of COLO, as a word on the command line.
COLO = "colo"
#: The words that :func:`uses_named` takes.
USE_NAMES = (COLO, *(use.value for use in Use))


def uses_named(word: str) -> tuple[Use, ...]:
    """The uses that a word means: one by its value, or both sides of COLO.

    :raises ValueError: it means none
    """
    return USES_OF_PAIR if word == COLO else (Use(word),)


#: By the name of the topology. A write-up or scenario of a chain concerns these uses.
USES: dict[str, tuple[Use, ...]] = {
    "replication": (Use.COLO_SECONDARY,),
    "primary": (Use.COLO_PRIMARY,),
    "backup": (Use.SYNC_NONE_BACKUP,),
    "fleecing": (Use.FLEECING,),
    "pull": (Use.SYNC_NONE_BACKUP,),
    "votes": (Use.QUORUM,),
    "push": (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
}


def uses_of(chain: str) -> tuple[Use, ...]:
    """The uses that a chain of :data:`~qmpshim.machine.chain.chains.TOPOLOGIES` stands for."""
    return USES[chain]


#: What an operation has to be for a use whose chain stands for several: jobs are for either.
JOBS_OF_USE: Mapping[Use, tuple[Verb, ...]] = {
    Use.FULL_BACKUP: (Verb.BACKUP_FULL, Verb.BACKUP_AND_BITMAP, Verb.BACKUP_TOP),
    Use.INCREMENTAL_BACKUP: (Verb.BACKUP_INCREMENTAL, Verb.BACKUP_ALWAYS, Verb.BACKUP_NEVER),
}


def uses_of_operations(chain: str, ops: Iterable[Operation]) -> tuple[Use, ...]:
    """Those uses that a chain stands for and operations on it are about."""
    done = [*ops]
    return tuple(
        use for use in uses_of(chain) if use not in JOBS_OF_USE or does(done, *JOBS_OF_USE[use])
    )
