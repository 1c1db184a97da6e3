"""Plain words: docstrings, comments and names use the field's terms.

Programs are "it" and report, return or raise; what the words became stands in qmpshim/README.md.
Texts that a user sees (messages, options, JSON keys) are not looked at: they do not change.
The tests are held to fewer words.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "qmpshim"
BANNED = re.compile(
    r"(?<![a-z])("
    r"ask(s|ed|ing)?|autops(y|ies)|convict\w*|desks?|diar(y|ies)|disciplines?|doors?|eyes?|"
    r"hears?|heard|honest\w*|ledgers?|liar|nobody|reactors?|sabotag\w*|said|say(s|ing)?|stillness|"
    r"straight|tell(s|ing)?|told|vanish\w*|who(ever|m)?"
    r")(?![a-z])",
    re.IGNORECASE,
)
BANNED_IN_TESTS = re.compile(
    r"(?<![a-z])("
    r"convict\w*|honest\w*|liar|lying|nobody|sabotag\w*|said|told|who(ever|m)?"
    r")(?![a-z])",
    re.IGNORECASE,
)
#: A key of the JSON documents and an option; a file object's method; an answer of `assess`.
KEPT_NAMES = {"discipline", "tell", "CANNOT_TELL"}


def used(source: str, banned: re.Pattern[str] = BANNED) -> Iterator[tuple[int, str]]:
    """(line, word) of the banned words in docstrings, comments and names."""

    def those_in(text: str, line: int) -> Iterator[tuple[int, str]]:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # a class's name is several
        yield from ((line, found[1]) for found in banned.finditer(words))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                for at, line in enumerate(text.splitlines()):
                    yield from those_in(re.sub(r"``.*?``|:ivar \w+:", "", line), node.lineno + at)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_name = token.type == tokenize.NAME and token.string not in KEPT_NAMES
        if is_name or token.type == tokenize.COMMENT:
            yield from those_in(token.string, token.start[0])


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_plain_words(path: Path) -> None:
    assert list(used(path.read_text())) == []


@pytest.mark.parametrize(
    "path",
    sorted(path for path in TESTS.rglob("*.py") if path != Path(__file__)),
    ids=lambda path: str(path.relative_to(TESTS)),
)
def test_plain_words_in_tests(path: Path) -> None:
    assert list(used(path.read_text(), BANNED_IN_TESTS)) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('"""Who waits."""', ["Who"]),
        ("told = 1", ["told"]),
        ("def tells(): pass", ["tells"]),
        ("def _told(): pass", ["told"]),
        ("x = 1  # nobody reads", ["nobody"]),
        ('"""One.\n\nIt says so.\n"""', ["says"]),
        ("HONEST = 1", ["HONEST"]),
        ("class HonestDisk: pass", ["Honest"]),
        ('x = "it said so"', []),
        ("discipline = 1  # a tool for whole words", []),
        ('"""As ``ask`` says."""', ["says"]),
    ],
)
def test_what_is_found(source: str, words: list[str]) -> None:
    assert [word for _, word in used(source)] == words
