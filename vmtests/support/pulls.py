"""Ways in which a QEMU could keep the bitmaps of a pulled snapshot, as mutants of its storage."""

from __future__ import annotations

from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.machine.chain.build import closing, opening
from qmpshim.machine.chain.gated import GatedMachine
from vmtests.support.gate import of

#: The bitmap that begins with the pull.
SINCE = {"node": "secondary", "name": "b1"}


def _done(machine: GatedMachine, named: NamedIo) -> None:
    """Let a request go, and wait for what comes of it."""
    machine.gate.release(named.io)
    machine.settle()


@of("secondary", "write")
def not_recorded(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap does not record while a write ends, which is when QEMU marks it."""
    machine.call("block-dirty-bitmap-disable", SINCE)
    _done(machine, named)
    machine.call("block-dirty-bitmap-enable", SINCE)


@of("secondary", "write")
def cleared(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap is cleared when a write has ended."""
    _done(machine, named)
    machine.call("block-dirty-bitmap-clear", SINCE)


@of("secondary", "write")
def stopped(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap records no more when a write has ended."""
    _done(machine, named)
    machine.call("block-dirty-bitmap-disable", SINCE)


@of("secondary", "write")
def recorded(machine: GatedMachine, named: NamedIo) -> None:
    """The frozen bitmap has recorded a write when that has ended; it is offered as before.

    The reader of the snapshot must have nothing under way.
    """
    _done(machine, named)
    (export,) = machine.topology.offering
    machine.send(closing(export))
    machine.event_loop.until(lambda: len(machine.call("query-block-exports")) == 1, 5.0)
    merged = {"node": "secondary", "target": "b0", "bitmaps": ["b1"]}
    machine.call("block-dirty-bitmap-merge", merged)
    machine.send(opening(export, lambda node: {}))
    machine.connect(export.name)
    if export.name in machine.status_clients:
        machine.connect_status(export.name)


_WRITTEN = '        if step[0] == "complete" and step[1].startswith("secondary write"):\n'


def _once_written(*lines: str) -> str:
    return _WRITTEN + "".join(f"            {line}\n" for line in lines)


#: The same in an exported script: what it does after each step.
IN_SCRIPT = {
    cleared: _once_written('need("block-dirty-bitmap-clear", node="secondary", name="b1")'),
    stopped: _once_written('need("block-dirty-bitmap-disable", node="secondary", name="b1")'),
    recorded: _once_written(
        'need("block-export-del", id="guest", mode="hard")',
        'while len(need("query-block-exports")) > 1:',
        "    settle()",
        'need("block-dirty-bitmap-merge", node="secondary", target="b0", bitmaps=["b1"])',
        "export(**offering[0])",
        'clients["guest"] = Client(at("nbd"), "guest")',
        'clients["guest status"] = StatusClient(at("nbd"), "guest", ["b0"])',
    ),
}
