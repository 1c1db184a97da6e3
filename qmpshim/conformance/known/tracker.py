"""A finding as a text for QEMU's tracker: Markdown, complete, to be pasted as it is."""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.bundles.again import directed_command
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.schedule_diagram import diagram
from qmpshim.conformance.explore.reproducer.export import export_script, steps_script
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.errors import InputError, name_errnos
from qmpshim.model.check.verdict import Verdict

#: What QEMU promises, by what is found not to hold.
EXPECTED: dict[Verdict, str] = {
    Verdict.CONTENT: "Each disk holds what some order of the operations leaves on it.",
    Verdict.ISOLATION: "A reader of the saved state sees the data of before, never newer data.",
    Verdict.ORDER: "Old data is saved before new data reaches the disk.",
    Verdict.ALLOCATION: "The overlays' allocation and metadata are as the operations leave them.",
    Verdict.CRASH: "QEMU carries the operations out, or answers with an error, and goes on.",
    Verdict.HANG: "Each request and each command ends.",
    Verdict.CORRUPTION: "`qemu-img check` finds the image whole.",
    Verdict.ERROR_CONTRACT: "An error is reported to the one who has to know of it, and no other.",
    Verdict.PROTOCOL: "The command or the migration ends as QEMU's documents say.",
    Verdict.LOST_WRITE: "A write that was answered with success is on the disk.",
}


def script_of(entry: WriteUp) -> str:
    """The stand-alone script that shows it: of its schedule, or of the steps beside the write-up.

    :raises InputError: it has neither, or they are not filled in
    """
    if entry.kind == "explore":
        return export_script(load_finding(entry.path))
    try:
        steps = steps_of(entry.path).read_text()
    except OSError as error:
        raise InputError(f"{entry.name} has no steps to make a script of: {error}") from error
    if TO_WRITE in steps:
        raise InputError(f"{steps_of(entry.path)}: the steps have to be written")
    return steps_script(entry.title, steps)


def steps_of(path: Path) -> Path:
    """The file beside a write-up that has the steps, where it has no schedule."""
    return path.with_suffix(".py.in")


def diagram_of(entry: WriteUp) -> str:
    """The interleaving that shows it; ``""`` where a sequence of commands does."""
    return diagram(load_finding(entry.path)) if entry.kind == "explore" else ""


def command_of(entry: WriteUp) -> str:
    """The command that shows it again; a build's name may be added."""
    if entry.kind == "directed":
        return directed_command(entry.name, None)
    return f"qmpshim replay {entry.path}"


def tracker_text(entry: WriteUp, attached: str = "") -> str:
    """The report of a finding.

    :param attached: name of the file that the script was written to; ``""``: it is in the text
    """
    meaning = entry.meaning
    expected = entry.expected or " ".join(EXPECTED[one] for one in entry.verdicts)
    fix = f"Fixed: {meaning.fix}." if meaning.fix else f"No fix is known here; see {entry.source}."
    parts = (
        f"# {entry.title}",
        f"## Affected versions\n\nRun and seen on: {', '.join(meaning.seen) or 'none so far'}. "
        f"By QEMU's sources: {entry.versions}. Upstream: {meaning.upstream.value}.",
        f"## Impact\n\n{meaning.situation} {meaning.consequence}\n\n"
        f"Severity: {meaning.severity.words}, {meaning.trigger.words}.",
        f"## Steps to reproduce\n\n{_steps(entry, attached)}",
        f"## Expected\n\n{expected}",
        f"## Actual\n\n{_actual(entry)}",
        f"## Analysis\n\n{entry.reason.rstrip('.')}.\n\nIn: {entry.source}",
        f"## Fix\n\n{fix}",
        f"## Workaround\n\n{meaning.workaround}",
    )
    return "\n\n".join(parts) + "\n"


def _steps(entry: WriteUp, attached: str) -> str:
    name = attached or "reproducer.py"
    how = (
        f"    python3 {name} QEMU-SYSTEM-BINARY QEMU-IMG\n\n"
        "It needs Python 3 and QEMU alone. It exits with 1 where it sees the defect, with 0 where "
        "it does not, with 125 where this QEMU cannot be tested in this way."
    )
    if attached:
        return f"{_about(entry)}Run the attached script:\n\n{how}"
    text = f"{_about(entry)}Save the script at the end of this section as `{name}`:"
    return f"{text}\n\n{how}\n\n{_block(script_of(entry))}"


def _about(entry: WriteUp) -> str:
    for one in DIRECTED:
        if entry.name == one.id:
            return f"{one.about}\n\n"
    if entry.kind == "pair":
        return "Two QEMUs that COLO joins, as in docs/COLO-FT.txt.\n\n"
    return ""


def _actual(entry: WriteUp) -> str:
    if entry.kind != "explore":
        return entry.meaning.consequence
    finding: Finding = load_finding(entry.path)
    return f"{name_errnos(finding.text)}\n\n{_block(diagram(finding), '')}"


def _block(text: str, language: str = "python") -> str:
    return f"```{language}\n{text.rstrip()}\n```"
