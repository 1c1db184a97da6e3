"""What a write-up excuses, and what it must not: the promise itself, with whatever words."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.compare.divergence import Ending
from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.checkers.quorum import NOT_IN_STATUS
from qmpshim.conformance.explore.directed.cases import crash_cause
from qmpshim.conformance.explore.harness.choices import Cut, Fail, RealChoice, io_id
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.report.recognition import recogniser
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.folder import (
    known_directed,
    known_findings,
    known_workloads,
    read,
    read_all,
    write_up,
)
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.conformance.workload.result import MetDefect
from qmpshim.errors import Exit, HostError, InputError
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.cause_reader import cause_from_text
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation

SYSTEM = (7, 2, 22)
SUITES = (SYSTEM, (5, 2, 0), (10, 0, 13), (11, 1, 3))
PERM = "bdrv_co_write_req_prepare: Assertion"
FREE = "disk: corruption: host offset N: in use, but free"
SHARED = "disk: corruption: host offset N: refcount below references"
A_FLUSH: Fail = Fail(io_id(0, "active flush", 0), 5)
A_WRITE: Fail = Fail(io_id(0, "hidden write 0+128", 0), 5)
A_PRIMARY: Fail = Fail(io_id(0, "primary write 0+128", 0), 5)
A_FORWARDED: Fail = Fail(io_id(0, "secondary write 0+128", 0), 5)
A_FULL: Fail = Fail(io_id(0, "primary write 0+128", 0), 28)
MASKED = "guest_write says success after a refused primary write"
TOO_FULL = "guest_write answers errno 5, after a failed primary write"
A_READ: Fail = Fail(io_id(0, "secondary read 0+128", 0), 5)
CUT_WRITE: Fail = Fail(io_id(0, "secondary write 0+128", 0), Cut.RECONNECT)
CUT_STATUS: Fail = Fail(io_id(0, "secondary status 0+128", 0), Cut.RECONNECT)
CUT_COPY: Fail = Fail(io_id(0, "hidden write 0+128", 0), Cut.RECONNECT)


def sighting(name: str, verdict: Verdict, cause: str, *schedule: RealChoice) -> Sighting:
    (scenario,) = scenario_sets.named(name)
    violation = RealViolation(verdict, cause, cause=cause_from_text(cause))
    return Sighting(scenario, violation, schedule, (), 1)


def finding(name: str, verdict: Verdict, cause: str, *schedule: RealChoice) -> Finding:
    (found,) = group([sighting(name, verdict, cause, *schedule)])
    return found


@pytest.mark.parametrize(
    "found",
    [
        # The core promise, in replication: that a snapshot of 7.2 breaks it excuses nothing here.
        finding("WR", Verdict.ISOLATION, "guest_read: new data instead of the old data"),
        finding("WV", Verdict.ISOLATION, "view: new data instead of the old data"),
        finding("backup-WV", Verdict.ISOLATION, "view: new data instead of the old data"),
        finding("WR", Verdict.ISOLATION, "view: new data after an I/O error", A_READ),
        finding("fleecing-RT", Verdict.ISOLATION, "guest_read: new data instead of the old data"),
        # The checkers' catch-all where no checkpoint is.
        finding("WX", Verdict.ISOLATION, "reads and disks fit no order"),
        finding("WX", Verdict.ISOLATION, "the view changes with the next primary write"),
        finding("RC", Verdict.ISOLATION, "reads and disks fit no order"),
        # Corruption where no checkpoint is, where a write fails, or of another kind.
        finding("WX", Verdict.CORRUPTION, f"active {FREE}"),
        finding("CQ", Verdict.CORRUPTION, f"active {FREE}"),
        finding("WR", Verdict.CORRUPTION, f"hidden {FREE}", A_WRITE),
        finding("PC", Verdict.CORRUPTION, f"active {SHARED}"),
        finding("GH", Verdict.CORRUPTION, f"active {SHARED}", A_FLUSH),
        finding("PC", Verdict.CORRUPTION, f"active {FREE} (and something else)"),
        # A flush whose error is dropped, where no refcount block can be full.
        finding("GH", Verdict.ERROR_CONTRACT, "guest_write answers ok, after a failed active flush",
                A_FLUSH),
        # An I/O error that nothing had, and no failover.
        finding("WQ", Verdict.ERROR_CONTRACT, "status answers I/O error occurred"),
        # The two halves of the contract change places.
        finding(
            "WR", Verdict.ERROR_CONTRACT, "case 3. backup failed: not in the status", A_READ
        ),
        finding("WR", Verdict.ERROR_CONTRACT, "case 3. backup failed: not in the status"),
        finding(
            "WR",
            Verdict.ERROR_CONTRACT,
            "case 4. I/O error on the secondary disk: not in the status",
            A_WRITE,
        ),
        # Crashes that need a checkpoint, or a discard by the snapshot's reader, without it.
        finding("WV", Verdict.CRASH, "block_copy_task_create: Assertion `!reqlist' failed."),
        finding("WV", Verdict.CRASH, "First cluster in emptied image is in use"),
        finding("fleecing-WR", Verdict.CRASH, "hbitmap_reset: Assertion `aligned' failed."),
        # On the primary: a lost write that nothing refused, or that a read does not return.
        finding("primary-GR", Verdict.LOST_WRITE, "view: the old data instead of the guest's data"),
        finding("primary-GR", Verdict.ERROR_CONTRACT, MASKED),
        finding("primary-GR", Verdict.ERROR_CONTRACT, MASKED, A_FORWARDED),
        finding("primary-GF", Verdict.LOST_WRITE, f"{MASKED}, and is not read back", A_PRIMARY),
        finding("GR", Verdict.ERROR_CONTRACT, MASKED, A_PRIMARY),
        finding("primary-GQ", Verdict.ERROR_CONTRACT, str(NOT_IN_STATUS), A_FORWARDED),
        finding(
            "primary-GF", Verdict.ERROR_CONTRACT, "guest_write: neither an error nor "
            "QUORUM_REPORT_BAD", A_PRIMARY
        ),
        finding("primary-RF", Verdict.CONTENT, "primary and secondary disk differ"),
        finding("primary-AG", Verdict.ERROR_CONTRACT, "start answers ok"),
        finding("primary-GR", Verdict.ERROR_CONTRACT, TOO_FULL, A_FULL),
        finding("primary-GO", Verdict.ERROR_CONTRACT, TOO_FULL, A_PRIMARY),
        # 5.2's: a hang and an abort of failover, where nothing failed.
        finding("PO", Verdict.HANG, "guest_write hangs"),
        # A hang of requests or commands whose connections were not those that it was seen with.
        finding("PO", Verdict.HANG, "guest_write hangs", CUT_COPY),
        finding("push-Wf", Verdict.HANG, "primary_write hangs", CUT_COPY),
        finding("push-Wf", Verdict.HANG, "backup_full hangs", CUT_WRITE),
        finding("pull-RA", Verdict.HANG, "guest_block_status hangs", CUT_COPY),
        finding("backup-WR", Verdict.HANG, "guest_block_status hangs", CUT_STATUS),
        finding("PO", Verdict.CRASH, f"{PERM} `child->perm & BLK_PERM_WRITE' failed."),
    ],
    ids=lambda found: f"{found.scenario.name}-{found.cause}",
)  # fmt: skip
def test_what_no_write_up_may_excuse(found: Finding) -> None:
    for version in SUITES:
        assert recogniser(known_findings(), version)(found) == ""


def test_zeroes_that_leave_no_hole_are_news_to_a_snapshot_too() -> None:
    """The read that returns new data needs a change of the disk, and that is one."""
    (scenario,) = scenario_sets.named("fleecing-WR")
    zeroed = replace(scenario, ops=(operation("primary_zero_no_hole", 0, 128), scenario.ops[1]))
    seen = sighting("fleecing-WR", Verdict.ISOLATION, "view: new data instead of the old data")
    (found,) = group([replace(seen, scenario=zeroed)])
    assert recogniser(known_findings(), SYSTEM)(found) == "snapshot-read-returns-new-data"
    (unchanged,) = group([replace(seen, scenario=replace(scenario, ops=scenario.ops[1:]))])
    assert recogniser(known_findings(), SYSTEM)(unchanged) == ""


def test_a_block_status_hangs_as_a_read_does_while_a_pull_starts() -> None:
    """For the 20 s of reconnect-delay on 5.2, and with no other failure beside it."""
    found = finding("pull-RA", Verdict.HANG, "guest_block_status hangs", CUT_STATUS)
    known = recogniser(known_findings(), (5, 2, 0))
    assert known(found) == "reconnect-as-a-backup-starts-hangs"
    assert recogniser(known_findings(), SYSTEM)(found) == ""
    assert known(replace(found, schedule=(CUT_STATUS, A_WRITE))) == ""


def test_what_is_needed_twice_is_two_operations() -> None:
    """Beside one write a read by votes has two disks that agree."""
    answer = "guest_read answers errno 5"
    beside_one = finding("votes-RP", Verdict.ERROR_CONTRACT, answer)
    assert recogniser(known_findings(), SYSTEM)(beside_one) == ""
    scenario = replace(beside_one.scenario, ops=(*beside_one.scenario.ops, operation("guest_zero")))
    beside_two = replace(beside_one, scenario=scenario)
    assert recogniser(known_findings(), SYSTEM)(beside_two) == "read-beside-two-writes-fails"


@pytest.mark.parametrize("known", known_findings(), ids=lambda one: one.id)
def test_a_write_up_covers_its_own_case_on_its_versions_only(known: ExplorerWriteUp) -> None:
    case = load_finding(DIRECTORY / f"{known.id}.json")
    for version in SUITES:
        assert known.covers(case, version) == known.concerns(version)
    has_it = next(version for version in SUITES if known.concerns(version))
    assert known.covers(replace(case, contract=True), has_it) == known.contract
    other_verdict = next(one for one in Verdict if one not in known.verdicts)
    assert not known.covers(replace(case, verdict=other_verdict), has_it)
    if known.fails:
        assert not known.covers(replace(case, schedule=()), has_it)
        other: Fail = Fail(io_id(0, "another disk read", 0), 5)
        assert not known.covers(replace(case, schedule=(*case.schedule, other)), has_it)
    if known.clusters:
        other_size = replace(case.scenario, cluster=max(known.clusters) * 2)
        assert not known.covers(replace(case, scenario=other_size), has_it)
    if known.secondary:
        raw = replace(case.scenario, secondary="raw")
        assert not known.covers(replace(case, scenario=raw), has_it)
    if known.errnos:
        fails = [
            step._replace(fault=5) if isinstance(step, Fail) else step for step in case.schedule
        ]
        assert not known.covers(replace(case, schedule=tuple(fails)), has_it)


def test_a_failed_write_of_data_is_none_of_tables() -> None:
    """The tables that could not be written are what failed-flush-unorders-frees is about."""
    name = "failed-flush-unorders-frees"
    case = load_finding(DIRECTORY / f"{name}.json")
    recognise = recogniser(known_findings(), SYSTEM)

    def failing(io: str) -> Finding:
        steps = (
            step._replace(io=io_id(step.op, io)) if isinstance(step, Fail) else step
            for step in case.schedule
        )
        return replace(case, schedule=tuple(steps))

    tables, data = failing("hidden write meta 65536+512"), failing("hidden write 0+128")
    assert (recognise(case), recognise(tables), recognise(data)) == (name, name, "")


def test_zeroes_that_free_clusters_drop_the_error_of_a_flush_on_every_build() -> None:
    """As a soak of 5.2 met it: on a secondary disk in qcow2, beside a guest's write with FUA."""
    flush: Fail = Fail(io_id(0, "secondary flush"), 28)
    words = "primary_zero answers ok, after a failed secondary flush"
    found = finding("qcow2-GZ", Verdict.ERROR_CONTRACT, words, flush)
    foreign = replace(found, schedule=(flush, A_READ))
    for version in SUITES:
        recognise = recogniser(known_findings(), version)
        assert recognise(found) == "failed-flush-unorders-frees"
        assert recognise(foreign) == ""


