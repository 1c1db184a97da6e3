"""A QEMU with a fault in its bitmaps is not reliable for the uses that stand on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation_build import mutated_qemu

from qmpshim.conformance.assess.exploration import explore_uses
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.known.meaning import Use
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import resolve

USES = (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP)


@pytest.mark.full
@pytest.mark.parametrize("fault", [None, ("bdrv_set_dirty_bitmap_locked", "statement-dropped")])
def test_backups_are_assessed(tmp_path: Path, fault: tuple[str, str] | None) -> None:
    """Nothing is written up of such a fault: the exploration alone shows it."""
    try:
        qemu = mutated_qemu(print)
    except QmpshimError as error:
        pytest.skip(str(error))
    number = 0
    if fault is not None:
        function, kind = fault
        number = next(
            one.number
            for one in qemu.mutants
            if one.function == function and one.name.endswith(kind)
        )
    build = resolve(str(qemu.wrapper(tmp_path / "qemu", number)))
    explored = explore_uses(build, USES, 60.0, 1)
    for use in USES:
        answer = judge(use, [], explored[use]).answer
        assert (answer is Answer.NOT_RELIABLE) is (fault is not None), (use, answer)
