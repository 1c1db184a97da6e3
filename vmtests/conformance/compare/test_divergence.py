"""When two divergences are the same: by how QEMU ended, as data, whatever the text says."""

from __future__ import annotations

import json
import signal
from itertools import count

import pytest

from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.errors import Exit, MachineDied
from qmpshim.model.check.verdict import Verdict

NUMBER = count()
ABORTED = Exit(-signal.SIGABRT)
ASSERTION = "../../block/io.c:{}: bdrv_co_write: Assertion `offset >= {}' failed."


def crash(
    how: Exit = ABORTED, words: str = ASSERTION.format(1, 2), operation: int = 7
) -> Divergence:
    """One whose text is another each time."""
    error = MachineDied(f"gibberish {next(NUMBER)}", how, words)
    return Divergence.of_error(error, "QEMU", operation, "an answer")


def test_the_same_ending_by_another_text() -> None:
    assert crash().same_as(crash(words=ASSERTION.format(30, 4096)))


@pytest.mark.parametrize(
    "other",
    [crash(Exit(-signal.SIGSEGV)), crash(words="out of memory"), crash(operation=8)],
)
def test_another_ending(other: Divergence) -> None:
    assert not crash().same_as(other)


def test_as_json() -> None:
    for one in (crash(), Divergence(Verdict.CONTENT, "hidden disk", 3, "a", "b")):
        assert Divergence.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("observed", "ending"),
    [
        (
            "QEMU was killed by SIGABRT during 7: guest write 0x0+0x200: no memory: none",
            Ending(ABORTED, "no memory: none"),
        ),
        ("QEMU exited with status 1 during the start", Ending(Exit(1), "")),
        ("QEMU was killed by SIGSEGV during transaction", Ending(Exit(-signal.SIGSEGV), "")),
        ("the NBD connection broke during a read: closed", None),
    ],
)
def test_older_bundles_have_the_text_alone(observed: str, ending: Ending | None) -> None:
    one = Divergence(Verdict.CRASH, "QEMU", 7, "an answer", observed).to_json()
    assert Divergence.from_json(one).ending == ending
