"""All reports of a run, into its directory."""

from __future__ import annotations

import json
from pathlib import Path

from qmpshim.conformance.check.report.compare import Comparison, headline
from qmpshim.conformance.check.report.html import html
from qmpshim.conformance.check.report.text import junit, tap
from qmpshim.conformance.check.run.journal import HTML, JUNIT, RESULTS, TAP
from qmpshim.conformance.document import Document
from qmpshim.machine.host.files import write_file


def fill(document: Document, comparison: Comparison) -> None:
    """Put a run's results into the document of its command."""
    document.builds = [build.build_object() for build in comparison.results.builds]
    document.result = {**comparison.results.to_json(), "comparison": comparison.summary()}
    document.diverged = any(comparison.failing())
    if document.interrupted is None and document.error is None:
        document.exit_status = comparison.exit_status
        if document.exit_status not in (0, 1):
            document.error = headline(comparison)


def write_reports(
    comparison: Comparison, directory: Path, document: Document | None = None
) -> None:
    """Write ``results.json``, ``junit.xml``, ``report.tap`` and ``report.html``, each whole.

    :param document: of the command, filled; ``None``: of a run that is over
    :raises HostError: one cannot be written
    """
    if document is None:
        document = Document("check")
        fill(document, comparison)
    for name, content in (
        (RESULTS, json.dumps(document.to_json(), indent=1).encode() + b"\n"),
        (JUNIT, junit(comparison)),
        (TAP, tap(comparison).encode()),
        (HTML, html(comparison)),
    ):
        write_file(directory / name, content)
