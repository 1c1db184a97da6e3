"""Simpler scenarios: one dimension less that is not the default, or one option of a node less."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.covering import Point
from qmpshim.conformance.explore.space.grammar import DIMENSIONS, SPACE
from qmpshim.conformance.explore.space.naming import point_if_named, scenario_of
from qmpshim.conformance.explore.space.point_scenario import options_of
from qmpshim.conformance.explore.space.values import NONE
from qmpshim.errors import InputError
from qmpshim.model.operations import operation

#: What is given up first: what a chain is opened with, then the past, then where things are.
_ORDER = ("disks", "options", "bitmap", "subclusters", "target", "history", "secondary", "cluster",
          "disk", "place", "relation", "third", "first", "second")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Simpler:
    """A scenario that does without something.

    :ivar without: what it is, as in ``options=filter-unmap (top: discard=unmap)``
    """

    without: str
    scenario: RealScenario


def simpler(scenario: RealScenario) -> list[Simpler]:
    """The scenarios with one thing less than this; of the space where it is a point of it."""
    point = _point(scenario)
    if point is None:
        return _other(scenario)
    return [
        Simpler(_described(point, name), scenario_of(less))
        for name in _ORDER
        if (value := _plainer(point, name)) != point[name]
        and not SPACE.broken(less := {**point, name: value})
    ]


def simplest(scenario: RealScenario) -> RealScenario | None:
    """The scenario with the same operations and nothing else; ``None``: it is this one."""
    point = _point(scenario)
    if point is None:
        return None
    bare = SPACE.complete({name: point[name] for name in ("form", "first", "second")})
    return None if bare is None or bare == point else scenario_of(bare)


def _point(scenario: RealScenario) -> Point | None:
    """Of which point it is the scenario; what was made of one may still have its name."""
    try:
        point = point_if_named(scenario.name)
    except InputError:
        return None
    return point if point and scenario_of(point) == scenario else None


def _plainer(point: Point, name: str) -> str:
    if name in ("first", "second"):
        # Another operation is another scenario.
        return NONE if point[name] == NONE else operation(point[name]).plain.name
    return SPACE.dimension(name).default


def _described(point: Point, name: str) -> str:
    text = f"{name}={point[name]}"
    if options := options_of(point, name):
        text += f" ({', '.join(f'{node}: {key}={value}' for node, key, value in options)})"
    return text


def _other(scenario: RealScenario) -> list[Simpler]:
    """Of a scenario that is no point of the space: by option, and with a raw disk."""
    options = scenario.options
    less = [
        Simpler(f"{node}: {key}={value}", replace(scenario, options=options[:n] + options[n + 1 :]))
        for n, (node, key, value) in enumerate(options)
    ]
    less = [one for one in less if _can_be_done(one.scenario)]
    if scenario.secondary != "raw":
        less.append(Simpler(f"secondary={scenario.secondary}", replace(scenario, secondary="raw")))
    return less


def _can_be_done(scenario: RealScenario) -> bool:
    """Whether the chain has all operations: one may need an option."""
    return all(op.name in scenario.topology.operations for op in scenario.ops)


assert {*_ORDER, "form"} == {one.name for one in DIMENSIONS}, "add the new dimension to _ORDER"
