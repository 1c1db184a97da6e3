"""Lines as qemu.qmp's own qmp-shell takes them, and where ours means something else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qemu.qmp.qmp_shell import QMPShell, QMPShellError

from qmpshim.errors import InputError
from qmpshim.shim.shell.language import DEVIATIONS, Local, QmpRequest, complete, parse

REFUSED = "refused"
CORPUS = r"""
stop
  query-status
device_add driver=e1000 id=net1
a b=1 c=-1 d=+1 e=1_000 f=007 g=1e5 h=- i=
a b=true c=True d=TRUE e=fAlSe f=yes
a b={} c=[] d={"x":1} e={'x':"it's"} f=['a',"b"] g=[1,2.5,-3,true,None,null,False]
a b={'key':'value','obj':{'prop':"value"}}
a b={"x":"a\"b\\c\u00e9\n"} c={'x':'a\'b\\c'} d={'x':'\d'}
a b=[(1,2),{'x':(3,)}] c={1:2,None:4}
a b.c=x
a b.c.d=1
a b={"x":1}
a b=x"y z"w c=d'e f' g=p"q \" r"
a b=x[1 c=x{y d=]} e=a=b f==
a b="x"y c=''""
a b=1 b=2
a b=1 b.c=2
a b
a b=1 c
transaction()
transaction( )
transaction( blockdev-snapshot-sync device=d snapshot-file=f )
transaction( a b={'x':None,"y":[true]} c=1 )
a transaction(
)
""".strip().splitlines()
TRANSACTIONS = (
    "transaction(\n)",
    "transaction(\na\n)",
    "transaction(\nblock-dirty-bitmap-add node=n name=b persistent=True\nabort\n)",
    "transaction( a x=1\nb y=2 )",
    "transaction(\n\n  a x=1  \n  )",
    "transaction(\na x=1)\n)",
)


class Unconnected(QMPShell):
    """qmp-shell's parser."""

    def __init__(self) -> None:
        self._transmode, self._actions = False, []

    def __del__(self) -> None:
        """There is no connection to end."""


def theirs(text: str) -> Any:
    """What qmp-shell would send, typed line by line."""
    shell = Unconnected()
    sent = None
    try:
        for line in text.split("\n"):
            sent = shell._build_cmd(line)
        return normal(sent)
    except (QMPShellError, TypeError):  # the latter: a key that cannot be one
        return REFUSED


def ours(text: str) -> Any:
    """What our shell would send."""
    try:
        item = parse(text)
    except InputError:
        return REFUSED
    return normal(item.message) if isinstance(item, QmpRequest) else item


def normal(message: Any) -> Any:
    """A message as it is on the wire; to QEMU no arguments and {} are the same."""
    if message is not None and not message.get("arguments"):
        message = {"execute": message["execute"]}
    return json.loads(json.dumps(message))


@pytest.mark.parametrize("text", [*CORPUS, *TRANSACTIONS])
def test_the_corpus_means_the_same(text: str) -> None:
    assert complete(text)
    assert ours(text) == theirs(text)


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda d: d.here)
def test_each_deviation_is_one(deviation: Any) -> None:
    assert ours(deviation.line) != theirs(deviation.line)


def test_what_the_deviations_say() -> None:
    """Each of the list, with the value it has here."""

    def arguments(line: str) -> Any:
        return ours(line)["arguments"]

    assert arguments(r'x a="b \"c\" \\ \d"') == {"a": r'b "c" \ \d'}
    assert arguments("x a='it\\'s' b='\"' c='1'") == {"a": "it's", "b": '"', "c": "1"}
    assert arguments("x a.b=1 c=2 a.d=3") == {"a": {"b": 1, "d": 3}, "c": 2}
    assert arguments("x a=null b=None c=none") == {"a": None, "b": None, "c": "none"}
    assert arguments("x a=1.5 b=0x10") == {"a": 1.5, "b": 16}
    assert arguments("x a={'b': [1, 'c d']} e=2") == {"a": {"b": [1, "c d"]}, "e": 2}
    for line in ("x a=[b", "x a={1}", "x a={'b':1,'b':2}", 'x a={"b":1,"b":2}', "x a='", "x =1"):
        assert ours(line) == REFUSED
    assert ours("transaction(\na x=1\ntransaction(\n)") == REFUSED
    assert ours("# x") is None
    for line in ("help stop", "? stop"):
        assert ours(line) == Local("help", ("stop",))
    assert ours("help") == Local("help", ())
    assert ours("exit") == Local("quit", ())
    assert arguments("x a=b\\\nc=d") == {"a": "b", "c": "d"}


