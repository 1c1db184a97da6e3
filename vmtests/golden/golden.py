"""The golden corpus: what the commands answer today, kept, so that a refactoring can be held to it.

``golden.py record`` writes the corpus, ``golden.py compare`` runs everything again and prints each
value that is another one; ``--part`` and ``--build`` choose. Only values that do not depend on
time, place or a build's exact version are kept: exit statuses, verdicts, counts, names.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.machine.builds.build import resolve

CORPUS = Path(__file__).with_name("corpus")
BUILDS = ("system", "debian:bullseye", "debian:trixie", "debian:sid")
LIMIT = 1800  # seconds for one command
#: What is run; ``--qmpshim`` names that of another checkout, to be held against this corpus.
QMPSHIM = [str(Path(sys.executable).with_name("qmpshim"))]

#: One part of the corpus for one build: names and values.
Values = dict[str, Any]


class Run:
    """One command of ours, in an empty directory of its own.

    :ivar status: its exit status
    :ivar document: what it wrote with ``--json``; None where it wrote none
    """

    def __init__(self, *words: str, document: bool = True) -> None:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place, "document.json")
            command = [*QMPSHIM, *words, *(["--json", str(file)] if document else [])]
            done = subprocess.run(
                command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT
            )
            self.status = done.returncode
            self.output = done.stdout.decode(errors="replace")
            self.document: Any = json.loads(file.read_text()) if file.exists() else None


def in_turn(items: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
    """*do* for each item, two at a time, in the items' order."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(do, items))


def _findings(found: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return sorted(
        [str(f["known"]), f["verdict"], f["count"], sorted(f["scenarios"])] for f in found
    )


def explore(build: str) -> Values:
    """All pairs on a real QEMU: schedules, steps and findings of each scenario."""
    run = Run("explore", "--scenario", "pairs", "--build", build)
    scenarios = {
        s["name"]: [s["schedules"], s["steps"], s["exhaustive"], s["distinct"]]
        for s in run.document["scenarios"]
    }
    return {
        "status": run.status,
        "scenarios": scenarios,
        "findings": _findings(run.document["findings"]),
        "unconfirmed": len(run.document["unconfirmed"]),
    }


def model(build: str) -> Values:
    """The model's explorer; it is the same for all builds."""
    if build != "system":
        return {}
    run = Run("explore", "--model")
    return {
        "status": run.status,
        "runs": [
            [
                r["discipline"],
                r["scenario"]["name"],
                r["exhaustive"],
                r["statistics"]["schedules"],
                r["statistics"]["steps"],
                r["statistics"]["states"],
            ]
            for r in run.document["runs"]
        ],
    }


def _write_ups() -> Iterator[Path]:
    """The write-ups that a command can replay; those of pairs take too long here."""
    for file in sorted(DIRECTORY.rglob("*.json")):
        if "pair" not in file.relative_to(DIRECTORY).parts:
            yield file


def replay(build: str) -> Values:
    """Every write-up replayed: the exit status."""
    files = list(_write_ups())
    runs = in_turn(files, lambda f: Run("replay", str(f), "--build", build, document=False))
    return {file.stem: run.status for file, run in zip(files, runs, strict=True)}


def export(build: str) -> Values:
    """Every write-up exported, and the script run: both exit statuses."""

    def both(file: Path) -> list[int]:
        made = Run("export", str(file), document=False)
        if made.status:
            return [made.status]
        with tempfile.TemporaryDirectory() as place:
            Path(place, "reproducer.py").write_text(made.output)
            wrapper = Path(place, "qemu")
            wrapper.write_text("#!/bin/sh\n" + _wrapped(build) + ' "$@"\n')
            wrapper.chmod(0o755)
            done = subprocess.run(
                [sys.executable, "reproducer.py", wrapper],
                cwd=place,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT,
            )
            return [0, done.returncode]

    files = list(_write_ups())
    return {f.stem: ended for f, ended in zip(files, in_turn(files, both), strict=True)}


def _wrapped(build: str) -> str:
    """The shell command that starts a build's QEMU."""
    found = resolve(build)
    env = [f"{name}={value}" for name, value in found.env.items()]
    return shlex.join(["exec", "env", *env, *found.command()])


def verify(build: str) -> Values:
    """Seeded workloads: what was done and compared, plain and strict."""
    values: Values = {}
    disks = ("--size", "64M", "--cluster", "64k")
    for name, words in {
        "seed 1": ("--seed", "1", "--secondary", "raw"),
        "seed 2, qcow2": ("--seed", "2", "--secondary", "qcow2", "--ops", "1000"),
        "strict": ("--strict", "--ops", "4000", "--secondary", "raw"),
    }.items():
        run = Run("verify", "--build", build, *disks, *words)
        values[name] = [run.status, *_workloads(run.document)]
    return values


def _workloads(document: Any) -> list[Any]:
    return [
        [
            r["workflow"],
            r["operations"],
            r["clusters_compared"],
            (r["divergence"] or {}).get("verdict"),
        ]
        for r in document["runs"]
    ]


def check(build: str) -> Values:
    """The quick suite: each case's status and the names of its findings."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "out")
        run = Run("check", "--build", build, "--out", str(out), document=False)
        results = json.loads((out / "results.json").read_text())
    return {
        "status": run.status,
        "cases": {
            row["case"]: [row["status"], sorted(str(f["known"]) for f in row["findings"])]
            for row in results["results"]
        },
    }


PARTS: dict[str, Callable[[str], Values]] = {
    part.__name__: part for part in (model, verify, explore, replay, export, check)
}


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each place at which two values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}/{index}")
    elif old != new:
        yield f"{where}: {old!r} in the corpus, {new!r} now"


def corpus_file(part: str, build: str) -> Path:
    """Where a part of the corpus is kept."""
    return CORPUS / f"{part}-{build.replace(':', '-')}.json"


def main() -> int:
    """Record or compare; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=["record", "compare"])
    parser.add_argument("--part", action="append", choices=list(PARTS))
    parser.add_argument("--build", action="append")
    parser.add_argument("--qmpshim", help="the program to run, of another checkout")
    options = parser.parse_args()
    QMPSHIM[:] = [options.qmpshim] if options.qmpshim else QMPSHIM
    wrong = 0
    for part in options.part or PARTS:
        for build in options.build or BUILDS:
            file = corpus_file(part, build)
            if options.do == "compare" and not file.exists():
                continue
            values = json.loads(json.dumps(PARTS[part](build)))
            if options.do == "record":
                if values:
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
                    print(f"recorded {file.name}")
                continue
            found = list(differences(json.loads(file.read_text()), values))
            wrong += len(found)
            print(f"{part} on {build}: {f'{len(found)} differences' if found else 'unchanged'}")
            for line in found:
                print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
