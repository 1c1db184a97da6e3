"""All reports of a run, into its directory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from qmpshim.conformance.check.compare import Comparison
from qmpshim.conformance.check.report_html import html
from qmpshim.conformance.check.report_text import junit, tap
from qmpshim.errors import HostError

RESULTS, JUNIT, TAP, HTML = "results.json", "junit.xml", "report.tap", "report.html"


def write_reports(comparison: Comparison, directory: Path) -> None:
    """Write ``results.json``, ``junit.xml``, ``report.tap`` and ``report.html``, each whole.

    :raises HostError: one cannot be written
    """
    document = {**comparison.results.to_json(), "comparison": comparison.summary()}
    for name, content in (
        (RESULTS, json.dumps(document, indent=1).encode() + b"\n"),
        (JUNIT, junit(comparison)),
        (TAP, tap(comparison).encode()),
        (HTML, html(comparison)),
    ):
        _write(directory / name, content)


def _write(path: Path, content: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
