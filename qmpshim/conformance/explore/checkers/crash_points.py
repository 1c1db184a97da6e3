"""Crash points: the images as a crash at this instant leaves them, looked at by three readers.

A crash of QEMU leaves what its disks were given: the gate's bytes after a step (what a loss of
power leaves is in :mod:`.power_loss`). They are read by our own reader; ``qemu-img check`` and a
fresh QEMU that opens the chain take longer and are used where wanted, and after all steps or some.
Leaked clusters are no corruption: qcow2
promises to lose space at most. An image that is marked dirty (an overlay while a checkpoint empties
it) may have any refcounts: what opens it next counts anew, so there the fresh QEMU is used, and
what it leaves must be sound.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from qmpshim.conformance.compare.divergence import verdict_of
from qmpshim.conformance.explore.checkers.power_loss import after_power_loss
from qmpshim.conformance.explore.harness.events import Completed, Event, Failed, Started
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.overlays import faults_of
from qmpshim.conformance.explore.harness.real_system import Looks, RealSystem
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import CommandFailed, ImageError, InputError, MachineError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import first_of
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_header import Incompatible
from qmpshim.machine.images.qemu_img import qemu_img_check
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict

FRESH_QEMU = "a fresh QEMU"  # the reader that opens the whole chain
_NUMBERS = re.compile(r"(\d+)(-(\d*))?")


class How(StrEnum):
    """How the images are looked at."""

    NONE = "none"
    QUICK = "quick"  # by our own reader
    FULL = "full"  # also by qemu-img check, and reopened by a fresh QEMU
    POWER_LOSS = "power-loss"  # by our own reader, whatever part of what is not flushed is lost


@dataclass(frozen=True, slots=True)
class CrashPoints:
    """How the images are looked at, and after which steps.

    :ivar at: numbers of steps, the first being 1, or words that :func:`_terms` has for them,
        ``hidden write`` for one; empty: after all
    """

    how: How = How.NONE
    at: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> CrashPoints:
        """Read ``full``, ``quick:2,4-6`` or ``full:hidden write,checkpoint``.

        :raises InputError: it is nothing of that kind
        """
        how, colon, at = text.partition(":")
        steps = tuple(step.strip() for step in at.split(","))
        good = all(map(_possible, steps)) and how != How.NONE if colon else True
        if how not in list(How) or not good:
            raise InputError(
                f"crash points are {', '.join(How)}, and after a colon the steps, as in full:2,4-6 "
                f"or quick:checkpoint,hidden write; not {text!r}"
            )
        return cls(How(how), steps if colon else ())

    def __str__(self) -> str:
        return f"{self.how}:{','.join(self.at)}" if self.at else self.how.value

    @property
    def check(self) -> Callable[[RealSystem], RealViolation | None] | None:
        """What to call after each step."""
        if self.how is How.NONE:
            return None
        return self._look

    def unmet(self, looks: Looks) -> list[str]:
        """Which of the steps that were chosen there never were."""
        return [step for step in self.at if not looks.chosen[step]]

    def _look(self, system: RealSystem) -> RealViolation | None:
        chosen = [step for step in self.at if _is(step, system.now)]
        if self.at and not chosen:
            return None
        system.looks += Looks(1, Counter(chosen))
        if self.how is How.POWER_LOSS:
            return after_power_loss(system)
        thoroughly = self.how is How.FULL
        return after_a_crash_thoroughly(system) if thoroughly else after_a_crash(system)


NO_CRASH_POINTS = CrashPoints()


def _possible(step: str) -> bool:
    """Whether there may be such a step: they are counted from 1."""
    numbers = _NUMBERS.fullmatch(step)
    return bool(step) and (not numbers or 0 < int(numbers[1]) <= int(numbers[3] or numbers[1]))


def _is(step: str, now: History) -> bool:
    """Whether the step that was taken last is the one that is meant."""
    numbers = _NUMBERS.fullmatch(step)
    if numbers:
        first = int(numbers[1])
        last = int(numbers[3] or len(now.steps)) if numbers[2] else first
        return first <= len(now.steps) <= last
    return _terms(next(event for event in reversed(now.events) if event.what.is_step)).issuperset(
        step.split()
    )


def _terms(step: Event) -> set[str]:
    """What a step of a schedule can be chosen by."""
    terms: set[str] = {step.what.value}
    match step:
        case Started(op, operation):
            terms |= {str(op), *operation.name.split("_")}
        case Completed(io) | Failed(io, _):
            terms |= {io.image, io.verb, *io.place.split()}
    return terms


def after_a_crash(system: RealSystem) -> RealViolation | None:
    """What is wrong with the qcow2 images at this instant, by our own reader."""
    for name in system.machine.qcow2_images:
        try:
            faults = faults_of(Qcow2Reader.parse(system.machine.gate.snapshot(name)))
        except ImageError as error:
            faults = [str(error)]
        if faults:
            return _broken(name, "our reader", faults[0])
    return None


def after_a_crash_thoroughly(system: RealSystem) -> RealViolation | None:
    """The same by our own reader, by ``qemu-img check`` and by a fresh QEMU."""
    found = after_a_crash(system)
    if found is not None:
        return found
    machine = system.machine
    for name in machine.qcow2_images:
        content = machine.gate.snapshot(name)
        if _is_dirty(content):
            continue
        path = machine.workspace.path / f"crash-{name}"
        path.write_bytes(content)
        checked = qemu_img_check(path, machine.build.tool("qemu-img"))
        path.unlink()
        if checked.corruptions:
            return _broken(name, "qemu-img check", f"{checked.corruptions} corruptions")
    return _reopened(machine)


def _reopened(machine: GatedMachine) -> RealViolation | None:
    """Open the chain over copies of the images in another process."""
    fresh = GatedMachine(machine.build, machine.shape, machine.event_loop.deadline)
    try:
        fresh.tear_down()
        for name in machine.images:
            fresh.stores[name].restore(machine.gate.snapshot(name))
        fresh.build_chain()
        fresh.quit()
        for name in fresh.qcow2_images:
            content = fresh.gate.snapshot(name)
            left = faults_of(Qcow2Reader.parse(content))
            left += ["it is dirty still"] if _is_dirty(content) else []
            if left:
                return _broken(name, FRESH_QEMU, f"it leaves: {left[0]}")
    except CommandFailed as error:
        return _broken("chain", FRESH_QEMU, error.desc)
    except ImageError as error:
        return _broken("chain", FRESH_QEMU, f"it leaves: {error}")
    except MachineError as error:
        text = f"reopening after a crash: {error}"
        return RealViolation(verdict_of(error), text, cause=Cause(CauseKind.UNUSABLE_AFTER_CRASH))
    finally:
        fresh.close()
    return None


def _is_dirty(content: bytes) -> bool:
    try:
        return Incompatible.DIRTY in Qcow2Reader.parse(content).header.flags
    except ImageError:
        return False


def _broken(name: str, reader: str, text: str) -> RealViolation:
    return RealViolation(
        Verdict.CORRUPTION,
        f"after a crash at this instant {reader} finds the {name} broken: {text}",
        cause=Cause(CauseKind.BROKEN_BY_CRASH, first_of(name), reader),
    )
