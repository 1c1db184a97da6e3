"""The catalogue of known defects as text, made from the write-ups: FINDINGS.md beside them."""

from __future__ import annotations

from qmpshim.conformance.known.folder import by_severity, write_ups
from qmpshim.conformance.known.write_ups import DIRECTORY, WriteUp
from qmpshim.conformance.uses import Use

CATALOGUE = DIRECTORY.with_name("FINDINGS.md")

_HEAD = """\
# Known defects of QEMU

Made from the write-ups in `findings/` by `make findings`; do not edit it. The worst come first.
`qmpshim findings show NAME` shows one with its diagram, `qmpshim findings report NAME` makes a text
for QEMU's tracker of it, `qmpshim assess` tries which of them a build has. *Versions* are those
that have it, by the builds that were tested and by QEMU's sources; *seen on* are those that were
run.

"""


def catalogue() -> str:
    """All write-ups by severity, as Markdown: by use, in a table, and one by one."""
    found = by_severity(write_ups())
    return "".join(
        (
            _HEAD,
            "## By use\n\n| use | findings, the worst first |\n|---|---|\n",
            *(_of_use(use, found) for use in Use),
            "\n## All\n\n| finding | severity | when | affects | versions |\n|---|---|---|---|---|",
            "\n",
            *(_row(one) for one in found),
            "\n## One by one\n",
            *(_section(one) for one in found),
        )
    )


def _of_use(use: Use, found: list[WriteUp]) -> str:
    names = [f"[`{one.name}`](#{_anchor(one)})" for one in found if use in one.meaning.affects]
    return f"| {use.words} | {', '.join(names) or 'none known'} |\n"


def _row(one: WriteUp) -> str:
    meaning = one.meaning
    return (
        f"| `{one.name}` | {meaning.severity.words} | {meaning.trigger.words} "
        f"| {', '.join(use.words for use in meaning.affects)} | {one.versions} |\n"
    )


def _section(one: WriteUp) -> str:
    meaning = one.meaning
    rows = {
        "Affects": ", ".join(use.words for use in meaning.affects),
        "Severity": f"{meaning.severity.words}, {meaning.trigger.words}",
        "When": meaning.situation,
        "Then": meaning.consequence,
        "Avoid it": meaning.workaround,
        "Versions": f"{one.versions}; seen on {', '.join(meaning.seen) or 'none that was run'}",
        "Upstream": _upstream(one),
        "Why": one.reason,
        "Where": one.source,
        "See also": ", ".join(f"`{name}`" for name in one.related),
    }
    text = "".join(f"* **{name}**: {value.rstrip('.')}.\n" for name, value in rows.items() if value)
    return f'\n<a id="{_anchor(one)}"></a>\n### {one.title}\n\n`{one.name}`\n\n{text}'


def _upstream(one: WriteUp) -> str:
    fix = f"; {one.meaning.fix}" if one.meaning.fix else ""
    return f"{one.meaning.upstream.value}{fix}"


def _anchor(one: WriteUp) -> str:
    return one.name.replace("/", "-")
