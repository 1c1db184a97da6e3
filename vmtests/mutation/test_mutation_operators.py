"""Mutants of C source: each kind is made, each does what it says when chosen, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mutation_build import HEADER, RUNTIME
from mutation_operators import find, instrument

# A fragment in the style of QEMU's block layer. It prints what it does, so that each mutant can be
# distinguished from the others by what it prints.
SOURCE = rb"""#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#define coroutine_fn
#define GRAPH_RDLOCK
#define QLIST_FOREACH(var, head) for (var = 0; var < (head); var++)
#define WITH_GRAPH_RDLOCK_GUARD() for (int once = 1; once; once = 0)
#define assert(x) ((void)(x))
enum { FLAG_ONE = 1, FLAG_TWO = 2 };
static void copy(long offset, long bytes, int flags)
{ printf("copy %ld %ld %d\n", offset, bytes, flags); }
static void co_wake(void) { puts("wake"); }
static void begin(void) { puts("begin"); }
static void trace_done(int i) { printf("trace %d\n", i); }
static int coroutine_fn GRAPH_RDLOCK write_cluster(long offset, long bytes, int limit)
{
    int i;
    int ret = bytes;
    if (ret < 0) {
        return ret;
    }
    assert(limit > 1);
    QLIST_FOREACH(i, 2) {
        trace_done(i);
    }
    WITH_GRAPH_RDLOCK_GUARD() {
        for (i = 0; i < limit; i++) {
            printf("item %d\n", i);
        }
    }
    begin();
    copy(offset, bytes, FLAG_ONE | FLAG_TWO);
    co_wake();
    return 0;
}
int main(void)
{
    int error = write_cluster(4096, 1024, 2);
    int other = write_cluster(0, -1, 2);
    return error || other != -1;
}
"""
_PLAIN = [
    "trace 0", "trace 1", "item 0", "item 1", "begin", "copy 4096 1024 3", "wake",
]  # fmt: skip
EVERY = find("sample.c", SOURCE)
MUTANTS = [one for one in EVERY if one.function == "write_cluster"]


def _changed(old: str, *new: str) -> list[str]:
    at = _PLAIN.index(old)
    return [*_PLAIN[:at], *new, *_PLAIN[at + 1 :]]


#: What the program prints as each mutant, by operator and the text that it changes.
EXPECTED = {
    ("bound-off-by-one", "i < limit"): _changed("item 1", "item 1", "item 2"),
    ("flag-dropped", "FLAG_ONE"): _changed("copy 4096 1024 3", "copy 4096 1024 1"),
    ("flag-dropped", "FLAG_TWO"): _changed("copy 4096 1024 3", "copy 4096 1024 2"),
    ("range-narrowed", "bytes"): _changed("copy 4096 1024 3", "copy 4096 512 3"),
    ("range-widened", "bytes"): _changed("copy 4096 1024 3", "copy 4096 1536 3"),
    ("range-shifted", "offset"): _changed("copy 4096 1024 3", "copy 4608 1024 3"),
    ("wait-dropped", "co_wake();"): _changed("wake"),
    ("statement-dropped", "begin();"): _changed("begin"),
    ("statement-dropped", "copy(offset, bytes, FLAG_ONE | FLAG_TWO);"): _changed(
        "copy 4096 1024 3"
    ),
    ("statements-swapped", "begin(); copy(offset, bytes, FLAG_ONE | FLAG_TWO);"): [
        *_PLAIN[:4], _PLAIN[5], _PLAIN[4], _PLAIN[6],
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fragment with all mutants of write_cluster() in it."""
    place = tmp_path_factory.mktemp("mutants")
    runtime = RUNTIME.format(count=len(EVERY) + 1).encode()
    (place / "sample.c").write_bytes(HEADER + instrument(SOURCE, MUTANTS) + runtime)
    command = ["gcc", "-Wall", "-Werror", "-o", "sample", "sample.c"]
    subprocess.run(command, cwd=place, check=True)
    return place / "sample"


