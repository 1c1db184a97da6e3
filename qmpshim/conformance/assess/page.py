"""The assessment as one self-contained HTML page, to be handed on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

import qmpshim
from qmpshim.conformance.assess.assess import Assessment
from qmpshim.conformance.assess.judgement import NOT_AGAINST_IT, UNTRIED, Judgement, Reason
from qmpshim.conformance.known.meaning import Use


def page(assessments: Sequence[Assessment], again: Mapping[Reason, str]) -> bytes:
    """The page.

    :param again: the command that shows each reason
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows: list[tuple[Use, list[Judgement]]] = [
        (judgement.use, [one.judgements[at] for one in assessments])
        for at, judgement in enumerate(assessments[0].judgements)
    ]
    text = environment.get_template("assess.html.j2").render(
        version=qmpshim.__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        assessments=assessments,
        rows=rows,
        again=again,
        not_against_it=NOT_AGAINST_IT[:1].upper() + NOT_AGAINST_IT[1:],
        untried=UNTRIED[:1].upper() + UNTRIED[1:],
    )
    return text.encode()
