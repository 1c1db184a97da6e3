"""`git bisect run` over QEMU itself: a history of real commits, each built from its source.

The history is put upon Debian's source of QEMU 10.0: six commits, one of which breaks the promise
of a backup. It is looked for with a bundle, and with the script that was exported from it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutation_build import EMULATOR, IMAGE_TOOL, plain_qemu

from qmpshim.errors import QmpshimError
from vmtests.support.command_line import QMPSHIM

COPY = "    int ret = cbw_do_copy_before_write(bs, offset, bytes, flags);\n"
#: What each commit changes in block/, and what it says. Two are faults, one of them the culprit.
COMMITS = (
    ("backup.c", "/* end */", "", "backup: a comment"),
    ("quorum.c", "success_count < s->threshold", "success_count <= s->threshold", "quorum: votes"),
    ("copy-before-write.c", COPY, "    int ret = 0;\n", "copy-before-write: save a copy"),
    ("reqlist.c", "/* end */", "", "reqlist: a comment"),
    ("quorum.c", "quorum_count_vote", "quorum_add_vote", "quorum: another name"),
)
CULPRIT = COMMITS[2][3]
#: The function whose copy is dropped: writes, not zeroes and discards.
WRITES = "int cbw_co_pwritev("


@dataclass(frozen=True, slots=True)
class History:
    """A repository over QEMU's block layer, built in ``build``.

    :ivar source: its work tree
    """

    source: Path
    build: Path

    def git(self, *words: str, check: bool = True) -> str:
        """Run git; what it says."""
        names = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")}  # fmt: skip
        none = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        done = subprocess.run(
            ["git", *words],
            cwd=self.source,
            env={**os.environ, **names, **none},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0 or not check, (words, done.stdout)
        return done.stdout

    def make(self) -> None:
        """Build what is checked out: the changed object, and what it is in."""
        subprocess.run(["ninja", "-C", self.build, EMULATOR, IMAGE_TOOL], check=True, timeout=600)

    def changed(self, file: str, old: str, new: str, message: str) -> None:
        """Commit a change."""
        path = self.source / "block" / file
        text = path.read_text()
        at = text.index(WRITES) if old == COPY else 0
        if not new:  # a comment, at the end
            path.write_text(f"{text}{old}\n")
        else:
            assert old in text[at:]
            count = 1 if old == COPY else -1
            path.write_text(text[:at] + text[at:].replace(old, new, count))
        self.git("commit", "-aqm", message)

    def bisected(self, question: str) -> str:
        """The message of the commit that `git bisect run` blames."""
        self.git("bisect", "start", "master", "base")
        output = self.git("bisect", "run", "sh", "-c", question)
        self.git("bisect", "reset")
        assert "is the first bad commit" in output, output
        blamed = output.split(" is the first bad commit")[0].rsplit("\n", 1)[-1]
        return self.git("log", "-1", "--format=%s", blamed).strip()


@pytest.fixture
def history() -> Iterator[History]:
    try:
        qemu = plain_qemu(print)
    except QmpshimError as error:
        pytest.skip(str(error))
    made = History(qemu.source, qemu.build)
    repository = qemu.source / ".git"
    shutil.rmtree(repository, ignore_errors=True)
    made.git("init", "-q", "-b", "master")
    made.git("add", "-f", "block")
    made.git("commit", "-qm", "QEMU's block layer")
    made.git("tag", "base")
    try:
        yield made
    finally:
        made.git("bisect", "reset", check=False)
        made.git("checkout", "-q", "-f", "base", check=False)
        shutil.rmtree(repository)
        made.make()


@pytest.mark.full
def test_the_culprit_is_found_by_a_bundle_and_by_its_script(
    history: History, tmp_path: Path
) -> None:
    for commit in COMMITS:
        history.changed(*commit)
        if commit[3] == CULPRIT:
            history.make()
            kept = tmp_path / "kept"
            explore = ["explore", "--build", str(history.build), "--scenario", "backup-WR"]
            done = subprocess.run([*QMPSHIM, *explore, "--keep", kept], timeout=600)
            assert done.returncode == 1, "the culprit shows nothing"
    bundle = next(path.parent for path in kept.rglob("schedule.json"))
    script = tmp_path / "reproducer.py"
    script.write_bytes(subprocess.check_output([*QMPSHIM, "export", bundle], timeout=60))
    make = f"ninja -C {history.build} {EMULATOR} {IMAGE_TOOL} || exit 125; "
    check = f"check --bisect --build {history.build} --case {bundle}"
    assert history.bisected(f"{make} {' '.join(QMPSHIM)} {check}") == CULPRIT
    programs = f"{history.build}/{EMULATOR} {history.build}/{IMAGE_TOOL}"
    assert history.bisected(f"{make} {sys.executable} -I {script} {programs}") == CULPRIT
