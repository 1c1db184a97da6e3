"""A bundle of operations is a case of `check`, on whatever disks they are done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.known.folder import write_ups
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.checks import runner_of


@pytest.mark.parametrize(
    "one", [one for one in write_ups() if one.kind == "verify"], ids=lambda one: one.id
)
def test_a_write_up_as_a_bundle(one: WriteUp, qemu_build: Build, tmp_path: Path) -> None:
    assert one.case is not None
    content = json.loads(json.dumps(one.case.to_json()))
    written = json.loads(one.path.read_text())["case"]
    assert {**written, "qmpshim": content["qmpshim"]} == content
    case = Case("bundle", "bundle/it", {"content": content}, 300.0)
    outcome = runner_of("bundle")(qemu_build, case, tmp_path)
    if not one.concerns(read_version(qemu_build)[0]):
        assert not outcome.figures.get("reproduced"), outcome  # 7.2 marks what 5.2 loses
        return
    assert outcome.status is Status.DIVERGED and outcome.figures == {"reproduced": 1}
    (found,) = outcome.findings
    assert found.verdict in one.verdicts
    assert found.details["diagram"] and found.details["chain"]
