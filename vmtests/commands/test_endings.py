"""How commands end: the exit status, what stands on stderr, and what is there afterwards."""

from __future__ import annotations

import ast
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qmpshim.conformance.bundles.again import replay_command
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.errors import IOFailed, name_errnos
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import check_file, write_file
from qmpshim.machine.host.safe_path import our_python
from vmtests.support.command_line import LIMIT, QMPSHIM, ROOT, CommandLine

PLANTED = "raise SystemExit('a module of the working directory was imported')\n"


@dataclass(frozen=True)
class Ending:
    """A command line for sh, in which ``qmpshim`` is the tool, and how it ends.

    :ivar says: what its only line on stderr holds; ``""``: there is none
    :ivar variables: of its environment
    :ivar there: files that must be there afterwards, in the directory it ran in, and no others
    """

    command: str
    status: int
    says: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    there: tuple[str, ...] = ()


_SHORT = "verify --workflow backup --ops 60 --size 1M"
_SCHEDULE = DIRECTORY / "checkpoint-corrupts-overlay.json"
_PAIR = DIRECTORY / "pair" / "colo-primary-deadlocks-under-tcg.json"

ENDINGS = [
    # Streams.
    Ending(f"qmpshim {_SHORT} >&-", 2, "cannot write to stdout: Bad file descriptor"),
    Ending("qmpshim --version >&-", 2, "cannot write to stdout: Bad file descriptor"),
    Ending("qmpshim --version >/dev/full", 2, "cannot write to stdout: No space left"),
    Ending("qmpshim --help >/dev/full", 2, "cannot write to stdout: No space left"),
    Ending("qmpshim builds list >/dev/full", 2, "cannot write to stdout: No space left"),
    Ending("qmpshim builds list >/dev/full 2>&1", 2),
    Ending("qmpshim nothing 2>/dev/full", 2),
    Ending("qmpshim builds list <&-", 0),
    Ending("qmpshim builds list 2>&-", 0),
    Ending(f"qmpshim {_SHORT} --json - >/dev/full 2>words", 2, there=("words",)),
    Ending(f"qmpshim {_SHORT} --json f | head -1", 141, there=("f",)),
    Ending("qmpshim explore --scenario list | head -1", 141),
    Ending("qmpshim explore --help | true", 141),
    # Places for results.
    Ending(f"qmpshim {_SHORT} --json .", 2, "cannot write .: Is a directory"),
    Ending(f"qmpshim {_SHORT} --json no/where", 2, "cannot write no/where: No such file"),
    Ending(f"qmpshim {_SHORT} --json /proc/here", 2, "cannot write /proc/here: "),
    Ending(f"qmpshim {_SHORT} --json /dev/null", 0),
    Ending("qmpshim explore --json . --scenario WR", 2, "cannot write .: Is a directory"),
    # Bad input.
    *(
        Ending(f"echo '{text}' >f; qmpshim {command} f", 2, "qmpshim: f", there=("f",))
        for text in ("", "{}", "[]", '{"format": 99}', '{"version": 99, "format": 1}')
        for command in ("export", "replay", "check --list --suite", "check --case x --baseline")
        if (text, command) != ("[]", "check --list --suite")
    ),
    Ending("qmpshim explore --scenario nope", 2, "no scenario 'nope'; there is pairs, for one"),
    Ending("qmpshim explore --scenario replicaton", 2, "did you mean replication?"),
    Ending("qmpshim explore --model --scenario nope", 2, "there is write-read, for one"),
    Ending("qmpshim check --case protocol/shima", 2, "did you mean protocol/shim"),
    Ending("qmpshim verify --qemu /etc/passwd", 2, "/etc/passwd is not a QEMU system emulator"),
    # The temporary directory.
    Ending(f"qmpshim {_SHORT}", 2, "TMPDIR=/proc is no directory", {"TMPDIR": "/proc"}),
    Ending(f"qmpshim {_SHORT}", 2, "TMPDIR=/etc/passwd is no dir", {"TMPDIR": "/etc/passwd"}),
    # Options without an effect.
    Ending(f"qmpshim replay {_SCHEDULE} --machine foo", 2, "--machine has no effect with"),
    Ending(f"qmpshim replay {_PAIR} --limit 3", 2, "--limit has no effect with a bundle of a pair"),
    Ending("qmpshim pair --no-colo --guest linux", 2, "--guest has no effect with --no-colo"),
    Ending("qmpshim pair --no-colo --accel tcg", 2, "--accel has no effect with --no-colo"),
    Ending("qmpshim pair --seed 7", 2, "--seed has no effect with"),
    Ending("qmpshim pair --moment vmstate-loaded", 2, "--moment has no effect without"),
    Ending("qmpshim verify --size 0", 2, "size 0 is no positive multiple of 512"),
    Ending("qmpshim verify --workflow push --size 0", 2, "size 0"),
    Ending("qmpshim explore --scenario WR --seed 7", 2, "--seed has no effect with --mode"),
    Ending("qmpshim explore --model --jobs 77", 2, "--jobs has no effect with --model"),
    Ending("qmpshim explore --scenario list --faults", 2, "--faults has no effect with"),
    Ending("qmpshim check --list --out f", 2, "--out has no effect with --list"),
    Ending("qmpshim serve --cluster 4k", 2, "--cluster has no effect without a chain"),
    Ending("qmpshim serve --allow-remote", 2, "--allow-remote has no effect without --listen"),
    Ending("qmpshim serve --qmp unix:s --machine pc", 2, "--machine has no effect on a QEMU"),
    Ending("qmpshim shell unix:s --log-writes", 2, "--log-writes has no effect on a QEMU"),
    Ending("qmpshim shell -c help --script f", 2, "--script has no effect with -c"),
    Ending("qmpshim stress unix:s --build system", 2, "--build has no effect on a shim"),
    # QEMU's own words.
    Ending("qmpshim serve -- -machine no-such", 2, "unsupported machine type"),
    Ending("qmpshim serve --machine no-such", 2, "unsupported machine type"),
    Ending("qmpshim serve -- -no-such-option", 2, "-no-such-option: invalid option"),
]  # fmt: skip


