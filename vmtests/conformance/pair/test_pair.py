"""A pair of real QEMUs: block replication alone, COLO, failovers, and mutants of all of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmpshim.cli import main
from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.check.runners.pair import pair as run
from qmpshim.conformance.known.accelerator import best_accel
from qmpshim.conformance.known.folder import known_pairs, read
from qmpshim.conformance.known.matching import PairWriteUp
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.conformance.pair.bundle import PairCase
from qmpshim.conformance.pair.plan import MOMENTS, Failover, PairOutcome, PairPlan
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.bundles import loaded
from vmtests.support.pairs import MUTANTS, Mutant, Refused, colo_works, go

ENDS = [kind for kind in Failover if kind is not Failover.CUT_LATE]


def words(outcome: PairOutcome) -> str:
    return "\n".join([*(str(f.divergence) for f in outcome.findings), *outcome.steps])


@pytest.mark.parametrize("failover", ENDS)
def test_block_replication(failover: Failover, qemu_build: Build, tmp_path: Path) -> None:
    resume = failover is not Failover.NONE
    plan = PairPlan(colo=False, checkpoints=3, writes=30, failover=failover, resume=resume)
    outcome, bundle = go(plan, qemu_build, tmp_path)
    assert not outcome.findings, words(outcome)
    assert bundle is None
    assert outcome.checkpoints == plan.wanted
    assert outcome.writes >= 30 * plan.wanted
    assert outcome.compared >= plan.wanted * 5 * plan.size  # two disks twice, and the view


@pytest.mark.parametrize("failover", ENDS)
def test_colo_without_a_guest(failover: Failover, qemu_build: Build, tmp_path: Path) -> None:
    """All of COLO but the CPUs: what every build can, with any accelerator."""
    resume = failover is not Failover.NONE
    plan = PairPlan(guest="none", checkpoints=3, failover=failover, resume=resume)
    outcome, _ = go(plan, qemu_build, tmp_path)
    if not colo_works(qemu_build):
        assert [finding.known for finding in outcome.findings] == ["colo-migration-completes"]
        return
    assert not outcome.findings, words(outcome)
    assert outcome.checkpoints == plan.wanted


@pytest.mark.parametrize("moment", MOMENTS)
def test_primary_killed_in_a_checkpoint(moment: str, qemu_build: Build, tmp_path: Path) -> None:
    if not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    plan = PairPlan(guest="none", checkpoints=2, failover=Failover.PRIMARY, moment=moment)
    outcome, _ = go(plan, qemu_build, tmp_path)
    assert not outcome.findings, words(outcome)
    assert any(f"in a checkpoint, at {moment}" in step for step in outcome.steps)


def test_checkpoint_after_the_link_was_cut(qemu_build: Build, tmp_path: Path) -> None:
    """A finding: COLO goes on without the writes. When that is mended this test says so."""
    if not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    plan = PairPlan(guest="none", checkpoints=1, failover=Failover.CUT_LATE)
    outcome, bundle = go(plan, qemu_build, tmp_path)
    assert [finding.known for finding in outcome.findings] == ["checkpoint-after-lost-writes"]
    assert not outcome.findings[0].contract
    assert bundle is not None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda s: s.pair.__name__ + "-colo" * s.colo)
def test_a_mutant_is_killed(mutant: Mutant, qemu_build: Build, tmp_path: Path) -> None:
    if mutant.colo and not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    plan = PairPlan(
        colo=mutant.colo,
        guest="none",
        checkpoints=2,
        writes=30,
        failover=mutant.failover,
        resume=mutant.resume,
        limit=mutant.limit,
    )
    outcome, bundle = go(plan, qemu_build, tmp_path, mutant.pair)
    found = [(f.divergence.verdict, f.divergence.where) for f in outcome.findings]
    assert found[:1] == [(mutant.verdict, mutant.where)], words(outcome)
    assert re.fullmatch(mutant.cause, str(outcome.findings[0].cause)), words(outcome)
    assert not outcome.findings[0].known
    assert outcome.findings[0].divergence.evidence == mutant.evidence
    assert bundle is not None
    assert (bundle / "secondary" / "disk.raw").stat().st_size == plan.size
    assert (bundle / "primary" / "qmp.log").stat().st_size
    assert "qemu" in (bundle / "primary" / "command-line.txt").read_text()
    assert loaded(bundle, PairCase).plan == plan


def test_a_full_host_disk_is_no_finding(
    qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096))
    with pytest.raises(HostError, match="is full: free some space"):
        go(PairPlan(colo=False, guest="none", checkpoints=1), qemu_build, tmp_path, Refused)


def test_colo_on_this_build(qemu_build: Build, tmp_path: Path) -> None:
    """Where COLO works under TCG, it works; where not, how it fails is reported, and known."""
    version = read_version(qemu_build)[0]
    plan = PairPlan(checkpoints=3, writes=10, accel="tcg", limit=8.0)
    outcome, bundle = go(plan, qemu_build, tmp_path)
    known = [finding.known for finding in outcome.findings]
    if (10, 0, 0) <= version < (10, 0, 7):
        assert known == ["colo-migration-completes"], words(outcome)
    elif version >= (11, 0, 0) or not known:  # the deadlock is a race, that can be won so often
        assert not known, words(outcome)
        assert outcome.checkpoints == 3
        assert outcome.writes >= 30
        assert outcome.compared >= 3 * 3 * plan.size
    else:
        assert known == ["colo-primary-deadlocks-under-tcg"], words(outcome)
        [finding] = outcome.findings
        assert any("primary:" in line for line in finding.post_mortem)
        assert any("checkpoint" in line for line in finding.post_mortem)
        assert bundle is not None


QUICK = [known.id for known in known_pairs() if known.plan.guest == "none"]


@pytest.mark.parametrize("name", QUICK)
def test_a_write_up_replays_on_a_build_that_has_it(
    name: str,
    qemu_build: Build,
    qemu_on_path: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says is what `replay` sees; those that need a CPU take long, and are tested below."""
    monkeypatch.chdir(tmp_path)
    if not colo_works(qemu_build):
        pytest.skip("COLO does not work on this build (known)")
    assert main(["replay", str(DIRECTORY / "pair" / f"{name}.json")]) == 1
    assert "reproduced: " in capsys.readouterr().out


