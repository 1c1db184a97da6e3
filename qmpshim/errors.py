"""The exception hierarchy: each class names where the fault is and the CLI's exit code."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def no_such(kind: str, name: str, there_are: Iterable[str], listing: str) -> str:
    """One line about a name that there is not: what is nearest to it, and what lists all.

    :param kind: what it should be a name of
    :param listing: the command that lists all
    """
    names = list(there_are)
    near = difflib.get_close_matches(name, names, n=3)
    some = f"did you mean {' or '.join(near)}?" if near else f"there is {names[0]}, for one;"
    return f"no {kind} {name[:80]!r}; {some} `{listing}` shows all"


def errno_words(number: int) -> str:
    """An errno for people: its name and what it means, ``EPERM: Operation not permitted``."""
    name = errno.errorcode.get(number)
    return f"{name}: {os.strerror(number)}" if name else f"errno {number}"


def name_errnos(text: str) -> str:
    """A text for people, with the meaning of each ``errno N`` in it."""

    def named(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"{found[0]} ({errno_words(number)})" if number in errno.errorcode else found[0]

    return re.sub(r"\berrno (\d+)\b(?! \()", named, text)


class QmpshimError(Exception):
    """Base of all exceptions of qmpshim; the message is one line: what happened, how to fix it."""

    exit_code = 2


class InputError(QmpshimError):
    """The user's words are wrong: an option's value, a bundle, a scenario file."""


_LONGEST = 400  # characters of a message that may hold what stands in a file


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Wraps the decoding of user input: every decoding error becomes one InputError of one line.

    :param what: the file, for the message
    :raises InputError: it is damaged
    """
    try:
        yield
    except InputError as error:
        message = str(error)
    except KeyError as error:
        message = f"{what} is damaged: it has no {error}"
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        message = f"{what} is damaged: {error}"
    except RecursionError:
        message = f"{what} is damaged: it is nested too deeply"
    else:
        return
    raise InputError(one_line(message))


@contextmanager
def os_errors(kind: type[QmpshimError], what: str) -> Iterator[None]:
    """Gives what the system refuses as one of our errors: ``cannot write FILE: No space left``.

    :param what: was done, or to which file
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}") from error


def one_line(message: str) -> str:
    """A message that quotes input, as one line that is not too long to be read."""
    message = " ".join(message.split())
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 4]} ..."


class NoSuchBuild(InputError):
    """The name of a build that there is not; a place where one should be is another matter."""


class NothingToReport(InputError):
    """What was requested does not exist (no chain is modelled or gated); gives the reason."""


class HostError(QmpshimError):
    """This machine lacks something: a program, a library, disk space, a permission."""


class BuildError(QmpshimError):
    """The QEMU build cannot do what the check needs (no replication driver, does not start)."""

    exit_code = 125


class NotStarted(BuildError):
    """QEMU sent no QMP greeting; this build cannot be tested."""


class OptionMissing(BuildError):
    """The build's own schema has not a command, a driver or an option that a chain needs."""


class DriverMissing(OptionMissing):
    """The build was made without a driver that only some of the work needs."""


class UnsupportedFeature(QmpshimError):
    """An image uses a feature that qmpshim's own reader does not know: nothing is wrong with it.

    :param feature: the feature's name, e.g. ``LUKS encryption``
    """

    exit_code = 125

    def __init__(self, feature: str) -> None:
        super().__init__(f"cannot judge: {feature}")
        self.feature = feature

    def __reduce__(self) -> tuple[type[UnsupportedFeature], tuple[str]]:
        return type(self), (self.feature,)


class ExecutorLost(HostError):
    """The executor of the work is gone; what was done before is kept."""


class WorkerLost(HostError):
    """A process elsewhere that did a part of the work is gone, and the part is not done."""


class MachineError(QmpshimError):
    """A QEMU that was running misbehaved; conformance turns this into a verdict."""


class ImageError(MachineError):
    """An image's bytes are not valid."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    :ivar status: its exit status, negative for a signal; None: it closed its connection and still
        runs
    """

    status: int | None

    def __str__(self) -> str:
        if self.status is None:
            return "closed its connection but still runs"
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"exited with status {self.status}"

    @property
    def explained(self) -> bool:
        """Whether what it wrote last may be the reason: no signal but SIGABRT lets it write one."""
        return self.status is None or self.status >= 0 or self.status == -signal.SIGABRT

    @classmethod
    def parse(cls, text: str) -> Exit:
        """The reverse of ``str``: files have it as that text.

        :raises ValueError: it is none
        """
        if text == str(cls(None)):
            return cls(None)
        if found := re.fullmatch(r"was killed by (SIG\w+)", text):
            if found[1] in signal.Signals.__members__:
                return cls(-signal.Signals[found[1]])
        elif found := re.fullmatch(r"exited with status (\d+)", text):
            return cls(int(found[1]))
        raise ValueError(f"{text!r}: no way to end")


class MachineDied(MachineError):
    """QEMU went away on its own: a signal, an assertion, an unexpected exit.

    :ivar exit: how; None: not known
    :ivar last_words: what it wrote last, or what the system reported; may be empty
    """

    def __init__(self, text: str, exit: Exit | None = None, last_words: str = "") -> None:
        super().__init__(text)
        self.exit = exit
        self.last_words = last_words


class MachineHung(MachineError):
    """QEMU did not answer, or an operation did not end, before the watchdog's limit."""


class ProtocolBroken(MachineError):
    """QEMU's monitor sent data that is not QMP; no further command can be sent."""


class ReplyOverrun(ProtocolBroken):
    """QEMU's NBD server went on with a reply after the chunk that ends it.

    A client that keeps to the protocol ends the connection then.
    """


class GuestPanicked(MachineError):
    """The guest's kernel panicked; the message is the end of its console output."""


class GuestFailed(MachineError):
    """A command in the guest ended with another status than 0.

    :param status: its exit status
    :param output: what it printed
    """

    def __init__(self, command: str, status: int, output: str) -> None:
        message = output.strip().splitlines()
        super().__init__(
            f"{command} ended with status {status}: {message[-1] if message else 'silence'}"
        )
        self.status = status


class CommandFailed(MachineError):
    """QMP answered a command with an error object.

    :param command: the QMP command's name
    :param error_class: QEMU's error class, e.g. ``GenericError``; the human monitor has none
    :param desc: QEMU's text
    """

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"{command}: {desc}")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class IOFailed(MachineError):
    """An NBD request was answered with an error.

    :param errno: the errno the server sent
    """

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {errno_words(errno)}")
        self.errno = errno
