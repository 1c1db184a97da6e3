"""The reproducers stand alone: no qmpshim, no libraries, and QEMU shows the same to them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.explore.harness.choices import (
    Complete,
    Cut,
    Fail,
    RealChoice,
    Start,
    failures,
    io_id,
)
from qmpshim.conformance.explore.harness.events import events_from_lines
from qmpshim.conformance.explore.harness.history import ended
from qmpshim.conformance.explore.harness.setup_state import allocation_after_setup
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.conformance.explore.reproducer.export import (
    blkdebug_steps,
    export_script,
    steps_script,
)
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.scenario_sets import LETTERS
from qmpshim.conformance.explore.scenarios import C, RealScenario, scenario_from_json
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.tracker import script_of_schedule
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.errors import BuildError, Exit, InputError, NoSuchBuild
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.builds.programs import write_programs
from qmpshim.model.chain.behaviour import features_of
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.cause_reader import cause_from_text
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from qmpshim.pytest_plugin import build_named
from vmtests.support.command_line import CommandLine
from vmtests.support.reproducer import NOT_SEEN, SEEN, UNTESTED, Reproducer, known

CHECKPOINT_ASSERTS = (7, 0)
MADE_UP = "reads and disks fit no order"  # a cause that has to be found from the model's ends


def drains(build: Build) -> bool:
    return features_of(read_version(build)[0]).checkpoint_drains


def io(op: int, what: str, nth: int = 0) -> Complete:
    return Complete(io_id(op, what, nth))


def shown(
    build: Build,
    letters: str,
    *schedule: RealChoice,
    secondary: str = "raw",
    cluster: int = C,
) -> Finding:
    """What comes of a schedule on a build."""
    ops = tuple(LETTERS[letter] for letter in letters)
    scenario = RealScenario(letters, ops, contract=False, secondary=secondary, cluster=cluster)
    errnos = tuple(step.fault for step in failures(schedule))
    cause = Cause(CauseKind.DATA_FITS_NO_ORDER)
    case = Finding(
        Verdict.ISOLATION, cause, MADE_UP, False, 1, (letters,), scenario, schedule, (),
        errnos=tuple(int(errno) for errno in errnos),
    )  # fmt: skip
    again = replay_schedule(case, build)
    assert again.followed, again.lines
    case = replace(case, events=again.events, build={"version": list(again.version)})
    if again.violation is None:
        return case
    wrong = again.violation
    return replace(case, verdict=wrong.kind, cause=wrong.cause, text=wrong.text)


# A checkpoint throws away the cluster that a guest's write has allocated: all versions do that.
CORRUPTS: tuple[RealChoice, ...] = (
    Start(0),
    Start(1),
    io(0, "secondary read 0+128"),
    io(0, "active write 0+128"),
)


@pytest.mark.parametrize("one", known_findings(), ids=lambda one: one.id)
def test_what_was_found_is_seen_without_qmpshim(
    one: ExplorerWriteUp, qemu_build: Build, reproducer: Reproducer
) -> None:
    """On each build a script sees what `qmpshim replay` sees there."""
    script = script_of_schedule(known(one.id), breakpoints=not drains(qemu_build))
    assert "qmpshim" not in script.split("import", 1)[1].replace(repr(known(one.id).build), "")
    status, output = reproducer(script)
    try:
        again = replay_schedule(known(one.id), qemu_build)
    except BuildError:
        assert status == UNTESTED, output
        return
    if again.shows(known(one.id)):
        assert status == SEEN, output
    elif again.violation is None:  # else another finding's sign may look the same
        assert status in (NOT_SEEN, UNTESTED), output


def test_a_crash_with_nothing_but_blkdebug(qemu_build: Build, reproducer: Reproducer) -> None:
    """It is seen, or the script says why it cannot be, and does not lock up."""
    script = script_of_schedule(known("checkpoint-then-overlapping-write-aborts"))
    assert "driver=blkdebug" in script
    status, output = reproducer(script)
    if read_version(qemu_build)[0] >= (7, 0):
        assert status == SEEN and "block_copy_task_create" in output
        assert "QEMU ended with status -6" in output
    elif drains(qemu_build):
        assert status == UNTESTED
        assert output.endswith("a command waits for the request that the breakpoint holds\n")


def test_what_a_breakpoint_cannot_hold_is_held_by_nbd(
    qemu_build: Build, reproducer: Reproducer
) -> None:
    """A checkpoint that waits for it keeps the monitor: nothing could end the breakpoint."""
    finding = shown(qemu_build, "PC", *CORRUPTS)
    assert (blkdebug_steps(finding) is None) == drains(qemu_build)
    status, output = reproducer(export_script(finding))
    assert status == SEEN, output


def cut(op: int, what: str, how: int = Cut.FOR_GOOD) -> Fail:
    return Fail(io_id(op, what), how)


CASES: dict[str, tuple[str, str, tuple[RealChoice, ...], str]] = {
    # by name: letters, format of the secondary disk, schedule, what the script says
    "cut": (
        "W", "raw", (Start(0), cut(0, "secondary read 0+128")),
        "(primary_write): errno 5",
    ),
    "cut-the-hidden-disk": (
        "W", "qcow2",
        (Start(0), io(0, "secondary read 0+128"), cut(0, "hidden write 0+128")),
        "(primary_write): errno 5",
    ),
    "reconnect": (
        "PC", "raw",
        (
            Start(0), cut(0, "secondary read 0+128", Cut.RECONNECT), Start(1),
            io(0, "secondary read 0+128", 1), io(0, "active write 0+128"),
        ),
        "complete secondary read 0+128 #2",
    ),
    "vanish": (
        "WK", "raw", (Start(0), Start(1), Fail(io_id(0, "secondary read 0+128", 0), 5)),
        "(primary_write): gone",
    ),
    "qcow2": ("PC", "qcow2", CORRUPTS, "the secondary disk itself holds: [0, 256): operation 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_all_that_a_schedule_may_have(name: str, qemu_build: Build, reproducer: Reproducer) -> None:
    letters, secondary, schedule, sign = CASES[name]
    finding = shown(qemu_build, letters, *schedule, secondary=secondary)
    assert finding.text != MADE_UP
    status, output = reproducer(export_script(finding, breakpoints=False))
    assert status == SEEN and sign in output and "never sent" not in output, output


def test_a_large_write_is_sent_while_qemu_drains(qemu_build: Build, reproducer: Reproducer) -> None:
    """QEMU reads no socket while a job's start waits for a write, and a socket takes 200 KiB."""
    whole = known("failed-write-beside-zeroes-is-backed-up")
    large = operation("primary_write", 1024, 1024)
    scenario = replace(whole.scenario, size=2048, ops=(*whole.scenario.ops, large))
    fails = next(iter(failures(whole.schedule)))
    case = replace(whole, scenario=scenario, schedule=(Start(0), Start(1), Start(2), fails))
    finding = replace(case, events=replay_schedule(case, qemu_build).events)
    status, output = reproducer(export_script(finding))
    assert status == SEEN and "operation 5 (primary_write): ok" in output, output