def in_shell(
    qmpshim: CommandLine, command: str, *, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command line; of a pipe the first one's status counts."""
    script = f'set -o pipefail; qmpshim() {{ {shlex.join(QMPSHIM)} "$@"; }}; {command}'
    return qmpshim.run(command=[*before, "bash", "-c", script])


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda one: one.command[:60])
def test_ending(qmpshim: CommandLine, ending: Ending) -> None:
    qmpshim.environment.update(ending.variables)
    done = in_shell(qmpshim, ending.command)
    assert done.returncode == ending.status, done
    lines = done.stderr.splitlines()
    assert len(lines) == bool(ending.says), done.stderr
    assert ending.says in done.stderr and len(done.stderr) < 500
    assert all(line.startswith("qmpshim") for line in lines)
    assert {path.name for path in qmpshim.home.iterdir()} - {"cache"} == set(ending.there)


# -- nothing is lost -----------------------------------------------------------------------------


def test_the_reader_is_gone_and_the_result_is_written(qmpshim: CommandLine) -> None:
    done = in_shell(qmpshim, f"qmpshim {_SHORT} --json f | head -1")
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads((qmpshim.home / "f").read_text())["verdicts"] == []


def test_an_interrupted_run_leaves_a_whole_result(qmpshim: CommandLine) -> None:
    (qmpshim.home / "old").write_text("as before")
    for name in ("old", "new"):
        process = qmpshim.start("verify", "--ops", "40000", "--json", name)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        process.stdout.close()
        process.stderr.close()
        document = json.loads((qmpshim.home / name).read_text())
        assert (document["interrupted"], document["exit_status"]) == ("SIGINT", 130)
    assert {path.name for path in qmpshim.home.iterdir()} <= {"old", "new", "cache"}


