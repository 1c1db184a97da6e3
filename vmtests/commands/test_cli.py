"""The command line: what it prints and writes, and one line that helps for every bad input."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.finding_words import KNOWN_FAIL
from qmpshim.conformance.known.write_ups import DIRECTORY
from vmtests.support.command_line import LIMIT, QMPSHIM, CommandLine

# Made without TCG: it does not start where there is no KVM.
MICROVM = shutil.which("qemu-system-x86_64-microvm") if os.access("/dev/kvm", os.W_OK) else None


def refuses(done: subprocess.CompletedProcess[str], say: str, status: int = 2) -> None:
    """It ended with one line that says *say* (a regular expression)."""
    assert done.returncode == status, done
    assert re.fullmatch(rf"qmpshim[^\n]*: [^\n]*({say})[^\n]*\n", done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# -- what goes well ------------------------------------------------------------------------------


def test_verify_reports_and_writes_what_it_did(qmpshim: CommandLine) -> None:
    report, kept = qmpshim.home / "report.json", qmpshim.home / "kept"
    done = qmpshim.run("verify", "--ops", "201", "--seed", "7", "--size", "8M", "--cluster", "64k",
                       "--secondary", "raw", "--json", report, "--keep", kept)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0].startswith("QEMU ")
    assert "backup: seed 7, 8M disk, 64K clusters, raw secondary" in lines
    assert "replication: seed 7, 8M disk, 64K clusters, raw secondary" in lines
    assert lines.count("  verdict: as predicted") == 2
    assert re.fullmatch(
        r"all as predicted: 201 operations, \d+ clusters compared, \d+\.\d s", lines[-1]
    )
    assert "\r" not in done.stdout and "\x1b" not in done.stdout  # stdout is no terminal
    data = json.loads(report.read_text())
    assert data["verdicts"] == []
    assert [(run["workflow"], sum(run["operations"].values())) for run in data["runs"]] == [
        ("backup", 101),
        ("replication", 100),
    ]
    for run in data["runs"]:
        assert run["clusters_compared"] > 0
        assert run["checks"] > 0
    assert {path.name for path in kept.iterdir()} == {"backup", "replication"}
    assert (kept / "replication" / "active.qcow2").exists()
    piped = qmpshim.run("verify", "--ops", "100", "--size", "4M", "--json", "-")
    assert json.loads(piped.stdout)["verdicts"] == []
    assert piped.stderr.splitlines()[-1].startswith("all as predicted: 100 operations")
    assert {path.name for path in qmpshim.home.iterdir()} <= {"report.json", "kept", "cache"}


def test_a_divergence_is_reported_kept_and_replayed(qmpshim: CommandLine) -> None:
    """With --strict the stop of replication, which fails in 5.2 to 10.0, is a divergence."""
    args = ["verify", "--workflow", "replication", "--size", "4M", "--strict", "--ops", "200"]
    args += ["--shrink", "2m"]  # also where it is made small slowly
    report = qmpshim.home / "report.json"
    for seed in range(1, 9):  # until a workload stops while replication runs
        done = qmpshim.run(*args, "--seed", str(seed), "--json", report)
        if done.returncode:
            break
    else:
        pytest.skip("this QEMU does not have the defect")
    assert (done.returncode, done.stderr) == (1, "")
    known = "contract, known: stop-always-fails"
    assert f"  verdict: error-contract at stop ({known})\n" in done.stdout
    assert "    predicted: no error\n" in done.stdout
    assert "    observed:  the error 'Backup job was cancelled unexpectedly'\n" in done.stdout
    assert re.search(r"  minimal case, 2 operations:\n    \d+: start\n    \d+: stop\n", done.stdout)
    assert done.stdout.splitlines()[-1].startswith(f"DIVERGED ({KNOWN_FAIL}): ")
    found = re.search(r"  replay it: qmpshim replay (\S+)\n", done.stdout)
    assert found is not None
    bundle = qmpshim.home / found[1]
    data = json.loads(report.read_text())
    assert data["verdicts"] == ["error-contract"]
    assert data["runs"][0]["bundle"] == found[1]
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    again = qmpshim.run("replay", bundle)
    assert (again.returncode, again.stderr) == (1, "")
    assert "\nreproduced: error-contract: stop, after operation" in again.stdout
    # Where the defect is known, the model predicts it: nothing is reproduced then.
    case = json.loads((bundle / "case.json").read_text())
    case["model"]["known"] = ["stop-always-fails"]
    (bundle / "case.json").write_text(json.dumps(case))
    calm = qmpshim.run("replay", bundle)
    assert (calm.returncode, calm.stderr) == (0, "")
    assert "\nnot reproduced: 2 operations went as predicted; the bundle says" in calm.stdout


def test_progress_on_a_terminal_is_one_line_rewritten(qmpshim: CommandLine) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*QMPSHIM, "verify", "--ops", "1500", "--workflow", "replication", "--size", "8M"],
        cwd=qmpshim.home,
        env=qmpshim.env(),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(slave)
        output = b""
        while select.select([master], [], [], LIMIT)[0]:
            try:
                output += os.read(master, 1 << 16)
            except OSError:  # EIO: the other end is closed
                break
        os.close(master)
        assert process.wait(LIMIT) == 0
    assert re.search(rb"\r\x1b\[Kreplication: \d+/1500 operations, [\d,]+/s, \d+: ", output)
    assert output.count(b"\n") < 12
    assert b"\r\x1b[Kreplication: seed 1" in output  # the progress line gives way to the summary


def test_the_reader_is_gone(qmpshim: CommandLine) -> None:
    """`qmpshim verify | head -1` ends without a word."""
    process = qmpshim.start("verify", "--ops", "4000", "--size", "8M")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT) != 0
    assert process.stderr.read() == ""
    process.stderr.close()


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "say"),
    [
        (["--size", "1000"], "size 1000 is no positive multiple of 512 bytes; the nearest is 1024"),
        (["--size", "0"], "size 0 is no positive multiple of 512"),
        (["--size", "2T", "--workflow", "push"], "size 2199023255552 is too large: disks"),
        (["--size", "64Q"], "'64Q' is no size; write e.g. 512, 64k or 1G"),
        (["--cluster", "1000"], "cluster size 1000 is no power of two from 512 to 2M"),
        (["--ops", "10"], "--ops 10 is too few to see anything; take at least 40"),
        (["--build", "no-such-build"], "no-such-build"),
    ],
)
def test_words_that_are_wrong(qmpshim: CommandLine, args: list[str], say: str) -> None:
    refuses(qmpshim.run("verify", *args), say)


@pytest.mark.parametrize(
    ("args", "say"),
    [
        (["--size", "-1"], "expected one argument|is no size"),
        (["--secondary", "vmdk"], "invalid choice: 'vmdk'"),
        (["--workflow", "mirror"], "invalid choice: 'mirror'"),
        (["--ops", "0"], "'0' is no positive number"),
        (["--ops", "many"], "'many' is no positive number"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--limit", "0"], "'0' is no time"),
        (["--limit", "soon"], "'soon' is no time"),
        (["--build", "a", "--qemu", "b"], "not allowed with argument"),
        (["--wrokflow", "both"], "unrecognized arguments"),
    ],
)
def test_words_that_no_command_has(
    args: list[str], say: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["verify", *args])
    captured = capsys.readouterr()
    status = raised.value.code
    assert isinstance(status, int)
    refuses(subprocess.CompletedProcess([], status, captured.out, captured.err), say)


def test_garbage_is_looked_for_while_a_command_runs() -> None:
    """The entry point leaves that out while modules are imported."""
    gc.disable()
    try:
        assert main(["builds", "list"]) == 0 and gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_no_command_and_no_such_command(qmpshim: CommandLine) -> None:
    refuses(qmpshim.run(), "the following arguments are required: COMMAND")
    refuses(qmpshim.run("verfiy"), "invalid choice: 'verfiy'")


def test_no_qemu(qmpshim: CommandLine) -> None:
    (qmpshim.home / "bin").mkdir()
    qmpshim.environment["PATH"] = str(qmpshim.home / "bin")
    if Path("/usr/libexec/qemu-kvm").exists():
        pytest.skip("this machine has a QEMU that is found without PATH")
    refuses(qmpshim.run("verify"), "no qemu-system-x86_64 on PATH: apt-get install qemu-system-x86")


def test_what_is_no_qemu(qmpshim: CommandLine) -> None:
    text = qmpshim.home / "notes"
    text.write_text("not a program\n")
    refuses(qmpshim.run("verify", "--qemu", text), "is not a QEMU system emulator: neither an ELF")
    text.chmod(0o755)
    refuses(qmpshim.run("verify", "--qemu", text), "is not a QEMU system emulator")
    refuses(qmpshim.run("verify", "--qemu", "/bin/true"), "/true is not a QEMU system emulator")
    refuses(qmpshim.run("verify", "--qemu", "qemu-img"), "is not a QEMU system emulator")
    refuses(qmpshim.run("verify", "--qemu", "/no/such/file"), "does not exist")
    refuses(qmpshim.run("verify", "--qemu", qmpshim.home), "holds no qemu-system-x86_64")


@pytest.mark.skipif(MICROVM is None, reason="Debian's microvm build of QEMU cannot run here")
def test_a_qemu_without_replication(qmpshim: CommandLine) -> None:
    """Debian's microvm build is a real QEMU, made without features; plain backup it can do."""
    assert MICROVM is not None
    args = ("verify", "--qemu", MICROVM, "--ops", "100", "--size", "4M")
    for workflow in ("replication", "both"):
        refuses(
            qmpshim.run(*args, "--workflow", workflow),
            "has no replication driver .* build QEMU with --enable-replication, or use "
            "--workflow backup",
        )
    done = qmpshim.run(*args, "--workflow", "backup")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_this_qemu_does_not_have(qmpshim: CommandLine) -> None:
    refuses(qmpshim.run("verify", "--machine", "zx81"), "unsupported machine type", 125)


