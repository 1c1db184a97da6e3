"""A finding as a text for QEMU's tracker: Markdown, complete, to be pasted as it is."""

from __future__ import annotations

import json
from pathlib import Path

from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.schedule_diagram import diagram
from qmpshim.conformance.explore.reproducer.export import export_script, steps_script, takes_linux
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.known.bundle_kinds import drafts, load_bundle
from qmpshim.conformance.known.folder import crash_words
from qmpshim.conformance.known.matching import ExplorerWriteUp, WorkloadWriteUp
from qmpshim.conformance.known.meaning import TO_WRITE, Upstream
from qmpshim.conformance.known.write_ups import DIRECTORY, WriteUp
from qmpshim.errors import InputError, name_errnos
from qmpshim.machine.chain.legend import legend
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.model.chain.behaviour import features_of
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb

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


#: What an interval of versions rests on: not each release in it was run.
_BY = "By what was run and QEMU's sources"


def script_of(entry: WriteUp) -> str:
    """The stand-alone script that shows it: of its schedule, or of the steps beside the write-up.

    :raises InputError: it has neither, or they are not filled in
    """
    if isinstance(finding := entry.case, Finding):
        checkpoints = any(op.verb is Verb.CHECKPOINT for op in finding.scenario.ops)
        # The script has to hold requests on each version that the finding was seen on.
        seen = (features_of(tuple(map(int, v.split(".")))) for v in entry.meaning.seen)
        drains = checkpoints and any(one.checkpoint_drains for one in seen)
        return script_of_schedule(finding, breakpoints=not drains)
    return steps_script(entry.title, _written_steps(entry))


def script_of_schedule(finding: Finding, breakpoints: bool = True) -> str:
    """The script of a schedule; one that crashes knows the words of builds beside its own, too.

    :param breakpoints: as of :func:`export_script`
    :raises InputError: it showed nothing wrong
    """
    return export_script(finding, breakpoints, crash_words(finding))


def script_of_bundle(bundle: Path) -> str:
    """The stand-alone script of what a bundle shows.

    :raises InputError: it shows nothing wrong, or what it shows has to be looked for by hand
    """
    if isinstance(case := load_bundle(bundle), Finding):
        return script_of_schedule(case)
    content, steps = drafts(bundle)
    if TO_WRITE in steps:
        raise InputError(
            f"{bundle}: its steps have to be written by hand, `qmpshim findings new` begins them; "
            "`qmpshim replay` shows the finding"
        )
    return steps_script(f"{content['verdicts'][0]}: {content['title']}", steps)


def takes_guest(entry: WriteUp) -> bool:
    """Whether its script takes a Linux guest, which has to be attached to a report, too."""
    return not isinstance(entry.case, Finding) and takes_linux(_written_steps(entry))


def _written_steps(entry: WriteUp) -> str:
    """What is beside a write-up that has no schedule."""
    try:
        steps = steps_of(entry.path).read_text()
    except OSError as error:
        raise InputError(f"{entry.name} has no steps to make a script of: {error}") from error
    if TO_WRITE in steps:
        raise InputError(f"{steps_of(entry.path)}: the steps have to be written")
    return steps


def steps_of(path: Path) -> Path:
    """The file beside a write-up that has the steps, where it has no schedule."""
    return path.with_suffix(".py.in")


def diagram_of(entry: WriteUp) -> str:
    """The interleaving that shows it; ``""`` where a sequence of commands does."""
    return diagram(entry.case) if isinstance(entry.case, Finding) else ""


def command_of(entry: WriteUp) -> str:
    """The command that shows it again, on any host; a build's name may be added."""
    own = entry.path.is_relative_to(DIRECTORY)
    return f"qmpshim replay {entry.name if own else entry.path}"


def tracker_text(entry: WriteUp, attached: str = "") -> str:
    """The report of a finding, without names that only qmpshim knows.

    :param attached: name of the file that the script was written to; ``""``: it is in the text
    """
    meaning = entry.meaning
    expected = entry.expected or " ".join(EXPECTED[one] for one in entry.verdicts)
    parts = (
        f"# {entry.title}",
        f"## Affected versions\n\nRun and seen on: {', '.join(meaning.seen) or 'none so far'}. "
        f"{_BY}: {entry.versions}. Upstream: {meaning.upstream.value}.",
        f"## Impact\n\n{meaning.situation} {meaning.consequence}\n\n"
        f"Severity: {meaning.severity.words}, {meaning.trigger.words}.",
        f"## Steps to reproduce\n\n{_steps(entry, attached)}",
        f"## Expected\n\n{expected}",
        f"## Actual\n\n{observed(entry)}",
        f"## Analysis\n\n{entry.reason.rstrip('.')}.\n\nIn: {entry.source}",
        f"## Fix\n\n{_fix(entry)}",
        f"## Workaround\n\n{meaning.workaround}",
    )
    return "\n\n".join(parts) + "\n"


