"""What was done behind a shim as a replay bundle, and bundles replayed on a QEMU of their own."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import replay_case
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.explore.harness.choices import failures
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import Replay, replay_schedule
from qmpshim.conformance.known.bundle_kinds import load_bundle
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.shim.tracking.chains import TrackedChains

_TRIES = 3  # a schedule with a command in it does not always go the same way


async def again(build: Build, path: Path) -> dict[str, Any]:
    """Replay a bundle of either kind on *build*; what it showed, as ``XShimReplay``.

    :raises InputError: it is no bundle
    :raises BuildError: the build cannot do it
    """
    case = load_bundle(path)
    if isinstance(case, Finding):
        gone = await asyncio.to_thread(replay_schedule, case, build)
        reply: dict[str, Any] = {
            "reproduced": gone.shows(case),
            "operations": len(case.scenario.setup) + len(case.scenario.ops),
        }
        if gone.violation is not None:
            reply["verdict"] = {
                "verdict": gone.violation.kind.value,
                "where": str(gone.violation.cause),
                "operation": 0,
                "predicted": "an outcome that some order of the operations has",
                "observed": gone.violation.text,
            }
        return reply
    if not isinstance(case, ChainCase):
        raise InputError(f"{path}: it is of no chain; `qmpshim replay` takes it")
    result = await replay_case(case, build)
    found = result.divergence
    reply = {"reproduced": case.shown_by(found), "operations": result.done}
    if found is not None:
        reply["verdict"] = found.to_json()
    return reply


async def record(
    chains: TrackedChains, build: Build | None, chain: str | None = None
) -> dict[str, Any]:
    """What was done so far as a bundle, as ``XShimRecord``; it was replayed once to see what for.

    :param chain: to which of several: a job's id, or a node's name
    :raises InputError: what was done cannot be a bundle
    """
    if chains.controller is not None:
        return await _schedule(chains, build)
    tracker = chains.one(chain)
    found = tracker.found
    spec = ChainSpec(found.workflow, found.size, found.cluster, found.secondary)
    seen = tracker.divergences[0] if tracker.divergences else None
    case = ChainCase(spec, chains.behaviour, tracker.operations(), seen, 0, _build_object(build))
    if build is not None:
        result = await replay_case(case, build)
        case = dataclasses.replace(case, divergence=result.divergence)
    shows = "as predicted" if case.divergence is None else str(case.divergence)
    if seen is not None and case.divergence is None:
        shows = f"as predicted when done again; the shim saw {seen}"
    return {"kind": "operations", "case": case.to_json(), "shows": shows}


async def _schedule(chains: TrackedChains, build: Build | None) -> dict[str, Any]:
    assert chains.controller is not None
    if build is None:
        raise InputError("the shim did not start this QEMU and does not know its build")
    scenario, schedule = chains.controller.schedule.case(dead=chains.shim.gone.is_set())
    errnos = {step.fault for step in failures(schedule)}
    finding = Finding(
        None,
        Cause(CauseKind.ENDED),
        "",
        scenario.contract,
        1,
        (scenario.name,),
        scenario,
        schedule,
        tuple(chains.controller.schedule.events()),
        errnos=tuple(sorted(errnos)),
        build=_build_object(build),
    )
    for _ in range(_TRIES):
        gone: Replay = await asyncio.to_thread(replay_schedule, finding, build)
        if gone.followed:
            break
    if not gone.followed:
        raise InputError("the same steps do not go the same way again: " + gone.lines[-1].strip())
    violation = gone.violation
    finding = dataclasses.replace(
        finding,
        verdict=None if violation is None else violation.kind,
        cause=Cause(CauseKind.ENDED) if violation is None else violation.cause,
        text="as allowed" if violation is None else violation.text,
        events=gone.events,
        replays=(1, 1),
    )
    shows = finding.text if violation is None else f"{violation.kind}: {violation.text}"
    return {"kind": "schedule", "case": finding.to_json(), "shows": shows}


def _build_object(build: Build | None) -> dict[str, Any]:
    return {} if build is None else {"name": build.name}