def test_results_appear_whole(tmp_path: Path) -> None:
    """Over what was there, with its mode, and through a link."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    check_file(tmp_path / "link")
    assert (tmp_path / "file").read_text() == "old"
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_a_divergence_where_no_bundle_can_be_written(qmpshim: CommandLine) -> None:
    """The verdict and the whole case are printed, and where the bundle should have been."""
    (qmpshim.home / "qmpshim-bundles").write_text("in the way")
    words = ("verify", "--workflow", "replication", "--size", "4M", "--strict", "--ops", "200")
    for seed in range(1, 9):  # until a workload stops while replication runs
        done = qmpshim.run(*words, "--seed", str(seed), "--json", "f")
        if done.returncode:
            break
    else:
        pytest.skip("this QEMU does not have the defect")
    assert (done.returncode, done.stderr) == (1, ""), done
    assert "  verdict: error-contract at stop (contract, known: stop-always-fails)\n" in done.stdout
    assert ": start\n" in done.stdout and ": stop\n" in done.stdout
    assert "  no bundle: cannot write qmpshim-bundles/" in done.stdout
    assert "--keep DIR" in done.stdout and "replay it" not in done.stdout
    document = json.loads((qmpshim.home / "f").read_text())
    assert document["verdicts"] == ["error-contract"] and document["runs"][0]["bundle"] is None


def test_a_full_temporary_directory(qmpshim: CommandLine) -> None:
    """Full to the last byte: no other place is taken without a word."""
    fill = 'mount -t tmpfs -o size=4k none "$TMPDIR" && head -c 4096 /dev/zero >"$TMPDIR/full"'
    enter = ("unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]))
    done = in_shell(qmpshim, f"{fill} || exit 99; qmpshim {_SHORT}", before=enter)
    if done.returncode in (1, 99) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"this user cannot mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 2, done
    assert "is no directory to write to (No space left on device): set it to" in done.stderr


# -- what can be pasted, and what can be read ----------------------------------------------------


def test_a_hint_names_the_build_and_can_be_pasted() -> None:
    build = Build("/a b/qemu", "installed", Path("/a b/qemu"))
    words = shlex.split(replay_command(Path("it's/here"), build, "--machine", "pc"))
    assert words == ["qmpshim", "replay", "it's/here", "--build", "/a b/qemu", "--machine", "pc"]
    system = Build("system", "installed", Path("/usr/bin/qemu"))
    assert replay_command(Path("here"), system) == "qmpshim replay here"
    assert replay_command(Path("here"), None) == "qmpshim replay here"


def test_errors_of_io_have_names() -> None:
    assert str(IOFailed("NBD write", errno.EPERM)) == "NBD write: EPERM: Operation not permitted"
    assert name_errnos("it answers errno 28, after") == (
        "it answers errno 28 (ENOSPC: No space left on device), after"
    )
    assert name_errnos(name_errnos("errno 5")) == "errno 5 (EIO: Input/output error)"
    assert name_errnos("errno 99999") == "errno 99999"


# -- the working directory -----------------------------------------------------------------------


@pytest.fixture
def planted(qmpshim: CommandLine) -> CommandLine:
    """A working directory with modules and programs that must not be taken for others."""
    for name in ("json", "pickle", "multiprocessing", "asyncio", "subprocess", "logging"):
        (qmpshim.home / f"{name}.py").write_text(PLANTED)
    (qmpshim.home / "qmpshim").mkdir()  # a clone's folder, seen from above
    for name in ("qemu-system-x86_64", "qemu-img", "env", "cat", "rm"):
        (qmpshim.home / name).write_text("#!/bin/sh\necho $0 >>ran\nexit 1\n")
        (qmpshim.home / name).chmod(0o755)
    qmpshim.environment["PATH"] = f":.:{os.environ['PATH']}:"
    return qmpshim


SCRIPT = (sys.executable, "-P", "-c", "from qmpshim.__main__ import main; raise SystemExit(main())")


@pytest.mark.parametrize(
    "words",
    [
        ("builds", "list"),
        ("verify", "--ops", "80", "--size", "1M"),
        ("check", "--case", "protocol/schema", "--out", "out"),
        ("explore", "--scenario", "fleecing", "--budget", "2s", "--jobs", "2"),
        ("stress", "--clients", "2", "--messages", "2"),
    ],
    ids=lambda words: str(words[0]),
)
def test_nothing_of_the_working_directory_runs(planted: CommandLine, words: tuple[str]) -> None:
    done = planted.run(*words, command=SCRIPT)
    assert done.returncode == 0, done
    assert "working directory" not in done.stdout + done.stderr
    assert not (planted.home / "ran").exists(), (planted.home / "ran").read_text()


#: As ``python -c`` and ``python -m`` have it: the working directory comes first.
FROM_HERE = """
import sys
here = sys.path.pop(0)  # the package's own folder may lie there, too
import qmpshim.__main__ as entry
assert here == "" and "json" not in sys.modules
sys.path.insert(0, here)
raise SystemExit(entry.{name}())
"""


@pytest.mark.parametrize(("name", "words"), [("main", ["builds", "list"]), ("stand_in", ["-h"])])
def test_the_entry_points_leave_it_out(planted: CommandLine, name: str, words: list[str]) -> None:
    """Before anything else is imported."""
    command = (sys.executable, "-c", FROM_HERE.format(name=name))
    done = planted.run(*words, command=command)
    assert done.returncode == 0, done
    assert not (planted.home / "ran").exists(), (planted.home / "ran").read_text()


def test_our_python_ignores_an_empty_pythonpath(
    planted: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted.home)
    planted.environment["PYTHONPATH"] = f"::.:{planted.home}"
    done = planted.run(command=our_python("qmpshim", "--version"))
    assert (done.returncode, done.stderr) == (0, ""), done


def test_python_is_started_in_one_place_only() -> None:
    """A Python of ours started otherwise imports from the working directory."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "qmpshim").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("executable", "which"))
        or (isinstance(node, ast.ImportFrom) and node.module in ("sys", "shutil"))
    }
    assert found == {
        "qmpshim/machine/host/safe_path.py",  # our_python
        "qmpshim/machine/host/programs.py",  # find_program
        "qmpshim/machine/host/workspace.py",  # setpriv, on a PATH of its own
    }


def test_cases_that_all_break_alike_are_reported_once(qmpshim: CommandLine) -> None:
    cases = [
        {"kind": "verify", "name": f"v{number}", "budget": 0.001, "arguments": {}}
        for number in range(12)
    ]
    (qmpshim.home / "suite.json").write_text(json.dumps({"cases": cases}))
    done = qmpshim.run("check", "--suite", "suite.json", "--out", "out", "--jobs", "2")
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert "the first 8 cases all broke in the same way, so the other 4 were not" in done.stderr
    assert "did not end within its 0.001 s" in done.stderr
    assert "go on with: qmpshim check --resume out" in done.stderr
    assert len((qmpshim.home / "out" / "journal.jsonl").read_text().splitlines()) == 1  # the plan
