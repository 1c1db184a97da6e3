"""What has a mark is found and ended, whatever it does meanwhile."""

import os
import subprocess
from pathlib import Path

from qmpshim.machine.host.marks import Marked
from vmtests.support.waiting import wait_until

_NAME = "QMPSHIM_TEST_MARK"


def _start(mark: str, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], env={**os.environ, _NAME: mark})


def test_what_starts_others_all_the_time_is_ended(tmp_path: Path) -> None:
    """Also what is between fork and exec at a look, in sessions of their own."""
    mark = str(tmp_path)
    marked = Marked(_NAME, mark.__eq__)
    process = _start(mark, "for i in $(seq 300); do setsid sleep 600 & done; wait")
    wait_until(lambda: len(marked.pids()) > 20)
    marked.end(30.0)
    assert process.wait() < 0
    assert not marked.pids()


def test_another_mark_is_left_alone(tmp_path: Path) -> None:
    with _start(f"{tmp_path}/other", "exec sleep 600") as process:
        Marked(_NAME, str(tmp_path).__eq__).end(5.0)
        Marked(f"{_NAME}_", lambda mark: True).end(5.0)
        assert process.poll() is None
        process.kill()