def test_a_disk_that_is_gone_is_not_one_of_its_requests_that_failed() -> None:
    """The job cannot find out then what its source holds; one request is no reason."""
    name = "backup-top-fails-at-first-error"
    case = load_finding(DIRECTORY / f"{name}.json")
    recognise = recogniser(known_findings(), SYSTEM)

    def failing(io: str, fault: int) -> str:
        return recognise(replace(case, schedule=(Fail(io_id(0, io), fault),)))

    assert failing("secondary discard 0+128", Cut.FOR_GOOD) == name
    assert failing("secondary status 0+128", 5) == name
    for io, fault in (("secondary discard 0+128", 5), ("hidden write 0+128", Cut.FOR_GOOD)):
        assert failing(io, fault) == ""


def test_a_discard_leaves_no_zero_cluster_with_a_place_in_the_file() -> None:
    """So it is not what write-beside-zeroes-zeroes-data needs (``discard_in_l2_slice``)."""
    case = load_finding(DIRECTORY / "write-beside-zeroes-zeroes-data.json")
    discarded = operation("primary_discard", 0, 128)
    other = replace(case, scenario=replace(case.scenario, setup=(discarded,)))
    recognise = recogniser(known_findings(), SYSTEM)
    assert (recognise(case), recognise(other)) == ("write-beside-zeroes-zeroes-data", "")


