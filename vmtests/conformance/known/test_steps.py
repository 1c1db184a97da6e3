"""The scripts of write-ups that have no schedule: they stand alone, and see what is written up."""

from __future__ import annotations

import shutil

import pytest

from qmpshim.conformance.known.folder import known_pairs, write_up, write_ups
from qmpshim.conformance.known.matching import PairWriteUp
from qmpshim.conformance.known.tracker import script_of, takes_guest
from qmpshim.conformance.known.write_ups import Version, WriteUp
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.guest import image as guest_image
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer

DEADLOCKS = "pair/colo-primary-deadlocks-under-tcg"
STALE = "pair/colo-secondary-runs-stale-code-under-tcg"
LOST, COMPLETES = "pair/checkpoint-after-lost-writes", "pair/colo-migration-completes"
#: Tried to the end of a time limit on a QEMU that has it, or on one that has it not.
SLOW = {DEADLOCKS, STALE}
WITH_STEPS = [one for one in write_ups() if one.kind != "explore"]


def test_each_write_up_has_a_schedule_or_steps() -> None:
    assert all(script_of(one) for one in write_ups())


@pytest.mark.parametrize(
    ("one", "guest"),
    [
        pytest.param(
            *(one, takes_guest(one)),
            id=one.name,
            marks=[pytest.mark.full] if one.name in SLOW or takes_guest(one) else [],
        )
        for one in WITH_STEPS
    ],
)
def test_what_is_written_up_is_seen_without_qmpshim(
    one: WriteUp, guest: bool, qemu_build: Build, reproducer: Reproducer
) -> None:
    script = script_of(one)
    assert "qmpshim" not in script.split("import", 1)[1]
    version = read_version(qemu_build)[0]
    words = linux_arguments() if guest else ()
    status, output = reproducer(script, *words)
    if isinstance(one, PairWriteUp) and comes_before(one, version):
        assert status in (SEEN if one.concerns(version) else NOT_SEEN, UNTESTED), output
    else:
        assert status == (SEEN if one.concerns(version) else NOT_SEEN), output


def linux_arguments() -> tuple[str, ...]:
    """QEMU and its tools from PATH, and the guest."""
    image = guest_image.build()
    tools = [str(shutil.which(name)) for name in ("qemu-system-x86_64", "qemu-img")]
    return (*tools, str(image.kernel), str(image.initramfs))


def comes_before(one: PairWriteUp, version: Version) -> list[str]:
    """What this QEMU has that may end the same run before it gets so far."""
    versions = (version, version)
    others = (other for other in known_pairs() if other.contract and other is not one)
    return [other.name for other in others if other.may_come(one.plan, versions)]


@pytest.mark.parametrize(
    ("version", "of", "before"),
    [
        ((7, 2, 22), STALE, [DEADLOCKS]),
        ((7, 2, 22), DEADLOCKS, []),
        ((7, 2, 22), LOST, []),
        ((10, 0, 2), LOST, [COMPLETES]),
        ((10, 0, 2), DEADLOCKS, [COMPLETES]),
        ((11, 1, 3), STALE, []),
        ((11, 1, 3), LOST, []),
    ],
)
def test_what_comes_before_is_of_the_same_run(version: Version, of: str, before: list[str]) -> None:
    one = write_up(of)
    assert isinstance(one, PairWriteUp)
    assert comes_before(one, version) == before


@pytest.mark.parametrize("name", ["directed/copy-fails", "directed/start-busy-twice"])
def test_a_qemu_that_ends_otherwise_shows_nothing(name: str, reproducer: Reproducer) -> None:
    """Neither what the title says nor the opposite: a 0 is for a QEMU that went all the way."""
    script = script_of(write_up(name))
    steps = script.rindex("expect_crash(" if "\nexpect_crash(" in script else "conclude(")
    status, output = reproducer(f"{script[:steps]}qemu.kill(), time.sleep(0.2)\n{script[steps:]}")
    assert status == UNTESTED and "was killed by SIGKILL" in output


REPAIRED = {
    # what the defect is made of in the script -> the same script where QEMU has none of it
    "directed/copy-fails": ('(hidden="write_aio")', "()", UNTESTED),
    "directed/blkdebug-small-discard": ("align=4096", "align=512", NOT_SEEN),
    "directed/parts-of-blocks-read-fails": ('"iotype": "read"', '"iotype": "flush"', NOT_SEEN),
    "directed/quorum-rewrite-beside-write": (
        'rewrite-corrupted": True',
        'rewrite-corrupted": False',
        NOT_SEEN,
    ),
    "directed/refused-enable-stops-bitmap": (
        "block-dirty-bitmap-enable",
        "block-dirty-bitmap-disable",
        NOT_SEEN,
    ),
    "directed/start-bad-top-twice": ("range(2)", "range(1)", NOT_SEEN),
    "directed/start-fails": ("empty_image_prepare", "snapshot_create_free", UNTESTED),
    "verify/stop-always-fails": ("failover=False", "failover=True", NOT_SEEN),
    "verify/transaction-undoes-enable-that-was-refused": (
        "block-dirty-bitmap-enable",
        "block-dirty-bitmap-disable",
        NOT_SEEN,
    ),
    "pair/checkpoint-after-lost-writes": ("    sock.shutdown", "    sock.fileno  # ", UNTESTED),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_steps_that_do_not_lead_there_see_nothing(name: str, reproducer: Reproducer) -> None:
    """What a script sees is there because of its steps, not always."""
    step, other, wanted = REPAIRED[name]
    script = script_of(write_up(name))
    assert step in script
    status, output = reproducer(script.replace(step, other))
    assert status == wanted, output
