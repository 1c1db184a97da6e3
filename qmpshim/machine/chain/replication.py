"""What a QEMU answers about block replication, however it is commanded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from qmpshim.machine.chain.block_graph import BlockGraph

#: Runs a QMP command without arguments, and returns its value.
Execute = Callable[[str], Awaitable[Any]]


async def has_replication(execute: Execute) -> bool:
    """Whether this QEMU was built with the replication driver."""
    commands = await execute("query-commands")
    return any(command["name"] == "xen-set-replication" for command in commands)


async def replication_error(execute: Execute) -> str | None:
    """The text that ``query-xen-replication-status`` reports; None for no error."""
    status = await execute("query-xen-replication-status")
    return str(status.get("desc", "")) if status["error"] else None


async def failed_over(execute: Execute, top: str, secondary: str) -> bool:
    """Whether a failover is complete: ``replication_done`` (block/replication.c) has run.

    :param top: the node of the replication filter, which sits on the secondary disk then
    :param secondary: the node of that
    """
    below = BlockGraph(await execute("x-debug-query-block-graph")).children()
    return below.get((top, "file")) == secondary and (top, "hidden disk") not in below