def test_the_images_as_a_crash_leaves_them(qemu_build: Build, reproducer: Reproducer) -> None:
    """qcow2 empties an image in steps; in the middle its refcounts are wrong (and it is dirty)."""
    whole = known("failed-checkpoint-forgets-copies")
    finding = replace(
        whole,
        schedule=whole.schedule[:10],
        verdict=Verdict.CORRUPTION,
        cause=Cause(CauseKind.BROKEN_BY_CRASH, "active", "our reader"),
    )
    status, output = reproducer(export_script(finding))
    assert status == SEEN and "qemu-img check active as it is now" in output, output


COPIED: tuple[RealChoice, ...] = (
    Start(0),
    io(0, "secondary read 0+128"),
    io(0, "hidden write 0+128"),
    Start(1),
    io(0, "secondary write 0+128"),
    io(1, "hidden read 0+128"),
    io(1, "secondary read 128+128"),
)


def test_the_models_ends_separate_right_from_wrong(
    qemu_build: Build, reproducer: Reproducer
) -> None:
    script = export_script(shown(qemu_build, "WR", *COPIED))
    status, output = reproducer(script)
    assert status == NOT_SEEN and "never sent" not in output, output
    for right, wrong in (("'read 1': [1, 1]", "[2, 1]"), ("'secondary': [2, 1]", "[1, 1]")):
        assert right in script
        spoilt = script.replace(right, right.split(":")[0] + ": " + wrong)
        assert reproducer(spoilt)[0] == SEEN
    assert reproducer(script.replace("[['ok'], ['ok']]", "[['ok'], ['errno 5']]"))[0] == SEEN


