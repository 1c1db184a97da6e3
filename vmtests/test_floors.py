"""The layers: a package imports only from those below it, and nothing below the commands prints.

What tests of several modules share is in ``vmtests/support``: a test module imports no other one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "qmpshim"
# From the lowest up; a package does not see those above it.
LAYERS = ("errors", "model", "codec", "machine", "conformance", "shim", "commands", "cli")
ENTRY_POINTS = ("commands", "cli", "pytest_plugin")  # the only ones that print
# What the lowest layer may use besides the standard library.
MODEL_MAY: frozenset[str] = frozenset()

# A string that names a module of ours, or something in one: "qmpshim.machine.nbd.gate.gate:Gate".
NAMED = re.compile(r"qmpshim(\.\w+)+(:[\w.]+)?")

MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def layer_of(module: str) -> str | None:
    """The layer a module of ours is on; the package itself is below everything."""
    names = module.split(".")
    if names[0] != "qmpshim":
        return None
    name = names[1] if len(names) > 1 else ""
    return "cli" if name in ("pytest_plugin", "__main__") else name


def name_of(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported anywhere in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: count up from the module's package
                base = ".".join([*module.split(".")[: -node.level], *base.split(".")]).strip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Constant) and NAMED.fullmatch(str(node.value)):
            yield node.lineno, str(node.value).partition(":")[0]  # to be imported later


def faults(source: str, module: str) -> list[str]:
    """What is wrong with a module, as ``line: sentence``."""
    layer, found = layer_of(module) or "", []
    for line, target in imports(source, module):
        below = layer_of(target)
        if below is None:
            outside = target.split(".")[0]
            if layer in ("errors", "model") and outside not in sys.stdlib_module_names | MODEL_MAY:
                found.append(f"{line}: the {layer} layer imports {outside}")
        elif below in LAYERS and layer in LAYERS and LAYERS.index(below) > LAYERS.index(layer):
            found.append(f"{line}: the {layer} layer imports {target}, which is above it")
        elif below in LAYERS and layer not in LAYERS and layer:
            found.append(f"{line}: {layer} is on no layer")
    if layer not in ENTRY_POINTS:
        found += [
            f"{node.lineno}: print() on the {layer} layer"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_package_stands_on_the_layers_below(path: Path) -> None:
    assert faults(path.read_text(), name_of(path)) == []


def test_every_package_has_a_layer() -> None:
    layers = {layer_of(name_of(path)) for path in MODULES} - {""}
    assert layers <= set(LAYERS), "put it into LAYERS and into qmpshim/README.md"
    assert layers >= {"errors", "model", "machine", "conformance", "cli"}


CONFORMANCE = PACKAGE / "conformance"
PACKAGES = tuple(path.parent.name for path in CONFORMANCE.glob("*/__init__.py"))
HIGHEST = ("known", "check", "assess")  # of the packages of conformance: the others need none


def faults_of_conformance(source: str, module: str) -> list[str]:
    """What a module of conformance imports from above itself there, as ``line: name``.

    Single modules stand below all packages.
    """
    own = module.split(".")[2]
    above = HIGHEST if own in PACKAGES else PACKAGES
    if own in HIGHEST:
        above = HIGHEST[HIGHEST.index(own) + 1 :]
    return [
        f"{line}: {target}"
        for line, target in imports(source, module)
        if target.startswith("qmpshim.conformance.") and target.split(".")[2] in above
    ]


@pytest.mark.parametrize("path", [*CONFORMANCE.rglob("[!_]*.py")], ids=name_of)
def test_what_is_low_in_conformance_needs_nothing_above(path: Path) -> None:
    assert faults_of_conformance(path.read_text(), name_of(path)) == []


@pytest.mark.parametrize(
    ("module", "package", "found"),
    [
        ("document", "explore", True),
        ("document", "uses", False),
        ("pair.run_plan", "check.case", True),
        ("pair.run_plan", "known.folder", True),
        ("explore.search.soak", "known.matching", True),
        ("known.folder", "explore.scenarios", False),
        ("check.case", "known.folder", False),
        ("check.case", "pair.plan", False),
        ("check.case", "assess.trials", True),
        ("assess.trials", "check.case", False),
    ],
)
def test_what_is_needed_from_above_is_found(module: str, package: str, found: bool) -> None:
    source = f"from qmpshim.conformance.{package} import something"
    assert bool(faults_of_conformance(source, f"qmpshim.conformance.{module}")) is found


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("qmpshim.model.disks.image", "import numpy", "1: the model layer imports numpy"),
        ("qmpshim.model.disks.image", "def f():\n    from qmpshim.machine import gate",
         "2: the model layer imports qmpshim.machine.gate, which is above it"),
        ("qmpshim.machine.nbd.gate.gate", "from qmpshim import conformance",
         "1: the machine layer imports qmpshim.conformance, which is above it"),
        ("qmpshim.conformance.workload.verify", "from ...shim.server import Server",
         "1: the conformance layer imports qmpshim.shim.server.Server, which is above it"),
        ("qmpshim.errors", "import qmpshim.model.disks.image",
         "1: the errors layer imports qmpshim.model.disks.image, which is above it"),
        ("qmpshim.conformance.check.suites", 'KINDS = {"shim": "qmpshim.shim.differential:run"}',
         "1: the conformance layer imports qmpshim.shim.differential, which is above it"),
        ("qmpshim.machine.host.workspace",
         'argv = ["-m", "qmpshim.conformance.check.run.case_worker"]',
         "1: the machine layer imports qmpshim.conformance.check.run.case_worker, "
         "which is above it"),
        ("qmpshim.machine.nbd.gate.gate", "x = 1\nprint(x)", "2: print() on the machine layer"),
    ],
)  # fmt: skip
def test_what_is_found(module: str, source: str, fault: str) -> None:
    assert faults(source, module) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qmpshim.model.disks.image", "import enum\nfrom qmpshim.errors import InputError"),
        ("qmpshim.model.disks.image",
         "from qmpshim.model.runtime.coroutines import Co\nfrom . import co"),
        ("qmpshim.machine.nbd.gate.gate", "import numpy, qemu.qmp\nfrom qmpshim.model import disk"),
        ("qmpshim.cli", "from qmpshim.shim import server\nprint()"),
        ("qmpshim.shim.emulator.serve",
         'KIND = "qmpshim.conformance.check.runners.verify:verify"'),
        ("qmpshim.machine.nbd.gate.gate", 'SAID = "as qmpshim.shim.endpoint.server does"'),
        ("qmpshim.commands.verify", "import qmpshim\nprint()"),
    ],
)  # fmt: skip
def test_what_is_not(module: str, source: str) -> None:
    assert faults(source, module) == []


def imported_tests(source: str, module: str) -> list[str]:
    """The test modules that a module of ours imports, as ``line: name``."""
    return [
        f"{line}: {target}"
        for line, target in imports(source, module)
        if any(part.startswith("test_") or part == "conftest" for part in target.split("."))
    ]


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_what_tests_share_is_in_support(path: Path) -> None:
    assert imported_tests(path.read_text(), name_of(path)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from vmtests.shim.test_shim import Service", ["1: vmtests.shim.test_shim.Service"]),
        ("from vmtests.shim import test_shim", ["1: vmtests.shim.test_shim"]),
        ("import vmtests.shim.test_shim as shim", ["1: vmtests.shim.test_shim"]),
        ("def f():\n    from ..shim.test_shim import Service",
         ["2: vmtests.shim.test_shim.Service"]),
        ("from . import conftest", ["1: vmtests.machine.conftest"]),
        ("from vmtests.support.shim_harness import test", []),
        ("from qmpshim.model import machine", []),
    ],
)  # fmt: skip
def test_imports_of_tests_are_found(source: str, found: list[str]) -> None:
    assert imported_tests(source, "vmtests.machine.test_image") == found