def test_bundles_that_cannot_be_read(qmpshim: CommandLine) -> None:
    refuses(qmpshim.run("replay", qmpshim.home / "missing"), "is no bundle: .*No such file")
    refuses(qmpshim.run("replay", qmpshim.home), "is no bundle: .*case.json: No such file")
    damaged = qmpshim.home / "case.json"
    for data in (b"", b"\0\xff", b'{"format": 1}', b"[1, 2"):
        damaged.write_bytes(data)
        refuses(qmpshim.run("replay", damaged), "case.json is damaged")
    for data in (b"{}", b"[]", b"1"):
        damaged.write_bytes(data)
        refuses(qmpshim.run("replay", damaged), "case.json is no replay bundle")
    damaged.write_text('{"format": 1}')
    refuses(qmpshim.run("export", qmpshim.home), "is damaged: it has no 'chain'")
    refuses(qmpshim.run("replay", "/dev/zero/x"), "is no bundle")


def test_results_that_cannot_be_written(qmpshim: CommandLine) -> None:
    """That is found out before the work, not after it."""
    place = qmpshim.home / "no" / "such"
    refuses(
        qmpshim.run("verify", "--json", place / "report.json"), f"cannot write {place}.*No such"
    )
    refuses(qmpshim.run("verify", "--json", qmpshim.home), "Is a directory")
    (qmpshim.home / "file").touch()
    done = qmpshim.run("verify", "--keep", qmpshim.home / "file" / "kept")
    refuses(done, "cannot write .*file/kept: Not a directory")


