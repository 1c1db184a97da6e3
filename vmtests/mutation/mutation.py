"""`make mutation`: which faults in QEMU's own code does qmpshim find, and how soon.

    python vmtests/mutation/mutation.py [--sample N] [--seed S] [--file NAME]... [--check]

Exit status: 0 every mutant that was reached is killed or known to be equivalent, 1 one is not, 2 it
cannot be found out here. What is done is kept: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import cloudpickle
import mutation_build
import mutation_kill
import mutation_operators
from mutation_build import FILES, PARTS, MutatedQemu, mutated_qemu
from mutation_kill import Outcome, attempt, names_to_try, pristine_reach
from mutation_operators import Mutant

from qmpshim.conformance.cluster import Cluster
from qmpshim.errors import QmpshimError

SURVIVORS = Path(__file__).with_name("survivors.json")


@dataclass(frozen=True, slots=True)
class Survivor:
    """What is known of a mutant that nothing killed.

    :ivar equivalent: no client can see it
    :ivar reason: why, or which hole it shows
    """

    equivalent: bool
    reason: str


def known_survivors() -> dict[str, Survivor]:
    """The survivors that were looked at, by name of the mutant."""
    return {name: Survivor(**value) for name, value in json.loads(SURVIVORS.read_text()).items()}


class Results:
    """What was found out so far, in a file to which each result is appended."""

    def __init__(self, file: Path, digest: str) -> None:
        self._file = file
        self._digest = digest
        self.by_name: dict[str, Outcome] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            value = json.loads(line)
            if value.pop("digest") == digest:
                outcome = Outcome(**value)
                self.by_name[outcome.mutant] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep a result."""
        self.by_name[outcome.mutant] = outcome
        with self._file.open("a") as file:
            file.write(json.dumps({**asdict(outcome), "digest": self._digest}) + "\n")


def reach(qemu: MutatedQemu, jobs: int) -> dict[str, set[int]]:
    """Which mutants each scenario reaches on a QEMU that is none of them; kept beside it."""
    file = qemu.directory / f"reach-{qemu.digest[:12]}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    names = names_to_try()
    if missing := [name for name in names if name not in found]:
        print(f"looking which mutants {len(missing)} scenarios reach", flush=True)
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            shares = [missing[n::jobs] for n in range(jobs)]
            for part in pool.map(pristine_reach, [qemu] * jobs, shares):
                found |= {name: sorted(numbers) for name, numbers in part.items()}
        file.write_text(json.dumps(found))
    return {name: set(found[name]) for name in names}


def sample(mutants: Sequence[Mutant], files: Sequence[str], many: int, seed: int) -> list[Mutant]:
    """A random sample of the mutants of these files."""
    chosen = [one for one in mutants if not files or one.file in files]
    return random.Random(seed).sample(chosen, min(many, len(chosen)))


def run(
    qemu: MutatedQemu,
    chosen: Sequence[Mutant],
    budget: float,
    check: bool,
    jobs: int,
    cluster: Cluster | None = None,
) -> Iterator[Outcome]:
    """Try to kill each of the mutants.

    :param cluster: try it there, with all its workers; each has the mutated QEMU where it is here
    :raises WorkerLost: several workers died of the same mutant
    """
    if not chosen:
        return
    reached = reach(qemu, jobs)
    calls = []
    for mutant in chosen:
        names = [name for name, numbers in reached.items() if mutant.number in numbers]
        calls.append((replace(qemu, mutants=()), mutant, names, budget, check))
    if cluster is not None:
        for module in (mutation_build, mutation_kill, mutation_operators):
            cloudpickle.register_pickle_by_value(module)  # no worker has it in its path
        for _, outcome in cluster.run(attempt, [partial(tuple, call) for call in calls]):
            yield outcome()
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for task in [pool.submit(attempt, *call) for call in calls]:
            yield task.result()


