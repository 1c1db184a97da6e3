"""Where the command line begins: interrupted at once, it ends as it does later."""

from __future__ import annotations

import sys


def main() -> int:
    """The entry point; returns the exit status (see the README)."""
    try:
        from qmpshim.cli import main as command_line  # which takes a moment

        return command_line()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
