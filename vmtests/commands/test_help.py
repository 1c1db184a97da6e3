"""Help: it fits 80 columns, breaks no word, and describes every argument and its default once."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import pytest

from qmpshim.cli import COMMANDS, all_parsers, build_parser, main
from qmpshim.commands.parser import HelpFormatter, Parser

PARSERS = list(all_parsers(build_parser()))
WIDTH = 80


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > WIDTH]


def undescribed(parser: argparse.ArgumentParser) -> list[str]:
    """The arguments whose help is missing, or does not name their default exactly once."""
    found = []
    for action in parser._actions:
        if isinstance(action, (argparse._SubParsersAction, argparse._HelpAction)):
            continue
        named = (action.help or "").count("default")
        has_default = action.default not in (None, False, "", [], argparse.SUPPRESS)
        if not action.help or named > 1 or (has_default and not named):
            found.append(action.dest)
    return found


def chosen_twice(parser: argparse.ArgumentParser) -> list[str]:
    """The arguments that one word would choose for in two ways."""
    return [
        action.dest
        for action in parser._actions
        if action.choices and len({*action.choices}) < len([*action.choices])
    ]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_help(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    text = parser.format_help()
    assert too_wide(text) == []
    assert re.findall(r"\w-\n +[a-z]", text) == []
    assert undescribed(parser) == []
    assert chosen_twice(parser) == []


def test_the_help_of_a_command_begins_with_what_it_does() -> None:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert [name for name, one in commands.choices.items() if not one.description] == []


def named(parser: argparse.ArgumentParser) -> list[str]:
    """The commands of a parser, in the order of its help."""
    (below,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return list(below.choices)


def test_each_command_is_where_the_table_has_it() -> None:
    assert named(build_parser()) == list(COMMANDS)
    for command, module in COMMANDS.items():
        with_it = [name for name, other in COMMANDS.items() if other == module]
        assert named(build_parser([command])) == with_it
        assert named(build_parser(["--debug", command])) == with_it
        assert named(build_parser(["--help", command])) == list(COMMANDS)


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        (["--version"], "qmpshim.commands.verify"),
        (["builds", "--help"], "numpy"),
        (["serve", "--help"], "prompt_toolkit"),
        (["verify", "--help"], "jinja2"),
    ],
)
def test_a_command_imports_what_it_needs(words: list[str], unneeded: str) -> None:
    looks = (
        "import sys, qmpshim.cli\n"
        "try: qmpshim.cli.main(sys.argv[2:])\n"
        "except SystemExit: pass\n"
        "sys.exit(sys.argv[1] in sys.modules)"
    )
    python = [sys.executable, "-c", looks, unneeded, *words]
    assert subprocess.run(python, stdout=subprocess.DEVNULL).returncode == 0


def test_what_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    parser = Parser(prog="x", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "a" * (WIDTH + 1)
    choices = [f"copy-before-{number}" for number in range(9)]
    parser.add_argument("--some", choices=choices)
    parser.add_argument("--other", default=3, help="a number")
    parser.add_argument("--third", default=3, help="default 3 (default: 3)")
    assert len(too_wide(parser.format_help())) > 1
    assert undescribed(parser) == ["some", "other", "third"]


def test_long_choices_move_into_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    parser = Parser(prog="x")
    choices = [f"copy-before-{number}" for number in range(9)]
    parser.add_argument("--some", choices=choices, help="one kind")
    parser.add_argument("--few", choices=["a", "b"], help="another")
    text = parser.format_help()
    assert parser.formatter_class is HelpFormatter
    assert "[--some SOME]" in text and "--few {a,b}" in text
    assert f"one kind; one of {', '.join(choices)}" in " ".join(text.split())
    assert too_wide(text) == [] and re.findall(r"\w-\n", text) == []


def test_the_help_of_every_command_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help-all"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for parser in PARSERS:
        assert f"usage: {parser.prog} " in text


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("qmpshim fi", {"findings"}, "check"),
        ("qmpshim findings ", {"list", "show", "report", "new"}, "check"),
        ("qmpshim assess --b", {"--build", "--budget"}, "--strict"),
        ("qmpshim findings show snapshot-read-ret", {"snapshot-read-returns-new-data"}, "show"),
        ("qmpshim verify --build sy", {"system"}, "--build"),
        ("qmpshim replay verify/stop-al", {"verify/stop-always-fails"}, "show"),
        ("qmpshim export snapshot-read-ret", {"snapshot-read-returns-new-data"}, "show"),
        ("qmpshim replay /et", {"/etc"}, "show"),
        ("qmpshim findings list --affects col", {"colo", "colo-primary"}, "fleecing"),
    ],
)
def test_bash_completes_it(line: str, offered: set[str], not_offered: str) -> None:
    """A real bash, which takes the script as its user does."""
    pytest.importorskip("shtab")
    words = line.split(" ")
    script = (
        f'eval "$({sys.executable} -m qmpshim --print-completion bash)"\n'
        f"COMP_WORDS=({' '.join(word or chr(39) * 2 for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        "$(complete -p qmpshim | sed 's/.*-F \\([^ ]*\\).*/\\1/') qmpshim \"${COMP_WORDS[-1]}\"\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    found = set(done.stdout.split())
    assert offered <= found and not_offered not in found, (done, found)


@pytest.mark.parametrize(
    ("command", "about"),
    [("assess", "jobs that write to a target (push)"), ("check", "or a case, as directed/NAME")],
)
def test_words_of_an_option_are_explained(
    command: str, about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert about in " ".join(capsys.readouterr().out.split())
