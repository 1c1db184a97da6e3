"""Small scenarios made by Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import operation
from qmpshim.model.scenario import Fault, Scenario

C = 128
RANGES = st.sampled_from([(0, C), (C, C), (0, 2 * C), (16, 8), (C - 8, 16), (C + 8, 8)])
REPLICATION = ("primary_write", "primary_write", "guest_read", "guest_write", "primary_zero",
               "primary_discard", "checkpoint", "failover")  # fmt: skip
BACKUP = ("primary_write", "primary_write", "guest_read", "snapshot_read", "primary_zero", "stop")
FAULTS = st.builds(
    Fault,
    disk=st.sampled_from(["secondary", "hidden", None]),
    op=st.sampled_from(["read", "write", None]),
    nth=st.integers(1, 2),
)


@st.composite
def scenarios(draw: st.DrawFn, most: int = 3) -> Scenario:
    """Up to *most* concurrent operations on two clusters."""
    workflow = draw(st.sampled_from(Workflow))
    kinds = REPLICATION if workflow is Workflow.REPLICATION else BACKUP
    ops = []
    for index in range(draw(st.integers(2, most))):
        kind = draw(st.sampled_from(kinds))
        after = draw(st.sampled_from([None, None, None, *range(index)]))
        start, count = draw(RANGES) if "_" in kind else (0, 0)
        ops.append(operation(kind, start, count, after))
    setup = [operation("primary_write", 0, 2 * C), operation("start")]
    if draw(st.booleans()):
        setup.append(operation("primary_write", *draw(RANGES)))
    return Scenario(
        "made",
        tuple(ops),
        tuple(setup),
        workflow=workflow,
        secondary=draw(st.sampled_from(["raw", "raw", "qcow2"])),
        faults=tuple(draw(st.lists(FAULTS, max_size=1))),
        contract=draw(st.sampled_from([True, True, True, False])),
    )
