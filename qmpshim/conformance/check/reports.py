"""All reports of a run, into its directory."""

from __future__ import annotations

import json
from pathlib import Path

from qmpshim.conformance.check.compare import Comparison
from qmpshim.conformance.check.report_html import html
from qmpshim.conformance.check.report_text import junit, tap
from qmpshim.machine.files import write_file

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
        write_file(directory / name, content)
