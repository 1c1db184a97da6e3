"""A QEMU with a fault in its bitmaps is not reliable for the uses that stand on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation_build import mutated_qemu

from qmpshim.conformance.assess.exploration import explore_uses
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.uses import Use
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import resolve


@pytest.mark.full
@pytest.mark.parametrize(
    ("use", "function", "nth"),
    [
        (Use.FULL_BACKUP, "", 0),
        (Use.INCREMENTAL_BACKUP, "", 0),
        # Nothing of the disk is marked to be copied.
        (Use.FULL_BACKUP, "bdrv_set_dirty_bitmap_locked", 0),
        # Nothing of the job's bitmap is.
        (Use.INCREMENTAL_BACKUP, "backup_init_bcs_bitmap", 1),
    ],
)
def test_backups_are_assessed(tmp_path: Path, use: Use, function: str, nth: int) -> None:
    """Nothing is written up of such a fault: the exploration alone shows it.

    :param function: where a statement is dropped, the one of this number; empty: nowhere
    """
    try:
        qemu = mutated_qemu(print)
    except QmpshimError as error:
        pytest.skip(str(error))
    dropped = [
        one.number
        for one in qemu.mutants
        if one.function == function and one.name.endswith(":statement-dropped")
    ]
    build = resolve(str(qemu.wrapper(tmp_path / "qemu", dropped[nth] if function else 0)))
    answer = judge(use, [], explore_uses(build, [use], 60.0, 1)[use]).answer
    assert (answer is Answer.NOT_RELIABLE) is bool(function), answer
