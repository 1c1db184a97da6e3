"""What a line means: JSON, ``command key=value`` as qmp-shell takes it, or a ``:word``.

The syntax of ``command key=value`` and of ``transaction( ... )`` is that of QEMU's own qmp-shell
(``qemu/qmp/qmp_shell.py``); :data:`DEVIATIONS` lists where a line means something else here.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from qmpshim.errors import InputError
from qmpshim.model.units import parse_size
from qmpshim.shim.json.grammar import Malformed
from qmpshim.shim.json.stream import JsonStream

_HEXADECIMAL = re.compile(r"-?0[xX][0-9a-fA-F]+")
_FLOAT = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"' r"|'((?:\\.|[^'\\])*)'", re.DOTALL)
_ESCAPED = re.compile(r"""\\(["'\\])""")
_OPEN, _CLOSE = "transaction(", ")"
_NULL = ("null", "None")


@dataclass(frozen=True, slots=True)
class QmpRequest:
    """A QMP request."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Local:
    """A command of the shell's own."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where this shell differs from qmp-shell.

    :ivar here: what it does
    :ivar there: what qmp-shell does
    :ivar line: a line that shows it
    """

    here: str
    there: str
    line: str


DEVIATIONS = (
    Deviation("a quoted value is the text within; a backslash protects a quote or a backslash",
              "sends the quotes and backslashes, too", r'x a="b \"c\""'),
    Deviation("after a.b=1 the next key begins at the top again", "goes on inside of a",
              "x a.b=1 c=2"),
    Deviation("null and None alone are null", "sends the text", "x a=null"),
    Deviation("1.5 and 0x10 are numbers", "sends the text", "x a=1.5 b=0x10"),
    Deviation("a value that begins with a bracket may have blanks in it", "is split there",
              "x a={'b': 1}"),
    Deviation("a value that begins with a bracket and is neither JSON nor a Python literal, or "
              "gives a key twice, is refused",
              "sends the text, or the last of the two", "x a=[b"),
    Deviation("a quote that is not closed is refused", "leaves the quote out", "x a='"),
    Deviation("a key may not be empty", "is sent", "x =1"),
    Deviation("inside of transaction( another one is refused", "forgets the actions so far",
              "transaction(\ntransaction(\n)"),
    Deviation("# begins a comment, { a JSON request, : a word of the shell's; help, ? and exit are "
              "the shell's, too", "takes each for a command", "# x"),
    Deviation("a backslash at the end of a line continues it", "is a part of the value",
              "x a=b\\\nc=d"),
)  # fmt: skip


def size(text: str) -> int:
    """Bytes, with an optional suffix k, m, g or t.

    :raises InputError: it is no size
    """
    number = parse_size(text)
    if number is None or number >= 1 << 63:
        raise InputError(f"{text!r} is no number of bytes: write 512, 64k or 1M")
    return number


def parse(line: str) -> QmpRequest | Local | None:
    """What to do; None for a blank line or a comment.

    :raises InputError: it cannot be understood
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise InputError("this line is not UTF-8 text") from error
    if line.startswith(":"):
        return _local(line[1:])
    if line.startswith("{"):
        return QmpRequest(_json(line))
    if in_transaction(line):
        return QmpRequest(_transaction(line))
    name, *words = _words(line)
    if name in ("help", "?"):
        return Local("help", tuple(words))
    if name == "exit" and not words:
        return Local("quit", ())
    message: dict[str, Any] = {"execute": name}
    if arguments := _arguments(words):
        message["arguments"] = arguments
    return QmpRequest(message)


def complete(line: str) -> bool:
    """Whether a line can stand alone; if not, the next line belongs to it."""
    text = line.strip()
    if line.endswith("\\"):
        return False
    if in_transaction(text):
        words = text.rpartition("\n")[2].split()
        return not words[0].startswith("#") and _CLOSE in (words[0], words[-1])
    if not text.startswith("{"):
        return True
    stream = JsonStream()
    stream.feed(text.encode(errors="replace") + b"\n")
    return stream.next() is not None


def in_transaction(text: str) -> bool:
    """Whether *text* begins with the word that opens a transaction."""
    return text.split(None, 1)[:1] == [_OPEN]


def _local(text: str) -> Local:
    name, *rest = text.split(None, 1) or [""]
    if name == "hmp":  # the human monitor has a syntax of its own
        return Local(name, tuple(rest))
    words = _words(text)
    if not words:
        raise InputError("a word must follow the colon: try :help")
    return Local(words[0], tuple(words[1:]))


def _json(line: str) -> dict[str, Any]:
    stream = JsonStream()
    stream.feed(line.encode() + b"\n")
    item = stream.next()
    if item is None:
        raise InputError("the JSON does not end")
    if isinstance(item, Malformed):
        raise InputError(item.desc)
    if not isinstance(item.value, dict):
        raise InputError("a request is a JSON object")
    return item.value


def _transaction(text: str) -> dict[str, Any]:
    """The request of ``transaction(``, an action in each line, ``)``."""
    actions: list[dict[str, Any]] = []
    closed = False
    first, *lines = text.replace("\\\n", " ").split("\n")
    for line in (first.strip().removeprefix(_OPEN), *lines):
        words = _words(line)
        if not words or words[0].startswith("#"):
            continue
        if closed or (words[0] == _CLOSE and len(words) > 1):
            raise InputError("nothing may follow the ) that ends a transaction")
        if words[-1] == _CLOSE:
            closed = True
            words.pop()
        if not words:
            continue
        if words[0] == _OPEN:
            raise InputError("a transaction cannot be in another")
        actions.append({"type": words[0], "data": _arguments(words[1:])})
    if not closed:
        raise InputError("the transaction does not end: ) ends it")
    return {"execute": "transaction", "arguments": {"actions": actions}}


def _words(line: str) -> list[str]:
    """Split at blanks outside of quotes and of values that begin with a bracket."""
    words: list[str] = []
    word = ""
    depth = 0
    quote = ""
    escaped = False
    for char in line.replace("\\\n", " "):
        if quote:
            word += char
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
            word += char
        elif char.isspace() and not depth:
            if word:
                words.append(word)
            word = ""
        else:
            if depth or (char in "[{" and word.find("=") == len(word) - 1 >= 0):
                depth += (char in "[{") - (char in "]}")
            word += char
    if quote or depth > 0:
        raise InputError(f"the {'quote' if quote else 'bracket'} is not closed")
    return [*words, word] if word else words


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """The object that ``key=value`` words make."""
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"{word!r}: arguments are written key=value")
        _put(arguments, key, text)
    return arguments


