"""The assessment as one self-contained HTML page, to be handed on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from qmpshim.conformance.assess.advice import MILD, advice, apart
from qmpshim.conformance.assess.assess import INTERRUPTED, Assessment
from qmpshim.conformance.assess.judgement import NOT_AGAINST_IT, UNTRIED, Judgement, Reason
from qmpshim.conformance.html_page import page_of
from qmpshim.conformance.uses import Use
from qmpshim.machine.builds.build import Build

_TEMPLATE = Path(__file__).with_name("templates") / "assess.html.j2"


def page(
    assessments: Sequence[Assessment], again: Mapping[Reason, str], budget: float = 60.0
) -> bytes:
    """The page.

    :param again: the command that shows each reason
    :param budget: seconds that a build had
    """
    rows: list[tuple[Use, list[Judgement]]] = [
        (judgement.use, [one.judgements[at] for one in assessments])
        for at, judgement in enumerate(assessments[0].judgements)
    ]
    return page_of(
        _TEMPLATE,
        assessments=assessments,
        rows=rows,
        again=again,
        not_against_it=NOT_AGAINST_IT[:1].upper() + NOT_AGAINST_IT[1:],
        untried=UNTRIED[:1].upper() + UNTRIED[1:],
        mild=MILD[:1].upper() + MILD[1:],
        apart=apart,
        interrupted=INTERRUPTED[:1].upper() + INTERRUPTED[1:] + ".",
        todo=lambda judgement, build: _todo(judgement, build, budget),
    )


def _todo(judgement: Judgement, build: Build, budget: float) -> tuple[str, str]:
    """What to do to conclude more, and the command; both ``""``: there is an answer."""
    if (found := advice(judgement, budget)) is None:
        return "", ""
    return found.remedy.value, shlex.join(found.words(judgement, build))