def test_an_image_of_the_largest_clusters_has_room_for_them(
    qemu_build: Build, reproducer: Reproducer
) -> None:
    """An NBD export does not grow: where qcow2 can allocate no more, the copy fails."""
    steps = ("secondary read 0+256", "hidden write 0+4096", "secondary write 0+128")
    completions = [io(0, what) for what in steps]
    finding = shown(qemu_build, "W", Start(0), *completions, cluster=4096)
    script = export_script(finding, breakpoints=False)
    status, output = reproducer(script)
    assert status == NOT_SEEN and "(primary_write): ok" in output, output
    small = script.replace("8 * cluster", "0 * cluster").replace("TIMERS = 5", "TIMERS = 1")
    status, output = reproducer(small)
    assert "(primary_write): errno" in output, output


def test_a_request_that_never_ends(qemu_build: Build, reproducer: Reproducer) -> None:
    """A script that does not let go what it holds sees a hang, and is not stuck itself."""
    whole = shown(qemu_build, "WR", *COPIED)
    finding = replace(whole, schedule=COPIED[:1], events=whole.events[:2], verdict=Verdict.HANG)
    script = export_script(finding, breakpoints=False)
    assert reproducer(script)[0] == NOT_SEEN
    script = script.replace("\nlet_all_go()\n", "\n").replace("PATIENCE = 10", "PATIENCE = 2")
    status, output = reproducer(script)
    assert status == SEEN and "no answer" in output
    status, output = reproducer(script.replace("'unanswered': [0]", "'unanswered': [1]"))
    assert status == UNTESTED and output.endswith("something else was seen: QEMU hangs\n"), output


def test_a_build_that_takes_another_way(qemu_build: Build, reproducer: Reproducer) -> None:
    """Nothing to let go: every order is taken, before it says that all is well."""
    finding = shown(qemu_build, "WR", *COPIED)
    script = export_script(finding).replace("TIMERS = 5", "TIMERS = 1")
    script = script.replace("'hidden read 0+128'", "'hidden read 7+128'")
    status, output = reproducer(script)
    assert status == NOT_SEEN and "QEMU never sent: hidden read 7+128" in output, output
    (orders,) = re.findall(r"not seen in (\d+) orders, which are all\n", output)
    assert 3 <= int(orders) <= 40, output
    status, output = reproducer(script.replace("EVERY_ORDER = 150", "EVERY_ORDER = 0"))
    assert status == UNTESTED and output.endswith("not seen in 0 orders, and there are more\n")


@pytest.mark.parametrize("name", ["debian:trixie", "debian:sid"])
def test_a_mended_build_is_good(name: str, tmp_path: Path, reproducer: Reproducer) -> None:
    """It lets a read wait, so that the schedule cannot be followed: no order shows the defect."""
    try:
        build = build_named(name)
    except NoSuchBuild as error:
        pytest.skip(str(error))
    write_programs(build, tmp_path)
    script = script_of_schedule(known("snapshot-read-returns-new-data"))
    status, output = reproducer(script, str(tmp_path / "qemu-system-x86_64"))
    assert status == NOT_SEEN and output.endswith("which are all\nnot seen\n"), output


def test_nothing_that_has_to_fail_comes(qemu_build: Build, reproducer: Reproducer) -> None:
    script = script_of_schedule(known("failed-secondary-not-in-status"))
    script = script.replace("TIMERS = 5", "TIMERS = 1")
    script = script.replace("'secondary read 0+128'", "'secondary read 7+128'")
    status, output = reproducer(script)
    assert status == UNTESTED, output
    assert re.search(r"in none of \d+ orders there is what has to fail\n$", output), output


