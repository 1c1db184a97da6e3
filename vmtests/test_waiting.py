"""A test that waits for a condition uses ``support/waiting.py``, which has the limit and the pace.

What sleeps in a loop of its own does something else between two looks, or is not waiting.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

#: By file and function why it sleeps in a loop; the list may only shrink.
ALLOWED = {
    ("bench/bench_shim.py", "qemu"): "a bench imports no helper of the tests",
    ("bench/bench_shim.py", "socat"): "a bench imports no helper of the tests",
    ("conformance/pair/test_workloads.py", "run"): "it spoils the disk between two looks",
    ("machine/host/test_process.py", "others"): "it counts the turns of the event loop",
    ("support/broken_builds.py", "_fills_the_disk"): "a build that misbehaves",
    ("support/broken_builds.py", "_hangs"): "a build that misbehaves",
}


def sleepers(source: str) -> Iterator[str]:
    """Functions with a ``while`` loop that sleeps."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = {
                id(node)
                for one in ast.walk(function)
                if one is not function and isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
                for node in ast.walk(one)
            }
            loops = (n for n in ast.walk(function) if isinstance(n, ast.While))
            if any(_sleeps(loop) for loop in loops if id(loop) not in inner):
                yield function.name


def _sleeps(loop: ast.While) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        for node in ast.walk(loop)
    )


def test_waiting_is_done_by_the_helper() -> None:
    found = {
        (str(path.relative_to(TESTS)), name)
        for path in TESTS.rglob("*.py")
        if path.name != "waiting.py"
        for source in (path.read_text(),)
        if "sleep(" in source
        for name in sleepers(source)
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f():\n    while not done():\n        time.sleep(1)", ["f"]),
        ("async def f():\n    while not done():\n        await asyncio.sleep(1)", ["f"]),
        ("def f():\n    def g():\n        while True:\n            time.sleep(1)", ["g"]),
        ("def f():\n    time.sleep(1)\n    while not done():\n        poll()", []),
    ],
)
def test_what_is_found(source: str, names: list[str]) -> None:
    assert list(sleepers(source)) == names
