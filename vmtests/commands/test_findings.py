"""`qmpshim findings`: what is known, to read, to report to QEMU, and to write down anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpshim.cli import main
from qmpshim.conformance.assess.trials import Seen, try_finding
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known import matching
from qmpshim.conformance.known.folder import known_findings, read, write_up, write_ups
from qmpshim.conformance.known.meaning import TO_WRITE, Severity
from qmpshim.conformance.known.tracker import EXPECTED, command_of, script_of, tracker_text
from qmpshim.conformance.known.write_ups import DIRECTORY, WriteUp
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.uses import Use
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.verdict import Verdict
from vmtests.support.bundles import draft_of, steps_draft
from vmtests.support.documents import validator
from vmtests.support.drafts import filled
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer

SNAPSHOT = "snapshot-read-returns-new-data"


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["findings", *words]) == status
    return capsys.readouterr().out


def document(tmp_path: Path, *words: str) -> Any:
    path = tmp_path / "it.json"
    assert main(["findings", *words, "--json", str(path)]) == 0
    value = json.loads(path.read_text())
    validator(f"findings {words[0]}").validate(value)
    return value


def test_the_list_has_all_and_can_be_narrowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert len(run(capsys, "list").splitlines()) == len(write_ups())
    fleecing = document(tmp_path, "list", "--affects", "fleecing", "--severity", "crash")
    names = [one["name"] for one in fleecing["items"]]
    assert SNAPSHOT in names and "failed-flush-leaves-l1-entry" not in names
    for one in fleecing["items"]:
        assert "fleecing" in one["meaning"]["affects"]
        assert Severity(one["meaning"]["severity"]).rank <= Severity.CRASH.rank


def test_the_list_of_both_sides_of_colo(tmp_path: Path) -> None:
    both = {one["name"] for one in document(tmp_path, "list", "--affects", "colo")["items"]}
    sides = [
        {one["name"] for one in document(tmp_path, "list", "--affects", side)["items"]}
        for side in ("colo-primary", "colo-secondary")
    ]
    assert all(sides) and both == sides[0] | sides[1] and sides[0] != sides[1]


def test_the_list_of_a_build_has_what_is_written_up_for_its_version(
    capsys: pytest.CaptureFixture[str], qemu_build: Build
) -> None:
    output = run(capsys, "list", "--build", qemu_build.name)
    assert "overlapping-writes-part-the-disks" in output
    assert len(output.splitlines()) < len(write_ups())


@pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
def test_each_is_shown_and_reported(one: Any, tmp_path: Path) -> None:
    shown = document(tmp_path, "show", one.name)
    assert shown["finding"]["meaning"]["situation"] == one.meaning.situation
    assert bool(shown["diagram"]) is (one.kind == "explore")
    report = document(tmp_path, "report", one.name)
    for heading in ("Affected versions", "Steps to reproduce", "Expected", "Actual", "Analysis"):
        assert f"\n## {heading}\n" in report["text"]
    assert one.source in report["text"]
    assert report["script"]


def test_a_report_can_be_followed_with_python_and_a_qemu_alone(tmp_path: Path) -> None:
    """What is between the fences of the text, run where qmpshim is not."""
    text = tracker_text(write_up("checkpoint-corrupts-overlay"))
    script = tmp_path / "reproducer.py"
    script.write_text(text.partition("```python\n")[2].partition("\n```\n")[0] + "\n")
    qemu, qemu_img = shutil.which("qemu-system-x86_64"), shutil.which("qemu-img")
    assert qemu and qemu_img
    done = subprocess.run(
        [sys.executable, "-I", script, qemu, qemu_img],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done


def test_a_script_holds_requests_on_each_version_that_showed_it() -> None:
    """5.2 waits in a checkpoint for what a breakpoint of blkdebug holds."""
    assert "A breakpoint of blkdebug" not in script_of(write_up("checkpoint-corrupts-overlay"))
    assert "A breakpoint of blkdebug" in script_of(
        write_up("checkpoint-then-overlapping-write-aborts")
    )


def test_a_report_expects_what_the_finding_is_about() -> None:
    """A hang is how stale code shows itself, and not what is wrong with it."""
    stale = write_up("pair/colo-secondary-runs-stale-code-under-tcg")
    assert f"## Expected\n\n{stale.expected}\n" in tracker_text(stale)
    assert stale.expected and EXPECTED[Verdict.HANG] not in tracker_text(stale)
    for one in write_ups():
        assert not one.expected or (one.expected.endswith(".") and ". " not in one.expected)
        verdicts = {Verdict(word) for word in one.verdicts}
        if verdicts == {Verdict.HANG}:
            assert one.expected or one.meaning.severity is Severity.HANG, one.name


def test_a_script_is_attached(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "snapshot.py"
    text = run(capsys, "report", SNAPSHOT, "--attach", str(script))
    assert "attached script" in text and "snapshot.py" in text and "import" not in text
    compile(script.read_text(), str(script), "exec")
    run(capsys, "report", "directed/start-fails", "--attach", str(script))
    assert "xen-set-replication" in script.read_text()


@pytest.mark.parametrize(
    "name", [SNAPSHOT, "stop-always-fails", "directed/start-fails", "verify/stop-always-fails"]
)
def test_a_name_is_replayed_and_exported(
    name: str, qemu_build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_up(name)
    shown = main(["replay", name, "--build", qemu_build.name])
    version = read_version(qemu_build)[0]
    assert shown in ({1} if one.concerns(version) else {0, 125})
    assert ("reproduced: " in capsys.readouterr().out) is (shown == 1)
    assert main(["export", name]) == 0
    assert capsys.readouterr().out == script_of(one)


def test_a_script_is_written_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    assert main(["export", SNAPSHOT, "--out", str(script)]) == 0
    assert script.read_text() == script_of(write_up(SNAPSHOT))
    assert str(script) in capsys.readouterr().out
    assert main(["export", SNAPSHOT, "--out", str(tmp_path / "no" / "script.py")]) == 2


def test_what_is_neither_a_bundle_nor_a_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("replay", "export"):
        assert main([command, "directed/start-failz"]) == 2
        error = capsys.readouterr().err
        assert "no such file" in error.lower() and "did you mean directed/start-fails" in error
    assert main(["export", "--nbd", "stop-always-fails"]) == 2
    (tmp_path / SNAPSHOT).mkdir()  # a path comes first
    assert main(["replay", SNAPSHOT]) == 2
    assert "is no bundle" in capsys.readouterr().err


@pytest.mark.parametrize("name", {type(one.case): one.name for one in write_ups()}.values())
def test_what_is_replayed_is_of_a_kind_that_replay_knows(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", name, "--build", "no-such-build"]) == 2
    assert "no-such-build" in capsys.readouterr().err


@pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
def test_the_command_holds_nothing_of_this_host(one: WriteUp, tmp_path: Path) -> None:
    assert command_of(one) == f"qmpshim replay {one.name}"
    own = replace(one, path=tmp_path / "mine.json")  # one that is being written
    assert command_of(own) == f"qmpshim replay {tmp_path / 'mine.json'}"


# -- drafts ----------------------------------------------------------------------------------------


def drafted(tmp_path: Path, bundle: Path) -> Path:
    draft = tmp_path / "known" / "found.json"
    draft.parent.mkdir()
    assert main(["findings", "new", str(bundle), "--out", str(draft)]) == 0
    with pytest.raises(InputError, match="have to be written"):
        read(draft)
    return draft


@pytest.mark.parametrize("known", known_findings(), ids=lambda one: one.id)
def test_a_draft_of_a_schedule_is_accepted_once_it_is_filled_in(
    known: matching.ExplorerWriteUp, tmp_path: Path
) -> None:
    """It covers what it was made of, and what the real write-up covers has the same use."""
    path = DIRECTORY / f"{known.id}.json"
    draft = drafted(tmp_path, path)
    written = read(filled(draft))
    assert isinstance(written, matching.ExplorerWriteUp)
    found = load_finding(path)
    assert written.covers(found, (7, 2, 22))
    assert set(written.meaning.affects) <= set(known.meaning.affects)
    assert written.title == "A title"
    other = next(one for one in known_findings() if one.causes != known.causes)
    assert not written.covers(load_finding(DIRECTORY / f"{other.id}.json"), (7, 2, 22))


def test_a_draft_of_a_pair_is_accepted_once_it_is_filled_in(tmp_path: Path) -> None:
    path = DIRECTORY / "pair" / "colo-migration-completes.json"
    draft = filled(drafted(tmp_path, path))
    value = json.loads(draft.read_text())
    assert value["side"] == TO_WRITE  # what ended does not say whose defect it is
    draft.write_text(json.dumps(value | {"side": "primary"}))
    written = read(draft)
    assert (
        isinstance(written, matching.PairWriteUp)
        and written.side == "primary"
        and isinstance(written.plan, PairPlan)
    )


def test_a_draft_of_what_pair_keeps_names_the_versions(tmp_path: Path) -> None:
    """Of both sides, each once."""
    value = json.loads((DIRECTORY / "pair" / "colo-migration-completes.json").read_text())["case"]
    for other, versions in (("10.0.2 (Debian)", ("10.0.2",)), ("11.1.3", ("10.0.2", "11.1.3"))):
        builds = [{"version": "10.0.2 (Debian)"}, {"version": other}]
        (tmp_path / "pair.json").write_text(json.dumps(value | {"builds": builds}))
        assert draft_of(tmp_path)["meaning"]["seen"] == versions


def shown_by(build: Build, draft: Path, tmp_path: Path) -> bool:
    """Whether `assess` would see on this build what the write-up says."""
    (trial,) = try_finding(build, read(draft), tmp_path)
    return trial.seen is Seen.SHOWN


@pytest.mark.parametrize("one", [e for e in write_ups() if e.kind == "verify"], ids=lambda e: e.id)
def test_a_draft_of_operations_is_accepted_once_it_is_filled_in(
    one: WriteUp, qemu_build: Build, tmp_path: Path
) -> None:
    """It is tried as the real one is, and concerns no use that that does not."""
    document(tmp_path, "new", str(one.path))
    draft = filled(drafted(tmp_path, one.path))
    written = read(draft)
    assert written.verdicts == one.verdicts and written.case == one.case
    assert set(written.meaning.affects) & set(one.meaning.affects)
    assert shown_by(qemu_build, draft, tmp_path) is one.concerns(read_version(qemu_build)[0])


def test_a_draft_of_what_verify_keeps(
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reproducer: Reproducer,
) -> None:
    """It is tried as it stands, and by the script that is made beside it."""
    monkeypatch.chdir(tmp_path)
    words = ("--workflow", "replication", "--ops", "200", "--size", "4M", "--build")
    assert main(["verify", "--strict", *words, qemu_build.name]) == 1
    (bundle,) = (tmp_path / "qmpshim-bundles").iterdir()
    draft = filled(drafted(tmp_path, bundle))
    written = read(draft)
    assert written.meaning.affects == (Use.COLO_SECONDARY,)
    assert shown_by(qemu_build, draft, tmp_path)
    status, lines = reproducer(script_of(written))
    assert status == SEEN, lines
    other = script_of(written).replace("'failover': False", "'failover': True")
    status, lines = reproducer(other)
    assert status == NOT_SEEN, lines
    capsys.readouterr()
    assert main(["export", str(bundle)]) == 0
    status, lines = reproducer(capsys.readouterr().out)
    assert status == SEEN, lines
    assert main(["export", "--nbd", str(bundle)]) == 2
    value = json.loads((bundle / "case.json").read_text())
    (bundle / "case.json").write_text(json.dumps({**value, "divergence": None}))
    assert main(["findings", "new", str(bundle)]) == 2
    assert main(["export", str(bundle)]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "colo-migration-completes",
        pytest.param("colo-primary-deadlocks-under-tcg", marks=pytest.mark.full),  # waits for it
    ],
)
def test_steps_of_a_pair_see_what_is_written_up(
    name: str, qemu_build: Build, reproducer: Reproducer
) -> None:
    known, other = write_up(f"pair/{name}"), write_up("pair/colo-migration-completes")
    status, lines = reproducer(steps_script("A title", steps_draft(known.path)))
    version = read_version(qemu_build)[0]
    if known is not other and other.concerns(version):
        assert status == UNTESTED, lines
    else:
        assert status == (SEEN if known.concerns(version) else NOT_SEEN), lines


def test_steps_that_cannot_be_made_are_left_to_the_author(tmp_path: Path) -> None:
    """Until they are written there is no script, which the suite refuses."""
    case = json.loads((DIRECTORY / "pair" / "checkpoint-after-lost-writes.json").read_text())[
        "case"
    ]
    case["findings"] = [{"verdict": "allocation", "cause": "allocation: hidden disk"}]
    (tmp_path / "pair.json").write_text(json.dumps(case))
    draft = filled(drafted(tmp_path, tmp_path))
    value = json.loads(draft.read_text())
    draft.write_text(json.dumps(value | {"side": "primary"}))
    steps = draft.with_suffix(".py.in")
    assert TO_WRITE in steps.read_text()
    with pytest.raises(InputError, match="have to be written"):
        script_of(read(draft))
    steps.write_text("# A QEMU with COLO\nconclude(False, 'nothing')\n")
    assert script_of(read(draft))
    assert steps_draft(DIRECTORY / f"{SNAPSHOT}.json") == ""  # a schedule is a script's steps


def test_what_shows_nothing_makes_no_draft(tmp_path: Path) -> None:
    value = json.loads((DIRECTORY / f"{SNAPSHOT}.json").read_text())["case"]
    (tmp_path / "schedule.json").write_text(json.dumps({**value, "verdict": None}))
    assert main(["findings", "new", str(tmp_path)]) == 2
