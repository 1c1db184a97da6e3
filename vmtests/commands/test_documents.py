"""The JSON document of each command, of real runs, held against the schema that is shipped."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qmpshim.cli import main
from qmpshim.conformance.check.report.results import load_results, results_from_json
from qmpshim.conformance.document import Document, build_object
from qmpshim.conformance.explore.harness.choices import Complete, Fail, io_id, step_object
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.machine.builds.build import Build
from vmtests.support.command_line import LIMIT, CommandLine
from vmtests.support.documents import SCHEMA, SCHEMAS, validator
from vmtests.support.waiting import wait_until

ENVELOPE = {
    *("format", "qmpshim", "command", "arguments", "builds", "verdict", "exit_status", "error"),
    "interrupted",
}
SNAPSHOT = DIRECTORY / "snapshot-read-returns-new-data.json"
VERIFY = ("verify", "--ops", "80", "--size", "1M")


def members(value: Any) -> Iterator[str]:
    """The names of all members, at any depth."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield name
            yield from members(below)
    elif isinstance(value, list):
        for below in value:
            yield from members(below)


def document_of(qmpshim: CommandLine, command: str, status: int, *words: str | Path) -> Any:
    """Run a command; its document, valid, with the envelope that becomes it."""
    done = qmpshim.run(*command.split(), *words, "--json", "it.json")
    assert done.returncode == status, done
    return valid(qmpshim.home / "it.json", command, status)