def test_write_ups_are_bundles(tmp_path: Path) -> None:
    """Each write-up is a bundle that `replay` takes, and names only causes it can explain."""
    assert QUICK
    for known in known_pairs():
        wanted = known.case.wrong
        assert known.explains(wanted.verdict, wanted.cause, known.contract)
        assert loaded(known.path, PairCase) == known.case
    (tmp_path / "bad.json").write_text('{"title": "x"}')
    with pytest.raises(InputError, match=r"bad\.json is damaged"):
        read(tmp_path / "bad.json")


def test_case_runner(qemu_build: Build, tmp_path: Path) -> None:
    case = Case("pair", "blocks", {"colo": False, "checkpoints": 2, "failover": "primary"})
    outcome = run(qemu_build, case, tmp_path)
    assert outcome.status is Status.OK
    assert outcome.figures["checkpoints"] == 2
    assert "2 of 2 checkpoints" in outcome.text


@pytest.mark.usefixtures("qemu_on_path")
def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--no-colo", "--checkpoints", "2", "--failover", "cut", "--json", "out.json"]
    assert main(["pair", *words, "--keep", "kept"]) == 0
    assert "all as predicted: block replication: 2 of 2 checkpoints" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["checkpoints"] == 2
    assert document["findings"] == []
    assert (tmp_path / "kept" / "blocks" / "secondary" / "hidden.qcow2").stat().st_size
    assert main(["pair", "--no-colo", "--secondary-build", "nothing-of-the-kind"]) == 2
    assert "no build named" in capsys.readouterr().err