@pytest.mark.parametrize("words", [["--help"], ["/no/such/qemu"], ["sh", "/no/such/qemu-img"]])
def test_a_script_without_its_qemu(words: list[str], reproducer: Reproducer) -> None:
    """One line, and nothing left behind."""
    status, output = reproducer(script_of_schedule(known("failover-reports-io-error")), *words)
    assert status == UNTESTED
    assert (
        output.startswith(f"no program {words[-1]} that can be run; usage: ")
        and output.count("\n") == 1
    )


START = {  # what stands where QEMU should be, and what the script says of it
    "false": ("exec /bin/false", "exited with status 1"),
    "true": ("exec /bin/true", "exited with status 0"),
    "127": ("exit 127", "exited with status 127"),
    "segv": ("kill -SEGV $$", "was killed by SIGSEGV"),
    "abort": (
        'echo "x.c:1: block_copy_task_create: Assertion \\`0\' failed." >&2; kill -ABRT $$',
        "was killed by SIGABRT: x.c:1: block_copy_task_create: Assertion `0' failed.",
    ),
}
CRASH, DIVISION = "checkpoint-then-overlapping-write-aborts", "snapshot-discard-aborts"


@pytest.mark.parametrize("name", START)
@pytest.mark.parametrize("case", [CRASH, DIVISION, "failover-reports-io-error"])
def test_a_qemu_that_cannot_start(
    name: str, case: str, reproducer: Reproducer, tmp_path: Path
) -> None:
    """Whatever the finding is, also the signal and the words of its own crash: too early."""
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{START[name][0]}\n")
    qemu.chmod(0o755)
    status, output = reproducer(script_of_schedule(known(case)), str(qemu), "qemu-img")
    how = "QEMU ended, not as it is looked for: before anything was done it "
    assert (status, output) == (UNTESTED, f"{how}{START[name][1]}\n")


@pytest.mark.parametrize("odd", ["a,b", "-a b:c%d'e"])
def test_a_temporary_directory_with_an_odd_name(
    odd: str, qemu_build: Build, reproducer: Reproducer
) -> None:
    """The way of the breakpoints and the other one: it makes no difference."""
    script = script_of_schedule(known(CRASH))
    if not read_version(qemu_build)[0] >= CHECKPOINT_ASSERTS:
        pytest.skip("it would need a finding that every version has")
    place = reproducer.temporary / odd
    place.mkdir()
    for one in (script, script_of_schedule(known(CRASH), breakpoints=False)):
        status, output = reproducer.end(reproducer.start(one, temporary=place), place)
        assert status == SEEN, output
    place.rmdir()


@pytest.mark.parametrize("breakpoints", [True, False])
def test_a_full_disk(breakpoints: bool, reproducer: Reproducer) -> None:
    """One line, and nothing left behind: whether qemu-img has no room, or the script itself."""
    mount = 'mount -t tmpfs -o size=64k none "$TMPDIR" || exit 99; "$@"'
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    before = ["unshare", "--mount", *root, "sh", "-c", mount, "sh"]
    script = script_of_schedule(known(CRASH), breakpoints=breakpoints)
    status, output = reproducer.end(reproducer.start(script, before=before))
    if status in (1, 99) and ("unshare" in output or "mount" in output):
        pytest.skip(f"this user cannot mount a small disk: {output.strip()}")
    assert status == UNTESTED and output.count("\n") == 1, output
    assert output.startswith("no space left in ") or "No space left on device" in output


OTHER_WORDS = """#!{python}
import ctypes, os, subprocess, sys
ends_with_us = lambda: ctypes.CDLL(None).prctl(1, 9)
command = ["qemu-system-x86_64", *sys.argv[1:]]
done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=ends_with_us)
sys.stderr.write(done.stderr.replace("block_copy_task_create", "another_function"))
sys.stderr.flush()
os.kill(os.getpid(), -done.returncode) if done.returncode < 0 else sys.exit(done.returncode)
"""


def test_another_assertion_at_the_same_step(
    qemu_build: Build, reproducer: Reproducer, tmp_path: Path
) -> None:
    if not read_version(qemu_build)[0] >= CHECKPOINT_ASSERTS:
        pytest.skip("this version does not abort")
    qemu = tmp_path / "qemu"
    qemu.write_text(OTHER_WORDS.format(python=sys.executable))
    qemu.chmod(0o755)
    status, output = reproducer(script_of_schedule(known(CRASH)), str(qemu), "qemu-img")
    assert status == UNTESTED, output
    assert re.search(
        r"\nQEMU ended, not as it is looked for: after step 4 of 4 it was killed by SIGABRT: .*"
        r"another_function: Assertion .*\n$",
        output,
    )


