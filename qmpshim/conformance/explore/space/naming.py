"""Names of points of the scenario space: they name what is not the default, and can be read again.

``primary_write+guest_read,form=fleecing,cluster=4k``: the first and the second operation, then the
other dimensions that do not have their default.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable

from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.explore.space.covering import Point
from qmpshim.conformance.explore.space.grammar import DIMENSIONS, SPACE
from qmpshim.conformance.explore.space.point_scenario import scenario_object
from qmpshim.errors import InputError

_NAMED = [one for one in DIMENSIONS if one.name not in ("first", "second")]


def name_of(point: Point) -> str:
    """The name of a point."""
    more = [f"{d.name}={point[d.name]}" for d in _NAMED if point[d.name] != d.default]
    return ",".join([f"{point['first']}+{point['second']}", *more])


def point_if_named(name: str) -> Point | None:
    """The point of a name, None: it is the name of something else.

    :raises InputError: it has the form of a point's, and there is none
    """
    return point_named(name) if "+" in name.partition(",")[0] else None


def point_named(name: str) -> Point:
    """The point of a name.

    :raises InputError: there is none
    """
    head, *more = name.split(",")
    given = dict(zip(("first", "second"), head.split("+", 1), strict=True))
    for part in more:
        key, equals, value = part.partition("=")
        if not equals or key in given:
            raise InputError(f"scenario {name!r}: {part!r} is not DIMENSION=VALUE, each once")
        given[key] = value
    there = {one.name: one.values for one in DIMENSIONS}
    for key, value in given.items():
        if key not in there:
            raise _none(name, "dimension", key, there)
        if value not in there[key]:
            raise _none(name, key, value, there[key])
    point = {one.name: given.get(one.name, one.default) for one in DIMENSIONS}
    if broken := SPACE.broken(point):
        which = ", ".join(f"{key}={point[key]}" for key in broken.dimensions)
        raise InputError(f"scenario {name!r}: {which}: {broken.reason}")
    return point


def _none(name: str, what: str, given: str, there: Iterable[str]) -> InputError:
    names = list(there)
    near = difflib.get_close_matches(given, names, 3)
    listed = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    return InputError(f"scenario {name!r}: no {what} {given!r}; {listed}")


def scenario_of(point: Point) -> RealScenario:
    """The scenario of a point."""
    return scenario_from_json(scenario_object(point, name_of(point)))


def scenarios_called(name: str) -> list[RealScenario]:
    """The scenarios that a name stands for: a point's, or one of :func:`.scenario_sets.named`.

    :raises InputError: it stands for none
    """
    point = point_if_named(name)
    return named(name) if point is None else [scenario_of(point)]


@functools.cache
def array(strength: int, seed: int = 0) -> tuple[RealScenario, ...]:
    """The scenarios of a covering array."""
    return tuple(scenario_of(point) for point in SPACE.covering_array(strength, seed))
