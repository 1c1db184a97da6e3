"""Small systems made by chance, with what a real QEMU does and the model never: threads whose
movers are not known, steps that other threads enable, second tasks, steps that end everything.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import Choice, Footprint, Violation

_VALUES = 5
_ALL = Footprint(-1, -1)


@dataclass(frozen=True, slots=True)
class Step:
    """Waits until a flag is up, then does all of its instructions: (verb, which, how much)."""

    flag: int | None
    does: tuple[tuple[str, int, int], ...]


class RandomSystem:
    """Threads of tasks of steps over shared variables and flags (a System).

    :param seed: what the system is made from
    :param exact: movers are known; otherwise ``None`` where a task waits
    :param fatal: some steps end everything, as a crash does
    """

    def __init__(self, seed: int, exact: bool, fatal: bool) -> None:
        chance = random.Random(seed)
        self.variables, self.flags = chance.randint(2, 3), chance.randint(1, 3)
        self.programs = [
            [
                [self._step(chance) for _ in range(chance.randint(1, 3))]
                for _ in range(chance.choice((1, 1, 1, 2)))  # tasks; the second has to be spawned
            ]
            for _ in range(chance.randint(3, 4))
        ]
        self.threads = len(self.programs)
        self.exact = exact
        self.fatal = fatal
        self.violation: Violation | None = None

    def _step(self, chance: random.Random) -> Step:
        verbs = ["put", "put", "get", "get", "skip", "jump", "spawn"]
        verbs += ["raise", "peek"]
        does = []
        for _ in range(chance.randint(1, 2)):
            verb = chance.choice(verbs)
            room = self.flags if verb in ("raise", "peek") else self.variables
            does.append((verb, chance.randrange(room), chance.randrange(3)))
        waits = chance.random() < 0.3
        return Step(chance.randrange(self.flags) if waits else None, tuple(does))

    # -- System ----------------------------------------------------------------------------------

    def reset(self) -> None:
        self.values = [0] * self.variables
        self.up: set[int] = set()
        self.at = [[0] * len(tasks) for tasks in self.programs]
        self.seen = [[0] * len(tasks) for tasks in self.programs]
        self.alive = [[n == 0 for n in range(len(tasks))] for tasks in self.programs]
        self.violation = None

    def enabled(self) -> Sequence[Choice]:
        if self.violation is not None:
            return ()
        return [choice for thread in range(self.threads) for choice in self._own(thread)]

    def _own(self, thread: int) -> list[Choice]:
        return [
            ("step", thread, task, self.at[thread][task])
            for task, step in self._next(thread)
            if step.flag is None or step.flag in self.up
        ]

    def _next(self, thread: int) -> list[tuple[int, Step]]:
        """The tasks of a thread that are not done, with what each does next."""
        return [
            (task, program[self.at[thread][task]])
            for task, program in enumerate(self.programs[thread])
            if self.alive[thread][task] and self.at[thread][task] < len(program)
        ]

    def take(self, choice: Choice) -> Footprint:
        assert choice in self.enabled()
        _, thread, task, at = choice
        assert isinstance(thread, int) and isinstance(task, int) and isinstance(at, int)
        reads = writes = 0
        own, skip = self.seen[thread], False
        self.at[thread][task] += 1
        for verb, which, much in self.programs[thread][task][at].does:
            if skip:
                skip = False
            elif verb == "put":
                self.values[which] = (own[task] + much) % _VALUES
                writes |= 1 << which
            elif verb == "get":
                own[task] = own[task] * 3 % 7 + self.values[which]
                reads |= 1 << which
            elif verb == "skip":
                skip = own[task] % 2 == 1
            elif verb == "jump":
                self.at[thread][task] += own[task] % 2
            elif verb == "raise":
                self.up.add(which)
                writes |= 1 << self.variables + which
            elif verb == "peek":
                own[task] += which in self.up
                reads |= 1 << self.variables + which
            elif len(self.alive[thread]) > 1:  # spawn
                self.alive[thread][1] = True
        if self.fatal and own[task] % 3 == 2:
            self.violation = Violation(Verdict.CRASH, "it ends here", thread)
            return _ALL
        return Footprint(reads, writes)

    def finish(self) -> Hashable:
        return self.fingerprint()

    def fingerprint(self) -> Hashable:
        if self.violation is not None:
            return "crash", self.violation.op
        tasks = (tuple(map(tuple, rows)) for rows in (self.at, self.seen, self.alive))
        return tuple(self.values), frozenset(self.up), *tasks

    def thread(self, choice: Choice) -> int:
        assert isinstance(choice[1], int)
        return choice[1]

    def movers(self, thread: int) -> Sequence[Choice] | None:
        found: list[Choice] = []
        todo, known = [thread], {thread}
        while todo:
            thread = todo.pop()
            found += self._own(thread)
            for _, step in self._next(thread):
                if step.flag is None or step.flag in self.up:
                    continue
                if not self.exact:
                    return None
                raisers = [other for other in range(self.threads) if self._raises(other, step.flag)]
                todo += [other for other in raisers if other not in known]
                known |= {*raisers}
        return found

    def _raises(self, thread: int, flag: int) -> bool:
        steps = (step for program in self.programs[thread] for step in program)
        return any(
            verb == "raise" and which == flag for step in steps for verb, which, _ in step.does
        )
