"""The directed cases about images that are ejected see what they look at."""

from __future__ import annotations

from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import sees
from vmtests.support.mutants.clients import DONE, client_ending
from vmtests.support.mutants.disks import nothing_held, on_release, sound_tables

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


def new_data(machine: GatedMachine) -> None:
    """The disk is written to before its copy is done."""
    spoil = on_release(lambda machine, io: machine.stores["secondary"].write(0, bytes(512)))
    spoil(machine)


test_a_case_sees = sees(
    ("ejected-beside-requests", sound_tables, ERROR_CONTRACT, "a read by broken tables"),
    ("ejected-beside-requests", client_ending("image-flush", Nbd.FLUSH, DONE), ERROR_CONTRACT,
     "a flush beside an ejection"),
    ("ejected-beside-requests", nothing_held, Verdict.ORDER, "a read of an image's tables"),
    ("ejected-beside-copy", sound_tables, ERROR_CONTRACT, "a read by broken tables"),
    ("ejected-beside-copy", client_ending("write-filter", Nbd.WRITE, DONE), ERROR_CONTRACT,
     "a change of an ejected disk"),
    ("ejected-beside-copy", client_ending("write_zeroes-filter", Nbd.WRITE_ZEROES, DONE),
     ERROR_CONTRACT, "a change of an ejected disk"),
    ("ejected-by-copy", sound_tables, ERROR_CONTRACT, "filter beside an ejected target"),
    ("ejected-by-copy", client_ending("image", Nbd.WRITE_ZEROES, DONE), ERROR_CONTRACT,
     "image beside an ejected target"),
    ("ejected-by-copy", new_data, Verdict.ORDER, "a change without its copy"),
)  # fmt: skip
