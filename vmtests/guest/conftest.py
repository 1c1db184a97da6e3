"""What the guest tests share: the image, built once, and a guest at its prompt."""

from __future__ import annotations

import pytest

from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.image import GuestImage


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest image; on a new machine it is built from Debian's mirror."""
    return guest_image.build()