def test_qmp_shells_quoted_text_is_what_the_person_meant() -> None:
    line = r'human-monitor-command command-line="qemu-io va \"write -P 33 0 128k\""'
    assert ours(line)["arguments"] == {"command-line": 'qemu-io va "write -P 33 0 128k"'}
    assert ours(r':hmp qemu-io va "write -P 33 0 128k"') == Local(
        "hmp", ('qemu-io va "write -P 33 0 128k"',)
    )


def test_when_a_transaction_is_complete() -> None:
    """It ends where qmp-shell ends it, and is not sent before."""
    for text in TRANSACTIONS:
        lines = text.split("\n")
        for count in range(1, len(lines)):
            assert not complete("\n".join(lines[:count])), lines[:count]
    assert not complete("transaction(\n# not yet )")
    assert ours("transaction(\n# a comment )\na x=1\n)")["arguments"]["actions"] == [
        {"type": "a", "data": {"x": 1}}
    ]
    for wrong in ("transaction(", "transaction(\na\n) b", "transaction(\na x\n)"):
        assert ours(wrong) == REFUSED
    with pytest.raises(InputError, match="nothing may follow"):
        parse("transaction(\na\n)\nb")


# -- what Hypothesis thinks of ------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True)
PLAIN = st.text(st.sampled_from("abtrue01-+_/:,.=[]{}()\\é"), max_size=8).filter(
    lambda t: (
        t not in ("null", "None")
        and t[:1] not in ("[", "{")
        and not t.endswith("\\")
        and not re.fullmatch(r"-?(\d+\.\d+.*|0x.*)", t)
    )
)
TEXTS = st.text(st.sampled_from("ab\"'\\ =é{}[]"), max_size=5)
SCALARS = st.integers(-(1 << 63), 1 << 63) | st.booleans() | st.none() | TEXTS
COMPOUND = st.recursive(
    st.dictionaries(NAMES, SCALARS, max_size=3) | st.lists(SCALARS, max_size=3),
    lambda inner: st.dictionaries(TEXTS, inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=6,
)


def _without_blanks(value: Any, python: bool) -> str:
    """JSON or Python; outside of quotes there are no blanks."""
    if isinstance(value, dict):
        pairs = (f"{_without_blanks(k, python)}:{_without_blanks(v, python)}"
                 for k, v in value.items())  # fmt: skip
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_without_blanks(item, python) for item in value) + "]"
    return repr(value) if python else json.dumps(value, ensure_ascii=False)


VALUES = (
    PLAIN
    | st.integers().map(str)
    | st.sampled_from(["true", "False", "TRUE"])
    | st.builds(_without_blanks, COMPOUND, st.booleans())
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=4).map(
    lambda made: " ".join(f"{key}={value}" for key, value in made.items())
)
ACTIONS = st.lists(st.tuples(NAMES, ARGUMENTS).map(" ".join), max_size=3)


@settings(max_examples=400)
@given(NAMES.filter(lambda n: n not in ("help", "exit")), ARGUMENTS)
def test_commands_mean_the_same(name: str, arguments: str) -> None:
    line = f"{name} {arguments}"
    assert ours(line) == theirs(line) != REFUSED


@settings(max_examples=100)
@given(ACTIONS)
def test_transactions_mean_the_same(actions: list[str]) -> None:
    text = "\n".join(["transaction(", *actions, ")"])
    assert complete(text)
    assert ours(text) == theirs(text) != REFUSED


_TOKENS = re.compile(r"""(?:[^\s"']|"(?:\\.|[^"])*"|'(?:\\.|[^'])*')+""")  # qmp-shell's
#: The same where a backslash always protects a quote: qmp-shell takes it for the end if need be.
_CLOSED = re.compile(r"""(?:[^\s"']|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')+""")
#: A value or key that :data:`DEVIATIONS` speak of: quoted, bracketed, number, null, dotted, empty.
_DEVIANT = re.compile(r"""=["'\[{]|=-?\d+\.\d|=-?0[xX]|=(null|None)$|^[^=]*\.|^=""")


@settings(max_examples=1000)
@given(st.text(st.sampled_from("ab1=.\"'\\{}[] :,-tTrue()#"), max_size=24))
@example("b=1 b=2")
@example("a='x y'z")
@example("'=\\'")
def test_any_text_means_the_same_or_deviates_as_documented(text: str) -> None:
    line = f"x {text}"
    tokens = _TOKENS.findall(line)
    unclosed = any(bool(pattern.sub("", line).strip()) for pattern in (_TOKENS, _CLOSED))
    if unclosed or line.endswith("\\") or any(_DEVIANT.search(token) for token in tokens):
        ours(line)  # nothing but an InputError may come
    else:
        assert ours(line) == theirs(line)