def test_explore_refuses_what_it_cannot_do(qmpshim: CommandLine) -> None:
    """Before the work; nothing that was asked for is left out without a word."""
    (qmpshim.home / "file").touch()
    done = qmpshim.run("explore", "--keep", qmpshim.home / "file" / "kept")
    refuses(done, "cannot write .*file/kept: Not a directory")
    for mode in ("pct", "preemption", "random"):
        done = qmpshim.run("explore", "--mode", mode)
        refuses(done, f"--mode {mode} never ends by itself: add a --budget")
    for words in (
        ["--build", "system"],
        ["--faults"],
        ["--strict"],
        ["--crash-points"],
        ["--all-io"],
    ):
        done = qmpshim.run("explore", "--model", *words)
        refuses(done, f"{words[0]} goes with a real QEMU, not with --model")
    refuses(qmpshim.run("explore", "--schedule", "io:0:0"), "go with --model")
    done = qmpshim.run("explore", "--crash-points", "all")
    refuses(done, "crash points are none, quick, full, power-loss, and after a colon the steps")


def test_where_a_schedule_cannot_be_followed_all_of_its_scenario_are(qmpshim: CommandLine) -> None:
    """By itself it shows neither that the build has the defect nor that it has not."""
    written_up = DIRECTORY / "checkpoint-corrupts-overlay.json"
    case = json.loads(written_up.read_text())["case"]
    case["scenario"] = {"ops": [{"do": "primary_flush"}]}
    case["schedule"] = [["start", 0]]
    bundle = qmpshim.home / "case.json"
    bundle.write_text(json.dumps(case))
    done = qmpshim.run("replay", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nnot reproduced: the schedule went as allowed; the bundle says " in done.stdout
    case["schedule"] += [["io", 0, "hidden write 0+128", 0]]
    bundle.write_text(json.dumps(case))
    done = qmpshim.run("replay", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    followed = "the schedule could not be followed on this build"
    assert f"\n{followed}: all schedules of its scenario are tried\n" in done.stdout
    assert "\nnot reproduced: no schedule of the scenario shows it; " in done.stdout


def test_a_replay_finds_another_schedule(qmpshim: CommandLine) -> None:
    """What fails in the bundle's comes elsewhere on this build, and shows the same."""
    case = json.loads((DIRECTORY / "failed-backup-not-in-status.json").read_text())["case"]
    steps = [[*step[:2], "hidden write 3+4", *step[3:]] if step[0] == "fail" else step
             for step in case["schedule"]]  # fmt: skip
    assert steps != case["schedule"]
    bundle = qmpshim.home / "case.json"
    bundle.write_text(json.dumps({**case, "schedule": steps}))
    done = qmpshim.run("replay", bundle)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\nthe schedule could not be followed on this build: " in done.stdout
    assert "\nreproduced: " in done.stdout


@pytest.mark.parametrize("mode", ["auto", "stateful", "dpor", "states", "naive"])
def test_modes_that_end_by_themselves_need_no_budget(qmpshim: CommandLine, mode: str) -> None:
    done = qmpshim.run("explore", "--mode", mode, "--scenario", "HF", "--jobs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2].endswith(" schedules, exhausted")


def test_no_libnbd(qmpshim: CommandLine) -> None:
    """As in a virtual environment that does not see Debian's packages."""
    without = [
        sys.executable,
        "-c",
        "import sys; sys.modules['nbd'] = None; sys.argv[0] = 'qmpshim'\n"
        "from qmpshim.cli import main\nsys.exit(main())",
    ]
    done = qmpshim.run("verify", command=without)
    refuses(done, "libnbd's Python binding is missing: apt-get install python3-libnbd")


def test_a_temporary_directory_too_deep_for_sockets(qmpshim: CommandLine) -> None:
    deep = qmpshim.temporary / ("d" * 90)
    deep.mkdir()
    qmpshim.environment["TMPDIR"] = str(deep)
    done = qmpshim.run("verify", "--ops", "80")
    refuses(done, "is too long a path for UNIX sockets in it: set TMPDIR to a shorter one")
    assert list(deep.iterdir()) == []
    deep.rmdir()


# -- a full disk ---------------------------------------------------------------------------------

# A mount namespace of one's own: the small disk is gone with the last process in it.
ON_A_SMALL_DISK = textwrap.dedent(
    """\
    mount -t tmpfs -o size=$1 none "$TMPDIR" || exit 99
    shift
    "$@"
    status=$?
    ls -A "$TMPDIR"
    exit $status
    """
)


def on_a_small_disk(
    qmpshim: CommandLine, size: str, *args: str
) -> subprocess.CompletedProcess[str]:
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    done = qmpshim.run(size, *QMPSHIM, *args, command=[*enter, "sh", "-c", ON_A_SMALL_DISK, "sh"])
    if done.returncode in (1, 99) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"this user cannot mount a small disk: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize(
    ("size", "args"),
    [
        ("16k", []),  # nothing fits: not even the empty images
        ("700k", ["--secondary", "qcow2"]),  # full at the first writes
        ("3M", ["--workflow", "backup"]),
        ("5M", ["--workflow", "replication"]),  # full somewhere in the middle
    ],
)
def test_a_full_disk(qmpshim: CommandLine, size: str, args: list[str]) -> None:
    done = on_a_small_disk(qmpshim, size, "verify", "--ops", "1500", "--size", "32M", *args)
    refuses(done, "full|No space left on device")
    assert re.search("free some space|set TMPDIR", done.stderr)
    last = done.stdout.splitlines()[-1:]
    assert not last or not last[0].startswith("qmpshim-"), "something was left on the small disk"
    assert not (qmpshim.home / "qmpshim-bundles").exists(), "a full disk is no finding"


def test_a_disk_just_large_enough(qmpshim: CommandLine) -> None:
    done = on_a_small_disk(qmpshim, "64M", "verify", "--ops", "200", "--size", "4M")
    assert (done.returncode, done.stderr) == (0, "")
