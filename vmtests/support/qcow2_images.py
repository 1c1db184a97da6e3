"""Images that QEMU's own tools make for the tests of our readers, and ways to damage them."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qmpshim.machine.images.image_view import Piece

KiB, MiB, GiB, TiB = (1 << 10 * power for power in (1, 2, 3, 4))


def run_tool(*argv: str | Path | int, stdin: str | None = None) -> None:
    """Run a program to its end, its output thrown away; CalledProcessError when it fails."""
    subprocess.run(
        [str(arg) for arg in argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=60,
    )


LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
SECRET = "secret,id=key,data=secret"
_UNMEASURED = "Unable to get accurate CPU usage"


def make_luks(
    path: Path,
    size: int,
    qemu_img: Sequence[str] = ("qemu-img",),
    env: Mapping[str, str] | None = None,
) -> None:
    """An encrypted qcow2 image of *size* bytes.

    qemu-img measures how fast it hashes, and where its threads' clock is coarse it now and then
    cannot (qcrypto_pbkdf2_count_iters() in crypto/pbkdf.c, 7.2 to 10.0): then it is run again.
    """
    words = ["create", "-q", "--object", SECRET, "-f", "qcow2", "-o", LUKS, str(path), str(size)]
    for _ in range(10):
        done = subprocess.run(
            [*qemu_img, *words], env=env, capture_output=True, text=True, timeout=60
        )
        if _UNMEASURED not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def make_image(path: Path, size: int, *commands: str, **options: object) -> Path:
    """An image of ``size`` bytes made by qemu-img, after the qemu-io ``commands``."""
    chosen = ",".join(f"{name}={value}" for name, value in options.items())
    run_tool(
        "qemu-img", "create", "-q", "-f", "qcow2", *(["-o", chosen] if chosen else []), path, size
    )
    if commands:
        words = ("qemu-io", "-f", "qcow2", "-d", "unmap", "-t", "unsafe")
        run_tool(*words, path, stdin="\n".join(commands) + "\n")
    return path


def five_stretches(path: Path) -> Path:
    """64 clusters of 64 KiB: 0 and 1 DATA in a row, 3 ZERO, 5 ZERO with host bytes, 9 DATA."""
    return make_image(
        path,
        4 * MiB,
        "write -P 1 0 128k",
        "write -z -u 192k 64k",
        "write -P 2 320k 64k",
        "write -z 320k 64k",
        "write -P 3 576k 64k",
    )


def make_raw(path: Path, size: int, value: int) -> Path:
    """A raw image of *size* bytes, each of them *value*."""
    path.write_bytes(bytes([value]) * size)
    return path


def qcow2_node(path: Path, backing: object = None) -> dict[str, object]:
    """A qcow2 node whose backing file is set at run time, as the replication chain does it."""
    file = {"driver": "file", "filename": str(path)}
    return {"driver": "qcow2", "file": file, "backing": backing}


def converted(chain: object, out: Path) -> bytes:
    """What QEMU itself reads through a chain."""
    run_tool("qemu-img", "convert", "-O", "raw", "json:" + json.dumps(chain), out)
    return out.read_bytes()


def flat(pieces: Iterable[Piece]) -> bytes:
    """The bytes of consecutive pieces; a piece without data reads as zeroes."""
    return b"".join(bytes(p.length) if p.data is None else bytes(p.data) for p in pieces)


def check_fails(path: Path) -> bool:
    """Whether qemu-img check finds corruptions or leaks, or cannot even begin."""
    done = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, timeout=60)
    return done.returncode != 0


class Tables:
    """Where an image keeps its first tables, and how to write into them."""

    def __init__(self, image: bytearray) -> None:
        self.image = image
        (self.l1,) = struct.unpack_from(">Q", image, 40)
        (self.reftable,) = struct.unpack_from(">Q", image, 48)
        self.l2 = self.word(self.l1) & 0x00FF_FFFF_FFFF_FE00
        self.block = self.word(self.reftable)

    def word(self, at: int) -> int:
        """The big-endian 64-bit word at byte *at* of the image."""
        return int(struct.unpack_from(">Q", self.image, at)[0])

    def put(self, at: int, value: int) -> None:
        """Write the word at byte *at*."""
        struct.pack_into(">Q", self.image, at, value % (1 << 64))

    def flip(self, at: int, bits: int) -> None:
        """Invert *bits* of the word at byte *at*."""
        self.put(at, self.word(at) ^ bits)

    def refcount(self, host: int, value: int) -> None:
        """Set the refcount of the 64 KiB cluster at byte *host* of the image."""
        struct.pack_into(">H", self.image, self.block + host // (64 * KiB) * 2, value)

    def data(self, cluster: int) -> int:
        """Where the data of a guest cluster is, in bytes of the image."""
        return self.word(self.l2 + 8 * cluster) & 0x00FF_FFFF_FFFF_FE00
