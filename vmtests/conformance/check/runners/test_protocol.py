"""The protocol check kills mutants: a QEMU behind a relay of its monitor that changes answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.errors import ProtocolBroken
from qmpshim.machine.builds.build import Build, resolve
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.host.process import Qemu
from qmpshim.model.check.verdict import Verdict
from vmtests.support.broken_builds import make
from vmtests.support.checks import runner_of

STATUS = "query-xen-replication-status"
CASE = Case("protocol", "protocol/schema")


def test_a_reference_build_passes(qemu_build: Build, tmp_path: Path) -> None:
    outcome = runner_of("protocol")(qemu_build, CASE, tmp_path)
    assert (outcome.status, outcome.findings) == (Status.OK, ())
    assert outcome.figures["requests"] > 300  # every command is asked at least once
    assert outcome.figures["events"] >= 2  # STOP and RESUME at least


@pytest.mark.usefixtures("qemu_on_path")
@pytest.mark.parametrize(
    ("name", "verdict", "cause", "observed"),
    [
        ("misanswers", Verdict.PROTOCOL, "query-status", "return.running is no boolean"),
        ("forgets-a-type", Verdict.PROTOCOL, "query-qmp-schema", "no "),
        ("unknown-event", Verdict.PROTOCOL, "event NO_SUCH", "it is not in the schema"),
        ("wrong-class", Verdict.PROTOCOL, "query-block", "is refused with CommandNotFound"),
        ("takes-nonsense", Verdict.PROTOCOL, "query-chardev", "is accepted, and answered []"),
        ("refuses", Verdict.ERROR_CONTRACT, "cont: error-contract", "cont: not now"),
        ("forgets-the-id", Verdict.PROTOCOL, f"{STATUS}: protocol", "nothing that was asked"),
        ("babbles", Verdict.PROTOCOL, "stop: protocol", "said 'here we stop': that is no JSON"),
        ("says-nothing", Verdict.HANG, "query-block: hang", "query-block: no answer in 1 s"),
        ("dies-of-a-query", Verdict.CRASH, "query-chardev: crash", "was killed by SIGABRT"),
        ("writes-fail", Verdict.ERROR_CONTRACT, "a primary write", "errno 28"),
    ],
)
def test_each_mutant_is_killed(
    name: str,
    verdict: Verdict,
    cause: str,
    observed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "says-nothing":
        monkeypatch.setattr(GatedMachine, "limit", 5.0)
    build = resolve(str(make(name, tmp_path / name)))
    outcome = runner_of("protocol")(build, CASE, tmp_path)
    assert outcome.status is Status.DIVERGED
    (found,) = outcome.findings
    assert (found.verdict, found.cause) == (verdict, cause), found
    assert observed in found.observed


@pytest.mark.usefixtures("qemu_on_path")
def test_the_explorer_does_not_wait_for_an_answer_that_came(tmp_path: Path) -> None:
    """Nor is it QEMU that hangs, or we that lost the way."""
    build = resolve(str(make("forgets-the-id", tmp_path / "build")))
    report = explore_real(build, scenario_sets.named("WQ"))
    (found,) = report.findings
    assert (found.verdict, len(found.schedule)) == (Verdict.PROTOCOL, 1)
    assert str(found.cause).endswith(": an answer to nothing that was asked")
    assert not report.unconfirmed and not any(one.derailed for one in report.scenarios)


@pytest.mark.usefixtures("qemu_on_path")
async def test_text_that_is_no_answer_is_reported(tmp_path: Path) -> None:
    build = resolve(str(make("babbles", tmp_path / "build")))
    qemu = Qemu(build.command(), tmp_path)
    await qemu.start()
    try:
        with pytest.raises(ProtocolBroken, match=r"no QMP \(\S+\): .*here we stop"):
            await qemu.execute("stop")
            await qemu.execute("query-status")  # what came before STOP may be the answer
    finally:
        await qemu.close()