@pytest.fixture
def at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_on_path: None
) -> Callable[..., Any]:
    """:func:`document_of` within this process, which is quicker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QMPSHIM_CACHE", str(tmp_path / "cache"))

    def run(command: str, status: int, *words: str) -> Any:
        assert main([*command.split(), *words, "--json", "it.json"]) == status
        return valid(tmp_path / "it.json", command, status)

    return run


def valid(path: Path, command: str, status: int) -> Any:
    document = json.loads(path.read_text())
    validator(command).validate(document)
    assert document["format"] == {"name": f"qmpshim {command}", "version": 1}
    assert (document["command"], document["exit_status"]) == (command, status)
    assert " ".join(document["arguments"]).startswith(command)
    return document


# -- what each command found ---------------------------------------------------------------------


@pytest.mark.parametrize("workflow", ["push", "bitmaps", "pull"])
def test_of_verify_with_bitmaps(workflow: str, qmpshim: CommandLine, qemu_on_path: None) -> None:
    words = ("--workflow", workflow, "--ops", "80")
    document = document_of(qmpshim, "verify", 0, *words)
    (run,) = document["runs"]
    assert run["workflow"] == workflow and sum(run["operations"].values()) == 80
    assert run["checks"] and run["clusters_compared"] and run["disks"] == 2


def test_of_verify(qmpshim: CommandLine, qemu_build: Build) -> None:
    document = document_of(qmpshim, "verify", 0, *VERIFY[1:])
    assert document["verdict"] == "as predicted" and document["error"] is None
    (build,) = document["builds"]
    assert build["name"] == "system" and build["path"] and build["numbers"]
    assert build["version"] == document["runs"][0]["build"]  # as it was called before
    assert document["runs"][0]["size_bytes"] == 1 << 20


def test_of_verify_that_diverges_and_of_its_replay(qmpshim: CommandLine) -> None:
    words = ("--workflow", "replication", "--size", "4M", "--strict", "--ops", "200")
    for seed in range(1, 9):
        done = qmpshim.run("verify", *words, "--seed", str(seed), "--json", "it.json")
        if done.returncode:
            break
    else:
        pytest.skip("this QEMU does not have the defect")
    document = valid(qmpshim.home / "it.json", "verify", 1)
    assert document["verdict"] == "diverged" and document["verdicts"] == ["error-contract"]
    (run,) = document["runs"]
    assert [one["do"] for one in run["minimal_operations"]] == ["start", "stop"]
    again = document_of(qmpshim, "replay", 1, run["bundle"])
    assert again["reproduced"] is True and "stop" in again["observed"][0]


def test_of_explore_and_of_its_replay_and_script(qmpshim: CommandLine, qemu_build: Build) -> None:
    words = ("--scenario", "PC", "--jobs", "1", "--strict", "--keep", "kept")
    document = document_of(qmpshim, "explore", 1, *words)
    assert document["verdict"] == "diverged" and document["build"] == "system"
    finding = next(one for one in document["findings"] if one["verdict"] == "corruption")
    scenario, schedule = finding["scenario"], finding["schedule"]
    assert (scenario["size_bytes"], scenario["cluster_bytes"]) == (131072, 65536)
    assert scenario["ops"] == [
        {"do": "guest_write", "offset_bytes": 8192, "length_bytes": 4096},
        {"do": "checkpoint"},
    ]
    assert {one["step"] for one in schedule} <= {"start", "complete"}
    assert {one["length_bytes"] for one in schedule if "length_bytes" in one} == {65536}
    assert not {"at", "sector", "size", "cluster"} & set(members(document["findings"]))
    spoilt = json.loads(json.dumps(document))
    spoilt["findings"][0]["scenario"]["size"] = 256  # sectors
    assert not validator("explore").is_valid(spoilt)
    again = document_of(qmpshim, "replay", 1, finding["bundle"])
    assert again["reproduced"] and again["followed"] and again["trace"]
    script = document_of(qmpshim, "export", 0, finding["bundle"])
    assert script["verdict"] is None
    compile(script["script"], "script", "exec")
    piped = qmpshim.run("export", finding["bundle"], "--json", "-")
    assert json.loads(piped.stdout)["script"] == script["script"] and not piped.stderr


def test_a_step_is_described_in_bytes() -> None:
    name = "hidden write 16+128"
    assert step_object(Fail(io_id(1, name, 2), 28)) == {
        **{"step": "fail", "operation": 1, "disk": "hidden", "verb": "write", "meta": False},
        **{"nth": 2, "offset_bytes": 8192, "length_bytes": 65536, "errno": 28},
    }
    tables = step_object(Complete(io_id(0, "active write meta 65536+512")))
    assert (tables["meta"], tables["offset_bytes"], tables["length_bytes"]) == (True, 65536, 512)
    assert "offset_bytes" not in step_object(Complete(io_id(0, "active flush")))


def test_of_explore_on_the_model(qmpshim: CommandLine) -> None:
    broken = ("--model", "--discipline", "cow-request-2.8-fill", "--scenario", "write-fill")
    document = document_of(qmpshim, "explore", 1, *broken)
    assert not document["clean"] and document["builds"] == []
    (run,) = document["runs"]
    assert run["scenario"]["ops"][1]["offset_bytes"] == 16 * 512
    (finding,) = run["findings"]
    drawn = document_of(qmpshim, "explore", 0, *broken, "--schedule", finding["schedule"])
    assert drawn["verdict"] is None and drawn["diagram"]


def test_of_pair_and_of_its_replay(qmpshim: CommandLine) -> None:
    document = document_of(qmpshim, "pair", 0, "--no-colo", "--checkpoints", "2")
    assert len(document["builds"]) == 2 and document["builds"][0]["command"]
    assert document["checkpoints"] == 2 and document["kind"] == "pair"
    # It is a bundle's file, too, as it was before there was an envelope.
    (qmpshim.home / "it.json").rename(qmpshim.home / "pair.json")
    again = document_of(qmpshim, "replay", 0, "pair.json")
    assert again["reproduced"] is False and again["observed"] == []


def test_of_guest_check(qmpshim: CommandLine) -> None:
    qmpshim.environment = {"QMPSHIM_CACHE": str(Path.home() / ".cache" / "qmpshim")}
    document = document_of(qmpshim, "guest check", 0, "mixed")
    (scenario,) = document["scenarios"]
    assert scenario["name"] == "mixed" and scenario["figures"]["operations"] > 0


def test_of_stress(qmpshim: CommandLine) -> None:
    document = document_of(qmpshim, "stress", 0, "--clients", "20", "--messages", "50")
    assert document["left"] == "" and document["after"]["memory_bytes"] > 1 << 20


def test_of_builds(qmpshim: CommandLine) -> None:
    known = document_of(qmpshim, "builds probe", 0, "system")
    assert known["verdict"] is None and "qcow2" in known["drivers"] and len(known["sha256"]) == 64
    listed = document_of(qmpshim, "builds list", 0)
    assert [one["name"] for one in listed["items"]] == ["system"]


def test_of_check_and_what_it_leaves(qmpshim: CommandLine) -> None:
    case = {"kind": "verify", "name": "v", "arguments": {"operations": 60, "size": 1 << 20}}
    (qmpshim.home / "suite.json").write_text(json.dumps({"cases": [case]}))
    words = ("--suite", "suite.json", "--out", "out")
    document = document_of(qmpshim, "check", 0, *words)
    assert document == valid(qmpshim.home / "out" / "results.json", "check", 0)
    assert document["version"] == 1 and document["complete"]  # as it was
    (build,) = document["builds"]
    assert build["path"] == document["plan"]["builds"][0]["path"]
    assert load_results(qmpshim.home / "it.json").complete
    # What was written before there was an envelope is a baseline still.
    old = {name: value for name, value in document.items() if name not in ENVELOPE}
    del old["plan"]["builds"][0]["path"]
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(old)
    assert results_from_json(old).complete
    (qmpshim.home / "old.json").write_text(json.dumps(old))
    again = document_of(qmpshim, "check", 0, *words, "--force", "--baseline", "old.json")
    assert again["verdict"] == "as predicted"
    # A run there is not overwritten by chance, and the document says so.
    before = (qmpshim.home / "out" / "results.json").read_bytes()
    refused = document_of(qmpshim, "check", 2, *words)
    assert "out holds a run already" in refused["error"] and "results" not in refused
    assert (qmpshim.home / "out" / "results.json").read_bytes() == before


# -- other endings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, status, words, say",
    [
        ("verify", 2, ("--ops", "3"), "too few"),
        ("verify", 125, (*VERIFY[1:], "--machine", "nosuch"), "unsupported machine type"),
        ("explore", 2, ("--mode", "random"), "add a --budget"),
        ("explore", 2, ("--scenario", "nosuch"), "nosuch"),
        ("replay", 2, ("nosuch",), "nosuch"),
        ("export", 2, ("nosuch",), "nosuch"),
        ("check", 2, ("--case", "nosuch"), "has no case"),
        ("guest check", 2, ("nosuch",), "no guest scenario"),
        ("pair", 2, ("--resume",), "say which"),
        ("stress", 2, ("unix:/nonexistent/sock",), "cannot connect"),
        ("builds probe", 2, ("nosuch",), "no build named"),
        ("findings show", 2, ("nosuch",), "no finding 'nosuch'"),
        ("findings new", 2, ("nosuch",), "nosuch"),
    ],
)
def test_of_a_command_that_fails(
    at_once: Callable[..., Any], command: str, status: int, words: tuple[str, ...], say: str
) -> None:
    document = at_once(command, status, *words)
    assert document["verdict"] is None and say in document["error"], document


def test_of_a_case_that_cannot_be_tested(qmpshim: CommandLine) -> None:
    (qmpshim.home / "no").mkdir()
    document = document_of(qmpshim, "check", 125, "--bisect", "--build", "no", "--case", SNAPSHOT)
    assert document["verdict"] is None and document["error"].startswith("cannot be tested: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_of_what_is_interrupted(qmpshim: CommandLine, number: signal.Signals) -> None:
    """What was done until then is in it."""
    out = qmpshim.home / "it.json"
    process = qmpshim.start("verify", "--ops", "400000", "--size", "8M", "--json", out)
    wait_until(qmpshim.emulators, LIMIT)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    document = valid(out, "verify", 128 + number)
    assert document["interrupted"] == number.name and document["verdict"] is None
    (run,) = document["runs"]
    assert run["interrupted"] and document["builds"][0]["name"] == "system"


def test_of_a_budget_that_is_over(qmpshim: CommandLine) -> None:
    words = ("--scenario", "WV", "--mode", "random", "--budget", "1s", "--jobs", "1")
    document = document_of(qmpshim, "explore", 0, *words)
    assert document["interrupted"] == "budget" and not document["exhaustive"]


def test_on_stdout(qmpshim: CommandLine) -> None:
    done = qmpshim.run("verify", "--ops", "3", "--json", "-")
    assert done.returncode == 2 and "too few" in done.stderr
    document = json.loads(done.stdout)
    validator("verify").validate(document)


# -- the envelope --------------------------------------------------------------------------------


def test_every_command_with_a_result_has_a_schema() -> None:
    names = {path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir()}
    assert names == {
        *("envelope", "list", "verify", "explore", "replay", "export", "check", "guest-check"),
        *("pair", "stress", "builds-list", "builds-probe"),
        *("findings-list", "findings-show", "findings-report", "findings-new"),
        "assess",
    }


@pytest.mark.parametrize(
    "spoil",
    [
        {"verdict": "good"},
        {"verdict": "diverged"},
        {"exit_status": 2},  # without saying why
        {"format": {"name": "qmpshim verify", "version": 2}},
        {"format": {"name": "qmpshim pair", "version": 1}},
        {"builds": ["system"]},
        {"interrupted": True},
        {"error": ""},
    ],
)
def test_a_schema_refuses(spoil: dict[str, Any]) -> None:
    result: dict[str, Any] = {"verdicts": [], "runs": []}
    document = Document("verify", ("verify",), result=result).to_json()
    validator("verify").validate(document)
    assert not validator("verify").is_valid({**document, **spoil})
    for name in (*ENVELOPE, *result):
        assert not validator("verify").is_valid({k: v for k, v in document.items() if k != name})


def test_a_result_does_not_hide_the_envelope() -> None:
    with pytest.raises(AssertionError):
        Document("verify", result={"verdict": "content"}).to_json()


@pytest.mark.parametrize(
    "version, numbers, package",
    [
        ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", [7, 2, 22], "Debian 1:7.2+dfsg-7+deb12u18+b3"),
        ("9.0.50 (v9.0.0-1-g1 (dirty))", [9, 0, 50], "v9.0.0-1-g1 (dirty)"),
        ("10.0.2", [10, 0, 2], ""),
        ("", [], ""),
    ],
)
def test_a_build_is_an_object(version: str, numbers: list[int], package: str) -> None:
    assert build_object("it", version, "/q") == {
        **{"name": "it", "version": version, "numbers": numbers, "package": package, "path": "/q"}
    }


# -- what there is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, words, some",
    [
        ("check", ("--case", "known/*"), "known/failed-backup-not-in-status"),
        ("explore", (), "WV"),
        ("explore", ("--scenario", "backup"), "backup-WR"),
        ("explore", ("--model",), "write-fill"),
        ("guest check", (), "both-sides"),
    ],
)
def test_a_list(
    at_once: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: tuple[str, ...],
    some: str,
) -> None:
    """One a line, the name first, then what it is; the same as data."""
    document = at_once(command, 0, "--list", *words)
    shown = capsys.readouterr().out.splitlines()
    items = document["items"]
    assert some in [item["name"] for item in items]
    assert [line.split(maxsplit=1) for line in shown] == [[i["name"], i["about"]] for i in items]
    assert document["verdict"] is None
    assert not {"at", "sector", "size", "cluster"} & set(members(items))


def test_older_spellings_of_lists(
    at_once: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def output_of(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    for words in (("explore",), ("explore", "--model")):
        listed = output_of(*words, "--list")
        assert listed and output_of(*words, "--scenario", "list") == listed
    disciplines = output_of("explore", "--model", "--discipline", "list")
    assert re.search(r"^none +none: no operation waits", disciplines, re.M)
    assert [line.split()[0] for line in output_of("builds", "list").splitlines()] == ["system"]