def _run(program: Path, number: int) -> tuple[list[str], set[int]]:
    """What the program prints as a mutant, and which mutants it reached."""
    record = program.with_name(f"reached-{number}")
    record.write_bytes(bytes(len(EVERY) + 1))
    env = {"QMPSHIM_MUTANT": str(number), "QMPSHIM_REACHED": str(record)}
    done = subprocess.run([program], env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done
    return done.stdout.splitlines(), {n for n, byte in enumerate(record.read_bytes()) if byte}


def test_without_a_mutant_nothing_changes(program: Path) -> None:
    printed, reached = _run(program, 0)
    assert printed == _PLAIN
    assert reached == {one.number for one in MUTANTS}


@pytest.mark.parametrize(("operator", "text"), EXPECTED)
def test_each_operator(program: Path, operator: str, text: str) -> None:
    def about(original: str, replacement: str) -> bool:
        if operator == "flag-dropped":
            return replacement == text
        return " ".join(original.split()) == text

    (mutant,) = (m for m in MUTANTS if m.operator == operator and about(m.original, m.text))
    assert _run(program, mutant.number)[0] == EXPECTED[operator, text]


def test_conditions(program: Path) -> None:
    """Negated, the write does nothing; ignored, the one that fails goes on."""
    (negated,) = (m for m in MUTANTS if m.operator == "condition-negated" and "ret" in m.original)
    assert _run(program, negated.number)[0] == [
        line.replace("4096 1024", "0 -1") for line in _PLAIN
    ]
    (ignored,) = (m for m in MUTANTS if m.operator == "error-ignored")
    assert len(_run(program, ignored.number)[0]) == 2 * len(_PLAIN)


def test_what_is_left_alone() -> None:
    """Traces, assertions and the words of macros are never changed; no line moves."""
    touched = [SOURCE[one.start : one.end] for one in MUTANTS]
    assert not any(b"trace_done" in text or b"assert" in text for text in touched)
    assert not any(text.startswith((b"QLIST_FOREACH", b"WITH_")) for text in touched)
    lines = instrument(SOURCE, MUTANTS).splitlines()
    assert len(lines) == len(SOURCE.splitlines())


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len({one.name for one in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        # On a condition that only a trace or an assertion depends on, nothing else does.
        ("if (a > b) { trace_copy(a); }", []),
        ("if (a > b) { assert(a); } else { trace_copy(b); }", []),
        ("if (a > b) { trace_copy(a); copy(); }", ["bound-off-by-one", "condition-negated",
                                                    "statement-dropped"]),
        # A check that aborts is an assertion, one that returns an error is none.
        ("bdrv_check_request(offset, bytes, &error_abort);", []),
        ("ret = bdrv_check_request(offset, bytes, NULL);",
         ["range-narrowed", "range-shifted", "range-widened", "statement-dropped"]),
        # To take a thread's mutex is left alone; to keep it is a fault, and so is not to take a
        # coroutine's.
        ("qemu_mutex_lock(&s->lock);", []),
        ("qemu_mutex_unlock(&s->lock); copy();", ["statement-dropped"] * 2),
        ("qemu_co_mutex_lock(&s->lock);", ["statement-dropped"]),
        # A guard stays in its block.
        ("JOB_LOCK_GUARD();\ncopy();", ["statement-dropped"]),
        # Calls about different things may come in any order, as long as there are both.
        ('qdict_del(options, "a"); qdict_del(options, "b");', ["statement-dropped"] * 2),
        ("copy(); qdict_del(options, name);", ["statement-dropped"] * 2 + ["statements-swapped"]),
        # What is declared with how it is freed is declared: that is no statement.
        ("g_autofree DriveBackupState *state = opaque;\n\n    if (!state->bs) {\n return;\n}\n",
         ["condition-negated", "error-ignored"]),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_no_mutant(body: str, operators: list[str]) -> None:
    found = find("sample.c", b"static void f(void)\n{\n" + body.encode() + b"\n}\n")
    assert sorted(one.operator for one in found) == operators
