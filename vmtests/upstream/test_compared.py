"""What `make upstream` compares: each way to differ is reported, and nothing else is."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import upstream
import upstream_suites
from upstream_source import Tree, source_version
from upstream_suites import FAIL, NOT_RUN, PASS, SPEAKS_QMP, Outcome, find_iotests, lacks

from qmpshim.errors import InputError
from vmtests.support.processes import lives
from vmtests.support.waiting import wait_until


def _outcome(**status: str) -> Outcome:
    return Outcome(status)


@pytest.mark.parametrize(("direct", "shim"), list(itertools.permutations((PASS, FAIL, NOT_RUN), 2)))
def test_another_end_differs(direct: str, shim: str) -> None:
    assert lacks(_outcome(a=direct, b=PASS), _outcome(a=shim, b=PASS)) == [
        f"a: {direct} directly, {shim} through the shim"
    ]


def test_missing_and_additional_parts() -> None:
    one, both = _outcome(a=PASS), _outcome(a=PASS, b=PASS)
    assert lacks(both, both) == []
    assert lacks(both, one) == ["b: pass directly, missing through the shim"]
    assert lacks(one, both) == []  # a query of ours, that passes
    assert lacks(one, _outcome(a=PASS, b=FAIL))
    assert lacks(one, _outcome(a=PASS, b=NOT_RUN))


def test_tap() -> None:
    output = (
        "TAP version 13\n# running\n1..4\nok 1 /x/a\nnot ok 2 /x/b\nok 3 /x/c # SKIP no kvm\n"
        "ok qcow2 040\nnot ok qcow2 041\nok qcow2 042 # SKIP\n#    [case not run] 055: no tcg\n"
    )
    assert upstream_suites.parts_of(output) == {
        "/x/a": PASS, "/x/b": FAIL, "/x/c": NOT_RUN, "qcow2 040": PASS, "qcow2 041": FAIL,
        "qcow2 042": NOT_RUN, "[case not run] 055: no tcg": NOT_RUN,
    }  # fmt: skip
    assert _outcome().summary == FAIL  # one that says nothing has not passed
    assert _outcome(a=PASS, b=NOT_RUN).summary == PASS
    assert _outcome(a=NOT_RUN).summary == NOT_RUN


def _compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **ends: list[str]) -> str:
    """The verdict about a test that ends so, one run after the other."""

    def run(tree: Any, programs: Any, name: str, qemu: Path, place: Path) -> Outcome:
        return _outcome(test=ends[str(qemu)].pop(0))

    monkeypatch.setattr(upstream, "run_iotest", run)
    programs: Any = SimpleNamespace(direct=Path("direct"), shim=Path("shim"))
    return upstream.compare(Tree("1", tmp_path), programs, tmp_path, "040").verdict


def test_what_fails_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once through the shim is enough, unless the same happens directly."""
    always = _compared(monkeypatch, tmp_path, direct=[PASS] * 4, shim=[FAIL])
    assert always == upstream.DIFFERS
    by_itself = _compared(monkeypatch, tmp_path, direct=[PASS, PASS, FAIL], shim=[FAIL])
    assert by_itself == FAIL
    assert _compared(monkeypatch, tmp_path, direct=[FAIL] * 4, shim=[PASS]) == upstream.DIFFERS
    assert _compared(monkeypatch, tmp_path, direct=[FAIL], shim=[FAIL]) == FAIL


def test_what_a_test_leaves_is_ended(tmp_path: Path) -> None:
    """In whatever session; and of a runner that was killed by the next one."""
    pids = []
    for number, runner in enumerate((os.getpid(), 0)):
        pid = tmp_path / f"pid{number}"
        script = f"setsid sleep 600 & echo $! > {pid}; echo ok it"
        words = ["sh", "-c", script if runner else f"{script}; kill -9 $PPID"]
        if runner:
            assert upstream_suites.run_program(words, {}, tmp_path).status == {"it": PASS}
        else:
            call = f"u.run_program({words!r}, {{}}, u.Path({str(tmp_path)!r}))"
            code = f"import upstream_suites as u; {call}"
            where = {**os.environ, "PYTHONPATH": str(Path(upstream_suites.__file__).parent)}
            done = subprocess.run([sys.executable, "-c", code], env=where, check=False)
            assert done.returncode == -signal.SIGKILL
            assert lives(int(pid.read_text()))
            upstream_suites.end_leftovers()
        pids.append(int(pid.read_text()))
    wait_until(lambda: not any(map(lives, pids)))