@pytest.mark.parametrize(
    ("after", "number", "seen"),
    [(1, "SIGABRT", False), (3, "SIGABRT", False), (4, "SIGSEGV", False), (4, "SIGABRT", True)],
)
def test_its_own_end_at_another_step(
    after: int, number: str, seen: bool, qemu_build: Build, reproducer: Reproducer
) -> None:
    """The finding's words, sent from outside: they count with its signal when all was done."""
    finding = known(CRASH)
    script = export_script(finding)
    step = "    time.sleep(0.3)\n"
    dies = (
        f"    if taken == {after}:\n"
        "        with open(at('stderr'), 'w') as file:\n"
        f"            file.write({finding.cause.detail!r})\n"
        f"        qemu.send_signal(signal.{number})\n"
        "        qemu.wait()\n"
    )
    assert script.count(step) == 1
    # Each step is begun, and nothing of it comes to QEMU.
    script = script.replace("        breakpoint_(", "        (lambda _: None)(")
    script = script.replace("        begin(step[1])\n", "        pass\n")
    script = script.replace(step, dies)
    status, output = reproducer(script)
    assert status == (SEEN if seen else UNTESTED), output
    assert seen or f"not as it is looked for: after step {after} of 4" in output, output


@pytest.mark.parametrize(
    "case", [CRASH, "checkpoint-corrupts-overlay", "failover-reports-io-error"]
)
def test_a_qemu_that_leaves_in_the_middle(case: str, reproducer: Reproducer) -> None:
    """It ends well, with status 0, when it should not end at all: nothing was seen then."""
    script = script_of_schedule(known(case))
    script = script.replace("\nset_up()\n", "\nset_up()\nqemu.terminate()\nqemu.wait()\n")
    status, output = reproducer(script)
    assert status == UNTESTED, output
    last = output.splitlines()[-1]
    assert "as it is looked for: after step 0 of" in last and " exited with status 0: " in last


def test_a_breakpoint_that_is_never_reached(qemu_build: Build, reproducer: Reproducer) -> None:
    """Not seen, but nothing was held either: no answer."""
    script = script_of_schedule(known(CRASH)).replace("'read_aio'", "'l1_grow_alloc_table'")
    status, output = reproducer(script)
    assert status == UNTESTED, output
    assert output.endswith("not seen, but this build takes another way\n")


def test_a_script_that_is_ended(reproducer: Reproducer) -> None:
    script = script_of_schedule(known("failover-reports-io-error"), breakpoints=False)
    step = "        take(step)\n"
    assert step in script
    process = reproducer.start(script.replace(step, f"{step}        time.sleep(60)\n"))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("start"):
        pass
    process.terminate()
    status, output = reproducer.end(process)
    steps = [line for line in output.splitlines() if line[0] != " "]  # else what QEMU asks for
    assert (status, steps) == (UNTESTED, ["ended by a signal"])
    status, output = reproducer(script.replace("LIMIT = 180", "LIMIT = 0.2"))
    assert status == UNTESTED and output.endswith("gave up after 0 s\n")


def test_what_an_end_brings_about_is_not_printed(reproducer: Reproducer) -> None:
    """Another thread meets files that are gone, say, while the script gives up."""
    script = script_of_schedule(known("failover-reports-io-error"), breakpoints=False)
    late = "\nset_up()\nwhile not enders:\n    time.sleep(0.001)\nraise ValueError\n"
    status, output = reproducer(
        script.replace("\nset_up()\n", late).replace("LIMIT = 180", "LIMIT = 3")
    )
    assert status == UNTESTED and output.endswith("gave up after 3 s\n")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "harm",
    [
        "qemu.kill(); shutil.rmtree(directory)",  # as another thread that ends does
        "os.close(2)",
        "os.close(2); end(UNTESTED, 'nobody reads this')",
    ],
)
def test_what_fails_while_a_script_ends_is_not_seen(harm: str, reproducer: Reproducer) -> None:
    """Python itself ends with 1 where its hook for errors fails, which would be SEEN."""
    script = script_of_schedule(known("failover-reports-io-error"), breakpoints=False)
    script = script.replace("\nset_up()\n", f"\nset_up()\n{harm}\nraise ValueError\n")
    assert "raise ValueError" in script
    status, output = reproducer(script)
    assert status == UNTESTED, output


