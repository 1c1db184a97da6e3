"""A case of a bundle is run by what runs its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case
from qmpshim.conformance.known.folder import write_ups
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import Build
from vmtests.support.checks import runner_of

#: A write-up with a case of each type.
BY_TYPE = {type(one.case): one for one in write_ups() if one.case is not None}


@pytest.mark.parametrize("one", BY_TYPE.values(), ids=lambda one: one.name)
def test_each_kind_of_bundle_is_run(one: WriteUp, tmp_path: Path) -> None:
    """As far as a QEMU that is not there lets it."""
    assert one.case is not None
    case = Case("bundle", "bundle/it", {"content": one.case.to_json()})
    with pytest.raises(QmpshimError, match="no-such-qemu"):
        runner_of("bundle")(Build("none", "tree", tmp_path / "no-such-qemu"), case, tmp_path)
