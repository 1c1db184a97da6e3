"""The arguments of a case, as the kinds of check read them."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.check.case import Case
from qmpshim.errors import InputError


def argument(case: Case, name: str, default: Any) -> Any:
    """An argument of the case's, of the default's type.

    :raises InputError: it has another type
    """
    value = case.arguments.get(name, default)
    if type(value) is not type(default):
        raise InputError(f"{case.name}: {name} must be like {default!r}, not {value!r}")
    return value


def only(case: Case, *names: str) -> None:
    """Refuse arguments of other names.

    :raises InputError: the case has one
    """
    unknown = case.arguments.keys() - set(names)
    if unknown:
        raise InputError(
            f"{case.name}: {case.kind} takes {', '.join(names)}, not {', '.join(sorted(unknown))}"
        )
