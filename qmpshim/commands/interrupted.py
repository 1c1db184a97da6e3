"""What a signal raises, and that it is raised once more where it would be lost.

An exception in a finalizer, as when a generator is collected, goes nowhere but to
``sys.unraisablehook``. A KeyboardInterrupt that comes just then would end there, and work go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

_SOON = 0.01  # seconds: the finalizer is over by then, or it comes here once more


class Interrupted(KeyboardInterrupt):
    """A signal came. Of KeyboardInterrupt's kind, which alone gets through an asyncio loop.

    :param number: the signal's
    :param heed: makes the process heed it once more
    """

    def __init__(self, number: int, heed: Callable[[], None]) -> None:
        super().__init__(number)
        self.number, self.heed = number, heed


def keep_interruptions() -> None:
    """From now on, send a signal once more whose exception was lost in a finalizer."""

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        number: int = signal.SIGINT
        match lost.exc_value:
            case Interrupted() as interrupted:
                number = interrupted.number
                interrupted.heed()
            case KeyboardInterrupt():
                pass
            case _:
                sys.__unraisablehook__(lost)
                return
        again = threading.Timer(_SOON, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = unraisable
