"""A QEMU with all mutants in it: built once from Debian's source, kept in the cache.

Each mutant stands behind a switch that is read when QEMU starts (``QMPSHIM_MUTANT``, a number; 0 or
unset: none). Which mutants were reached is recorded in the file that ``QMPSHIM_REACHED`` names, one
byte a mutant: a file of zeroes as long as there are mutants, which many QEMUs may share.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "upstream"))

from mutation_operators import Mutant, find, instrument
from upstream_source import Progress, Tree, lock, source_of

from qmpshim.machine.builds.build import resolve

BUILD = "debian:trixie"
EMULATOR, IMAGE_TOOL = "qemu-system-x86_64", "qemu-img"
#: The files of block/ that carry the promise, each as a whole.
FILES = (
    "block-copy.c",
    "copy-before-write.c",
    "reqlist.c",
    "backup.c",
    "replication.c",
    "snapshot-access.c",
    "quorum.c",
    "dirty-bitmap.c",
)
#: What these rely on elsewhere: functions by file.
PARTS = {
    "io.c": (
        "tracked_request_begin",
        "tracked_request_end",
        "tracked_request_overlaps",
        "tracked_request_set_serialising",
        "bdrv_find_conflicting_request",
        "bdrv_wait_serialising_requests_locked",
        "bdrv_make_request_serialising",
        "bdrv_wait_serialising_requests",
        "bdrv_co_write_req_prepare",
        "bdrv_co_write_req_finish",
        "bdrv_co_do_zero_pwritev",
        "bdrv_co_do_pwrite_zeroes",
        "bdrv_aligned_pwritev",
        "bdrv_co_preadv_snapshot",
        "bdrv_co_pdiscard_snapshot",
        "bdrv_co_pdiscard",
        "bdrv_co_flush",
    ),
    "qcow2.c": (
        "qcow2_co_block_status",
        "qcow2_co_preadv_task",
        "qcow2_co_preadv_part",
        "merge_cow",
        "is_zero_cow",
        "handle_alloc_space",
        "qcow2_handle_l2meta",
        "qcow2_co_pwritev_task",
        "qcow2_co_pwritev_part",
        "is_zero",
        "qcow2_co_pwrite_zeroes",
        "qcow2_co_pdiscard",
        "make_completely_empty",
        "qcow2_make_empty",
        "qcow2_co_flush_to_os",
    ),
    "qcow2-cluster.c": (
        "qcow2_get_host_offset",
        "get_cluster_table",
        "do_perform_cow_read",
        "do_perform_cow_write",
        "perform_cow",
        "qcow2_alloc_cluster_link_l2",
        "calculate_l2_meta",
        "cluster_needs_new_alloc",
        "count_single_write_clusters",
        "handle_dependencies",
        "qcow2_wait_for_dependencies",
        "handle_copied",
        "do_alloc_cluster_offset",
        "handle_alloc",
        "qcow2_alloc_host_offset",
        "discard_in_l2_slice",
        "qcow2_cluster_discard",
        "zero_in_l2_slice",
        "zero_l2_subclusters",
        "qcow2_subcluster_zeroize",
    ),
    "qcow2-cache.c": (
        "qcow2_cache_flush_dependency",
        "qcow2_cache_entry_flush",
        "qcow2_cache_write",
        "qcow2_cache_flush",
        "qcow2_cache_set_dependency",
        "qcow2_cache_empty",
        "qcow2_cache_do_get",
        "qcow2_cache_entry_mark_dirty",
        "qcow2_cache_discard",
    ),
    "qcow2-refcount.c": (
        "qcow2_process_discards",
        "update_refcount_discard",
        "update_refcount",
        "alloc_clusters_noref",
        "qcow2_alloc_clusters",
        "qcow2_alloc_clusters_at",
        "qcow2_free_clusters",
        "qcow2_free_any_cluster",
        "qcow2_write_caches",
        "qcow2_flush_caches",
    ),
    "blockdev.c": (
        "drive_backup_action",
        "drive_backup_commit",
        "drive_backup_abort",
        "drive_backup_clean",
        "blockdev_backup_action",
        "blockdev_backup_commit",
        "blockdev_backup_abort",
        "blockdev_backup_clean",
        "block_dirty_bitmap_add_action",
        "block_dirty_bitmap_add_abort",
        "block_dirty_bitmap_clear_action",
        "block_dirty_bitmap_restore",
        "block_dirty_bitmap_free_backup",
        "block_dirty_bitmap_enable_action",
        "block_dirty_bitmap_enable_abort",
        "block_dirty_bitmap_disable_action",
        "block_dirty_bitmap_disable_abort",
        "block_dirty_bitmap_merge_action",
        "block_dirty_bitmap_remove_action",
        "block_dirty_bitmap_remove_abort",
        "block_dirty_bitmap_remove_commit",
        "transaction_action",
        "qmp_transaction",
        "do_backup_common",
    ),
    "bitmap-qmp-cmds.c": (
        "block_dirty_bitmap_lookup",
        "qmp_block_dirty_bitmap_add",
        "block_dirty_bitmap_remove",
        "qmp_block_dirty_bitmap_remove",
        "qmp_block_dirty_bitmap_clear",
        "qmp_block_dirty_bitmap_enable",
        "qmp_block_dirty_bitmap_disable",
        "block_dirty_bitmap_merge",
        "qmp_block_dirty_bitmap_merge",
    ),
    "transactions.c": (
        "tran_add",
        "tran_abort",
        "tran_commit",
    ),
    "job.c": (
        "job_txn_add_job_locked",
        "job_txn_del_job_locked",
        "job_txn_apply_locked",
        "job_enter_cond_locked",
        "job_pause_point_locked",
        "job_pause_locked",
        "job_resume_locked",
        "job_user_pause_locked",
        "job_user_resume_locked",
        "job_do_dismiss_locked",
        "job_conclude_locked",
        "job_update_rc_locked",
        "job_commit",
        "job_abort",
        "job_clean",
        "job_finalize_single_locked",
        "job_cancel_async_locked",
        "job_completed_txn_abort_locked",
        "job_prepare_locked",
        "job_do_finalize_locked",
        "job_finalize_locked",
        "job_transition_to_pending_locked",
        "job_completed_txn_success_locked",
        "job_completed_locked",
        "job_exit",
        "job_cancel_locked",
        "job_user_cancel_locked",
    ),
    "blockjob.c": (
        "child_job_drained_begin",
        "child_job_drained_poll",
        "child_job_drained_end",
        "block_job_set_speed_locked",
        "block_job_iostatus_set_err_locked",
        "block_job_iostatus_reset_locked",
        "block_job_user_resume",
        "block_job_error_action",
    ),
}
#: Where files are that are not in ``block``.
FOLDERS = {
    "blockdev.c": "",
    "job.c": "",
    "blockjob.c": "",
    "bitmap-qmp-cmds.c": "block/monitor",
    "transactions.c": "util",
}
CONFIGURE = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tools",
    "--enable-fdt",  # or meson wants to clone it
    "--enable-replication",
    "--disable-docs",
    "--disable-install-blobs",  # Debian's source has none
    "--disable-werror",
)
HEADER = (
    b"extern int qmpshim_mutant_chosen; extern volatile unsigned char *qmpshim_mutants_reached; "
    b"static inline int qmpshim_mutant(int number) { qmpshim_mutants_reached[number] = 1; "
    b"return number == qmpshim_mutant_chosen; }\n#line 1\n"
)
RUNTIME = """
#include <sys/mman.h>
int qmpshim_mutant_chosen;
static unsigned char qmpshim_unrecorded[{count}];
volatile unsigned char *qmpshim_mutants_reached = qmpshim_unrecorded;
static void __attribute__((constructor)) qmpshim_read_switch(void)
{{
    const char *number = getenv("QMPSHIM_MUTANT"), *record = getenv("QMPSHIM_REACHED");
    int file = record ? open(record, O_RDWR) : -1;
    qmpshim_mutant_chosen = number ? atoi(number) : 0;
    if (file >= 0) {{
        void *bytes = mmap(NULL, {count}, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (bytes != MAP_FAILED) {{
            qmpshim_mutants_reached = bytes;
        }}
        close(file);
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class MutatedQemu:
    """A QEMU that can be any of its mutants.

    :ivar mutants: by number, from 1 on
    """

    directory: Path
    mutants: tuple[Mutant, ...]

    @property
    def digest(self) -> str:
        """The same for the same mutants of the same source."""
        text = json.dumps([asdict(one) for one in self.mutants]) + RUNTIME
        return sha256(text.encode()).hexdigest()

    def wrapper(self, place: Path, number: int = 0, reached: Path | None = None) -> Path:
        """A program that is one mutant, in a directory of its own beside its qemu-img.

        :param number: 0: none of them
        :param reached: where it records which mutants it reached
        """
        place.mkdir(parents=True)
        words = [f"QMPSHIM_MUTANT={number}"]
        if reached is not None:
            reached.write_bytes(bytes(len(self.mutants) + 1))
            words.append(f"QMPSHIM_REACHED={reached}")
        for name, env in ((EMULATOR, words), (IMAGE_TOOL, [])):
            program = place / name
            command = shlex.join(["env", *env, str(self.directory / "build" / name)])
            program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            program.chmod(0o755)
        return place / EMULATOR


def reached_in(record: Path) -> set[int]:
    """The numbers of the mutants that a record names."""
    return {number for number, byte in enumerate(record.read_bytes()) if byte}


def place_of(source: Path, name: str) -> Path:
    """Where a file with mutants is in a source tree."""
    return source / FOLDERS.get(name, "block") / name


def mutants_of(source: Path) -> list[Mutant]:
    """All mutants of a source tree, numbered from 1 on."""
    found: list[Mutant] = []
    for name in (*FILES, *PARTS):
        text = place_of(source, name).read_bytes()
        wanted = [
            one for one in find(name, text) if name not in PARTS or one.function in PARTS[name]
        ]
        for one in wanted:
            values = {**asdict(one), "number": len(found) + 1}
            found.append(Mutant(**values))
    return found


def mutated_qemu(progress: Progress) -> MutatedQemu:
    """The QEMU with all mutants: from the cache, else built, in five minutes on two cores.

    :raises InputError, HostError: the source cannot be had, or not be built here
    """
    tree = source_of(resolve(BUILD), progress)
    place = tree.directory.parents[1] / "mutation" / tree.directory.name
    mutants = mutants_of(tree.source)
    made = MutatedQemu(place, tuple(mutants))
    stamp = place / "made-of"
    if _is(stamp, made.digest):
        return made
    place.mkdir(parents=True, exist_ok=True)
    with lock(place.parent):
        if _is(stamp, made.digest):
            return made
        progress(f"building QEMU {tree.version} with {len(mutants)} mutants: minutes, once")
        own = Tree(tree.version, place)
        copy_source(tree, own)
        _write(tree.source, own.source, mutants)
        own.make(CONFIGURE, (EMULATOR, IMAGE_TOOL))
        stamp.write_text(made.digest)
    return made


def copy_source(tree: Tree, own: Tree, change: Callable[[Path], None] = lambda path: None) -> None:
    """Copy a source tree, once; the caller has the lock.

    :param change: what is changed in the copy
    """
    if own.source.exists():
        return
    work = own.directory / "work"
    shutil.rmtree(work, ignore_errors=True)  # of one that was interrupted
    shutil.copytree(tree.source, work, symlinks=True)
    change(work)
    work.rename(own.source)


def plain_qemu(progress: Progress) -> Tree:
    """A source tree and what is built of it, without a mutant: for tests that change the source.

    :raises InputError, HostError: as for :func:`mutated_qemu`
    """
    tree = source_of(resolve(BUILD), progress)
    own = Tree(tree.version, tree.directory.parents[1] / "bisect" / tree.directory.name)
    own.directory.mkdir(parents=True, exist_ok=True)
    with lock(own.directory):
        copy_source(tree, own)
        progress(f"building QEMU {own.version}: minutes, once")
        own.make(CONFIGURE, (EMULATOR, IMAGE_TOOL))
    return own


def _is(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def _write(original: Path, changed: Path, mutants: Sequence[Mutant]) -> None:
    """Put the mutants into the files."""
    for name in (*FILES, *PARTS):
        text = place_of(original, name).read_bytes()
        here = [one for one in mutants if one.file == name]
        runtime = RUNTIME.format(count=len(mutants) + 1) if name == FILES[0] else ""
        code = HEADER + instrument(text, here) + runtime.encode()
        place_of(changed, name).write_bytes(code)
