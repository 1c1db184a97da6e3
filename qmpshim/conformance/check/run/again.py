"""How a finding of a run is seen again: where its bundle is, and the command."""

from __future__ import annotations

import shlex
from pathlib import Path

from qmpshim.conformance.check.case import CaseFinding, ShownBy
from qmpshim.conformance.check.run.journal import CASES, Key, Plan
from qmpshim.machine.host.files import slug


def bundle_place(key: Key, finding: CaseFinding) -> str:
    """Where a finding's bundle is, from the run's directory."""
    return "/".join((CASES, *(slug(part) for part in key), finding.bundle))


def replay_command(plan: Plan, key: Key, finding: CaseFinding, run: Path = Path()) -> str:
    """The command that shows a finding again.

    :param run: the run's directory, as seen from where the command is given
    """
    build, case = key
    called = plan.places.get(build, build)
    if finding.replay == ShownBy.PROBE:
        return f"{finding.replay} {shlex.quote(called)}"
    if finding.replay == ShownBy.BUNDLE:
        which = "--qemu" if "/" in called else "--build"
        place = shlex.quote(str(run / bundle_place(key, finding)))
        return f"{finding.replay.replace('{bundle}', place)} {which} {shlex.quote(called)}"
    words = ["qmpshim", "check", "--case", case]
    if plan.called not in ("", "quick"):
        words += ["--suite", plan.called]
    return shlex.join([*words, "--build", called])