@pytest.mark.parametrize(
    ("name", "image"), [("GH", "active"), ("WH", "hidden"), ("backup-VH", "hidden")]
)
def test_a_failed_flush_is_qcow2s_own_affair_in_every_form(name: str, image: str) -> None:
    flush: Fail = Fail(io_id(0, f"{image} flush", 2), 5)
    found = finding(name, Verdict.CORRUPTION, f"{image} {FREE}", flush)
    reported = recogniser(known_findings(), SYSTEM)(found)
    assert reported == "failed-flush-leaves-l1-entry"


def test_the_known_does_not_hide_the_new_of_the_same_words() -> None:
    """One cause in two forms: the known one is smaller and would speak for both."""
    cause = "guest_read: new data instead of the old data"
    seen = [
        sighting("fleecing-WR", Verdict.ISOLATION, cause),
        sighting("WPR", Verdict.ISOLATION, cause),
    ]
    found = group(seen, recogniser(known_findings(), SYSTEM))
    assert {(one.scenario.name, one.known) for one in found} == {
        ("fleecing-WR", "snapshot-read-returns-new-data"),
        ("WPR", ""),
    }


@pytest.mark.parametrize("flagged", ["primary_zero_no_hole", "primary_write_fua"])
def test_an_operation_with_a_flag_is_known_as_without(flagged: str) -> None:
    reads = sighting(
        "fleecing-WR", Verdict.ISOLATION, "guest_read: new data instead of the old data"
    )
    ops = (operation(flagged, 0, 128), *reads.scenario.ops[1:])
    (found,) = group([replace(reads, scenario=replace(reads.scenario, ops=ops))])
    assert recogniser(known_findings(), SYSTEM)(found) == "snapshot-read-returns-new-data"


