"""The directed cases about where requests begin and end see what they look at."""

from __future__ import annotations

from qmpshim.conformance.explore.directed.machine import CLUSTER, clusters_in_words
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from vmtests.support.directed import sees
from vmtests.support.mutants.clients import (
    DONE,
    blocks_discarded,
    client_ending,
    client_with,
    copied_zeroes,
    without_flags,
)
from vmtests.support.mutants.disks import (
    COPIED_WRONG,
    REFUSED,
    never_open,
    nothing_held,
    on_failure,
    on_release,
    spoilt_store,
    succeeding,
)
from vmtests.support.mutants.qmp import (
    Arguments,
    answering,
    asking,
    asking_otherwise,
    not_recording,
    not_shrunk,
)

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
PROTOCOL = Verdict.PROTOCOL


def overwritten(machine: GatedMachine, io: HeldIO) -> None:
    """The third write is on the disk already."""
    data = bytes(pattern.data_of(5, 64, 128))
    machine.stores["secondary"].write(CLUSTER // 2, data)


def _shortened(name: str, arguments: Arguments) -> Arguments:
    return {**arguments, "name": "s"} if len(arguments.get("name", "")) > 1023 else arguments


#: A bitmap may have any name.
any_name = asking_otherwise(_shortened)


test_a_case_sees = sees(
    ("copy-of-zeroes-in-part", copied_zeroes, Verdict.ALLOCATION, "the copy of zeroes in part"),
    ("copy-of-zeroes-in-part", spoilt_store("secondary", CLUSTER), Verdict.CONTENT,
     "the data beside zeroes"),
    ("copy-fills-clusters", client_with("image", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.CONTENT, "a copy of a part of the target's cluster"),
    ("neighbours-of-copy", nothing_held, Verdict.ORDER, "a request of the guest: other I/O"),
    ("neighbours-of-copy", never_open, Verdict.HANG, "a write waits for what it only touches"),
    ("neighbours-of-copy", REFUSED, ERROR_CONTRACT, "guest fails beside its neighbours"),
    ("neighbours-of-snapshot", never_open, Verdict.HANG, "a write waits for what it only"),
    ("discard-in-part", asking("blockdev-add", discard="ignore"), Verdict.ALLOCATION,
     "a discard frees what is in it"),
    ("discard-in-part", client_with("image", Nbd.TRIM, NbdAnswer(5, b"")), ERROR_CONTRACT,
     "a discard fails"),
    ("discard-in-part", client_with("image", Nbd.READ, NbdAnswer(0, bytes(CLUSTER // 2))),
     Verdict.LOST_WRITE, "data is lost beside a discard"),
    ("bitmap-grows", asking("block_resize"), PROTOCOL, "a bitmap after the disk grew"),
    ("bitmap-grows", client_with("image", Nbd.WRITE, DONE), PROTOCOL,
     "a bitmap after a write to what is new"),
    ("bitmap-grows", asking("block-dirty-bitmap-merge"), PROTOCOL,
     "a bitmap after a merge"),
    ("bitmap-grows", not_shrunk, PROTOCOL, "a bitmap after the disk shrank"),
    ("bitmap-grows", asking("blockdev-backup"), ERROR_CONTRACT, "block_resize fails silently"),
    ("write-waits-for-copies", nothing_held, Verdict.ORDER, "two writes: other I/O"),
    ("write-waits-for-copies", on_release(overwritten), Verdict.ORDER,
     "a write waits for one copy only"),
    ("write-waits-for-copies", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.ISOLATION, "the target after writes that waited"),
    ("reads-wait-for-copy", nothing_held, Verdict.ORDER, "a primary write: other I/O"),
    ("reads-wait-for-copy", REFUSED, ERROR_CONTRACT, "primary fails beside the other"),
    ("reads-wait-for-copy", COPIED_WRONG, Verdict.ISOLATION, "a read of the target beside"),
    ("bitmap-names-edges", asking("block-dirty-bitmap-add", granularity=512), PROTOCOL,
     "a bitmap after a write of sectors"),
    *(("bitmap-granularity", asking("block-dirty-bitmap-add", granularity=size), PROTOCOL,
       "granularity of a bitmap") for size in (4096, 8192)),
    ("bitmap-names-edges", any_name, ERROR_CONTRACT, "block-dirty-bitmap-add fails silently"),
    ("parts-of-blocks", client_with("blocks", Nbd.WRITE_ZEROES, NbdAnswer(5, b"")),
     ERROR_CONTRACT, "a request of sectors fails"),
    ("parts-of-blocks", client_with("blocks", Nbd.READ, NbdAnswer(0, bytes(2 * CLUSTER))),
     Verdict.CONTENT, "parts of blocks"),
    ("parts-of-blocks", blocks_discarded, Verdict.CONTENT, "parts of blocks"),
    ("parts-of-blocks-read-fails", nothing_held, Verdict.ORDER,
     "I/Os of a request of parts of blocks"),
    ("parts-of-blocks-read-fails", client_ending("blocks", Nbd.WRITE, NbdAnswer(5, b"")),
     Verdict.LOST_WRITE, "what is around a failed request"),
    ("parts-of-blocks-write-fails", succeeding, ERROR_CONTRACT,
     "a failed write of a write of parts of blocks"),
    ("parts-of-blocks-write-fails", on_failure, Verdict.LOST_WRITE,
     "what is around a failed request"),
    ("flush-waits-for-flush", nothing_held, Verdict.ORDER, "flushes: other I/O"),
    ("flush-waits-for-flush", succeeding, ERROR_CONTRACT, "a flush that fails beside another"),
    ("bitmap-is-stored", asking("block-dirty-bitmap-add", persistent=False), PROTOCOL,
     "a bitmap that was stored after write 1"),
    ("bitmap-is-stored", answering("query-named-block-nodes", not_recording), PROTOCOL,
     "state of a bitmap that was stored"),
    ("bitmap-is-stored", asking("block-dirty-bitmap-remove"), PROTOCOL,
     "a bitmap that was removed"),
    ("fua-is-durable", without_flags("image"), Verdict.LOST_WRITE,
     "a write with FUA is not durable"),
    ("fua-is-durable", without_flags("image", Nbd.WRITE_ZEROES), Verdict.LOST_WRITE,
     "a write_zeroes with FUA is not durable"),
    ("fua-is-durable", without_flags("image", Nbd.TRIM), Verdict.LOST_WRITE,
     "a trim with FUA is not durable"),
    ("flush-is-durable", client_with("image", Nbd.FLUSH, DONE), Verdict.LOST_WRITE,
     "a flush after a write is not durable"),
    ("flush-is-durable", client_with("image", Nbd.FLUSH, NbdAnswer(5, b"")), ERROR_CONTRACT,
     "a flush fails"),
)  # fmt: skip


def test_clusters_in_words() -> None:
    found = {2: Alloc.DATA, 1: Alloc.ZERO, 0: Alloc.DATA}
    assert clusters_in_words(found) == "zero in 1 and data in 0, 2"
    assert clusters_in_words({}) == "nothing"