def test_what_showed_nothing_wrong_is_no_reproducer() -> None:
    case = json.loads((DIRECTORY / "failed-flush-leaves-l1-entry.json").read_text())["case"]
    with pytest.raises(InputError, match="nothing wrong"):
        export_script(finding_from_json({**case, "verdict": None}))


@pytest.mark.parametrize(
    ("steps", "defined"),
    [
        ("start_qemu()", set()),
        ("start_qemu()\nbase('d', 1)", {"base"}),
        ("two = start_secondary('pc')", {"start_secondary"}),
        ("gone = 1  # base(gone)", set()),
        ("def base(): pass\nbase()", set()),
    ],
)
def test_a_script_has_the_functions_that_its_steps_call(steps: str, defined: set[str]) -> None:
    script = steps_script("A title", f"# A QEMU\n{steps}\n")
    heads = {"base": "def base(name, owner):", "start_secondary": "def start_secondary(machine,"}
    assert {name for name, head in heads.items() if head in script} == defined


def test_steps_that_are_no_program_are_refused() -> None:
    with pytest.raises(InputError, match="line 2 of the steps"):
        steps_script("A title", "# A QEMU\nbase(\n")


def test_breakpoints_are_used_only_where_they_suffice() -> None:
    assert blkdebug_steps(known("failover-reports-io-error")) is None  # a flush is held
    assert blkdebug_steps(known("snapshot-read-returns-new-data")) is None  # no replication
    finding = known("checkpoint-then-overlapping-write-aborts")
    assert blkdebug_steps(finding) is not None
    scenario = replace(finding.scenario, secondary="qcow2")
    assert blkdebug_steps(replace(finding, scenario=scenario)) is None


def test_breakpoints_can_be_declined(qmpshim: CommandLine) -> None:
    bundle = DIRECTORY / "checkpoint-corrupts-overlay.json"
    for words, way in ((["export"], "driver=blkdebug"), (["export", "--nbd"], "the NBD server")):
        done = qmpshim.run(*words, bundle)
        assert done.returncode == 0 and way in done.stdout, done


def test_requests_are_known_by_what_and_how_often() -> None:
    """A script does not know whose a request is: the second operation's first is the second."""
    lines = ("start 0: primary flush", "    secondary flush (of 0)", "start 1: guest flush",
             "    secondary flush (of 1)", "complete secondary flush (of 1)")  # fmt: skip
    ops = (LETTERS["H"], LETTERS["F"])
    schedule = (Start(0), Start(1), io(1, "secondary flush"))
    finding = Finding(
        Verdict.CONTENT,
        Cause(CauseKind.ENDED),
        "",
        True,
        1,
        (),
        RealScenario("HF", ops),
        schedule,
        events_from_lines(lines, ops),
    )
    assert "['complete', 'secondary flush', 1]" in export_script(finding)