def test_a_directed_case_is_known_by_its_cause() -> None:
    """Each has more than one way to go wrong; only one of them is written up."""
    copy, start = known_directed()["copy-fails"], known_directed()["start-fails"]

    def promise(name: str) -> Cause:
        return Cause(CauseKind.DIRECTED, detail=name)

    what = "Backup failed (writing the hidden disk)"
    assert copy.covers(Verdict.ERROR_CONTRACT, promise(f"{what}: not in the status"), SYSTEM)
    assert not copy.covers(Verdict.ERROR_CONTRACT, promise(f"{what}: no EIO"), SYSTEM)
    silent = promise("make_empty's failure is silent at the start")
    assert not start.covers(Verdict.ERROR_CONTRACT, silent, SYSTEM)
    running = promise("a failed start leaves replication running")
    assert start.covers(Verdict.ERROR_CONTRACT, running, SYSTEM)
    for name in ("start-busy-twice", "start-bad-top-twice"):
        reported = known_directed()[name]
        abort = crash_cause(
            name,
            Ending(Exit(-signal.SIGABRT), "qemu: error_setv: Assertion `*errp == NULL' failed."),
        )
        assert reported.covers(Verdict.CRASH, abort, SYSTEM)
        other = crash_cause(name, Ending(Exit(-signal.SIGSEGV), ""))
        assert not reported.covers(Verdict.CRASH, other, SYSTEM)


