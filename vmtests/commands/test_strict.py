"""With --strict every command names what is known, and fails for it, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.finding_words import KNOWN_FAIL
from qmpshim.conformance.known.folder import write_up
from qmpshim.machine.builds.build import Build, read_version

CASES = {
    "stop-always-fails": (
        *("verify", "--workflow", "replication", "--ops", "120", "--size", "1M", "--shrink", "1"),
    ),
    "overlapping-writes-part-the-disks": ("explore", "--scenario", "primary-GG"),
    "directed/start-fails": ("explore", "--scenario", "directed/start-fails"),
    "pair/checkpoint-after-lost-writes": (
        *("pair", "--guest", "none", "--checkpoints", "1", "--failover", "cut-late"),
    ),
    "failover-reports-io-error": ("check", "--case", "known/failover-reports-io-error"),
}


@pytest.mark.parametrize("option", ["", "--strict", "--fail-known"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_known_is_named_and_counts(
    name: str,
    option: str,
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = write_up(name)
    if not known.concerns(read_version(qemu_build)[0]):
        pytest.skip("this build has no such defect")
    if option == "--fail-known" and name != "stop-always-fails":
        pytest.skip("the same option, defined once")
    monkeypatch.chdir(tmp_path)
    words = [*CASES[name], "--build", qemu_build.name, *filter(None, [option])]
    status = main(words)
    shown = " ".join(capsys.readouterr().out.split())
    assert status == (1 if option else 0), shown
    assert (KNOWN_FAIL in shown) is bool(option)
    if option:
        side = "contract" if known.contract else "robustness"
        assert f"{side}, known: {known.id}" in shown and "NEW" not in shown


@pytest.mark.parametrize("command", ["verify", "explore", "check", "pair"])
def test_the_help_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--strict, --fail-known known findings fail the run, too; they are shown with" in shown


@pytest.mark.parametrize(
    ("workflow", "seed", "defect"),
    [
        ("push", 21, "refused-transaction-marks-everything"),
        ("push", 9, "refused-transaction-marks-everything"),  # a later target of its bitmap
        ("push", 11, "refused-transaction-marks-everything"),  # likewise
        ("bitmaps", 1, "transaction-undoes-enable-that-was-refused"),
        ("bitmaps", 6, "transaction-undoes-enable-that-was-refused"),
    ],
)
def test_a_known_defect_is_known_by_whatever_operations(
    workflow: str,
    seed: int,
    defect: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    qemu_build: Build,
) -> None:
    """Other disks, names and actions than the write-up's: the model is certain that it was met."""
    known = write_up(defect)
    if not known.concerns(read_version(qemu_build)[0]):
        pytest.skip("this build has no such defect")
    monkeypatch.chdir(tmp_path)
    words = ("--workflow", workflow, "--seed", str(seed), "--ops", "400", "--shrink", "10")
    assert main(["verify", *words, "--strict", "--build", qemu_build.name]) == 1
    assert f"contract, known: {defect})" in capsys.readouterr().out
