"""Commands that take several builds, and the list of builds for programs."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from vmtests.support.command_line import CommandLine

# Made without TCG: it does not start where there is no KVM.
MICROVM = shutil.which("qemu-system-x86_64-microvm") if os.access("/dev/kvm", os.W_OK) else None


@pytest.mark.skipif(MICROVM is None, reason="Debian's microvm build of QEMU cannot run here")
def test_verify_on_several_builds(qmpshim: CommandLine) -> None:
    """One that has no replication does not keep the other from it."""
    assert MICROVM is not None
    report = qmpshim.home / "report.json"
    words = ("--ops", "60", "--size", "1M", "--workflow", "replication", "--json", report)
    both = ("--build", "system", "--build", MICROVM)
    done = qmpshim.run("verify", *words, *both, "--keep", "kept")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "cannot be tested: " in done.stdout
    last = done.stdout.splitlines()[-2:]
    assert [line.split()[-2:] for line in last] == [["as", "predicted"], ["be", "tested"]]
    document = json.loads(report.read_text())
    assert len(document["runs"]) == 1
    able, unable = document["builds"]
    assert "cannot_be_tested" not in able and "replication" in unable["cannot_be_tested"]
    assert (qmpshim.home / "kept" / "system" / "replication").is_dir()


@pytest.mark.skipif(MICROVM is None, reason="Debian's microvm build of QEMU cannot run here")
def test_explore_on_several_builds(qmpshim: CommandLine) -> None:
    assert MICROVM is not None
    report = qmpshim.home / "report.json"
    words = ("--scenario", "backup-WR", "--jobs", "1", "--json", report)
    done = qmpshim.run("explore", *words, "--build", MICROVM, "--build", "system")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(json.loads(report.read_text())["reports"]) == 2
    assert done.stdout.splitlines()[-1].split() == ["system", "all", "as", "predicted"]


def test_the_list_of_builds_as_json(qmpshim: CommandLine) -> None:
    done = qmpshim.run("builds", "list", "--json")
    document = json.loads(done.stdout)
    (row,), (build,) = document["items"], document["builds"]
    assert row["name"] == build["name"] == "system" and not row["problem"]
    assert row["version"] == build["version"] and build["package"] in row["version"]


def test_several_are_fetched_whatever_becomes_of_one(qmpshim: CommandLine) -> None:
    done = qmpshim.run("builds", "fetch", "trixie", "bookworm", "trixie")
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "trixie: 'trixie': write debian:SUITE or debian:SUITE@VERSION",
        "bookworm: 'bookworm': write debian:SUITE or debian:SUITE@VERSION",
        "2 of 2 could not be fetched",
    ]
