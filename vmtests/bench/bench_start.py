"""What the stand-in adds to a start of QEMU: from the exec to the answer to the capabilities.

    python -m vmtests.bench.bench_start [--quick]

Exit status 1 when the median start through the stand-in takes more than 150 ms longer.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WANTED = 0.150  # seconds
MACHINES = {
    "none": ["-machine", "none", "-nodefaults", "-display", "none"],
    "pc": ["-machine", "pc", "-nodefaults", "-display", "none", "-S"],
}
WAYS = {
    "direct": ["qemu-system-x86_64"],
    "through": [str(Path(sys.executable).parent / "qmpshim-qemu")],
}


def start(command: list[str], machine: list[str]) -> tuple[float, float]:
    """Start a QEMU, negotiate, have it quit: seconds to the answer, and of processor in all."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monitor = ["-chardev", f"socket,id=m,fd={theirs.fileno()}", "-qmp", "chardev:m"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *machine, *monitor], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        file = ours.makefile("rb")
        assert b"QMP" in file.readline()
        ours.sendall(b"{'execute': 'qmp_capabilities'}")
        assert b"return" in file.readline()
        took = time.perf_counter() - begin
        ours.sendall(b"{'execute': 'quit'}")
        while file.readline():
            pass
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    rounds = 5 if "--quick" in sys.argv[1:] else 40
    os.environ.pop("QMPSHIM_BUILD", None)
    with tempfile.TemporaryDirectory() as cache:
        # As where it is installed: without bytecode each start would compile all that it imports.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = cache
        start(WAYS["through"], MACHINES["none"])
        return _measure(rounds)


def _measure(rounds: int) -> int:
    kept = True
    for name, machine in MACHINES.items():
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):  # in turns, so that noise hits both alike
            for way, command in WAYS.items():
                taken[way].append(start(command, machine))
        direct, through = (statistics.median(t for t, _ in taken[way]) for way in WAYS)
        least, most = (statistics.median(c for _, c in taken[way]) for way in WAYS)
        added = through - direct
        print(
            f"start, -machine {name}: direct {direct * 1e3:.0f} ms, through {through * 1e3:.0f} ms:"
            f" {through / direct:.2f} times, {added * 1e3:.0f} ms more (wanted: "
            f"{WANTED * 1e3:.0f}); processor {least * 1e3:.0f} and {most * 1e3:.0f} ms"
        )
        kept = kept and added <= WANTED
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
