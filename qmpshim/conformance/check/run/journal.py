"""A run on disk: an append-only journal of JSON lines, and what the cases left behind.

The first line is what is to be done, each further one what came of a case on a build; a line
counts when it is whole, and it is on the disk before the next case is handed out. So a run that
was killed at any instant goes on where it was, with nothing lost and nothing done twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import qmpshim
from qmpshim.codec import decode, encode
from qmpshim.conformance.check.case import Case, CaseOutcome
from qmpshim.conformance.check.run.case_process import Delivery, unpack
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.errors import HostError, InputError, decoding, os_errors
from qmpshim.machine.host.files import slug

FORMAT = 1
JOURNAL, CASES = "journal.jsonl", "cases"
RESULTS, JUNIT, TAP, HTML = REPORTS = "results.json", "junit.xml", "report.tap", "report.html"
Key = tuple[str, str]  # build, case


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do: each case on each build.

    :ivar places: by build, what it was called on the command line; finds it again on resuming
    :ivar called: what ``--suite`` finds the suite by again
    """

    suite: str
    builds: tuple[Identity, ...]
    cases: tuple[Case, ...]
    places: Mapping[str, str]
    called: str = ""

    @property
    def keys(self) -> list[Key]:
        """Build and case, in the order in which they are to be done: builds side by side."""
        return [(build.name, case.name) for case in self.cases for build in self.builds]

    def to_json(self) -> dict[str, Any]:
        """As :func:`plan_from_json` reads it."""
        return {"format": FORMAT, "qmpshim": qmpshim.__version__, **encode(self)}


def plan_from_json(value: Any) -> Plan:
    """The reverse of :meth:`Plan.to_json`.

    :raises InputError: it is none, or of another format
    """
    with decoding("the plan of the run"):
        if value["format"] != FORMAT:
            raise InputError(f"a journal of format {value['format']}; this reads {FORMAT}")
    return decode(Plan, value, "the plan of a run")


class Journal:
    """The journal of one run, open for one process.

    :ivar outcomes: what is done
    """

    def __init__(self, directory: Path, plan: Plan, file: BinaryIO) -> None:
        self.directory = directory
        self.plan = plan
        self.outcomes: dict[Key, CaseOutcome] = {}
        self._file = file

    @classmethod
    def begin(cls, directory: Path, plan: Plan, replace: bool = False) -> Journal:
        """Begin a run in *directory*, which is made.

        :param replace: remove the run that is there; files that are none of a run's stay
        :raises InputError: there is a run already (with *replace*: one that is being done)
        :raises HostError: it cannot be written
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = (directory / JOURNAL).open("ab" if replace else "xb")
        except FileExistsError as error:
            if directory.is_dir():
                raise InputError(
                    f"{directory} holds a run already: go on with it by --resume {directory}, "
                    "replace it by --force, or choose another --out"
                ) from error
            raise InputError(f"{directory} is no directory") from error
        except OSError as error:
            raise HostError(f"cannot write {directory}: {error.strerror}") from error
        journal = cls(directory, plan, file)
        journal._lock()
        if replace:
            journal._empty()
        journal._append(plan.to_json())
        return journal

    def _empty(self) -> None:
        """Remove what another run left here."""
        with os_errors(HostError, f"cannot write {self.directory}"):
            self._file.truncate(0)
            for name in REPORTS:
                (self.directory / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.directory / CASES)

    @classmethod
    def resume(cls, directory: Path) -> Journal:
        """Go on with the run in *directory*.

        :raises InputError: there is none, it is damaged, or somebody is at it
        """
        path = directory / JOURNAL
        with os_errors(InputError, f"{directory} holds no run: {path}"):
            file = path.open("r+b")
        lines = file.read().split(b"\n")
        torn = lines.pop()  # what follows the last newline was not written to its end
        with decoding(str(path)):
            values = [json.loads(line) for line in lines]
        if not values:
            raise InputError(f"{path} is empty: begin anew")
        journal = cls(directory, plan_from_json(values[0]), file)
        journal._lock()
        wanted = set(journal.plan.keys)
        for value in values[1:]:
            with decoding(str(path)):
                key = (str(value["build"]), str(value["case"]))
                outcome = decode(CaseOutcome, value["outcome"], "an outcome of a case")
                if key not in wanted or key in journal.outcomes:
                    raise InputError(f"{path} is damaged: {key} is not wanted, or there twice")
            journal.outcomes[key] = outcome
        if torn:
            file.truncate(file.tell() - len(torn))
            file.seek(0, os.SEEK_END)
        return journal

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"the run in {self.directory} is being done right now") from error

    def _append(self, value: Any) -> None:
        with os_errors(HostError, f"cannot write {self.directory / JOURNAL}"):
            self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def missing(self) -> list[Key]:
        """What is left to be done."""
        return [key for key in self.plan.keys if key not in self.outcomes]

    def place(self, key: Key) -> Path:
        """Where a case's files go, relative to the run's directory."""
        return Path(CASES, *(slug(part) for part in key))

    def record(self, delivery: Delivery) -> None:
        """Keep an outcome: its files first, so that a line never promises what is not there.

        :raises HostError: the disk is full
        """
        assert delivery.key not in self.outcomes, f"{delivery.key} was done twice"
        place = self.directory / self.place(delivery.key)
        with contextlib.suppress(FileNotFoundError):  # of a run that was killed right here
            shutil.rmtree(place)
        unpack(delivery.files, place)
        build, case = delivery.key
        self._append({"build": build, "case": case, "outcome": encode(delivery.outcome)})
        self.outcomes[delivery.key] = delivery.outcome

    def close(self) -> None:
        """Let others have it."""
        self._file.close()
