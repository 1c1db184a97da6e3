"""What an installed qmpshim has beside its modules: every file that they read."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_that_is_no_module_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["qmpshim"]
    package = ROOT / "qmpshim"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    there = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert there - installed == set()
