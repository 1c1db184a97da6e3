"""Mutation operators on C source: which one-line faults a file of QEMU's could have.

tree-sitter parses a function at a time, without a preprocessor. Macros that are no C (attributes of
functions, loops over lists, guards that open a block) are blanked out, byte for byte, before that;
their own words are never mutated. What makes no difference to a client, to a monitor or to what a
crash leaves is left alone: traces, assertions, messages, the release of memory, taking a thread's
mutex where one thread does all the work, and conditions on which nothing but these depends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import tree_sitter
import tree_sitter_c

_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))

_ANNOTATION = re.compile(
    rb"\b(?:coroutine_fn|coroutine_mixed_fn|no_coroutine_fn|co_wrapper\w*|no_co_wrapper\w*"
    rb"|GRAPH_\w+LOCK(?:ED)?(?:_PTR)?|QEMU_PACKED|g_autofree|TSA_\w+|G_GNUC_\w+|ATTRIBUTE_\w+)\b(?!\()"
)
_LOOP = re.compile(rb"\b(?:[A-Z]*_?FOREACH\w*|WITH_QEMU_LOCK_GUARD)(?= *\()")
_GUARDED_BLOCK = re.compile(rb"\bWITH_\w+_GUARD\(\)")

#: Calls whose loss no client can see. bdrv_graph_rdlock_main_loop() and its counterpart only assert
#: (block/graph-lock.c); a CoMutex begins as zeroes (util/qemu-coroutine-lock.c), which is what its
#: memory holds. A mutex that is not taken matters only where a second thread comes at the wrong
#: moment, which no schedule of I/O decides; one that is not released stops the next that wants it,
#: and is a fault. A guard releases it at the end of the block that it is in, so it stays in that.
_WITHOUT_EFFECT = re.compile(
    r"trace_\w+|g?_?assert\w*|g_assert\w*|\w*_CODE|assert_\w+|error_\w+|warn_report\w*|info_report"
    r"|g_free|g_slist_free\w*|g_list_free\w*|g_string_free|g_strfreev|qemu_vfree|qobject_unref"
    r"|qemu_iovec_destroy|qapi_free_\w+|qemu_opts_del|bdrv_refresh_filename|pstrcpy|QEMU_\w+"
    r"|\w+_GUARD\w*|shres_destroy|ratelimit_destroy|visit_free|qemu_co_mutex_init"
    r"|bdrv_graph_rd(?:un)?lock_main_loop|qemu_mutex_lock|job_lock|bdrv_dirty_bitmaps?_lock"
)
#: Checks that are assertions where they abort.
_CHECKS = re.compile(r"bdrv_check_\w*request")
#: Calls that may be made a little later or earlier: where one thread does all the work, no other
#: comes meanwhile.
_RELEASES = re.compile(r"qemu_mutex_unlock|job_unlock|bdrv_dirty_bitmaps?_unlock")
#: Calls that may be made in any order: each is about something of its own.
_IN_ANY_ORDER = re.compile(r"bdrv_release_dirty_bitmap|qdict_(?:put_\w+|del|extract_subqdict)")
_WAITS = re.compile(r"\w*(wait|wake|restart|resume|kick|enter|yield|notify|sleep)\w*")
_RANGES = frozenset({"bytes", "nbytes", "cur_bytes", "len", "size", "length"})
_OFFSETS = frozenset({"offset", "off", "start", "cluster_offset"})
_FLIPPED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_FLAG = re.compile(r"[A-Z][A-Z0-9_]+")
_STEP = 512  # bytes by which a range is changed


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault that can be switched on.

    :ivar number: chooses it; from 1 on
    :ivar operator: the kind of fault, ``statement-dropped``
    :ivar column: where it begins in its line, in bytes from 1 on; of a flag, where the flag does
    :ivar start: where the part of the source that it changes begins, in bytes; ``end``: where that
        ends
    :ivar text: what it makes of that part
    :ivar statement: that part is a statement or two, not an expression
    """

    number: int
    file: str
    function: str
    line: int
    column: int
    operator: str
    start: int
    end: int
    text: str
    original: str
    statement: bool = False

    @property
    def name(self) -> str:
        """The same for the same source, whatever other mutants there are."""
        return f"{self.file}:{self.line}:{self.column}:{self.operator}"

    def wrapped(self, part: str) -> str:
        """The part of the source with the mutant and its switch in it.

        :param part: as it would stand there without this mutant
        """
        switch = f"qmpshim_mutant({self.number})"
        if self.statement:
            return f"{{ if ({switch}) {{ {self.text} }} else {{ {part} }} }}"
        return f"({switch} ? ({self.text}) : ({part}))"


