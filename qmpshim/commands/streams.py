"""The standard streams: present from the beginning; a failure to write is reported.

Python finds out at the interpreter's end, with a traceback, that what was printed could not be
written; here that is one line and an exit status, and what a command has found is kept first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from qmpshim.errors import HostError

WRONG = 2
BROKEN_PIPE = 141  # as a shell shows the end by SIGPIPE


def open_missing() -> None:
    """Put something at the descriptors 0, 1 and 2 that are closed, so that no file gets them.

    What stands for a closed stdout cannot be written to: output that is not read is a failure.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (it lives as long as the process)
    if sys.stdout is None:
        sys.stdout = _to(1)
    if sys.stderr is None:
        sys.stderr = _to(2)


def _to(number: int) -> TextIO:
    return open(number, "w", closefd=False)


class Output:
    """A stream to write to, whose failure does not stop the work.

    When the first write fails nothing has been done yet, and it raises; a later failure is kept
    until the command has ended. A closed pipe is never more than that.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = False
        self.failure: OSError | None = None

    def write(self, text: str) -> None:
        """Write and flush.

        :raises HostError: it is the first write, and fails
        """
        if self.failure is not None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
            self._begun = True
        except OSError as error:
            self.failure = error
            _silence(self._stream)
            if not (self._begun or isinstance(error, BrokenPipeError)):
                raise HostError(_words(self._stream, error)) from error

    def ending(self, status: int) -> int:
        """The exit status; it shows when something could not be written."""
        return status if self.failure is None else cannot_write(self._stream, self.failure)


def finish(status: int) -> int:
    """Write out what is buffered for stdout, and give the exit status."""
    return stdout_failure() or status


def stdout_failure() -> int | None:
    """Report that stdout cannot be written to and return the exit status; None: it can."""
    output = Output(sys.stdout)
    with contextlib.suppress(HostError):
        output.write("")
    return output.ending(0) or None


def cannot_write(stream: TextIO, error: OSError) -> int:
    """Report a failed stream and return the exit status; a closed pipe is not reported."""
    _silence(stream)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    with contextlib.suppress(OSError):  # stderr itself failed
        print(f"qmpshim: {_words(stream, error)}", file=sys.stderr, flush=True)
    return WRONG


def _words(stream: TextIO, error: OSError) -> str:
    name = "stderr" if stream is sys.stderr else "stdout"
    return f"cannot write to {name}: {error.strerror}"


def _silence(stream: TextIO) -> None:
    """Let the interpreter's own last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