def test_without_its_write_ups_nothing_is_called_new(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"missing: install qmpshim again"):
        read_all(tmp_path / "gone")


@pytest.mark.parametrize(
    "field",
    [{"fails": ["hidden wiggle"]}, {"needs": [["dance"]]}, {"needs": [[]]}, {"forms": ["tree"]},
     {"causes": [{"kind": "ended", "detail": "("}]}, {"causes": [{"kind": "?"}]},
     {"causes": [{"kind": "ended", "words": "x"}]}, {"verdicts": ["bad"]}],
)  # fmt: skip
def test_a_damaged_write_up_is_reported(tmp_path: Path, field: dict[str, object]) -> None:
    value = json.loads((DIRECTORY / "checkpoint-corrupts-overlay.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({**value, **field}))
    with pytest.raises(InputError, match=r"one\.json is damaged"):
        read(tmp_path / "one.json")


def test_a_workloads_write_up_covers_what_shows_it_among_other_operations() -> None:
    """Of two that a refused transaction shows, each knows its own symptom, where it belongs."""
    loses, marks = (
        next(one for one in known_workloads() if one.id == f"refused-transaction-{name}")
        for name in ("loses-bitmap", "marks-everything")
    )
    add, write, transaction, check = operations = loses.case.operations
    for one in (loses, marks):
        assert one.covers(one.divergence, one.case.operations)
    seen = replace(marks.divergence, operation=check.number)
    assert marks.covers(seen, operations) and not loses.covers(seen, operations)
    # At another place or operation, as another verdict, or without what causes it: another finding.
    assert not marks.covers(replace(seen, where="bitmap disk1/a"), operations)
    assert not marks.covers(replace(seen, operation=write.number), operations)
    assert not marks.covers(replace(seen, verdict=Verdict.CONTENT), operations)
    assert not marks.covers(seen, (add, write, check))
    assert not marks.covers(seen, (add, transaction, replace(write, number=check.number)))
    assert not marks.covers(seen, (transaction, add, check))


def test_a_crash_by_another_signal_is_not_the_one_that_is_written_up() -> None:
    """Whatever QEMU wrote last: the same words may come before other ends."""
    known = write_up("failover-over-ejected-disk-divides-by-zero")
    assert isinstance(known, ExplorerWriteUp)
    found = load_finding(known.path)
    words = Cause(CauseKind.ENDED, detail="qcowN_free_clusters failed: Input/output error")
    for cause in (found.cause, words):
        assert known.covers(replace(found, cause=cause, ending=Exit(-8)), SYSTEM)
        for other in (Exit(-6), Exit(-11), Exit(1), None):
            assert not known.covers(replace(found, cause=cause, ending=other), SYSTEM)


UNDONE = "transaction-undoes-enable-that-was-refused"


def test_what_the_model_met_is_known_where_it_shows_itself() -> None:
    """A crash at the operation that met it, a bitmap from there on; nothing else is excused."""
    marks, undone = (
        next(one for one in known_workloads() if one.id == name)
        for name in ("refused-transaction-marks-everything", UNDONE)
    )
    found = replace(marks.divergence, where="bitmap disk1/c", operation=9)
    assert marks.met_by(found, [MetDefect(marks.id, "bitmap disk1/c", 5)])
    for wrong in (
        MetDefect(marks.id, "bitmap disk0/c", 5),
        MetDefect(marks.id, found.where, 10),
        MetDefect(UNDONE, found.where, 5),
    ):
        assert not marks.met_by(found, [wrong])
    assert not marks.met_by(
        replace(found, verdict=Verdict.LOST_WRITE), [MetDefect(marks.id, found.where, 5)]
    )
    crash = replace(undone.divergence, operation=9)
    assert undone.met_by(crash, [MetDefect(UNDONE, "transaction", 9)])
    assert not undone.met_by(crash, [MetDefect(UNDONE, "transaction", 5)])
    other = replace(crash, ending=Ending(Exit.parse("was killed by SIGABRT"), "Assertion failed"))
    assert not undone.met_by(other, [MetDefect(UNDONE, "transaction", 9)])
