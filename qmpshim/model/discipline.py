"""Who waits for whom: the disciplines by which QEMU has kept the promise over the years.

A discipline wraps three moments of the chain: the copy before a write to the secondary disk, a
read by the guest through active -> hidden -> secondary, and an access to the hidden disk.
"""

from __future__ import annotations

from qmpshim.model.co import Co
from qmpshim.model.cow_request import (
    BackupJob,
    CowRequest,
    backup_cow_request_begin,
    backup_cow_request_end,
    backup_do_cow,
    backup_wait_for_overlapping_requests,
)
from qmpshim.model.disk import Owners


class Discipline:
    """``none``: nobody waits for anybody.  Broken on purpose; the base of the others."""

    name = "none"

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        """Copy what these sectors' clusters hold before they are written."""
        raise NotImplementedError

    def replication_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        """Do *read*, which falls through to the secondary disk, as the guest's side does it."""
        return (yield from read)


class CowRequestDiscipline(Discipline):
    """``cow-request`` (QEMU 2.8 to 2.12): the seed.

    Backup's before-write notifier keeps a list of :class:`CowRequest`; the replication filter puts
    its own reads into the same list (the seed's ``xxx_co_readv``).  The promise: no cluster is
    copied while it is read, and none is read while it is copied.
    """

    name = "cow-request"

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        yield from backup_do_cow(job, start, count)

    def replication_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        if job is None:
            return (yield from read)
        req = CowRequest()
        yield from backup_wait_for_overlapping_requests(job, start, count)
        backup_cow_request_begin(req, job, start, count)
        try:
            return (yield from read)
        finally:
            backup_cow_request_end(req, job)
