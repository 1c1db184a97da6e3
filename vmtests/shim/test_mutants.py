"""Mutants of the shim are killed: each here must show up as a difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case, Status
from qmpshim.machine.builds.build import Build
from qmpshim.model.check.verdict import Verdict
from qmpshim.shim import differential
from qmpshim.shim.endpoint import session
from qmpshim.shim.endpoint.client import Client
from qmpshim.shim.endpoint.server import Shim
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.json import text
from qmpshim.shim.json.stream import JsonStream
from vmtests.support.shim_harness import Difference, Loop, Pair, pair

BATTERY = [
    b"{'execute': 'query-name', 'id': 1}",
    b"{'execute': 'query-name', 'id': 0.1, 'arguments': {'x': 1}}",
    b"{'execute': 'stop'}{'execute': 'query-status', 'id': 'a'}{'execute': 'cont', 'id': 'b'}",
    b"{'execute': 'no-such'} {] {'execute': 'query-name', 'ID': 3}",
    b"{'execute': 'balloon', 'arguments': {'value': 1.0}}",
]

Mutant = Callable[[pytest.MonkeyPatch], None]


def _id_as_text(patch: pytest.MonkeyPatch) -> None:
    original = Reply.with_id
    patch.setattr(
        Reply,
        "with_id",
        lambda self, id_: original(self, b'"%s"' % id_ if id_ and id_.isdigit() else id_),
    )


def _no_id_on_errors(patch: pytest.MonkeyPatch) -> None:
    original = Reply.with_id
    patch.setattr(Reply, "with_id", lambda self, id_: original(self, None if self.failed else id_))


def _drop_an_event(patch: pytest.MonkeyPatch) -> None:
    original = Shim.take_event

    def drop(self: Shim, line: bytes) -> None:
        if b"RESUME" not in line:
            original(self, line)

    patch.setattr(Shim, "take_event", drop)


def _swap_replies(patch: pytest.MonkeyPatch) -> None:
    original = Client.answered
    kept: list[bytes] = []

    def swap(self: Client, reply: bytes, oob: bool) -> None:
        if b'"id": "a"' in reply and not kept:
            kept.append(reply)
            self.session.done(oob)
            return
        original(self, reply, oob)
        if len(kept) == 1:
            kept.append(b"")
            self.link.write(kept[0])

    patch.setattr(Client, "answered", swap)


def _other_words(patch: pytest.MonkeyPatch) -> None:
    original = session.error_reply
    patch.setattr(
        session,
        "error_reply",
        lambda c, desc, id_=None: original(c, desc.replace("QMP", "qmp"), id_),
    )


def _other_class(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session, "GENERIC", "CommandNotFound")


def _no_recovery(patch: pytest.MonkeyPatch) -> None:
    original = JsonStream.stray

    def stray(self: JsonStream) -> object:
        result = original(self)
        self._recovering = False
        return result

    patch.setattr(JsonStream, "stray", stray)


def _doubles_become_integers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(text, "double_in", lambda number: f"{number:.17g}")


def _strict_json_only(patch: pytest.MonkeyPatch) -> None:
    original = JsonStream.feed
    patch.setattr(
        JsonStream, "feed", lambda self, data: original(self, data.replace(b"'arg", b"'\x01arg"))
    )


def _answers_twice(patch: pytest.MonkeyPatch) -> None:
    original = Client.answered

    def twice(self: Client, reply: bytes, oob: bool) -> None:
        original(self, reply, oob)
        if b'"id": "b"' in reply:
            self.link.write(reply)

    patch.setattr(Client, "answered", twice)


MUTANTS: list[Mutant] = [
    _id_as_text,
    _no_id_on_errors,
    _drop_an_event,
    _swap_replies,
    _other_words,
    _other_class,
    _no_recovery,
    _doubles_become_integers,
    _strict_json_only,
    _answers_twice,
]


def _first_difference(both: Pair) -> Difference | None:
    both.direct.negotiate()
    both.through.negotiate()
    for case in (*BATTERY, b"% foo bar ] 5"):
        if difference := both.compare(case):
            return difference
    return None


def test_the_reference_shim_passes_the_battery(loop: Loop, qemu_build: Build) -> None:
    with pair(loop, qemu_build) as both:
        assert _first_difference(both) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda s: s.__name__.strip("_"))
def test_a_mutant_of_the_shim_is_killed(
    mutant: Mutant, loop: Loop, monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    mutant(monkeypatch)
    with pair(loop, qemu_build) as both:
        assert _first_difference(both) is not None


# -- as `qmpshim check` holds them against each other -------------------------------------------

CHECK = Case("shim", "protocol/shim")


def test_the_check_passes_the_reference_shim(qemu_build: Build, tmp_path: Path) -> None:
    outcome = differential.run(qemu_build, CHECK, tmp_path)
    assert (outcome.status, outcome.findings) == (Status.OK, ())
    assert outcome.figures["requests"] > 150  # every command, and what is malformed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda s: s.__name__.strip("_"))
def test_the_check_kills_a_mutant_of_the_shim(
    mutant: Mutant, qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    outcome = differential.run(qemu_build, CHECK, tmp_path)
    assert outcome.status is Status.DIVERGED
    assert {found.verdict for found in outcome.findings} <= {Verdict.PROTOCOL, Verdict.HANG}


def test_the_check_kills_a_shim_that_answers_nothing(
    qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differential, "ANSWER_LIMIT", 3.0)
    monkeypatch.setattr(Client, "answered", lambda self, reply, oob: None)
    outcome = differential.run(qemu_build, CHECK, tmp_path)
    assert [found.verdict for found in outcome.findings] == [Verdict.HANG]
