"""The steps of whatever bundle has no schedule: a draft of them, and the stand-alone script.

What there is no step for is listed for the author: as long as ``TO_WRITE`` is there, the steps make
no script.
"""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.bundles.any_workload import AnyCase, load_case
from qmpshim.conformance.bundles.bundle import WorkloadCase
from qmpshim.conformance.explore.report.finding_files import is_schedule
from qmpshim.conformance.explore.reproducer.export import steps_script
from qmpshim.conformance.known.draft import draft
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.conformance.known.steps.conclusions import by_hand
from qmpshim.conformance.known.steps.of_chain import steps_of_chain
from qmpshim.conformance.known.steps.of_pair import steps_of_pair
from qmpshim.conformance.known.steps.of_points import steps_of_points
from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pointintime.bundle import load_steps
from qmpshim.errors import InputError


def steps_draft(bundle: Path) -> str:
    """The steps, ``""`` for a schedule of `explore`, which is a script's steps itself.

    :raises InputError: it is no bundle, or damaged
    """
    if pair_bundle.is_pair(bundle):
        plan, wanted = pair_bundle.load(bundle)
        if wanted is None:
            raise InputError(f"{bundle}: it shows nothing wrong")
        return steps_of_pair(plan, wanted)
    if is_schedule(bundle):
        return ""
    case = load_case(bundle)
    if isinstance(case, WorkloadCase):
        return steps_of_chain(case)
    if done := load_steps(bundle):
        return steps_of_points(case, done)
    return by_hand("of 5.2 or later", _listed(case), case.divergence)


def bundle_script(bundle: Path) -> str:
    """The stand-alone script of a bundle that is no schedule of `explore`, as a program.

    :raises InputError: it shows nothing wrong, or what it shows has to be looked for by hand
    """
    content = draft(bundle)
    steps = steps_draft(bundle)
    if TO_WRITE in steps:
        raise InputError(
            f"{bundle}: its steps have to be written by hand, `qmpshim findings new` begins them; "
            "`qmpshim replay` shows the finding"
        )
    verdict = content["verdicts"][0]
    return steps_script(f"{verdict}: {content['title']}", steps)


def _listed(case: AnyCase) -> list[str]:
    return [" ".join(str(one).split()) for one in case.operations]
