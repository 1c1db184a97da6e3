"""What reading images costs: walking a qcow2 file's tables, and comparing its bytes.

Run it: ``python -m vmtests.bench.bench_images``.  Best of five each: other work on the machine only
ever adds.  Nothing is asserted.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qmpshim.machine.host.files import map_file
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import check

KiB, MiB, GiB, TiB = (1 << 10 * power for power in (1, 2, 3, 4))


def build(path: Path, size: int, commands: str = "", **options: object) -> Path:
    """An image of *size* bytes made by qemu-img, after the qemu-io *commands*."""
    chosen = ",".join(f"{name}={value}" for name, value in options.items())
    make = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", chosen] if chosen else [])]
    subprocess.run([*make, str(path), str(size)], check=True)
    if commands:
        write = ["qemu-io", "-f", "qcow2", "-t", "unsafe", str(path)]
        subprocess.run(write, input=commands, text=True, stdout=subprocess.DEVNULL, check=True)
    return path


def fastest(action: Callable[[], object]) -> float:
    """Seconds of the best of five."""
    took = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


def walking(directory: Path) -> None:
    """How long it takes to know what is allocated."""
    full = build(directory / "full.qcow2", GiB, preallocation="metadata")
    places = (f"write -q {at * GiB + at * 64 * KiB} 64k\n" for at in range(1024))
    large = build(directory / "large.qcow2", TiB, "".join(places))
    for what, path in (
        ("1 GiB, all of it allocated", full),
        ("1 TiB, 1024 scattered clusters", large),
    ):
        found = Qcow2Reader.parse(map_file(path))
        print(
            f"{what:34} runs {1000 * fastest(lambda: list(found.runs())):7.2f} ms, "  # noqa: B023
            f"check {1000 * fastest(lambda: check(found)):7.2f} ms"  # noqa: B023
        )


def comparing(directory: Path) -> None:
    """How fast a disk's bytes pass by."""
    size, small = 128 * MiB, 4 * KiB
    ordered = build(directory / "ordered", size, f"write -q -P 17 0 {size}\n")
    places = list(range(0, 32 * MiB, small))
    random.Random(1).shuffle(places)
    writes = "".join(f"write -q -P 17 {at} {small}\n" for at in places)
    scattered = build(directory / "scattered", 32 * MiB, writes, cluster_size=small)
    wanted = np.full(MiB, 17, np.uint8)
    view = ImageView.open(scattered)

    def by_pieces() -> None:
        for piece in ImageView.open(ordered).pieces():
            assert piece.data is not None
            data = np.frombuffer(piece.data, np.uint8)
            for at in range(0, len(data), MiB):
                assert np.array_equal(data[at : at + MiB], wanted[: len(data) - at])

    def by_read() -> None:
        for at in range(0, 32 * MiB, MiB):
            assert np.array_equal(view.read(at, MiB), wanted)

    for what, length, compare in (
        ("in order, by pieces", size, by_pieces),
        ("4 KiB at random, by reads", 32 * MiB, by_read),
    ):
        print(f"{what:34} {length / GiB / fastest(compare):.2f} GiB/s (wanted: 1)")


def main() -> None:
    with Workspace() as workspace:
        walking(workspace.path)
        comparing(workspace.path)


if __name__ == "__main__":
    main()