class _Source:
    """A file's text and what may not be touched in it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.macros = {m.start() for m in _LOOP.finditer(text)}
        self.macros |= {m.start() for m in _GUARDED_BLOCK.finditer(text)}
        plain = _ANNOTATION.sub(lambda m: b" " * len(m[0]), text)
        plain = _LOOP.sub(lambda m: b"while".ljust(len(m[0])), plain)
        plain = _GUARDED_BLOCK.sub(lambda m: b"if (1)".ljust(len(m[0])), plain)
        self.tree = _PARSER.parse(plain)

    def of(self, node: tree_sitter.Node) -> str:
        """The text of a node."""
        return self.text[node.start_byte : node.end_byte].decode()


@dataclass(frozen=True, slots=True)
class _Edit:
    operator: str
    node: tree_sitter.Node
    text: str
    statement: bool = False
    last: tree_sitter.Node | None = None
    at: tree_sitter.Node | None = None


def find(file: str, text: bytes, first: int = 1) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines.

    :param file: its name, for the reader of the result
    :param first: the number of the first one
    """
    source = _Source(text)
    found = []
    for function in source.tree.root_node.children:
        if function.type != "function_definition":
            continue
        body = function.child_by_field_name("body")
        declarator = function.child_by_field_name("declarator")
        if body is None or declarator is None:
            continue
        name = _declared(source, declarator)
        found += [(name, edit) for edit in _edits(source, body)]
    found.sort(key=lambda one: (one[1].node.start_byte, one[1].operator))
    return [
        Mutant(
            first + index,
            file,
            name,
            (edit.at or edit.node).start_point.row + 1,
            (edit.at or edit.node).start_point.column + 1,
            edit.operator,
            edit.node.start_byte,
            (edit.last or edit.node).end_byte,
            edit.text,
            text[edit.node.start_byte : (edit.last or edit.node).end_byte].decode(),
            edit.statement,
        )
        for index, (name, edit) in enumerate(found)
    ]


def _declared(source: _Source, declarator: tree_sitter.Node) -> str:
    while (inner := declarator.child_by_field_name("declarator")) is not None:
        declarator = inner
    return source.of(declarator)


def _edits(source: _Source, node: tree_sitter.Node) -> Iterator[_Edit]:
    """The mutants of a node and of all below it."""
    if node.type in ("ERROR", "case_statement", "sizeof_expression") or node.is_missing:
        if node.type != "case_statement":
            return
        value = node.child_by_field_name("value")
        for child in node.named_children:
            if child != value:
                yield from _edits(source, child)
        return
    if node.type == "declaration" and source.of(node).startswith("static"):
        return
    if node.type == "call_expression" and _is_without_effect(source, node):
        return
    if node.type == "if_statement" and _does_nothing(source, node):
        return
    if node.start_byte not in source.macros:
        yield from _condition(source, node)
    yield from _expression(source, node)
    if node.type == "expression_statement":
        yield from _dropped(source, node)
    if node.type == "call_expression":
        yield from _ranges(source, node)
    if node.type == "compound_statement":
        yield from _swapped(source, node)
    skipped = None
    if node.start_byte in source.macros:
        skipped = node.child_by_field_name("condition")
    for child in node.named_children:
        if child != skipped:
            yield from _edits(source, child)


def _callee(source: _Source, call: tree_sitter.Node) -> str:
    function = call.child_by_field_name("function")
    return source.of(function) if function is not None else ""


def _is_without_effect(source: _Source, call: tree_sitter.Node) -> bool:
    callee = _callee(source, call)
    if _CHECKS.fullmatch(callee):
        return source.of(call).endswith("&error_abort)")
    return _WITHOUT_EFFECT.fullmatch(callee) is not None


def _does_nothing(source: _Source, node: tree_sitter.Node | None) -> bool:
    """Whether a statement consists of calls without effect only."""
    if node is None:
        return True
    if node.type == "if_statement":
        branches = (node.child_by_field_name(name) for name in ("consequence", "alternative"))
        return all(_does_nothing(source, branch) for branch in branches)
    if node.type in ("compound_statement", "else_clause", "expression_statement"):
        return all(_does_nothing(source, child) for child in node.named_children)
    if node.type == "call_expression":
        return _is_without_effect(source, node)
    return node.type == "comment"


