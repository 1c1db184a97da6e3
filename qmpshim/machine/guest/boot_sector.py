"""The smallest guest that writes: one boot sector, run by the BIOS, needing nothing else.

It writes 4 KiB blocks with consecutive numbers to places that a permutation picks, reports each one
that the disk acknowledged on the debug console (port 0xE9) as ``W`` and eight hexadecimal digits,
then reads back the block it wrote five numbers before: ``E`` is a block that is not as it was
written, ``F`` a write that failed. What it writes where depends on the number alone, so the
acknowledged numbers predict the disk to the byte. Its only state is that number, in RAM: a
checkpoint or a migration takes it along.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qmpshim.model.units import SECTOR

BLOCK = 4096  # bytes a write
SECTORS = BLOCK // SECTOR
_PRIME = 0x9E3779B1  # 2**32 divided by the golden ratio: odd, so that multiplying permutes
_PARAMETERS = 0x1F2  # mask, base, delay: 32 bits each
_SIGNATURE = b"\x55\xaa"

# The code at 0000:7C00, 16 bit; behind it the disk address packet and the variables (_DATA).
_CODE = """
                start:
fa                cli
31c0              xor ax,ax
8ed8              mov ds,ax
8ec0              mov es,ax
8ed0              mov ss,ax
bc007c            mov sp,0x7c00
fb                sti
fc                cld
8816ff7c          mov byte [drive],dl
                again:
66ff06007d        inc dword [seq]
66a1007d          mov eax,[seq]
e88d00            call place
bf0080            mov di,0x8000
b90004            mov cx,0x400
66a1007d          mov eax,[seq]
66ab              stos dword es:[di],eax
6605b179379e      add eax,0x9e3779b1
e2f6              loop again+0x16
66a1f77c          mov eax,[lba]
66a30480          mov [0x8004],eax
c706f37c0080      mov word [buffer],0x8000
b443              mov ah,0x43
e88000            call disk
b057              mov al,0x57
7256              jb fail
668b1e007d        mov ebx,dword [seq]
e88000            call tell
66a1007d          mov eax,[seq]
6683e805          sub eax,0x5
7e36              jle pace
66a3047d          mov [old],eax
e84900            call place
c706f37c00a0      mov word [buffer],0xa000
b442              mov ah,0x42
e85800            call disk
7218              jb bad
66a1047d          mov eax,[old]
663b0600a0        cmp eax,dword [0xa000]
750d              jne bad
66054f4aaf3f      add eax,0x3faf4a4f
663b06fcaf        cmp eax,dword [0xaffc]
740a              je pace
                bad:
668b1e047d        mov ebx,dword [old]
b045              mov al,0x45
e84000            call tell
                pace:
668b0efa7d        mov ecx,dword [delay]
e480              in al,0x80
6649              dec ecx
75fa              jne pace+0x5
e973ff            jmp again
                fail:
668b1e007d        mov ebx,dword [seq]
b046              mov al,0x46
e82800            call tell
ebe6              jmp pace
                place:
6669c0b179379e    imul eax,eax,0x9e3779b1
662306f27d        and eax,dword [mask]
66c1e003          shl eax,0x3
660306f67d        add eax,dword [base]
66a3f77c          mov [lba],eax
c3                ret
                disk:
8a16ff7c          mov dl,byte [drive]
b000              mov al,0x0
beef7c            mov si,packet
cd13              int 0x13
c3                ret
                tell:
e6e9              out 0xe9,al
b90800            mov cx,0x8
66c1c304          rol ebx,0x4
88d8              mov al,bl
240f              and al,0xf
0430              add al,0x30
3c39              cmp al,0x39
7602              jbe tell+0x15
0427              add al,0x27
e6e9              out 0xe9,al
e2ec              loop tell+0x5
b00a              mov al,0xa
e6e9              out 0xe9,al
c3                ret
"""
# packet: its size, 8 sectors, buffer 0:0, the 64-bit LBA; then drive, seq and old.
_DATA = struct.pack("<BBHHHQBII", 16, 0, SECTORS, 0, 0, 0, 0, 0, 0)


def _machine_code() -> bytes:
    words = (line.split(None, 1) for line in _CODE.splitlines())
    return b"".join(bytes.fromhex(word[0]) for word in words if word and word[0][-1] != ":")


class ConsoleLine(NamedTuple):
    """A line of the console: ``W``, ``E`` or ``F``, and the write's number."""

    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class BootGuest:
    """The guest's parameters.

    :ivar blocks: how many places there are, a power of two
    :ivar base: first sector it writes to
    :ivar delay: how long it pauses between writes, in reads of an idle port (about 1 to 3 us each)
    """

    blocks: int = 1024
    base: int = 2048
    delay: int = 400

    @property
    def end(self) -> int:
        """The size in bytes that the disk must have at least."""
        return self.base * SECTOR + self.blocks * BLOCK

    @staticmethod
    def words(console: Path, terminal: bool = False) -> list[str]:
        """QEMU's options for it; its output goes to the file *console*; it takes no input."""
        return ["-m", "64", "-smp", "1", "-debugcon", f"file:{console}"]

    @staticmethod
    def code() -> bytes:
        """What the boot sector begins with: the same for all parameters."""
        return _machine_code() + _DATA

    def sector(self) -> bytes:
        """The boot sector."""
        code = self.code()
        parameters = struct.pack("<III", self.blocks - 1, self.base, self.delay)
        return code.ljust(_PARAMETERS, b"\0") + parameters + _SIGNATURE

    def place(self, number: int) -> int:
        """The first sector that write *number* goes to."""
        return self.base + (number * _PRIME & 0xFFFFFFFF & self.blocks - 1) * SECTORS

    def block(self, number: int) -> bytes:
        """What write *number* writes."""
        words = np.arange(BLOCK // 4, dtype=np.uint32) * np.uint32(_PRIME) + np.uint32(number)
        words[1] = self.place(number)
        return words.astype("<u4").tobytes()


_LINE = re.compile(rb"([WEF])([0-9a-f]{8})\n")


def console_lines(console: bytes) -> list[ConsoleLine]:
    """The whole lines of the debug console's output."""
    return [ConsoleLine(kind.decode(), int(number, 16)) for kind, number in _LINE.findall(console)]
