"""The shim's commands for a gated chain: hold, see what is held, let go, what was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qmpshim.errors import InputError, NothingToReport
from qmpshim.shim.endpoint.server import Handler
from qmpshim.shim.json.text import Value
from qmpshim.shim.tracking.chains import TrackedChains

if TYPE_CHECKING:
    from qmpshim.shim.gated.io_controller import Held, IoController, Rule


class GatedCommands:
    """The commands, by name in :attr:`handlers`."""

    def __init__(self, chains: TrackedChains) -> None:
        self._chains = chains
        self.handlers: dict[str, Handler] = {
            "x-shim-hold": self._hold,
            "x-shim-let": self._let,
            "x-shim-held": self._held,
            "x-shim-release": self._release,
            "x-shim-schedule": self._schedule,
        }

    def _controller(self) -> IoController:
        if self._chains.controller is None:
            raise NothingToReport("no chain is gated: start the shim with --gated --workflow NAME")
        return self._chains.controller

    async def _hold(self, arguments: dict[str, Value]) -> object:
        from qmpshim.shim.gated.io_controller import Rule

        rule = Rule(
            _text(arguments, "disk"),
            _text(arguments, "operation"),
            arguments.get("metadata") is True,
        )
        if rule.disk == "top":
            raise InputError("the filter has no storage: hold the active disk's")
        controller = self._controller()
        if rule not in controller.rules:
            controller.rules.append(rule)
        return self._describe(controller)

    async def _let(self, _: dict[str, Value]) -> object:
        controller = self._controller()
        controller.let_go()
        return self._describe(controller)

    async def _held(self, _: dict[str, Value]) -> object:
        return self._describe(self._controller())

    async def _release(self, arguments: dict[str, Value]) -> object:
        """One; without a number everything that is held now."""
        controller = self._controller()
        errno = arguments.get("errno")
        number = arguments.get("number")
        numbers = [held.number for held in controller.held] if number is None else [number]
        if isinstance(errno, int) and errno < 1:
            raise InputError(f"{errno} is no errno")
        for one in numbers:
            assert isinstance(one, int)
            controller.release(one, int(errno) if isinstance(errno, int) else 0)
        return self._describe(controller)

    async def _schedule(self, _: dict[str, Value]) -> object:
        return {"steps": [str(event) for event in self._controller().schedule.events()]}

    @staticmethod
    def _describe(controller: IoController) -> dict[str, object]:
        return {
            "rules": [_rule(rule) for rule in controller.rules],
            "held": [held_io(held) for held in controller.held],
            "in-flight": controller.schedule.in_flight,
            "next-operation": controller.schedule.next_number,
        }


def held_io(held: Held) -> dict[str, object]:
    """An I/O that is held, for clients."""
    from qmpshim.conformance.explore.harness.io_naming import VERBS

    io = held.io
    return {
        "number": held.number,
        "disk": io.image,
        "operation": VERBS[io.op],
        "offset": io.offset,
        "length": io.length,
        "step": str(held),
    }


def _rule(rule: Rule) -> dict[str, object]:
    reply: dict[str, object] = {"metadata": rule.metadata}
    if rule.disk is not None:
        reply["disk"] = rule.disk
    if rule.operation is not None:
        reply["operation"] = rule.operation
    return reply


def _text(arguments: Mapping[str, Value], name: str) -> str | None:
    value = arguments.get(name)
    return None if value is None else str(value)
