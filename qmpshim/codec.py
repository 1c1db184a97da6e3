"""JSON files, and dataclasses as JSON values and back, field by field and checked, by msgspec."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qmpshim.errors import InputError, decoding, one_line, os_errors

_T = TypeVar("_T")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    :raises InputError: it cannot be read, or is no JSON
    """
    with os_errors(InputError, str(path)), decoding(str(path)):
        return json.loads(path.read_text())


def encode(value: Any, *, order: bool = False) -> Any:
    """*value* as :func:`json.dumps` takes it: dataclasses are objects, enums their values.

    :param order: sort objects and sets, which have none of their own
    """
    return msgspec.to_builtins(value, order="deterministic" if order else None)


def decode(kind: type[_T], value: Any, what: str) -> _T:
    """The reverse of :func:`encode`. Fields that *kind* has not are passed over.

    :param what: for the message, as in ``a case``
    :raises InputError: *value* is no *kind*; the message has the place
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # a lone surrogate, for one
        raise InputError(one_line(f"not {what}: {error}")) from error


def decode_all(kind: type[_T], value: Any, what: str) -> _T:
    """As :func:`decode`; a field that *kind* has not is an error.

    :raises InputError: *value* is no *kind*
    """
    found = decode(kind, value, what)
    known = {field.name for field in fields(found)}  # type: ignore[arg-type]
    if unknown := sorted(value.keys() - known):
        raise InputError(one_line(f"not {what}: nothing is known of {', '.join(unknown)}"))
    return found
