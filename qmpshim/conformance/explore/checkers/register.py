"""The checkers: what each looks at, the verdicts it may give, and tests whose mutants it kills.

The table in this folder's README is :func:`table`; a test compares.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qmpshim.model.check.verdict import Verdict

_HERE = Path(__file__).parent
#: What checkers share, and are none themselves.
SHARED = (
    "at_end", "end", "failed_end", "failed_runs", "failure_reports", "orders",
    "partial_work", "parts", "placements", "register", "sequential",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checker:
    """One checker.

    :ivar module: its file, without ``.py``
    :ivar looks_at: the observables
    :ivar verdicts: what it may find
    :ivar kills: tests in ``vmtests/conformance/explore/checkers`` (file without ``test_`` and
        ``.py``, test without ``test_``), each with mutants that it kills
    """

    module: str
    looks_at: str
    verdicts: Sequence[Verdict]
    kills: Sequence[tuple[str, str]]

    @property
    def summary(self) -> str:
        """What it does: the first line of its module."""
        text = ast.get_docstring(ast.parse((_HERE / f"{self.module}.py").read_text())) or ""
        return text.splitlines()[0].partition(": ")[2].rstrip(".")


CHECKERS: tuple[Checker, ...] = (
    Checker(
        "online",
        "each request as it arrives; the disk when a flush ends",
        (Verdict.ORDER, Verdict.CONTENT, Verdict.LOST_WRITE),
        (
            ("gate_mutants", "new_data_before_the_old_is_saved_is_order"),
            ("gate_mutants", "new_data_for_an_old_read_is_seen_in_the_copy"),
            ("gate_mutants", "a_dropped_write_is_missed_by_the_flush_after_it"),
            ("pulled_point", "new_data_before_the_old_is_saved_is_order"),
        ),
    ),
    Checker(
        "liveness",
        "answers, jobs, exports, the commit of a failover",
        (Verdict.HANG, Verdict.ERROR_CONTRACT),
        (
            ("linearizability", "an_operation_that_never_ends_hangs"),
            ("final_state", "a_command_that_does_nothing_is_missed"),
            ("final_state", "a_job_that_ends_by_itself_is_missed"),
            ("liveness", "a_commit_that_gets_no_answer_is_missed"),
            ("liveness", "a_control_that_does_nothing_is_missed"),
            ("two_disks", "a_disk_without_a_job_is_found_out"),
            ("two_disks", "a_grouped_job_that_is_not_cancelled_is_found_out"),
        ),
    ),
    Checker(
        "final_state",
        "the bytes of all images, by our own reader",
        (Verdict.CORRUPTION,),
        (("final_state", "a_misbehaving_disk_is_found_out"),),
    ),
    Checker(
        "linearizability",
        "answer and data of each operation, each disk and the guest's view in each cell, "
        "allocation of each cluster, replication's status",
        (
            Verdict.ALLOCATION,
            Verdict.CONTENT,
            Verdict.ERROR_CONTRACT,
            Verdict.ISOLATION,
            Verdict.LOST_WRITE,
            Verdict.PROTOCOL,
        ),
        (
            ("linearizability", "a_cluster_that_was_not_written_is_not_allocated"),
            ("linearizability", "answers_that_do_not_fit_together_are_found_out"),
            ("gate_mutants", "new_data_for_an_old_read_is_content_or_isolation"),
            ("gate_mutants", "a_dropped_write_is_lost"),
            ("pulled_bitmaps", "a_frozen_bitmap_that_records_is_found_out"),
            ("pulled_bitmaps", "what_was_changed_before_t0_must_not_be_missing"),
            ("pulled_point", "a_t0_that_is_too_early_is_found_out"),
            ("pulled_point", "a_t0_that_is_too_late_is_found_out"),
            ("two_disks", "two_t0s_are_found_out"),
        ),
    ),
    Checker(
        "point_in_time",
        "the target of a backup job in each sector, and how the job ended",
        (Verdict.CONTENT, Verdict.ERROR_CONTRACT, Verdict.PROTOCOL),
        (
            ("point_in_time", "a_copy_taken_after_t0_is_found_out"),
            ("point_in_time", "a_cluster_that_is_left_out_is_found_out"),
            ("point_in_time", "a_target_of_two_points_in_time_is_found_out"),
            ("point_in_time", "a_job_that_ends_by_itself_is_found_out"),
            ("point_in_time", "a_failed_copy_that_is_not_reported_is_found_out"),
            ("point_in_time", "answers_that_fit_no_order_are_found_out_whatever_failed"),
            ("retried_copies", "a_copy_that_failed_is_made_again"),
            ("retried_copies", "an_error_that_no_event_reports_is_found_out"),
            ("retried_copies", "what_is_not_copied_again_is_missing"),
            ("retried_copies", "what_a_job_reports_excuses_no_request"),
            ("job_errors", "what_a_resumed_job_leaves_out_is_missing"),
            ("job_errors", "a_paused_job_that_is_cancelled_does_not_complete"),
            ("job_errors", "a_bitmap_stays_in_use_while_its_job_is_paused"),
            ("job_errors", "a_request_that_fails_is_no_reason_for_a_job_to_fail"),
        ),
    ),
    Checker(
        "job_errors",
        "events BLOCK_JOB_ERROR; a job that one has paused, before and after it is resumed",
        (Verdict.ERROR_CONTRACT,),
        (
            ("job_errors", "an_action_of_another_option_is_found_out"),
            ("job_errors", "a_job_that_goes_on_by_itself_is_found_out"),
            ("job_errors", "a_paused_job_that_is_shown_as_another_is_found_out"),
            ("job_errors", "a_resume_that_is_refused_is_found_out"),
            ("job_errors", "a_resume_that_does_nothing_is_a_hang"),
        ),
    ),
    Checker(
        "bitmaps",
        "each dirty bitmap of the disk: its granules, whether it records, whether it is in use",
        (Verdict.ALLOCATION, Verdict.LOST_WRITE, Verdict.PROTOCOL),
        (
            ("bitmaps", "a_granule_that_is_not_marked_is_missed"),
            ("bitmaps", "a_bitmap_that_is_cleared_too_early_is_found_out"),
            ("bitmaps", "a_successor_that_is_lost_is_found_out"),
            ("bitmaps", "a_bitmap_that_is_not_given_back_is_found_out"),
            ("bitmaps", "a_bitmap_that_names_too_much_is_found_out"),
            ("bitmaps", "a_new_bitmap_may_name_what_is_written_beside_its_transaction"),
        ),
    ),
    Checker(
        "pulled_bitmaps",
        "the same of the bitmap that was frozen when a pull began, and of the one that began then",
        (Verdict.ALLOCATION, Verdict.LOST_WRITE, Verdict.PROTOCOL),
        (
            ("pulled_bitmaps", "a_granule_that_is_not_marked_is_missed"),
            ("pulled_bitmaps", "a_bitmap_that_is_cleared_too_early_is_found_out"),
            ("pulled_bitmaps", "a_frozen_bitmap_that_records_is_found_out"),
            ("pulled_bitmaps", "what_was_changed_before_t0_must_not_be_missing"),
            ("pulled_bitmaps", "a_bitmap_that_names_too_much_is_found_out"),
            ("pulled_bitmaps", "a_bitmap_that_does_not_record_any_more_is_found_out"),
            ("pulled_bitmaps", "a_bitmap_that_is_not_there_is_found_out"),
            ("pulled_point", "a_write_under_way_that_is_counted_late_is_found_out"),
            ("pulled_point", "a_change_that_neither_bitmap_names_is_missed"),
            ("pulled_point", "bitmaps_that_are_exchanged_are_found_out"),
            ("pulled_point", "a_bitmap_is_frozen_by_the_transaction"),
            ("two_disks", "a_bitmap_of_one_disk_that_is_not_frozen_is_found_out"),
            ("two_disks", "changes_that_are_marked_on_the_other_disk_are_found_out"),
        ),
    ),
    Checker(
        "pulled_point",
        "the guest's view, and what operations read of it, where one of them has started the pull",
        (Verdict.CONTENT, Verdict.ISOLATION),
        (("pulled_point", "a_write_that_is_in_the_snapshot_in_part_is_found_out"),),
    ),
    Checker(
        "failures",
        "the same, where I/Os failed; failures 3 to 7 of docs/block-replication.txt",
        (Verdict.ERROR_CONTRACT, Verdict.ISOLATION),
        (
            ("failures", "an_error_that_is_swallowed_is_found_out"),
            ("failures", "a_failed_write_that_happened_nevertheless_is_found_out"),
            ("failures", "one_failure_excuses_no_other"),
        ),
    ),
    Checker(
        "quorum",
        "the same on the primary; events QUORUM_REPORT_BAD",
        (Verdict.ERROR_CONTRACT, Verdict.LOST_WRITE),
        (
            ("quorum", "a_swallowed_error_is_found_out_where_qemu_reports_it"),
            ("quorum", "an_error_that_no_event_reports"),
        ),
    ),
    Checker(
        "durability",
        "flushes of the secondary disk after a failover's commit",
        (Verdict.LOST_WRITE,),
        (("failed_commits", "a_commit_that_is_never_flushed_is_lost"),),
    ),
    Checker(
        "probe",
        "answers, the guest's view and the disks after one more write",
        (Verdict.CONTENT, Verdict.ERROR_CONTRACT, Verdict.ISOLATION, Verdict.LOST_WRITE),
        (("quorum", "replication_that_runs_or_not_as_it_should_not"),),
    ),
    Checker(
        "crash_points",
        "the images after a step, by our own reader, qemu-img check and a fresh QEMU",
        (Verdict.CORRUPTION, Verdict.CRASH, Verdict.HANG),
        (
            ("crash_points", "our_reader_sees_each_image"),
            ("crash_points", "qemu_img_sees_what_our_reader_does_not"),
            ("crash_points", "a_fresh_qemu_sees_what_neither_does"),
        ),
    ),
    Checker(
        "power_loss",
        "the images after a step, without any part of what was not flushed",
        (Verdict.CORRUPTION, Verdict.LOST_WRITE),
        (
            ("power_loss", "an_answered_flush_has_reached_the_image"),
            ("power_loss", "tables_are_ordered_by_flushes"),
            ("power_loss", "a_loss_of_power_takes_no_fua_write"),
        ),
    ),
)


def table() -> str:
    """The checkers as a table in Markdown."""
    rows = ["| checker | checks | looks at | verdicts | mutants killed |", "|---|---|---|---|---|"]
    for one in CHECKERS:
        verdicts = ", ".join(sorted(one.verdicts))
        kills = "; ".join(f"{name.replace('_', ' ')} (`{file}`)" for file, name in one.kills)
        rows.append(f"| `{one.module}` | {one.summary} | {one.looks_at} | {verdicts} | {kills} |")
    return "\n".join(rows)
