"""Steps of a stand-alone script, made of a workload that `verify` or a session has kept.

The nodes, exports and commands are those of the chain's topology: each chain of one disk has steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import Returned
from qmpshim.conformance.known.steps.conclusions import conclusion, expectation
from qmpshim.machine.chain.parts import Export, Node
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.operations import REQUESTS, Operation, Verb


def steps_of_chain(case: ChainCase) -> str:
    """What a script does, as Python, with what ``steps.py.in`` has."""
    found, spec = case.wrong, case.spec
    done = [one for one in case.operations if one.number <= found.operation]
    lines = [f"# A QEMU {spec.topology.needs}", "start_qemu()", *_chain(spec)]
    for one in done:
        last = one is done[-1] and one.number == found.operation
        if last:
            lines += expectation(found)
        lines += _step(one, spec.topology, named=last)
    return "\n".join([*lines, *conclusion(found, _is_wrong(done[-1], found))]) + "\n"


def _is_wrong(one: Operation, found: Divergence) -> bool:
    """Whether it is an operation's own data that is wrong, not what was compared after it."""
    match found.evidence:
        case Returned(export, start, owners):
            place = (one.side.value, one.start, one.count)
            return one.verb is Verb.READ and place == (export, start, sum(n for _, n in owners))
    return False


# -- the chain -----------------------------------------------------------------------------------


def _chain(spec: ChainSpec) -> Iterator[str]:
    """The lines that make the disk, and the function that makes what is above it, at any time."""
    disk, *above = spec.topology.parts
    yield f'image("secondary", {spec.size}, "{spec.secondary}", {spec.cluster}, data=False)'
    yield from _opened(disk)
    yield ""
    yield ""
    yield "def above():"
    for part in above:
        if isinstance(part, Node) and part.image is not None:
            yield f'    image("{part.name}", {spec.size}, "{part.driver}", {spec.cluster})'
        yield from (f"    {line}" for line in _opened(part))
    yield ""
    yield ""
    yield "above()"


def _opened(part: object) -> Iterator[str]:
    match part:
        case Node(name, driver, options):
            file = f', file=on_file("{name}")' if part.image is not None else ""
            yield f'node("{name}", "{driver}"{file}, **{dict(options)!r})'
        case Export(name, node, writable):
            yield f'export("{name}", "{node}", writable={writable})'


def _rebuilt(topology: Topology) -> Iterator[str]:
    """Fresh overlays on the same disk, and nothing runs."""
    above = topology.parts[1:]
    exports = [one.name for one in above if isinstance(one, Export)]
    nodes = [one.name for one in reversed(above) if isinstance(one, Node)]
    yield f"take_apart({exports}, {nodes})"
    yield "above()"


# -- the operations ------------------------------------------------------------------------------


def _step(one: Operation, topology: Topology, named: bool) -> Iterator[str]:
    """An operation as steps; *named*: its answer is ``text``, and what it returns ``data``."""
    if one.verb is Verb.CHECK:
        return  # the images are compared, which changes nothing
    if one.verb is Verb.REBUILD:
        yield from _rebuilt(topology)
    elif one.verb in REQUESTS:
        request = (
            f'io("{one.side.value}", "{one.verb.value}", {one.start}, {one.count}, {one.number})'
        )
        yield f"text, data = {request}" if named else request
    elif one.verb is Verb.STATUS and topology.replication_mode:
        yield "text = replication_error()" if named else "replication_error()"
    else:
        command = _command(one.verb, topology)
        call = f'answer("{command.name}", **{dict(command.arguments or {})!r})'
        yield f"text = {call}" if named else call
        if one.verb is Verb.STOP and topology.job is not None:
            yield 'until(lambda: not need("query-block-jobs"), "the end of the job")'


def _command(verb: Verb, topology: Topology) -> QmpCommand:
    if verb is Verb.START and topology.begins is not None:
        return topology.begins
    return topology.commands[verb.value]