def _condition(source: _Source, node: tree_sitter.Node) -> Iterator[_Edit]:
    """A condition negated; one that finds an error, never true."""
    if node.type not in ("if_statement", "while_statement", "do_statement", "for_statement",
                         "conditional_expression"):  # fmt: skip
        return
    condition = node.child_by_field_name("condition")
    if condition is None:
        return
    if condition.type == "parenthesized_expression":
        condition = condition.named_children[0]
    text = source.of(condition)
    if text in ("1", "true", "0", "false"):
        return
    yield _Edit("condition-negated", condition, f"!({text})")
    then = node.child_by_field_name("consequence")
    leaves = then is not None and re.search(r"\b(return|goto)\b", source.of(then)) is not None
    if node.type == "if_statement" and leaves and re.search(r"< 0\b|^!|^\w*ret\w*$", text):
        yield _Edit("error-ignored", condition, "0")


def _expression(source: _Source, node: tree_sitter.Node) -> Iterator[_Edit]:
    """A bound that is off by one; a flag that is not given."""
    if node.type != "binary_expression":
        return
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    operator = node.child_by_field_name("operator")
    if left is None or right is None or operator is None:
        return
    sign = source.of(operator)
    if sign in _FLIPPED and source.of(right) not in ("0", "NULL"):
        text = f"{source.of(left)} {_FLIPPED[sign]} {source.of(right)}"
        yield _Edit("bound-off-by-one", node, text)
    if sign == "|":
        for kept, dropped in ((left, right), (right, left)):
            if _FLAG.fullmatch(source.of(dropped)):
                yield _Edit("flag-dropped", node, source.of(kept), at=dropped)


def _dropped(source: _Source, node: tree_sitter.Node) -> Iterator[_Edit]:
    """A statement left out."""
    if not node.named_children:
        return
    what = node.named_children[0]
    if what.type == "call_expression":
        callee = _callee(source, what)
        if _is_without_effect(source, what):
            return
        if callee.startswith(("QLIST_", "QSIMPLEQ_", "QTAILQ_", "QSLIST_")) or callee.islower():
            waits = _WAITS.fullmatch(callee) is not None
            yield _Edit("wait-dropped" if waits else "statement-dropped", node, ";", True)
    elif what.type in ("assignment_expression", "update_expression"):
        yield _Edit("statement-dropped", node, ";", True)


def _ranges(source: _Source, call: tree_sitter.Node) -> Iterator[_Edit]:
    """A range that is narrower, wider, or elsewhere, where it is handed on."""
    arguments = call.child_by_field_name("arguments")
    for argument in arguments.named_children if arguments is not None else ():
        if argument.type not in ("identifier", "field_expression"):
            continue
        text = source.of(argument)
        last = re.split(r"->|\.", text)[-1]
        if last in _RANGES:
            narrowed = f"{text} > {_STEP} ? {text} - {_STEP} : {text}"
            yield _Edit("range-narrowed", argument, narrowed)
            yield _Edit("range-widened", argument, f"{text} + {_STEP}")
        elif last in _OFFSETS:
            yield _Edit("range-shifted", argument, f"{text} + {_STEP}")


def _swapped(source: _Source, block: tree_sitter.Node) -> Iterator[_Edit]:
    """Two statements in the other order."""
    before: tree_sitter.Node | None = None
    for one, other in pairwise(block.named_children):
        if before == one:  # of the pair before: pairs do not overlap
            continue
        free = all(_IN_ANY_ORDER.match(source.of(node)) for node in (one, other))
        if not free and all(_moves(source, node) for node in (one, other)):
            text = f"{source.of(other)} {source.of(one)}"
            yield _Edit("statements-swapped", one, text, True, other)
            before = other


def _moves(source: _Source, node: tree_sitter.Node) -> bool:
    if node.type != "expression_statement" or not node.named_children:
        return False
    what = node.named_children[0]
    return (
        what.type == "call_expression"
        and not _is_without_effect(source, what)
        and not _RELEASES.fullmatch(_callee(source, what))
    )


def instrument(text: bytes, mutants: list[Mutant]) -> bytes:
    """The file with all its mutants in it, each behind its switch; no line moves."""
    ordered = sorted(mutants, key=lambda m: (m.start, -m.end, m.number))

    def rendered(start: int, end: int, inside: list[Mutant]) -> str:
        parts, at, index = [], start, 0
        while index < len(inside):
            outer = inside[index]
            index += 1
            within = []
            while index < len(inside) and inside[index].start < outer.end:
                within.append(inside[index])
                index += 1
            parts.append(text[at : outer.start].decode())
            parts.append(outer.wrapped(rendered(outer.start, outer.end, within)))
            at = outer.end
        return "".join((*parts, text[at:end].decode()))

    return rendered(0, len(text), ordered).encode()
