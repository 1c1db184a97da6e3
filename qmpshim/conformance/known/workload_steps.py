"""Steps of a stand-alone script, made of a workload that `verify` or a session has kept.

The nodes, exports and commands are those of the chain's topology, so that every chain of one disk
has steps. Looked for is what was wrong: the answer to the last operation, the data that it
returned, or QEMU's end. What else was seen is left to the author (:data:`~.meaning.TO_WRITE`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qmpshim.conformance.bundles.bundle import WorkloadCase
from qmpshim.conformance.compare.divergence import NO_ERROR, SUCCESS, Divergence, Ending, stable
from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.conformance.known.meaning import TO_WRITE
from qmpshim.errors import Exit
from qmpshim.machine.chain.parts import Export, Node
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import REQUESTS, Operation, Verb


def steps_of_workload(case: WorkloadCase) -> str:
    """What a script does, as Python, with what ``steps.py.in`` has."""
    found, spec = case.divergence, case.spec
    done = [one for one in case.operations if found is None or one.number <= found.operation]
    ending = found.ending if found else None
    lines = [f"# A QEMU {spec.topology.needs}", "start_qemu()", *_chain(spec)]
    for one in done:
        last = found is not None and one is done[-1] and one.number == found.operation
        if last and ending is not None:
            lines.append(_crash(ending))
        lines += _step(one, spec.topology, named=last and ending is None)
    if ending is not None:
        lines.append('conclude(False, "QEMU lives")')
    else:
        lines.append(_conclusion(case, done))
    return "\n".join(lines) + "\n"


def to_look_for(seen: object) -> str:
    """The comment in the place of a conclusion that the author has to write."""
    return f"# {TO_WRITE}: conclude(seen, evidence); what was seen: {' '.join(str(seen).split())}"


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


# -- what is looked for --------------------------------------------------------------------------


def _crash(ending: Ending) -> str:
    words = re.escape(stable(ending.last_words)) if ending.last_words else ".*"
    return f"expect_crash({words!r}, {Exit.parse(ending.how).status})"


def _conclusion(case: WorkloadCase, done: Sequence[Operation]) -> str:
    """What is looked for in the answer to the last step, where it is that which is wrong."""
    found = case.divergence
    if found is None or not done or done[-1].number != found.operation:
        return to_look_for(found)
    last = done[-1]
    if found.where not in (last.verb.value, f"{last.side} {last.verb}"):
        return to_look_for(found)
    if last.verb is Verb.READ and found.verdict in (Verdict.CONTENT, Verdict.ISOLATION):
        return (
            f'conclude(text == "ok" and data != {_predicted(case)}, "it returns %s" % runs(data))'
        )
    return _answer(last, found)


def _answer(last: Operation, found: Divergence) -> str:
    fine = '""' if last.verb is Verb.STATUS else '"ok"'
    if found.predicted in (NO_ERROR, SUCCESS):
        return f'conclude(text != {fine}, "{last.verb.value}: %s" % text)'
    if found.observed in (NO_ERROR, SUCCESS):
        return f'conclude(text == {fine}, "{last.verb.value}: %s" % text)'
    return to_look_for(found)


def _predicted(case: WorkloadCase) -> str:
    """Whose data the last operation has to return, as an expression; 0 is zeroes."""
    oracle = Oracle(case.spec, case.behaviour)
    owners: list[int] = []
    for one in case.operations:
        owners = [max(0, owner) for owner in oracle.predict(one).owners or ()]
    pieces: list[list[int]] = []
    for owner in owners:
        if pieces and pieces[-1][0] == owner:
            pieces[-1][1] += 1
        else:
            pieces.append([owner, 1])
    return " + ".join(f"[{owner}] * {count}" for owner, count in pieces)
