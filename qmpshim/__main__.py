"""Where the command line begins and ends, however it is ended.

Nothing is imported before the working directory is left out of the import path.
"""

import contextlib
import gc
import os
import sys

from qmpshim.machine.host.safe_path import leave_out_working_directory


def main() -> int:
    """The entry point of ``qmpshim``; returns the exit status (see the README)."""
    leave_out_working_directory()
    gc.disable()  # what is imported stays: a sixth of the start would be for looking through it
    try:
        from qmpshim.commands import interrupted, streams

        interrupted.keep_interruptions()
        streams.open_missing()
        try:
            from qmpshim.cli import main as command_line  # which takes a moment

            status = command_line()
        except SystemExit as ended:  # argparse's: --help, --version, wrong words
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:  # a defect of ours: never 1, which means that QEMU diverged
            sys.excepthook(*sys.exc_info())
            status = 2
        return streams.finish(status)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, AttributeError):  # there may be no stderr
            sys.stderr.write("interrupted\n")
        return 130


def stand_in() -> int:
    """The entry point of ``qmpshim-qemu``: test suites start it by the hundred.

    A fourth of its processor time would be for looking for garbage in what is being imported, and
    for taking the interpreter down.
    """
    gc.disable()  # until QEMU is there
    leave_out_working_directory()
    from qmpshim.commands.stand_in import main as stand_in_for_qemu

    status = stand_in_for_qemu()
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
