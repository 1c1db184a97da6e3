"""The pair's model and checks without a QEMU: bytes, checkpoints, failover, plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmpshim.codec import encode
from qmpshim.conformance.guest.program import read_lines
from qmpshim.conformance.pair.checker import first_difference
from qmpshim.conformance.pair.console import GuestConsole
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import Failover, PairPlan
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.colo.pair import Pair, PairSpec
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.disks.image import Alloc

SIZE, CLUSTER = 1 << 20, 64 << 10


def model(initial: bytes = b"") -> PairModel:
    made = PairModel(initial.ljust(SIZE, b"\0"), CLUSTER, Behaviour())
    made.start()
    return made


def write(made: PairModel, offset: int, data: bytes) -> None:
    made.passed(Request(0, NbdCommand.WRITE.value, 0, offset, len(data), data), 0)


def test_primary_write_is_copied_before() -> None:
    made = model(b"old" * 1000)
    write(made, 0, b"n" * 512)
    assert bytes(made.disk[:512]) == b"n" * 512
    assert made.allocation("hidden") == {0: Alloc.DATA}
    assert made.content("hidden", 0, 512) == (b"old" * 1000)[:512]
    assert made.view(0, 1024) == (b"old" * 1000)[:1024]  # the guest sees the checkpoint


def test_checkpoint_empties() -> None:
    made = model()
    write(made, 512, b"a" * 512)
    made.guest_wrote(0, b"g" * 512)
    assert made.view(0, 1024) == b"g" * 512 + bytes(512)
    made.checkpoint()
    assert made.allocation("hidden") == made.allocation("active") == {}
    assert made.view(0, 1024) == bytes(512) + b"a" * 512
    write(made, 512, b"b" * 512)
    assert made.content("hidden", 512, 512) == b"a" * 512


def test_failover_keeps_the_guests_view() -> None:
    made = model()
    write(made, 0, b"a" * 512)
    made.checkpoint()
    write(made, 0, b"b" * 512)  # lost, by design
    made.guest_wrote(1024, b"g" * 512)
    made.failover()
    assert bytes(made.disk[:1536]) == b"a" * 512 + bytes(512) + b"g" * 512
    made.guest_wrote(0, b"h" * 512)
    assert bytes(made.disk[:512]) == b"h" * 512


def test_an_unanswered_write_is_none() -> None:
    made = model()
    made.passed(Request(0, NbdCommand.WRITE.value, 0, 0, 512, b"a" * 512), 5)
    assert bytes(made.disk[:512]) == bytes(512)
    assert made.writes == 0
    assert made.allocation("hidden") == {}


def test_first_difference() -> None:
    one = bytearray(4096)
    assert first_difference(one, bytes(4096)) is None
    one[513] = one[2048] = 1
    assert first_difference(one, bytes(4096)) == (1, 2)
    assert first_difference(bytes(1024), bytes(512)) == (1, 1)


def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    output = "[ready] guest# 1 write 8 8 ok\r\n2 read 0 16 0x8+1x8\r\n3 read 0 16 1x1"
    pair = Pair(PairSpec(), (Build.system(), Build.system()), tmp_path, lambda *_: None)
    console = GuestConsole(pair.primary)
    assert console.whole_lines() == b""  # there is no file yet
    pair.primary.console.write_text(output)
    assert [
        reported.operation.number for reported in read_lines(console.whole_lines().decode())
    ] == [1, 2]
    pair.primary.console.write_text(output + "6\n")
    assert console.whole_lines() == b"3 read 0 16 1x16\n"
    console.cut(len(output), b"9 flush")
    assert console.whole_lines() == b"9 flush6\n"


def test_plan_to_json_and_back() -> None:
    plan = PairPlan(guest="none", failover=Failover.PRIMARY, moment="vmstate-loaded")
    assert PairPlan.from_json(encode(plan)) == plan


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"failover": "sideways"}, "not a plan"),
        ({"guest": "windows"}, "none of the guests"),
        ({"moment": "vmstate-loaded"}, "killed in a checkpoint"),
        ({"failover": "primary", "moment": "tea"}, "none of"),
        ({"failover": "cut-late", "colo": False}, "cut-late"),
    ],
)
def test_wrong_plans(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        PairPlan.from_json(wrong)