def _most(times: Sequence[float]) -> float:
    """The time after which 95 % were killed; *times* are in their order."""
    return times[math.ceil(0.95 * len(times)) - 1]


def table(outcomes: Mapping[str, Outcome], mutants: Sequence[Mutant]) -> str:
    """The outcomes by file and by operator, to read."""
    known = known_survivors()
    lines = []
    keys: dict[str, Callable[[Mutant], str]] = {
        "file": lambda mutant: mutant.file,
        "operator": lambda mutant: mutant.operator,
    }
    for title, key in keys.items():
        lines.append(f"\n{title:22}{'tried':>7}{'reached':>9}{'killed':>8}{'equiv.':>8}"
                     f"{'alive':>7}{'score':>8}{'median':>9}{'95 %':>9}")  # fmt: skip
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for mutant in mutants:
            if mutant.name in outcomes:
                groups[key(mutant)].append(outcomes[mutant.name])
        for name, group in [*groups.items(), ("all", [one for g in groups.values() for one in g])]:
            reached = [one for one in group if one.reached]
            killed = [one for one in reached if one.killed_by]
            alive = [one for one in reached if not one.killed_by]
            same = [o for o in alive if o.mutant in known and known[o.mutant].equivalent]
            count = len(reached) - len(same)
            score = f"{len(killed) / count:8.1%}" if count else f"{'-':>8}"
            times = sorted(one.seconds for one in killed)
            half, most = (f"{at(times):7.1f} s" if times else f"{'-':>9}" for at in (median, _most))
            lines.append(f"{name:22}{len(group):7}{len(reached):9}{len(killed):8}{len(same):8}"
                         f"{len(alive) - len(same):7}{score}{half}{most}")  # fmt: skip
    by = Counter(one.killed_by.partition(":")[0] for one in outcomes.values() if one.killed_by)
    lines.append("\nkilled by " + ", ".join(f"{name} {count}" for name, count in by.most_common()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default 1)")
    parser.add_argument("--file", action="append", choices=[*FILES, *PARTS], help="only of these")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to explore a mutant")
    parser.add_argument("--check", action="store_true", help="then the quick suite, too")
    parser.add_argument("--mutant", action="append", help="only this one, whatever is known of it")
    parser.add_argument("--alive", action="store_true", help="list the survivors and end")
    parser.add_argument("--dask", metavar="ADDRESS", help="work on a dask.distributed cluster")
    parser.add_argument("-j", dest="jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        qemu = mutated_qemu(print)
    except QmpshimError as error:
        print(f"mutation: {error}", file=sys.stderr)
        return 2
    chosen = sample(qemu.mutants, args.file or (), args.sample, args.seed)
    if args.mutant:
        chosen = [one for one in qemu.mutants if one.name in args.mutant]
    results = Results(qemu.directory / "results.jsonl", qemu.digest)
    todo = [one for one in chosen if args.mutant or one.name not in results.by_name]
    if args.check:  # which the survivors may not have been through
        todo += [one for one in chosen if one not in todo and not results.by_name[one.name].over]
    if not args.alive:
        try:
            with closing(Cluster(args.dask)) if args.dask else nullcontext() as cluster:
                for outcome in run(qemu, todo, args.budget, args.check, args.jobs, cluster):
                    results.add(outcome)
                    print(outcome.line, flush=True)
        except QmpshimError as error:
            print(f"mutation: {error}", file=sys.stderr)
            return 2
    done = {m.name: results.by_name[m.name] for m in chosen if m.name in results.by_name}
    known = known_survivors()
    alive = [o for o in done.values() if o.reached and not o.killed_by]
    left = [one for one in alive if not (one.mutant in known and known[one.mutant].equivalent)]
    by_name = {one.name: one for one in qemu.mutants}
    for one in left:
        mutant = by_name[one.mutant]
        print(f"alive: {one.mutant} in {mutant.function}(): {' '.join(mutant.original.split())}")
    print(table(done, chosen))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
