"""What a version of QEMU does differently is decided in one place."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

import qmpshim
from qmpshim.model.chain.behaviour import Features, behaviour_of, features_of

PACKAGE = Path(qmpshim.__file__).parent
#: Where versions are compared: the model's behaviour, its defects, and the name of its protocol.
PLACES = {
    "machine/builds/build.py",
    "model/chain/behaviour.py",
    "model/pointintime/points.py",
}


def compares_version(source: str) -> bool:
    """Whether something is held against a tuple of numbers, by order."""
    ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    return any(
        isinstance(node, ast.Compare)
        and any(isinstance(op, ordered) for op in node.ops)
        and any(
            isinstance(side, ast.Tuple)
            and all(isinstance(part, ast.Constant) for part in side.elts)
            for side in (node.left, *node.comparators)
        )
        for node in ast.walk(ast.parse(source))
    )


def test_versions_are_compared_in_one_place() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if compares_version(path.read_text())
    }
    assert found == PLACES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if machine.version >= (6, 0): pass", True),
        ("old = (7, 0) <= version < (8, 0)", True),
        ("if build.numbers == (6, 0): pass", False),
        ("if (start, end) < (a, b): pass", False),
    ],
)
def test_what_counts_as_a_comparison(source: str, found: bool) -> None:
    assert compares_version(source) is found


def test_a_development_version_is_the_next_one() -> None:
    assert not features_of((10, 1, 3)).colo_takes_return_path
    assert features_of((10, 1, 50)).colo_takes_return_path
    every = Features(*(True for _ in fields(Features)))
    assert features_of((11, 1, 0)) == replace(every, checkpoint_drains=False)
    assert behaviour_of((4, 1, 0)).discard_passes_job
