"""The tests use the package's public names.

A name with an underscore is free to change, and a test that replaces it keeps it from that; a step
that mutants replace or a limit that a test shortens is an interface, and has a public name and a
docstring.  What is left is listed with its reason.  The list may only shrink.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "qmpshim"
PRIVATE = re.compile(r"_[A-Za-z]\w*")

#: By file the private names of the package that it uses, and why.
_INSIDE = "the bytes of one connection are looked at where they come in, in their order"
ALLOWED = {
    ("bench/bench_verify.py", "_handle"): "libnbd itself: what a client that checks nothing costs",
    ("machine/nbd/gate/test_gate.py", "_connections"): "a transport's buffer, before an image",
    ("machine/nbd/gate/test_polled.py", "_readable"): "a client that does not read",
    ("machine/nbd/gate/test_polled.py", "_sock"): "a client that does not read",
    ("shim/endpoint/test_order.py", "_number"): _INSIDE,
    ("shim/endpoint/test_order.py", "_on_event"): _INSIDE,
    ("shim/endpoint/test_order.py", "_reply"): _INSIDE,
}


@dataclass(frozen=True)
class Source:
    """What the tests need of a module.

    :ivar bases: by class its bases, as they are written last, and its private methods
    """

    nodes: tuple[ast.AST, ...]
    defined: frozenset[str]
    bases: Mapping[str, tuple[list[str], set[str]]]

    @classmethod
    def of(cls, text: str) -> Source:
        """Parse a module."""
        nodes = tuple(ast.walk(ast.parse(text)))
        return cls(nodes, frozenset(_defined(nodes)), dict(_bases(nodes)))


def _defined(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The private names of functions, classes, constants and attributes."""
    for node in nodes:
        name = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        if PRIVATE.fullmatch(name):
            yield name


def _bases(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, tuple[list[str], set[str]]]]:
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            methods = (
                one.name
                for one in node.body
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            above = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            yield node.name, (above, {name for name in methods if PRIVATE.fullmatch(name)})


def overridden(source: Source, package: Mapping[str, tuple[list[str], set[str]]]) -> set[str]:
    """Private methods of the package's classes that a test's classes override."""
    every = {**package, **source.bases}

    def inherited(name: str) -> set[str]:
        above, methods = every.get(name, ([], set()))
        of_package = methods if name in package else set()
        return of_package.union(*(inherited(one) for one in above if one != name))

    return {
        method
        for above, methods in source.bases.values()
        for method in methods
        if any(method in inherited(one) for one in above)
    }


def used(source: Source, private: frozenset[str]) -> set[str]:
    """Which of the names in *private* a test uses though it does not define them itself.

    As an attribute, as an import, or as a string (``monkeypatch.setattr``).
    """
    strings = (node for node in source.nodes if isinstance(node, ast.JoinedStr))
    pieces = {id(piece) for string in strings for piece in string.values}
    found = set()
    for node in source.nodes:
        match node:
            case ast.Attribute(value=value, attr=name):
                of_self = isinstance(value, ast.Name) and value.id in ("self", "cls")
                if name in private and not (of_self and name in source.defined):
                    found.add(name)
            case ast.ImportFrom(names=names):
                found.update(one.name for one in names if one.name in private)
            case ast.Constant(value=str(text)) if id(node) not in pieces:
                found.update({text.rpartition(".")[2]} & private)
    return found


def test_no_private_name_is_used() -> None:
    names: set[str] = set()
    classes: dict[str, tuple[list[str], set[str]]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = Source.of(path.read_text())
        names |= module.defined
        classes |= module.bases
    private = frozenset(names)
    everything = {
        (str(path.relative_to(TESTS)), name)
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
        for source in (Source.of(path.read_text()),)
        for name in used(source, private) | overridden(source, classes)
    }
    assert everything == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from machine import _limit", {"_limit"}),
        ("module._limit = 1", {"_limit"}),
        ('patch.setattr(module, "_limit", 1)', {"_limit"}),
        ('patch.setattr("machine._limit", 1)', {"_limit"}),
        ("class A(Base):\n    def _step(self): pass", {"_step"}),
        ("class A(Base):\n    pass\nclass B(A):\n    def _step(self): pass", {"_step"}),
        ("class A:\n    def _step(self): self._step()", set()),
        ('f"{side}_limit"', set()),
        ("self._limit = 1\nself._limit", set()),
    ],
)
def test_what_is_found(source: str, names: set[str]) -> None:
    classes = {"Base": (list[str](), {"_step"})}
    module = Source.of(source)
    assert used(module, frozenset({"_limit"})) | overridden(module, classes) == names
