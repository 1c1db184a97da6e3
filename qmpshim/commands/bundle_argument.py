"""The argument of `replay` and `export`: a bundle's path, or the name of a known finding."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from qmpshim.commands.parser import takes_name
from qmpshim.conformance.known.folder import by_id, write_ups
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.errors import InputError, no_such


def bundle_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the argument; *what* a bundle is here."""
    argument = parser.add_argument(
        "bundle",
        type=Path,
        help=f"{what}, or the name of a known finding, as `qmpshim findings list` shows it",
    )
    takes_name(argument, lambda: [one.name for one in write_ups()], files=True)


def finding_named(bundle: Path) -> WriteUp | None:
    """The known finding that is meant, None: it is a path.

    A file that there is comes first.

    :raises InputError: it is neither
    """
    if os.path.exists(bundle) or bundle.is_absolute():
        return None
    if (entry := by_id(str(bundle))) is not None:
        return entry
    names = [one.name for one in write_ups()]
    wrong = no_such("finding", str(bundle), names, "qmpshim findings list")
    raise InputError(f"{bundle} is no bundle: {os.strerror(errno.ENOENT)}; {wrong}")