# -- the long ones ------------------------------------------------------------------------------


@pytest.mark.full
def test_a_hundred_checkpoints(each_build: Build, tmp_path: Path) -> None:
    accel = best_accel((each_build, each_build), "boot")
    if not colo_works(each_build, "boot", accel):
        pytest.skip(f"COLO does not work on {each_build.name} under {accel} (known)")
    plan = PairPlan(checkpoints=100, writes=5, accel=accel, limit=60.0)
    outcome, _ = go(plan, each_build, tmp_path)
    assert not outcome.findings, words(outcome)
    assert outcome.checkpoints == 100


@pytest.mark.full
@pytest.mark.parametrize("failover", ENDS[1:])
def test_failover_of_colo(each_build: Build, failover: Failover, tmp_path: Path) -> None:
    accel = best_accel((each_build, each_build), "boot")
    if not colo_works(each_build, "boot", accel):
        pytest.skip(f"COLO does not work on {each_build.name} under {accel} (known)")
    plan = PairPlan(
        checkpoints=4, writes=10, accel=accel, failover=failover, resume=True, limit=60.0
    )
    outcome, _ = go(plan, each_build, tmp_path)
    assert not outcome.findings, words(outcome)


@pytest.mark.full
@pytest.mark.parametrize("failover", ENDS[1:])
def test_linux(each_build: Build, failover: Failover, tmp_path: Path) -> None:
    """Linux in both machines, its program writing and reading all the time."""
    accel = best_accel((each_build, each_build), "linux")
    if accel == "kvm" or not colo_works(each_build, "linux", accel):
        pytest.skip(f"Linux under COLO wants a {each_build.name} whose COLO works under TCG")
    plan = PairPlan(
        guest="linux", checkpoints=10, accel=accel, failover=failover, resume=True, limit=90.0
    )
    outcome, _ = go(plan, each_build, tmp_path)
    assert not outcome.findings, words(outcome)
    assert outcome.checkpoints == 20


@pytest.mark.full
@pytest.mark.parametrize("moment", MOMENTS)
def test_linux_killed_in_a_checkpoint(moment: str, each_build: Build, tmp_path: Path) -> None:
    """What the secondary's guest wrote counts until its state is replaced."""
    accel = best_accel((each_build, each_build), "linux")
    if accel == "kvm" or not colo_works(each_build, "linux", accel):
        pytest.skip(f"Linux under COLO wants a {each_build.name} whose COLO works under TCG")
    plan = PairPlan(
        *(True, "linux", 3, 20, Failover.PRIMARY, moment), resume=True, accel=accel, limit=90.0
    )
    outcome, _ = go(plan, each_build, tmp_path)
    assert not outcome.findings, words(outcome)
    assert outcome.checkpoints == 6


@pytest.mark.full
@pytest.mark.parametrize("colo", [False, True])
@pytest.mark.parametrize("failover", ENDS)
def test_everywhere(each_build: Build, failover: Failover, colo: bool, tmp_path: Path) -> None:
    if colo and not colo_works(each_build):
        pytest.skip(f"COLO does not work on {each_build.name} (known)")
    resume = failover is not Failover.NONE
    plan = PairPlan(colo, "none", 10, 60, failover, resume=resume, seed=2, limit=60.0)
    outcome, _ = go(plan, each_build, tmp_path)
    assert not outcome.findings, words(outcome)


@pytest.mark.full
@pytest.mark.parametrize("known", known_pairs(), ids=lambda known: known.id)
def test_known_findings_are_as_written(
    each_build: Build, known: PairWriteUp, tmp_path: Path
) -> None:
    """A build that a write-up covers shows it; one that none covers shows nothing."""
    version = read_version(each_build)[0]
    outcome, _ = go(known.plan, each_build, tmp_path)
    causes = [finding.known for finding in outcome.findings]
    if known.may_come(known.plan, (version, version)):
        assert causes, words(outcome)
    assert all(causes), words(outcome)