def test_a_run_is_gone_on_with(tmp_path: Path) -> None:
    """What differed is done again, and what is of another version."""
    record = upstream.Record(tmp_path / "file")
    assert record.done("1") == []
    one = _outcome(a=PASS)
    for version, verdict in (("1", PASS), ("2", FAIL), ("1", upstream.DIFFERS)):
        record.add(version, upstream.Result(f"{version}-{verdict}", verdict, one, one))
    assert [(r.name, r.verdict) for r in record.done("1")] == [("1-pass", PASS)]
    assert [(r.name, r.verdict) for r in record.done("2")] == [("2-fail", FAIL)]
    nothing = upstream.Record(None)
    nothing.add("1", upstream.Result("x", PASS, one, one))
    assert nothing.done("1") == []


def test_a_torn_line_is_no_result(tmp_path: Path) -> None:
    """A run that is killed while it writes: what it wrote before counts, what comes after, too."""
    path = tmp_path / "file"
    record, one = upstream.Record(path), _outcome(a=PASS)
    record.add("1", upstream.Result("x", PASS, one, one))
    record.add("1", upstream.Result("y", PASS, one, one))
    path.write_bytes(path.read_bytes()[:-9])
    assert [r.name for r in record.done("1")] == ["x"]
    record.add("1", upstream.Result("z", PASS, one, one))
    assert [r.name for r in record.done("1")] == ["x", "z"]


def test_what_ends_the_run_ends_its_tests(tmp_path: Path) -> None:
    """SIGTERM in the middle of a test of ten minutes: now, and nothing is left."""
    pid = tmp_path / "pid"
    words = ["sh", "-c", f"echo $$ > {pid}; sleep 600"]
    code = f"""
import signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import upstream, upstream_suites
def run(tree, programs, name, qemu, place):
    return upstream_suites.run_program({words!r}, {{}}, place)
upstream.run_iotest = run
upstream.tree_of = lambda build, progress: upstream.Tree("1", Path({str(tmp_path)!r}))
upstream.Programs.of = lambda *_: type("P", (), dict(direct=Path("a"), shim=Path("b")))
upstream.find_iotests = lambda tree: ["040", "041"]
upstream._build = lambda name: None
sys.argv = ["upstream", "--build", "x", "-j", "1", "040", "041"]
sys.exit(upstream.main())
"""
    where = {**os.environ, "PYTHONPATH": str(Path(upstream.__file__).parent)}
    runner = subprocess.Popen([sys.executable, "-c", code], env=where)
    wait_until(lambda: pid.exists() and pid.read_text().strip() != "")
    runner.terminate()
    assert runner.wait(60.0) == 2
    assert not lives(int(pid.read_text()))


def test_which_iotests(tmp_path: Path) -> None:
    """Found by what they do; those that only use qemu-img, or are disabled, are not."""
    tree = Tree("1", tmp_path)
    (tree.iotests / "tests").mkdir(parents=True)
    for name, text in {
        "001": "$QEMU_IO -c 'read 0 64k'",
        "002": "import iotests\nvm = iotests.VM()",
        "003": "# group: rw disabled\n. ./common.qemu",
        "004": "# group: rw\n. ./common.qemu",
        "005": "$QEMU -qmp stdio",
        "tests/named": "class T(iotests.QMPTestCase):",
        "tests/helper": "class T(iotests.QMPTestCase):",
    }.items():
        (tree.iotests / name).write_text(text)
        if "helper" not in name:
            (tree.iotests / f"{name}.out").touch()
    assert find_iotests(tree) == ["002", "004", "005", "named"]
    assert not SPEAKS_QMP.search("qemu-img --qmp-none")


def test_versions() -> None:
    assert source_version("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)") == "1:7.2+dfsg-7+deb12u18"
    assert source_version("10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)") == "1:10.0.13+ds-0+deb13u1"
    with pytest.raises(InputError, match="not Debian's"):
        source_version("9.2.0")
