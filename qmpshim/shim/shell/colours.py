"""Colours for a line of the shell while it is typed: by its look, as it is half written."""

from __future__ import annotations

import re
from collections.abc import Callable

from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.lexers import Lexer

from qmpshim.shim.shell.language import in_transaction

KEY, STRING, WORD, NUMBER, COMMAND, LOCAL = (
    *("ansicyan", "ansigreen", "ansimagenta", "ansiyellow", "bold", "ansimagenta"),
)
_JSON = re.compile(
    r"""("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)(\s*:)?|\b(true|false|null)\b|(-?\b\d[\d.eE+-]*)"""
)
_PLAIN = re.compile(
    r"""(?<!\S)([\w.-]+)(=)|("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)
    |(?<![\w-])([Tt]rue|[Ff]alse|null|None)(?![\w-])
    |(?<![\w.-])(-?\d[\w.]*)(?![\w-])""",
    re.VERBOSE,
)


def _json(line: str) -> StyleAndTextTuples:
    parts: StyleAndTextTuples = []
    at = 0
    for found in _JSON.finditer(line):
        parts.append(("", line[at : found.start()]))
        string, colon, word, number = found.groups()
        if string:
            parts.append((KEY if colon else STRING, string))
            parts.append(("", colon or ""))
        else:
            parts.append((WORD if word else NUMBER, word or number))
        at = found.end()
    return [*parts, ("", line[at:])]


def _plain(line: str) -> StyleAndTextTuples:
    blank = len(line) - len(line.lstrip())
    first, space, rest = line[blank:].partition(" ")
    parts: StyleAndTextTuples = [
        ("", line[:blank]),
        (
            LOCAL if first.startswith(":") else "ansigray" if first.startswith("#") else COMMAND,
            first,
        ),
        ("", space),
    ]
    at = 0
    for found in _PLAIN.finditer(rest):
        parts.append(("", rest[at : found.start()]))
        key, equals, string, word, number = found.groups()
        if key:
            parts += [(KEY, key), ("", equals)]
        else:
            parts.append((STRING if string else WORD if word else NUMBER, string or word or number))
        at = found.end()
    return [*parts, ("", rest[at:])]


class Colours(Lexer):
    """Colours commands, keys, strings, numbers."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """How each line of *document* looks."""
        whole = document.text.lstrip().startswith("{")
        actions = in_transaction(document.text)

        def line(number: int) -> StyleAndTextTuples:
            text = document.lines[number]
            return _json(text) if whole or (number and not actions) else _plain(text)

        return line
