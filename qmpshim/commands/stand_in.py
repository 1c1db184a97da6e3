"""The entry point of ``qmpshim-qemu``, apart from the other commands and what they import."""

from __future__ import annotations

import sys
import warnings

from qmpshim.errors import QmpshimError
from qmpshim.shim.emulator.stand_in import stand_in_main


def main() -> int:
    """Be QEMU; ``$QMPSHIM_BUILD`` names the build."""
    warnings.simplefilter("ignore")  # stderr is QEMU's, whatever $PYTHONWARNINGS requests
    try:
        return stand_in_main()
    except QmpshimError as error:
        print(f"qmpshim-qemu: {error}", file=sys.stderr)
        return 1  # as QEMU does when it cannot start
