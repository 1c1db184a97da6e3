"""The kinds of replay bundles: an entry each, with all that depends on the kind and runs no QEMU.

What runs a case finds its function by the case's type, in a table of its own:
``bundles/any_workload.py``, ``check/runners/bundle.py``, ``commands/replay.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from qmpshim.conformance.bundles import chain
from qmpshim.conformance.bundles.case_file import BundleCase, read_case
from qmpshim.conformance.bundles.workload_case import CASE
from qmpshim.conformance.explore.report.finding_files import CASE as SCHEDULE
from qmpshim.conformance.explore.report.finding_files import finding_of
from qmpshim.conformance.known.draft import of_chain, of_pair, of_points, of_schedule
from qmpshim.conformance.known.matching import explorer_write_up, pair_write_up, workload_write_up
from qmpshim.conformance.known.steps.of_chain import steps_of_chain
from qmpshim.conformance.known.steps.of_pair import steps_of_pair
from qmpshim.conformance.known.steps.of_points import steps_of_points
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.pair import bundle as pair
from qmpshim.conformance.pointintime import bundle as points
from qmpshim.errors import InputError, decoding

Case = TypeVar("Case", bound=BundleCase)


@dataclass(frozen=True, slots=True)
class BundleKind(Generic[Case]):
    """A kind of bundle.

    :ivar name: what is ``kind`` in its file; ``""``: there is none
    :ivar file: what has the case in a bundle's directory
    :ivar read: the case, from what is in that file and its path
    :ivar write_up: the write-up that has such a case, from its path and content
    :ivar draft: a draft of one
    :ivar steps: the steps beside it, from the case and its file's path; ``""``: it has a schedule
    """

    name: str
    file: str
    read: Callable[[Any, Path], Case]
    write_up: Callable[[Path, dict[str, Any], Case], WriteUp]
    draft: Callable[[Case], dict[str, Any]]
    steps: Callable[[Case, Path], str]


_ALL = (
    BundleKind("schedule", SCHEDULE, finding_of, explorer_write_up, of_schedule, lambda *_: ""),
    BundleKind(
        "pair",
        pair.CASE,
        pair.from_json,
        pair_write_up,
        of_pair,
        lambda case, _: steps_of_pair(case),
    ),
    BundleKind("points", CASE, points.from_json, workload_write_up, of_points, steps_of_points),
    BundleKind(
        "", CASE, chain.from_json, workload_write_up, of_chain, lambda case, _: steps_of_chain(case)
    ),
)
KINDS: dict[str, BundleKind[Any]] = {kind.name: kind for kind in _ALL}
FILES = tuple(dict.fromkeys(kind.file for kind in _ALL))


def kind_of(value: Any, path: Path) -> BundleKind[Any]:
    """The kind of bundle that has *value* in its file *path*.

    :raises InputError: there is no such kind
    """
    name = value.get("kind", "") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise InputError(f"{path} is no replay bundle")
    return KINDS[name]


def load_bundle(path: Path) -> BundleCase:
    """What is replayed.

    :param path: a bundle's directory, its file, or a write-up of a known finding
    :raises InputError: it is none of these, or damaged
    """
    value, file = read_case(path, *FILES)
    case: BundleCase = kind_of(value, file).read(value, file)
    return case


def drafts(path: Path) -> tuple[dict[str, Any], str]:
    """A draft of a write-up, as JSON, and of the steps beside it, which are ``""`` for a schedule.

    :param path: as for :func:`load_bundle`
    :raises InputError: it is no bundle, or shows nothing wrong
    """
    value, file = read_case(path, *FILES)
    kind = kind_of(value, file)
    case = kind.read(value, file)
    with decoding(str(file)):
        return kind.draft(case), kind.steps(case, file)