@pytest.mark.parametrize(
    ("verdict", "cause", "sign"),
    [
        ("crash", "x: Assertion",
         {"kind": "crash", "phases": ["steps", "end"], "steps": 1, "status": -6,
          "cause": r"x:\ Assertion"}),
        ("crash", "taken apart: QEMU was killed by SIGSEGV",
         {"kind": "crash", "phases": ["steps", "end"], "steps": 1, "status": -6,
          "cause": r"QEMU\ was\ killed\ by\ SIGSEGV"}),
        ("crash", "before the scenario begins: x",
         {"kind": "crash", "phases": ["setup"], "steps": 1, "status": -6,
          "cause": "x"}),
        ("protocol", "before the scenario begins: x", {"kind": "unknown"}),
        ("error-contract", "before the scenario begins: checkpoint: no",
         {"kind": "setup", "operation": "checkpoint", "answer": "no"}),
        ("protocol", "before the scenario begins: primary write [N, N) of the setup failed with "
         "errno N", {"kind": "setup", "operation": "primary_write", "answer": "errno N"}),
        ("hang", "before the scenario begins: guest flush of the setup was not answered",
         {"kind": "setup", "operation": "guest_flush", "answer": "no answer"}),
        ("hang", "primary_write hangs", {"kind": "hang", "unanswered": []}),
        ("corruption", "chain broken, says a fresh QEMU, after a crash", {"kind": "unknown"}),
        ("order", "new data before old is saved",
         {"kind": "requests", "requests": [["secondary write 0+128", 0]]}),
        ("isolation", "view: new data after an I/O error", {"kind": "new data", "owners": [2]}),
        ("error-contract", "primary_write answers errno N, after a failed hidden write",
         {"kind": "answers", "answers": {0: "errno 5"}}),
        ("error-contract", "final status oh", {"kind": "status", "status": "oh"}),
        ("error-contract", "the view cannot be read, after the hidden disk went away",
         {"kind": "unreadable"}),
        ("lost-write", "commit not flushed", {"kind": "unknown"}),
        ("lost-write", "the next guest write is not on the secondary disk", {"kind": "probe"}),
        ("error-contract", "case 2. forwarding a write failed: not in the status",
         {"kind": "status", "status": None}),
        ("content", "hidden: new data instead of the old data, after a failed hidden write",
         {"kind": "unknown"}),
    ],
)  # fmt: skip
def test_what_a_script_looks_for(verdict: str, cause: str, sign: dict[str, object]) -> None:
    lines = ("start 0: primary write [0, 128)", "    0 ends: errno 5",
             "    secondary write 0+128 (of 0)")  # fmt: skip
    scenario = RealScenario("W", (LETTERS["W"],))
    schedule: tuple[RealChoice, ...] = (Start(0),)
    if "after a failed" in cause:
        schedule += (Fail(io_id(0, "hidden write 0+128", 0), 5),)
    ending = Exit(-signal.SIGABRT) if verdict == "crash" else None
    finding = Finding(
        Verdict(verdict),
        cause_from_text(cause),
        "",
        True,
        1,
        (),
        scenario,
        schedule,
        events_from_lines(lines, scenario.ops),
        ending=ending,
    )
    assert symptom_of(finding) == sign


# -- the state that the setup leaves ---------------------------------------------------------------

SETUPS = {  # with what this setup leaves, as recorded on another build
    "qcow2 secondary": (
        {
            "form": "backup",
            "secondary": "qcow2",
            "setup": [{"do": "primary_zero_no_hole", "at": [0, 128]}, {"do": "stop"}],
            "ops": [{"do": "status"}],
        },
        {"secondary": "ZD", "hidden": "D-"},
    ),
    "blkdebug": (
        {"setup": [{"do": "guest_write", "at": [128, 8]}], "ops": [{"do": "status"}]},
        {"hidden": "--", "active": "-D"},
    ),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_not_seen_from_another_state_is_no_answer(
    setup: str, qemu_build: Build, reproducer: Reproducer
) -> None:
    """Compared only with what was recorded, and by a process of its own, which has to flush."""
    scenario, allocation = SETUPS[setup]
    finding = Finding(
        Verdict.CRASH, ended("made up"), "made up", True, 1, (), scenario_from_json(scenario),
        (Start(0),), events_from_lines(
            ("start 0: status", "    0 ends: ok"), scenario_from_json(scenario).ops
        ),
    )  # fmt: skip
    assert allocation_after_setup(finding, qemu_build) == allocation
    name = min(allocation)
    other = {name: allocation[name].swapcase().translate(str.maketrans("-d", "D-"))}
    for recorded, status, last in (
        ({}, NOT_SEEN, "not seen"),
        (allocation, NOT_SEEN, "not seen"),
        (
            other,
            UNTESTED,
            f"not seen, but the setup leaves another state on this build: the {name} disk's "
            f"clusters are {allocation[name]}, recorded were {other[name]} (D data, Z zeroes with "
            "a place in the file, z zeroes without, - nothing)",
        ),
    ):
        done, output = reproducer(export_script(replace(finding, allocation=recorded)))
        assert (done, output.splitlines()[-1]) == (status, last), output