def observed(entry: WriteUp) -> str:
    """What was seen, by the write-up or by its case: the signal, the answer, the data."""
    if entry.observed:
        return entry.observed
    match entry:
        case ExplorerWriteUp(case=finding):
            return name_errnos(finding.text)
        case WorkloadWriteUp(divergence=found):
            return f"{found.where}: {found.observed} (expected: {found.predicted})"
    raise InputError(f"{entry.name}: `observed` is missing")


def _fix(entry: WriteUp) -> str:
    meaning = entry.meaning
    if meaning.fix is not None:
        return f"Fixed: {meaning.fix}."
    if meaning.upstream is Upstream.FIXED:
        return f"Fixed: not in {entry.fixed_in}. {_BY}; the commit is not established."
    if entry.suggestion:
        return f"A suggestion, which was not tried: {entry.suggestion}"
    return "None is known."


def _steps(entry: WriteUp, attached: str) -> str:
    name = attached or "reproducer.py"
    more, needs = "", "QEMU alone"
    if takes_guest(entry):
        more = " KERNEL INITRAMFS"
        needs = (
            "QEMU, and the small Linux whose program writes to the virtual machine's disk: KERNEL "
            "and INITRAMFS are attached"
        )
    how = (
        f"    python3 {name} QEMU-SYSTEM-BINARY QEMU-IMG{more}\n\n"
        f"It needs Python 3 and {needs}. It exits with 1 where it sees the defect, with 0 where "
        "it does not, with 125 where this QEMU cannot be tested in this way."
    )
    if attached:
        return f"{_in_words(entry)}\n\nThe attached script does this:\n\n{how}"
    text = f"The script at the end of this section does this; save it as `{name}`:"
    return f"{_in_words(entry)}\n\n{text}\n\n{how}\n\n{_block(script_of(entry))}"


def _in_words(entry: WriteUp) -> str:
    """What is done: by the schedule, or by the steps of the write-up."""
    if not isinstance(entry, ExplorerWriteUp):
        return "\n".join(f"{number}. {step}" for number, step in enumerate(entry.steps, 1))
    finding = entry.case
    return "\n\n".join(
        (
            _chain(finding.scenario),
            "The operations, each a column, with time downwards: `*` is what the script does "
            "(starts an operation, lets a request to an image end or fail), `|` is what QEMU does "
            "by itself (sends a request to an image, ends an operation). `hidden write 0+128` is "
            "a request to the image of node `hidden`, of 128 sectors from the sector 0.",
            _block(diagram(finding, named=False), ""),
        )
    )


def _chain(scenario: RealScenario) -> str:
    """What the names in a diagram stand for."""
    topology = scenario.topology
    lines = [
        "What the names stand for (each image is a file here; the script serves it itself where "
        "requests have to wait):",
        "",
    ]
    for what, option in legend(topology):
        lines.append(f"* {what}" + (f"\n\n      -blockdev '{option}'\n" if option else ""))
    done = [*scenario.setup, *scenario.ops]
    commands = {
        name: f"* `{name.replace('_', ' ')}`, QMP {_qmp(topology.commands[name])}"
        for name in (operation.name for operation in done)
        if name in topology.commands
    }
    if topology.begins is not None:
        lines.append(f"* before all of it, QMP {_qmp(topology.begins)}")
    lines += commands.values()
    lines += ["", f"Positions are in sectors of 512 bytes. The disk has {scenario.size} of them"]
    clusters = [
        f"`{name}` {scenario.cluster_of(name)}"
        + (" (`extended_l2=on`)" if topology.image(name).extended else "")
        for name in topology.qcow2
    ]
    lines[-1] += f", a cluster of {', of '.join(clusters)}." if clusters else "."
    if topology.backs_up:
        lines[-1] += " T0 is the moment at which the backup job starts."
    return "\n".join(lines)


def _qmp(command: QmpCommand) -> str:
    return f"`{json.dumps({'execute': command.name, 'arguments': dict(command.arguments)})}`"


def _block(text: str, language: str = "python") -> str:
    return f"```{language}\n{text.rstrip()}\n```"
