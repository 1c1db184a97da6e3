"""Which QEMU a build is, so that another one in its place is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, ShownBy, Status
from qmpshim.conformance.document import build_object
from qmpshim.errors import BuildError, InputError
from qmpshim.machine.builds.build import Build, protocol_of, read_version
from qmpshim.machine.builds.probe import fingerprint
from qmpshim.model.check.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a binary.

    :ivar version: in QEMU's own words, with the distribution's package
    :ivar sha256: of the binary
    :ivar path: of the binary, where the run was begun; older results have none
    """

    name: str
    version: str
    sha256: str
    numbers: tuple[int, ...] = ()
    discipline: str = ""
    path: str = ""

    def build_object(self) -> dict[str, Any]:
        """As a build is in every document."""
        more = {"sha256": self.sha256, "discipline": self.discipline}
        return build_object(self.name, self.version, self.path, **more)


def identify(build: Build) -> Identity:
    """Which QEMU a build is now.

    :raises InputError: it is no QEMU
    :raises BuildError: it does not start
    """
    numbers, version = read_version(build)
    sha256 = fingerprint(build.binary)
    return Identity(build.name, version, sha256, numbers, protocol_of(numbers), str(build.binary))


def another_build(build: Build, expected: Identity) -> CaseOutcome | None:
    """A finding, when the build is not the one that the run began with."""
    try:
        now = identify(build)
    except (InputError, BuildError) as error:
        text = f"the build does not answer as it did when the run began: {error}"
        return CaseOutcome(Status.BROKEN, text)
    if (now.version, now.sha256) == (expected.version, expected.sha256):
        return None
    title = f"another QEMU is in the place of {build.name} than when the run began"
    finding = CaseFinding(
        Verdict.PROTOCOL,
        "another build was substituted",
        title,
        f"{expected.version} (sha256 {expected.sha256[:12]})",
        f"{now.version} (sha256 {now.sha256[:12]})",
        replay=ShownBy.PROBE,
    )
    return CaseOutcome(Status.DIVERGED, title, (finding,))
