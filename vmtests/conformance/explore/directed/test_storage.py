"""The directed cases about the storage see what they look at."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO

from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import run_mutant, sees, since
from vmtests.support.mutants.clients import DONE, blocks_discarded, client_doing, client_with
from vmtests.support.mutants.disks import sound_tables, spoilt_store
from vmtests.support.mutants.qmp import Arguments, asking, asking_otherwise

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


def _written(call: Callable[..., NbdAnswer], offset: int, length: int) -> NbdAnswer:
    """What is to be discarded gets data that no operation has written."""
    return call(Nbd.WRITE, offset, 0, b"?" * length)


def from_it(name: str, arguments: Arguments) -> Arguments | None:
    """A backup of the image that is ejected says success."""
    return None if arguments.get("device") == "image" else arguments


test_a_case_sees = sees(
    ("ejected-target", since((7, 0), client_with("snapshot", Nbd.READ, DONE)), ERROR_CONTRACT,
     "I/O above an ejected image"),
    ("zeroes-are-detected", asking("blockdev-add", **{"detect-zeroes": "off"}),
     Verdict.ALLOCATION, "detect-zeroes=on"),
    ("zeroes-are-detected", asking("blockdev-add", **{"detect-zeroes": "on"}),
     Verdict.ALLOCATION, "detect-zeroes=unmap"),
    ("zeroes-are-detected", client_with("on", Nbd.WRITE, DONE), Verdict.LOST_WRITE,
     "data beside zeroes that are detected"),
    ("zeroes-are-detected", client_with("failing", Nbd.FLUSH, DONE),
     ERROR_CONTRACT, "a flush's error is lost"),
    ("snapshot-of-nothing", client_with("snapshot", Nbd.READ, DONE),
     ERROR_CONTRACT, "a read of no snapshot"),
    ("snapshot-of-nothing", asking("blockdev-add", file="nowhere"), ERROR_CONTRACT,
     "snapshot-of-nothing: "),
    ("snapshot-of-nothing", spoilt_store("secondary", 0), Verdict.LOST_WRITE,
     "a discard of no snapshot"),
    ("blkdebug-small-discard", client_with("blocks", Nbd.TRIM, NbdAnswer(EIO, b"")),
     ERROR_CONTRACT, "a small discard fails"),
    ("blkdebug-small-discard", blocks_discarded, Verdict.CONTENT, "small discards"),
    ("blkdebug-small-discard", client_doing("blocks", Nbd.TRIM, _written), Verdict.CONTENT,
     "small discards"),
    ("ejected-target", sound_tables, ERROR_CONTRACT, "I/O of an ejected image"),
    ("ejected-target", asking("blockdev-backup"), ERROR_CONTRACT,
     "blockdev-backup fails silently"),
    ("ejected-target", asking_otherwise(from_it), ERROR_CONTRACT,
     "blockdev-backup fails silently"),
)  # fmt: skip


def test_small_discards_pass_where_qemu_does_not_divide_by_zero(qemu_build: Build) -> None:
    """No build is without the defect; with opt-discard QEMU divides by that."""
    sound = asking("blockdev-add", **{"opt-discard": 4096})
    assert run_mutant("blkdebug-small-discard", sound, qemu_build) is None