def _put(arguments: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted *key*."""
    place = arguments
    *outer, last = key.split(".")
    for name in outer:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {name} has a value already")
        place = inner
    if last in place:
        raise InputError(f"{key} is given twice")
    place[last] = _value(text)


def _value(text: str) -> Any:
    if quoted := _QUOTED.fullmatch(text):
        return _ESCAPED.sub(r"\1", quoted[1] if quoted[2] is None else quoted[2])
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text in _NULL:
        return None
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text[:1] in ("[", "{"):
        return _compound(text)
    try:
        return int(text)
    except ValueError:
        return text


def _compound(text: str) -> Any:
    """JSON, or a Python literal in which true, false and null may stand, too."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' is a text like any other here
            tree = ast.parse(text, mode="eval")
        value = ast.literal_eval(_Literal().visit(tree))
        return json.loads(json.dumps(value, allow_nan=False))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{text}: neither JSON nor a Python literal; in quotes it is a text"
        ) from error


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    _once([name for name, _ in members])
    return dict(members)


def _once(names: Sequence[object]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{name} is given twice")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class _Literal(ast.NodeTransformer):
    """Makes JSON's names Python's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace true, false and null."""
        names = {"true": True, "false": False, "null": None}
        return ast.Constant(names[node.id]) if node.id in names else node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        """Refuse a key that is given twice."""
        _once([key.value for key in node.keys if isinstance(key, ast.Constant)])
        return self.generic_visit(node)
