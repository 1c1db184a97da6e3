"""A raw image at the end of a backing chain that our readers follow."""

from __future__ import annotations

from qmpshim.machine.images.qcow2 import BytesLike


class RawReader:
    """A raw image as the end of a backing chain.

    :param image: the file's bytes; kept, not copied
    """

    def __init__(self, image: BytesLike) -> None:
        self._image = memoryview(image).cast("B")
        self.virtual_size = len(self._image)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._image[offset : offset + length])
