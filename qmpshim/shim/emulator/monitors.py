"""Finds the QMP monitors in a QEMU command line and takes them out: the shim serves them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qmpshim.shim.endpoint.listener import Address

_ON = ("on", "yes", "true", "y")
_SOCKET_OPTIONS = {"id", "path", "host", "port", "fd", "server", "wait", "nodelay", "ipv4", "ipv6"}


@dataclass(frozen=True, slots=True)
class Monitor:
    """One QMP monitor that a command line requests.

    :ivar address: where it listens or connects; None for *fd* and *stdio*
    :ivar server: whether it listens
    :ivar wait: whether QEMU waits for the first client before it starts
    :ivar fd: an inherited descriptor of a connected (or, with *server*, listening) socket
    :ivar stdio: standard input and output
    :ivar pretty: whether it prints JSON over several lines
    """

    address: Address | None = None
    server: bool = False
    wait: bool = False
    fd: int | None = None
    stdio: bool = False
    pretty: bool = False


def _split(value: str) -> list[tuple[str, str | None]]:
    """QemuOpts: ``key=value`` and flags, separated by commas; a comma in a value is doubled."""
    pieces = [piece.replace("\0", ",") for piece in value.replace(",,", "\0").split(",")]
    pairs = [piece.partition("=") for piece in pieces]
    return [(key, text if equals else None) for key, equals, text in pairs]


def _is_on(options: dict[str, str | None], name: str, default: bool) -> bool:
    if f"no{name}" in options:
        return False
    if name not in options:
        return default
    value = options[name]
    return value is None or value in _ON


def _socket(options: dict[str, str | None]) -> Monitor | None:
    """A ``-chardev socket`` as a monitor, or None where the shim cannot take its place."""
    if not set(options) - {"nowait", "nodelay"} <= _SOCKET_OPTIONS:
        return None
    server = _is_on(options, "server", False)
    wait = server and _is_on(options, "wait", True)
    if (fd := options.get("fd")) is not None:
        return Monitor(fd=int(fd), server=server, wait=wait) if fd.isdigit() else None
    if (path := options.get("path")) is not None:
        return Monitor(Address(path=Path(path)), server, wait)
    port = options.get("port")
    if port is not None and port.isdigit():
        return Monitor(Address(host=options.get("host") or "", port=int(port)), server, wait)
    return None


def _legacy(value: str) -> tuple[Monitor | None, str | None]:
    """The value of ``-qmp``: a monitor, or the id of a chardev."""
    if value == "stdio":
        return Monitor(stdio=True), None
    if value.startswith("chardev:"):
        return None, value.removeprefix("chardev:")
    found = re.match(r"(unix|tcp):", value)
    if not found:
        return None, None
    (where, _), *rest = [(f"{k}={v}" if v is not None else k, v) for k, v in _split(value)]
    options = dict(_split(",".join(piece for piece, _ in rest))) if rest else {}
    where = where.partition(":")[2]
    if found[1] == "unix":
        options["path"] = where
    else:
        host, _, port = where.rpartition(":")
        options |= {"host": host, "port": port}
    return _socket(options), None


def extract(arguments: Sequence[str]) -> tuple[list[str], list[Monitor]]:
    """The arguments without their QMP monitors, and the monitors.

    What the shim cannot take the place of (pipes, telnet, TLS, HMP monitors) stays.
    """
    kept: list[tuple[str, str | None]] = []
    chardevs: dict[str, dict[str, str | None]] = {}
    at = 0
    while at < len(arguments):
        word = arguments[at]
        option = word.removeprefix("-").removeprefix("-") if word.startswith("-") else ""
        if option in ("qmp", "qmp-pretty", "mon", "chardev") and at + 1 < len(arguments):
            kept.append((word, arguments[at + 1]))
            if option == "chardev":
                (kind, _), *rest = _split(arguments[at + 1])
                options = dict(rest)
                if (name := options.get("id")) is not None:
                    chardevs[name] = options if kind == "socket" else {"backend": kind}
            at += 2
        else:
            kept.append((word, None))
            at += 1
    monitors: list[Monitor] = []
    taken: set[str] = set()
    rest_of: list[str] = []
    for word, value in kept:
        monitor = _monitor(word, value, chardevs, taken)
        if monitor is not None:
            monitors.append(replace(monitor, pretty=_is_pretty(word, value)))
        else:
            rest_of += [word] if value is None else [word, value]
    return _without(rest_of, taken), monitors


def _is_pretty(word: str, value: str | None) -> bool:
    option = word.lstrip("-")
    return option == "qmp-pretty" or (
        option == "mon" and _is_on(dict(_split(value or "")), "pretty", False)
    )


def _monitor(
    word: str, value: str | None, chardevs: dict[str, dict[str, str | None]], taken: set[str]
) -> Monitor | None:
    option = word.lstrip("-")
    if value is None or option == "chardev":
        return None
    if option == "mon":
        pairs = _split(value)
        options = dict(pairs)
        name = options.get("chardev") or (pairs[0][0] if pairs[0][1] is None else None)
        if options.get("mode", "readline") != "control":
            return None
    else:
        monitor, name = _legacy(value)
        if monitor is not None:
            return monitor
    if name is None or name not in chardevs:
        return None
    if chardevs[name].get("backend") == "stdio":
        monitor = Monitor(stdio=True)
    else:
        monitor = _socket(chardevs[name])
    if monitor is not None:
        taken.add(name)
    return monitor


def _without(arguments: list[str], taken: set[str]) -> list[str]:
    """*arguments* without the character devices *taken*."""
    out: list[str] = []
    skip = False
    for index, word in enumerate(arguments):
        if skip:
            skip = False
        elif word in ("-chardev", "--chardev") and index + 1 < len(arguments):
            if dict(_split(arguments[index + 1])).get("id") in taken:
                skip = True
            else:
                out.append(word)
        else:
            out.append(word)
    return out
