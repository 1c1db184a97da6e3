"""What a finding has of what was seen, as data: its exported script looks for just that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from errno import EIO
from itertools import chain
from pathlib import Path

import pytest

from qmpshim.conformance.compare.evidence import Allocated, Evidence, Held
from qmpshim.conformance.explore.harness.choices import Complete, Fail, RealChoice
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from vmtests.support.backups import point_of
from vmtests.support.gate import drop_new
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer

#: A guest's write fails, and a primary one beside it is lost.
_SCENARIO = "primary_write+guest_write,relation=before"
_FAILS = "active write"
_PERFORM = "images[r.image].perform(r)"
_DROPPED = f"b'' if (r.image, r.op) == ('secondary', WRITE) and r.guest is not None else {_PERFORM}"


def taken(build: Build, release: Release) -> tuple[Finding, RealViolation | None]:
    """The scenario with such a storage, and what is wrong with it."""
    pool = QemuPool(build)
    try:
        scenario = point_of("replication", _SCENARIO)
        system = RealSystem(pool, scenario, release=release, injection=Injection(errnos=(EIO,)))
        system.reset()
        while system.enabled():
            system.take(_next(system.enabled()))
        system.finish()
        assert not system.derailed
        wrong, now = system.violation, system.now
        finding = Finding(
            Verdict.CONTENT, wrong.cause if wrong else Cause(CauseKind.ALLOCATION), "data", True, 1,
            (scenario.name,), scenario, tuple(now.steps), tuple(now.events), errnos=(EIO,),
            build={"version": list(read_version(build)[0])},
            evidence=wrong.evidence if wrong else None,
        )  # fmt: skip
    finally:
        pool.close()
    return finding, wrong


def _next(enabled: Sequence[RealChoice]) -> RealChoice:
    """The failure; what is to be done; a start."""
    fails = (one for one in enabled if isinstance(one, Fail) and one.io.kind == _FAILS)
    done = (one for one in enabled if isinstance(one, Complete))
    return next(chain[RealChoice](fails, done, enabled))


def test_wrong_data_beside_a_failed_write_is_seen(
    each_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    finding, wrong = taken(each_build, drop_new)
    assert wrong is not None and wrong.cause.kind is CauseKind.WRONG_DATA
    assert isinstance(wrong.evidence, Held)
    finding = load_finding(save_finding(tmp_path / "bundle", finding))
    assert symptom_of(finding)["kind"] == "held"
    script = export_script(finding)
    assert script.count(_PERFORM) == 1
    assert reproducer(script.replace(_PERFORM, _DROPPED))[0] == SEEN
    status, output = reproducer(script)
    assert status == NOT_SEEN, output
    other = script.replace("'errno 5'", "'ok'")
    assert other != script and reproducer(other)[0] == UNTESTED


@pytest.fixture(scope="module")
def sound(qemu_build: Build) -> Iterator[Finding]:
    """A run in which all is right."""
    finding, wrong = taken(qemu_build, faithfully)
    assert wrong is None
    yield finding


@pytest.mark.parametrize(
    ("evidence", "status"),
    [
        (Allocated("hidden", 0, ("data",)), NOT_SEEN),
        (Allocated("hidden", 0, ("unallocated", "zero")), SEEN),
        (Held("secondary", 0, ((1, 1), (2, 2))), NOT_SEEN),
        (Held("secondary", 0, ((3, None),)), SEEN),
        (Held("view", 0, ((None, None),)), NOT_SEEN),
        (Held("read 0", 0, ((1,),)), NOT_SEEN),  # there was no such read
    ],
)
def test_just_that_is_looked_for(
    evidence: Evidence, status: int, sound: Finding, reproducer: Reproducer
) -> None:
    seen, output = reproducer(export_script(replace(sound, evidence=evidence)))
    assert seen == status, output
