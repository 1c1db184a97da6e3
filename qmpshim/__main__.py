"""``python -m qmpshim``."""

import sys

from qmpshim.cli import main

if __name__ == "__main__":
    sys.exit(main())
