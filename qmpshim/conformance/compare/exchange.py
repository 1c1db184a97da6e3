"""One operation on a chain: how it is put to QEMU, and what is wrong with the answer."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.crosscheck import CrossCheck
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import Answered, Returned, owner_runs
from qmpshim.conformance.compare.oracle import Prediction
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, HostError, IOFailed, errno_words
from qmpshim.machine.chain.secondary import SecondaryChain
from qmpshim.machine.host.files import Bytes
from qmpshim.machine.nbd.client import BlockClient
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Owners
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR


def submit(client: BlockClient, operation: Operation, payload: Any) -> int:
    """Begin an I/O.

    :param payload: the data of a write, the buffer of a read
    :returns: its cookie, for :func:`answer`
    """
    verb, offset = operation.verb, operation.start * SECTOR
    if verb is Verb.READ:
        return client.submit_read(payload, offset)
    if verb is Verb.WRITE:
        return client.submit_write(payload, offset)
    if verb is Verb.ZERO:
        return client.submit_zero(operation.count * SECTOR, offset)
    if verb is Verb.DISCARD:
        return client.submit_discard(operation.count * SECTOR, offset)
    return client.submit_flush()


def answer(client: BlockClient, cookie: int) -> int:
    """Wait for an I/O; the errno it ended with, 0 for success."""
    try:
        client.wait(cookie)
    except IOFailed as error:
        return error.errno
    return 0


async def command(chain: SecondaryChain, verb: Verb) -> str | None:
    """Carry out a command: the error that QEMU returns, of the status the error that it reports."""
    try:
        if verb is Verb.STATUS:
            return await chain.status()
        if verb is Verb.START:
            await chain.start()
        elif verb is Verb.CHECKPOINT:
            await chain.checkpoint()
        elif verb is Verb.STOP:
            await chain.stop()
        elif verb is Verb.FAILOVER:
            await chain.failover()
        elif verb is Verb.REBUILD:
            await chain.rebuild()
    except CommandFailed as error:
        return error.desc
    return None


def wrong_error(
    operation: Operation, prediction: Prediction, observed: str | None
) -> Divergence | None:
    """What is wrong with a command's answer, if anything."""
    if observed == prediction.error:
        return None
    return Divergence(
        Verdict.ERROR_CONTRACT,
        str(operation.verb),
        operation.number,
        _error_text(prediction.error),
        _error_text(observed),
        evidence=Answered(prediction.error, observed),
    )


def wrong_errno(
    operation: Operation, prediction: Prediction, observed: int, directory: Path
) -> Divergence | None:
    """What is wrong with the errno of an I/O, if anything.

    :param observed: an errno, 0 for success
    :param directory: where the images are
    :raises HostError: the disk under *directory* is full, which explains it
    """
    if observed == prediction.errno:
        return None
    if observed == errno.ENOSPC:
        check_space(directory)
    return Divergence(
        Verdict.ERROR_CONTRACT,
        f"{operation.side} {operation.verb}",
        operation.number,
        _errno_text(prediction.errno),
        _errno_text(observed),
        evidence=Answered(prediction.errno or None, observed or None),
    )


def wrong_data(
    operation: Operation,
    data: Bytes,
    owners: Owners,
    wrong: list[pattern.Mismatch],
    check: CrossCheck,
) -> Divergence:
    """The divergence of a read that returned other data than was predicted.

    :param data: what it returned
    :param owners: what was predicted
    :param wrong: where that differs; not empty
    :param check: knows which operation wrote what
    """
    first = wrong[0]
    at = (first.start - operation.start) * SECTOR
    return Divergence(
        check.read_verdict(operation.side, first, data[at : at + SECTOR]),
        f"{operation.side} read",
        operation.number,
        first.prediction,
        first.found,
        evidence=Returned(operation.side.value, operation.start, owner_runs(owners)),
    )


def _error_text(error: str | None) -> str:
    return f"the error {error!r}" if error else "no error"


def _errno_text(number: int) -> str:
    return errno_words(number) if number else "success"


def check_space(directory: Path) -> None:
    """Distinguish a full host disk from a QEMU that invents ENOSPC.

    :raises HostError: the disk under *directory* is full
    """
    free = os.statvfs(directory)
    if free.f_bavail * free.f_frsize < 1 << 20:
        raise HostError(
            f"the disk under {directory} is full: free some space, or set TMPDIR to another disk"
        )
