"""Suites of cases: the shipped ones (:mod:`~.shipped`), and files of one's own.

A suite file is JSON or TOML::

    name = "nightly"                    # shown in reports
    include = ["quick"]                 # shipped suites, or files beside this one

    [[cases]]
    kind = "verify"                     # one of kinds.KINDS
    name = "verify/4k-clusters"         # unique; what --case takes
    budget = 300                        # seconds (default 120)
    arguments = { workflow = "replication", cluster = 4096, operations = 20000, seed = 7 }
    shards = 4                          # optional: four cases, with seeds 7, 8, 9 and 10

What a kind's arguments mean is in its function's docstring. Seeds and shares of work are fixed
here, before anything is handed out: a case is the same in whichever process, and wherever.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, case_from_json
from qmpshim.conformance.check.runners.kinds import name_of
from qmpshim.conformance.check.shipped import SHIPPED
from qmpshim.errors import InputError, decoding, no_such, os_errors

_MOST_SHARDS = 10_000


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases, by name unique.

    :ivar called: what ``--suite`` finds it by again: a file by its whole path
    """

    name: str
    cases: tuple[Case, ...]
    called: str = ""

    def only(self, wanted: Iterable[str]) -> Suite:
        """The suite with nothing but the named cases; ``explore/*`` names all that begin so.

        :raises InputError: a name stands for none
        """
        chosen: dict[str, Case] = {}
        for name in wanted:
            hits = [
                case
                for case in self.cases
                if case.name == name or (name.endswith("*") and case.name.startswith(name[:-1]))
            ]
            if not hits:
                listing = "qmpshim check --list"
                if self.called not in ("", "quick"):
                    listing = shlex.join([*listing.split(), "--suite", self.called])
                there_are = [case.name for case in self.cases]
                text = no_such("case", name, there_are, listing)
                raise InputError(f"suite {self.name} has {text}")
            chosen |= {case.name: case for case in hits}
        return replace(self, cases=tuple(chosen.values()))


def suite_named(name: str) -> Suite:
    """A shipped suite, or the one in a file.

    :raises InputError: there is none, or the file is wrong
    """
    if name in SHIPPED:
        return Suite(name, tuple(SHIPPED[name]()), name)
    path = Path(name)
    if path.suffix in (".json", ".toml") or path.exists():
        return _from_file(path, ())
    raise InputError(f"no suite {name!r}: there are {', '.join(SHIPPED)}, and files (.json, .toml)")


# -- files -------------------------------------------------------------------------------------


def _from_file(path: Path, inside: tuple[Path, ...]) -> Suite:
    if path in inside:
        raise InputError(f"{path} includes itself")
    with os_errors(InputError, str(path)), decoding(str(path)):
        text = path.read_text()
        value: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    if not isinstance(value, dict):
        raise InputError(f"{path}: a suite is an object with cases")
    unknown = value.keys() - {"name", "include", "cases"}
    if unknown:
        raise InputError(f"{path}: nothing is known of {', '.join(sorted(unknown))}")
    cases: list[Case] = []
    for other in _list(path, value, "include"):
        if not isinstance(other, str):
            raise InputError(f"{path}: include must be a list of names")
        if other in SHIPPED:
            cases += SHIPPED[other]()
        else:
            cases += _from_file(path.parent / str(other), (*inside, path)).cases
    for one in _list(path, value, "cases"):
        try:
            with decoding("the case"):
                cases += _sharded(one)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: more than one case is called {', '.join(twice)}")
    if not cases:
        raise InputError(f"{path}: no cases")
    return Suite(str(value.get("name", path.stem)), tuple(cases), str(path.absolute()))


def _list(path: Path, value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name, [])
    if not isinstance(found, list):
        raise InputError(f"{path}: {name} must be a list")
    return found


def _sharded(value: Any) -> list[Case]:
    """A case of a file; with ``shards`` that many, with one seed after the other."""
    value = dict(value) if isinstance(value, dict) else value
    shards = value.pop("shards", 1) if isinstance(value, dict) else 1
    case = case_from_json(value)
    name_of(case.kind)
    if type(shards) is not int or not 1 <= shards <= _MOST_SHARDS:
        raise InputError(f"{case.name}: shards must be a positive number, at most {_MOST_SHARDS}")
    if shards == 1:
        return [case]
    first = int(case.arguments.get("seed", 1))
    return [
        replace(
            case,
            name=f"{case.name}/seed{first + shard}",
            arguments={**case.arguments, "seed": first + shard},
        )
        for shard in range(shards)
    ]
