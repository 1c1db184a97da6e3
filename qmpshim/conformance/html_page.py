"""A self-contained HTML page: no network, no other file, readable without scripts.

It is made from a template; everything that comes from outside (names, QEMU's words) is escaped
there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

import qmpshim


def page_of(template: Path, **names: Any) -> bytes:
    """The page that a template and what it has by these names make."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template.name).render(
        version=qmpshim.__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **names,
    )
    return text.encode()
