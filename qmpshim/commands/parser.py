"""Parsers of arguments: their help, their errors, and values that have a unit."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qmpshim.commands.streams import WRONG
from qmpshim.model.units import parse_size

_MOST_CHOICES = 32  # characters of an option's choices that fit into the usage
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def takes_name(
    argument: argparse.Action, names: Callable[[], Sequence[str]], files: bool = False
) -> None:
    """Have completion offer names for an argument.

    :param names: gives those there are; called when the script for the shell is made
    :param files: files and directories, too
    """
    argument.names = names  # type: ignore[attr-defined]
    argument.files = files  # type: ignore[attr-defined]


def size(text: str) -> int:
    """Bytes, with an optional suffix k, M, G or T."""
    number = parse_size(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write e.g. 512, 64k or 1G")
    return number


def in_words(number: int) -> str:
    """The reverse of :func:`size`."""
    for suffix, unit in reversed(_UNITS.items()):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{suffix.upper() or ' byte'}"
    return str(number)


def count(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def seconds(text: str) -> float:
    """A time in seconds, with an optional suffix s or m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write e.g. 30s or 5m")
    return float(found[1]) * (60 if found[2] == "m" else 1)


class HelpFormatter(argparse.HelpFormatter):
    """Help that fits the terminal and breaks lines between words only.

    An option with a long list of choices shows its metavar instead, and the choices in its text.
    """

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        metavar = action.dest.upper() if _long_choices(action) else default_metavar
        if metavar is default_metavar:
            return super()._metavar_formatter(action, default_metavar)
        return lambda number: (metavar,) * number

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return text + _long_choices(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled; one that is indented is an example and stays as it is."""
        return "\n\n".join(
            part
            if part.startswith(" ")
            else textwrap.fill(
                " ".join(part.split()),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
            for part in text.rstrip().split("\n\n")
        )


def _long_choices(action: argparse.Action) -> str:
    """What an option's help adds about its choices if there are too many for the usage, or ''."""
    choices = [str(choice) for choice in action.choices or ()]
    if action.metavar is not None or sum(map(len, choices)) <= _MOST_CHOICES:
        return ""
    return f"; one of {', '.join(choices)}"


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, without the usage."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **more})

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As the base class; the namespace also names the parser with the command's defaults."""
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "parser"):  # a command's own parser comes before those it is below
            found.parser = self
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")
