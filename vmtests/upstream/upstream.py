"""`make upstream`: QEMU's own tests see with the shim in between what they see without.

    python vmtests/upstream/upstream.py [--build NAME]... [-j N] [--resume FILE] [TEST]...

Exit status: 0 nothing differs, 1 something does, 2 it cannot be found out here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from upstream_programs import Programs
from upstream_source import QTESTS, Tree, tree_of
from upstream_suites import (
    FAIL,
    NOT_RUN,
    PASS,
    Outcome,
    end_leftovers,
    find_iotests,
    lacks,
    run_iotest,
    run_qtest,
    stop,
)

from qmpshim.errors import QmpshimError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds import debian, registry
from qmpshim.machine.builds.build import Build

BUILDS = ("system", "debian:trixie")
WAYS = ("direct", "shim")
DIFFERS = "differs"
#: How often a test is run again, both ways, before what differs counts: QEMU's own tests have
#: time limits, and some fail now and then without us.
_AGAIN = 3
_LOOK = 0.5  # seconds between two looks at whether a signal has come


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one test.

    :ivar verdict: :data:`DIFFERS`, or how it ended both ways
    :ivar why: where it differs, the parts that do; else what is to be known
    """

    name: str
    verdict: str
    direct: Outcome
    shim: Outcome
    why: str = ""


def compare(tree: Tree, programs: Programs, place: Path, name: str) -> Result:
    """Run a test both ways, and again where the ways differ.

    :param place: a directory with a short path

    It differs when it ended through the shim, even once, in a way it never ended directly.
    """
    run = run_qtest if name in QTESTS else run_iotest
    number = iter(range(1_000))

    def once(qemu: Path) -> Outcome:
        own = place / f"{name[:12]}-{next(number)}"
        try:
            return run(tree, programs, name, qemu, own)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    direct, shim = once(programs.direct), once(programs.shim)
    differences = lacks(direct, shim)
    if not differences:
        return Result(name, direct.summary, direct, shim, _failing(direct))
    for _ in range(_AGAIN):
        other = once(programs.direct)
        if not lacks(other, shim):
            return Result(name, shim.summary, other, shim, "ends directly now this way, now that")
    return Result(name, DIFFERS, direct, shim, "; ".join(differences))


def _failing(both: Outcome) -> str:
    """Which parts of a test fail both ways."""
    parts = [part for part, how in both.status.items() if how == FAIL]
    return f"fails both ways: {', '.join(parts)}" if parts else ""


class Record:
    """Results on disk, one a line, so that a run can be gone on with.

    :param path: None: nothing is kept
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def done(self, version: str) -> list[Result]:
        """What is known of a version; what differed is done again."""
        if self._path is None or not self._path.exists():
            return []
        entries = self._entries(self._path.read_text())
        return [
            Result(entry["name"], entry["verdict"], *self._outcomes(entry))
            for entry in entries
            if entry["version"] == version and entry["verdict"] != DIFFERS
        ]

    @staticmethod
    def _outcomes(entry: Mapping[str, Any]) -> tuple[Outcome, Outcome]:
        """Of both ways, without their parts, which are not kept."""
        direct, shim = (Outcome({}, entry[way]) for way in WAYS)
        return direct, shim

    @staticmethod
    def _entries(text: str) -> Iterator[dict[str, Any]]:
        """The entries of the file's whole lines: a run that is killed while it writes tears one."""
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)

    def add(self, version: str, result: Result) -> None:
        """Keep a result."""
        if self._path is None:
            return
        entry = {"version": version, "name": result.name, "verdict": result.verdict}
        seconds = {"direct": result.direct.seconds, "shim": result.shim.seconds}
        torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")
        with self._path.open("a") as file:
            file.write("\n" * torn + json.dumps({**entry, **seconds}) + "\n")


@contextlib.contextmanager
def _short_directory() -> Iterator[Path]:
    """Sockets lie in it, and QEMU's tests add long names."""
    place = Path(tempfile.mkdtemp(prefix="qu-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _build(name: str) -> Build:
    if name.startswith(registry.FETCHED):
        debian.fetch(name, print)
    return builds.resolve(name)


def run_all(
    build: Build, wanted: list[str], jobs: int, place: Path, record: Record
) -> list[Result]:
    """Run the tests with a QEMU of a build's version, and report each."""
    tree = tree_of(build, print)
    programs = Programs.of(build, tree, place / "bin")
    every = [*QTESTS, *find_iotests(tree)]
    names = [name for name in every if not wanted or name in wanted]
    results = [result for result in record.done(tree.version) if result.name in names]
    known = {result.name for result in results}
    names = [name for name in names if name not in known]
    print(f"QEMU {tree.version}: {len(names)} tests, {len(known)} done before", flush=True)
    with ThreadPoolExecutor(jobs) as pool, _ending_tests():
        for result in _results(pool, partial(compare, tree, programs, place), names):
            took = f"{result.direct.seconds:6.1f} s {result.shim.seconds:6.1f} s"
            print(f"  {result.name:32} {result.verdict:8} {took}  {result.why}", flush=True)
            if result.verdict == DIFFERS:
                print(_indented(result.shim.log), flush=True)
            record.add(tree.version, result)
            results.append(result)
    return results


def _results(
    pool: Executor, function: Callable[[str], Result], names: Sequence[str]
) -> Iterator[Result]:
    """As ``pool.map``. A signal that comes as a wait begins does not end it, so none is long."""
    futures = [pool.submit(function, name) for name in names]
    try:
        for future in futures:
            while not future.done():
                wait([future], _LOOK)
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


@contextlib.contextmanager
def _ending_tests() -> Iterator[None]:
    """Whatever ends the run ends the tests that are under way, too: they may take minutes."""
    try:
        yield
    except BaseException:
        stop()
        raise


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.strip().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make upstream", description=__doc__)
    parser.add_argument("--build", action="append", metavar="NAME", help=f"default: {BUILDS}")
    parser.add_argument("-j", dest="jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep results there, and do not repeat them"
    )
    parser.add_argument(
        "tests", nargs="*", metavar="TEST", help="an iotest or qtest (default: all)"
    )
    args = parser.parse_args()
    found: dict[str, list[Result]] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    end_leftovers()
    try:
        for name in args.build or BUILDS:
            with _short_directory() as place:
                found[name] = run_all(
                    _build(name), args.tests, args.jobs, place, Record(args.resume)
                )
    except QmpshimError as error:
        print(f"upstream: {error}", file=sys.stderr)
        return 2
    for name, results in found.items():
        if results and not any(result.verdict == PASS for result in results):
            print(f"upstream: with {name} no test passes, not even directly", file=sys.stderr)
            return 2
    print(f"\n{'':24}{'pass':>8}{'fail':>8}{'not run':>8}{'differ':>8}")
    print(f"{'':24}{'(both directly and through the shim)':^32}")
    for name, results in found.items():
        count = Counter(result.verdict for result in results)
        numbers = "".join(f"{count[one]:8}" for one in (PASS, FAIL, NOT_RUN, DIFFERS))
        print(f"{name:24}{numbers}")
    if args.tests and any(not results for results in found.values()):
        print(f"upstream: no test of these names: {' '.join(args.tests)}", file=sys.stderr)
        return 2
    different = [r.name for results in found.values() for r in results if r.verdict == DIFFERS]
    print(f"differ: {' '.join(different)}" if different else "nothing differs")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
