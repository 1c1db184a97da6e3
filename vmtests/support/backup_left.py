"""What a backup job left, looked at after a change: as of a QEMU that leaves that."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.harness.push import left_by_backup
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.gated import GatedMachine

Change = Callable[[BackupLeft], BackupLeft]


def left_as(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Judge by what *change* makes of what QEMU left."""

    def left(machine: GatedMachine, scenario: RealScenario) -> BackupLeft:
        return change(left_by_backup(machine, scenario))

    monkeypatch.setattr(final_state, "left_by_backup", left)


def granules_left_as(granules: Callable[[Collection[int]], Collection[int]]) -> Change:
    """Each bitmap names other granules."""

    def change(left: BackupLeft) -> BackupLeft:
        bitmaps = (
            replace(one, granules=frozenset(granules(one.granules or ()))) for one in left.bitmaps
        )
        return replace(left, bitmaps=tuple(bitmaps))

    return change
