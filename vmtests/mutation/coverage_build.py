"""A QEMU that counts which lines and branches of its block layer run, for gcov.

Only the files of interest count, so that writing the counts after each QMP command takes no time
worth mentioning: a QEMU is mostly ended by SIGKILL, and then what was not written is lost.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation_build import BUILD, CONFIGURE, EMULATOR, FILES, IMAGE_TOOL, copy_source
from upstream_source import Progress, Tree, lock, source_of

from qmpshim.errors import HostError
from qmpshim.machine.builds.build import resolve

_AFTER_A_COMMAND = "static void monitor_qmp_dispatch(MonitorQMP *mon, QObject *req)\n{\n"
_DUMP = "extern void __gcov_dump(void), __gcov_reset(void);\n"
_DUMPS = "    __gcov_dump(); __gcov_reset();\n"


@dataclass(frozen=True, slots=True)
class Counted:
    """What of a file has run.

    :ivar lines: executed, of how many
    :ivar branches: taken at least once, of how many
    :ivar missed: the lines that never ran
    """

    file: str
    lines: tuple[int, int]
    branches: tuple[int, int]
    missed: tuple[int, ...]


def counting_qemu(progress: Progress) -> Tree:
    """The QEMU that counts: from the cache, else built, in some minutes.

    :raises InputError, HostError: the source cannot be had, or not be built here
    """
    tree = source_of(resolve(BUILD), progress)
    place = tree.directory.parents[1] / "coverage" / tree.directory.name
    own = Tree(tree.version, place)
    place.mkdir(parents=True, exist_ok=True)
    with lock(place):
        if (place / "made").exists():
            return own
        copy_source(tree, own, _dump_after_commands)
        progress(f"building QEMU {own.version}: minutes, once")
        targets = EMULATOR, IMAGE_TOOL
        own.make([*CONFIGURE, "--extra-ldflags=--coverage"], targets)
        _count(own.build)
        own.make(CONFIGURE, targets)  # makes these files again, and links
        (place / "made").touch()
    return own


def _dump_after_commands(source: Path) -> None:
    monitor = source / "monitor/qmp.c"
    text = monitor.read_text()
    if text.count(_AFTER_A_COMMAND) != 1:
        raise HostError(f"{monitor} is not as in QEMU 10.0: it dispatches elsewhere")
    monitor.write_text(text.replace(_AFTER_A_COMMAND, _DUMP + _AFTER_A_COMMAND + _DUMPS))


def _count(build: Path) -> None:
    """Have the files of interest compiled so that they count."""
    file = build / "build.ninja"
    outputs = tuple(f"build {one['output']}:" for one in _commands(build))
    lines, counts = file.read_text().splitlines(keepends=True), False
    for at, line in enumerate(lines):
        counts = line.startswith(outputs) or (counts and line.startswith(" "))
        if counts and line.startswith(" ARGS = "):
            lines[at] = line.rstrip("\n") + " --coverage\n"
    file.write_text("".join(lines))


def _commands(build: Path) -> list[dict[str, Any]]:
    """How the files of interest are compiled."""
    commands = json.loads((build / "compile_commands.json").read_text())
    return [one for one in commands if one["file"].endswith(_paths())]


def _paths() -> tuple[str, ...]:
    return tuple(f"/block/{name}" for name in FILES)


def forget_counts(tree: Tree) -> None:
    """Begin anew."""
    for file in tree.build.rglob("*.gcda"):
        file.unlink()


def counted(tree: Tree) -> list[Counted]:
    """What has run since the counts were forgotten, by file.

    :raises HostError: nothing was counted, or there is no gcov
    """
    found = []
    for command in _commands(tree.build):
        data = tree.build / command["output"].replace(".c.o", ".c.gcda")
        if not data.exists():
            raise HostError(f"{data}: no QEMU has run, or none ended a QMP command")
        output = subprocess.run(
            ["gcov", "--stdout", "--json-format", "--branch-probabilities", str(data)],
            capture_output=True,
            check=True,
            cwd=tree.build,
        ).stdout
        files = json.loads(output)["files"]
        (own,) = (one for one in files if one["file"].endswith(_paths()))
        found.append(counted_in(own))
    return sorted(found, key=lambda one: one.file)


def counted_in(value: dict[str, Any]) -> Counted:
    """What gcov's JSON has of a file; a line that was inlined is there several times."""
    runs: dict[int, int] = {}
    taken: list[bool] = []
    for line in value["lines"]:
        number = line["line_number"]
        runs[number] = max(runs.get(number, 0), line["count"])
        taken += [branch["count"] > 0 for branch in line["branches"]]
    return Counted(
        os.path.basename(value["file"]),
        (sum(count > 0 for count in runs.values()), len(runs)),
        (sum(taken), len(taken)),
        tuple(sorted(number for number, count in runs.items() if not count)),
    )
