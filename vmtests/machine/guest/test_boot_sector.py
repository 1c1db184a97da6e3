"""The boot-sector guest: its code, its blocks, and that a real BIOS runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest.boot_sector import BLOCK, BootGuest, ConsoleLine, console_lines
from qmpshim.machine.host.process import Qemu


def test_sector() -> None:
    sector = BootGuest().sector()
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")


def test_places_are_a_permutation() -> None:
    guest = BootGuest(blocks=64, base=100)
    places = [guest.place(number) for number in range(1, 65)]
    assert sorted(places) == [100 + 8 * index for index in range(64)]
    assert guest.place(65) == guest.place(1)
    assert guest.end == 100 * 512 + 64 * BLOCK


def test_blocks_differ() -> None:
    guest = BootGuest()
    blocks = {guest.block(number) for number in range(1, 100)}
    assert len(blocks) == 99
    assert all(len(block) == BLOCK for block in blocks)


def test_console() -> None:
    output = b"W00000001\nW00000002\nE0000000a\nW000000"
    assert console_lines(output) == [ConsoleLine("W", 1), ConsoleLine("W", 2), ConsoleLine("E", 10)]


@pytest.mark.parametrize("damaged", [False, True])
def test_runs_and_finds_damage(damaged: bool, tmp_path: Path, qemu_build: Build) -> None:
    guest = BootGuest(blocks=16, delay=50)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(guest.sector().ljust(guest.end, b"\0"))
    words = ["-accel", "tcg", "-m", "32", "-debugcon", f"file:{tmp_path / 'console'}"]
    words += ["-drive", f"if=none,id=disk,format=raw,file={disk},cache=writeback"]
    words += ["-device", "virtio-blk-pci,drive=disk"]

    def printed() -> list[ConsoleLine]:
        try:
            return console_lines((tmp_path / "console").read_bytes())
        except OSError:
            return []

    async def check() -> list[ConsoleLine]:
        qemu = Qemu(qemu_build.command(), tmp_path, words, "pc", qemu_build.env)
        await qemu.start()
        try:
            for _ in range(6000):
                if len(printed()) >= 40:
                    break
                if damaged and len(printed()) > 5:  # what it will read back is not what it wrote
                    with disk.open("r+b") as file:
                        file.seek(guest.base * 512)
                        file.write(bytes(guest.end - guest.base * 512))
                await asyncio.sleep(0.01)
            await qemu.execute("stop")
            return printed()
        finally:
            await qemu.close()

    lines = asyncio.run(check())
    written = [line.number for line in lines if line.kind == "W"]
    assert written == list(range(1, len(written) + 1))
    assert any(line.kind == "E" for line in lines) == damaged
    assert not any(line.kind == "F" for line in lines)
    if not damaged:
        content = disk.read_bytes()
        for number in written[-10:]:
            at = guest.place(number) * 512
            assert content[at : at + BLOCK] == guest.block(number)
