"""`make coverage`: which lines and branches of QEMU's block layer run under qmpshim, by gcov.

    python vmtests/mutation/block_coverage.py [--missed] [-- WORDS]

WORDS are those of a command of qmpshim's (by default `check --suite quick`), to which the QEMU is
added. The counts add up until `--anew`. Exit status: 0 counted, 2 that cannot be done here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from coverage_build import Counted, counted, counting_qemu, forget_counts
from mutation_build import EMULATOR
from upstream_source import Tree

from qmpshim.errors import QmpshimError

_QUICK = ["check", "--suite", "quick"]


def main() -> int:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missed", action="store_true", help="name the lines that never ran")
    parser.add_argument("--anew", action="store_true", help="forget the counts of earlier runs")
    parser.add_argument("words", nargs="*", default=_QUICK, metavar="WORDS")
    options = parser.parse_args()
    try:
        tree = counting_qemu(lambda text: print(text, file=sys.stderr))
        if options.anew:
            forget_counts(tree)
        _run(tree, options.words)
        for line in table(counted(tree), options.missed):
            print(line)
    except QmpshimError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(tree: Tree, words: list[str]) -> None:
    """Run a command with the QEMU that counts; what it finds does not matter here."""
    with tempfile.TemporaryDirectory() as place:
        program = Path(sys.executable).with_name("qmpshim")
        command = [str(program), *words, "--build", str(tree.build / EMULATOR)]
        subprocess.run(command, cwd=place, check=False)


def table(found: Iterable[Counted], missed: bool) -> Iterator[str]:
    """A line a file: its lines and branches in percent.

    :param missed: and the lines that never ran
    """
    yield f"{'file':24}  lines  branches"
    for one in found:
        yield f"{one.file:24}  {_percent(one.lines):>4}   {_percent(one.branches):>4}"
        if missed and one.missed:
            yield f"    never: {', '.join(_ranges(one.missed))}"


def _percent(part: tuple[int, int]) -> str:
    some, all_ = part
    return f"{100 * some / all_:.0f} %"


def _ranges(numbers: tuple[int, ...]) -> Iterator[str]:
    begin = numbers[0]
    for number, following in pairwise((*numbers, numbers[-1] + 2)):
        if following > number + 1:
            yield str(begin) if begin == number else f"{begin}-{number}"
            begin = following


if __name__ == "__main__":
    sys.exit(main())
