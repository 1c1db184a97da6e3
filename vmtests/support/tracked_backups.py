"""What the shim answers of backups that it follows."""

from __future__ import annotations

from typing import Any

from vmtests.support.libvirt import Domain


def chains(domain: Domain) -> dict[str, tuple[str, str]]:
    """Of each chain that is followed, by its job, the nodes of the disk and of the overlay."""
    status = domain.ask("x-shim-status")
    assert status["unobserved"] == []
    assert not status["doubts"], status["doubts"]
    nodes = [{one["disk"]: one["node"] for one in c["nodes"]} for c in status["chains"]]
    return {
        chain["job"]: (disks["secondary"], disks["hidden"])
        for chain, disks in zip(status["chains"], nodes, strict=True)
    }


def verdicts(domain: Domain) -> list[tuple[str, str]]:
    """What is wrong, and where; nothing may be left open."""
    return verdicts_and_bitmaps(domain)[0]


def verdicts_and_bitmaps(domain: Domain) -> tuple[list[tuple[str, str]], list[str]]:
    """As :func:`verdicts`, and the bitmaps that were compared."""
    verified: dict[str, Any] = domain.ask("x-shim-verify")
    assert not verified["doubts"], verified["doubts"]
    assert verified["compared"]
    wrong = [(one["verdict"], one["where"]) for one in verified["verdicts"]]
    assert verified["as-predicted"] is not bool(wrong)
    return sorted(wrong), [name for chain in verified["chains"] for name in chain["bitmaps"]]
