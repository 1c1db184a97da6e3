"""What follows from what was tried: an answer that is never better than what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qmpshim.conformance.assess.exploration import Explored, scenarios_of
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.assess.trials import Seen, Trial
from qmpshim.conformance.assess.workloads import WORKLOADS, UseWorkload, WorkloadTrial
from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, Status
from qmpshim.conformance.explore.directed.run import DirectedFinding
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.known.seen import SeenFinding, Standing, standing
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import made_case

ALL = Explored(scenarios=36, reached=36, exhausted=30, schedules=400)
NONE_SEEN = [Trial(one, Seen.NOT_SEEN) for one in write_ups()]
SNAPSHOT = write_up("snapshot-read-returns-new-data")
MILD = write_up("write-beside-zeroes-zeroes-data")
NEW = replace(load_finding(SNAPSHOT.path), known="", replays=(3, 3))


def with_trial(name: str, seen: Seen) -> list[Trial]:
    return [
        replace(one, seen=seen, why="w") if one.entry.name == name else one for one in NONE_SEEN
    ]


def test_nothing_seen_and_all_tried_is_reliable() -> None:
    assessment = judge(Use.FLEECING, NONE_SEEN, ALL)
    assert (assessment.answer, assessment.reasons, assessment.doubts, assessment.remarks) == (
        Answer.RELIABLE,
        (),
        (),
        (),
    )
    assert "400 schedules explored, at least 3 of each of 36 of 36 sc" in assessment.figures


def test_what_could_not_count_against_it_and_was_not_tried_is_named() -> None:
    """Else a build would seem to lack it."""
    judged = judge(Use.FLEECING, with_trial(MILD.name, Seen.NOT_TRIED), ALL)
    assert judged.answer is Answer.RELIABLE and judged.untried == (MILD,)
    serious = judge(Use.FLEECING, with_trial(SNAPSHOT.name, Seen.NOT_TRIED), ALL)
    assert serious.answer is Answer.CANNOT_TELL and not serious.untried


def test_a_reason_names_the_release_that_has_it_no_more() -> None:
    judged = judge(Use.FLEECING, with_trial(SNAPSHOT.name, Seen.SHOWN), ALL)
    fix = SNAPSHOT.meaning.fix
    assert fix is not None and [one.fixed for one in judged.reasons] == [fix.release]


def test_what_was_not_tried_is_not_counted_as_tried() -> None:
    known = len(judge(Use.FLEECING, NONE_SEEN, ALL).tried)
    judged = judge(Use.FLEECING, with_trial(SNAPSHOT.name, Seen.NOT_TRIED), ALL)
    assert judged.figures.startswith(f"{known - 1} of {known} known findings tried")


def test_what_the_build_cannot_do_is_not_counted_as_tried() -> None:
    known = len(judge(Use.FLEECING, NONE_SEEN, ALL).tried)
    judged = judge(Use.FLEECING, with_trial(SNAPSHOT.name, Seen.IMPOSSIBLE), ALL)
    figures = f"{known - 1} of {known} known findings tried (1 not possible here)"
    assert judged.figures.startswith(figures)


def test_what_showed_itself_elsewhere_is_not_among_the_untried() -> None:
    found = replace(NEW, known=MILD.id, verdict=Verdict(MILD.verdicts[0]))
    trials = with_trial(MILD.name, Seen.NOT_TRIED)
    judged = judge(Use.FLEECING, trials, replace(ALL, confirmed=[found]))
    assert [one.entry for one in judged.remarks] == [MILD] and not judged.untried
    assert [one.condition for one in judged.remarks] == [MILD.meaning.trigger.words]


@pytest.mark.parametrize("one", [SNAPSHOT, MILD])
def test_something_else_that_goes_wrong_is_a_doubt(one: WriteUp) -> None:
    """Whatever is tried there: a build is not sound by what could not be seen."""
    judged = judge(Use.FLEECING, with_trial(one.name, Seen.OTHER), ALL)
    assert judged.answer is Answer.CANNOT_TELL
    assert judged.doubts == (f"{one.name}: something else went wrong: w",)


def test_a_release_without_it_is_named_where_the_commit_is_not_known() -> None:
    one = write_up("directed/timeout-is-long")
    assert one.meaning.fix is None and one.fixed
    judged = judge(one.meaning.affects[0], with_trial(one.name, Seen.SHOWN), ALL)
    (reason,) = (*judged.reasons, *judged.remarks)
    assert reason.fixed == one.fixed


def test_a_severity_is_not_put_twice() -> None:
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, confirmed=[crash := _crash()]))
    assert [one.text for one in judged.reasons] == [crash.text]
    (reason,) = judge(Use.FLEECING, NONE_SEEN, replace(ALL, confirmed=[NEW])).reasons
    assert reason.text == NEW.described


def _crash() -> Finding:
    return replace(NEW, verdict=Verdict.CRASH, text="QEMU was killed by SIGABRT")


def test_an_option_that_the_build_does_not_have_is_no_doubt() -> None:
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, reached=30, lacking=6, why="no option"))
    assert (judged.answer, judged.doubts) == (Answer.RELIABLE, ())
    assert "30 of 36 scenarios" in judged.figures
    assert "6 need what it does not have" in judged.figures


@pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
def test_what_is_shown_counts_by_its_meaning_for_its_uses_alone(one: object) -> None:
    (known,) = [other for other in write_ups() if other is one]
    trials = with_trial(known.name, Seen.SHOWN)
    for use in Use:
        assessment = judge(use, trials, ALL)
        if use not in known.meaning.affects:
            assert assessment.answer is Answer.RELIABLE
        elif known.meaning.disqualifies:
            assert assessment.answer is Answer.NOT_RELIABLE
            assert [reason.entry for reason in assessment.reasons] == [known]
        else:
            assert assessment.answer is Answer.RELIABLE
            assert [remark.entry for remark in assessment.remarks] == [known]


def test_the_worst_comes_first() -> None:
    trials = [Trial(one, Seen.SHOWN) for one in reversed(write_ups())]
    for use in (Use.FLEECING, Use.COLO_PRIMARY, Use.COLO_SECONDARY):
        ranks = [reason.severity.rank for reason in judge(use, trials, ALL).reasons]
        assert len(ranks) > 2 and ranks == sorted(ranks)


@pytest.mark.parametrize(
    "trials, explored",
    [
        (with_trial(SNAPSHOT.name, Seen.UNSURE), ALL),
        (with_trial(SNAPSHOT.name, Seen.NOT_TRIED), ALL),
        (NONE_SEEN, Explored()),  # there is no exploration of this use
        (NONE_SEEN, replace(ALL, reached=35)),
        (NONE_SEEN, replace(ALL, reached=0, skipped=36, why="no driver")),
        (NONE_SEEN, replace(ALL, reached=35, skipped=1, why="no greeting")),
        (NONE_SEEN, replace(ALL, reached=0, skipped=20, lacking=16, why="no driver")),
        (NONE_SEEN, replace(ALL, reached=10, lacking=16)),
        (
            NONE_SEEN,
            replace(ALL, unconfirmed=[replace(NEW, known=SNAPSHOT.id, replays=(1, 3))]),
        ),
        (NONE_SEEN, replace(ALL, unconfirmed=[replace(NEW, replays=(1, 3))])),
    ],
)
def test_what_was_not_tried_is_never_reliable(trials: list[Trial], explored: Explored) -> None:
    assessment = judge(Use.FLEECING, trials, explored)
    assert assessment.answer is Answer.CANNOT_TELL and len(assessment.doubts) == 1
    shown = [*trials, Trial(write_up("snapshot-discard-aborts"), Seen.SHOWN)]
    assert judge(Use.FLEECING, shown, explored).answer is Answer.NOT_RELIABLE


def test_what_the_build_cannot_do_is_no_doubt_about_what_it_can() -> None:
    assert judge(Use.FLEECING, with_trial(SNAPSHOT.name, Seen.IMPOSSIBLE), ALL).answer is (
        Answer.RELIABLE
    )


def test_what_goes_wrong_in_two_places_is_one_reason() -> None:
    """Whatever the words: what the exploration shows, too, and what two trials show."""
    wrong = Trial(
        SNAPSHOT, Seen.OTHER, "a", NEW.verdict, (Use.FLEECING,), True, frozenset([NEW.cause])
    )
    other = replace(wrong, entry=MILD, why="b")
    trials = [one for one in NONE_SEEN if one.entry not in (SNAPSHOT, MILD)] + [wrong, other]
    (reason,) = judge(Use.FLEECING, trials, replace(ALL, confirmed=[NEW])).reasons
    assert reason.finding is NEW
    (reason,) = judge(Use.FLEECING, trials, ALL).reasons
    assert reason.trial is other
    another = replace(other, causes=frozenset([Cause(CauseKind.STAYS)]))
    assert len(judge(Use.FLEECING, [*trials[:-1], another], ALL).reasons) == 2


def test_what_is_new_is_not_reliable_within_the_contract() -> None:
    found = replace(ALL, confirmed=[NEW])
    assessment = judge(Use.FLEECING, NONE_SEEN, found)
    assert assessment.answer is Answer.NOT_RELIABLE and assessment.reasons[0].finding is NEW
    outside = replace(ALL, confirmed=[replace(NEW, contract=False)])
    assessment = judge(Use.FLEECING, NONE_SEEN, outside)
    assert assessment.answer is Answer.RELIABLE and assessment.remarks[0].finding is not None


def test_what_the_exploration_saw_of_a_known_finding_counts_though_its_trial_did_not() -> None:
    found = replace(ALL, confirmed=[replace(NEW, known=SNAPSHOT.id)])
    assessment = judge(Use.FLEECING, NONE_SEEN, found)
    assert [reason.entry for reason in assessment.reasons] == [SNAPSHOT]


def test_each_use_is_explored() -> None:
    assert all(scenarios_of(use) for use in Use)
    full, incremental, bitmaps = (
        {one.name for one in scenarios_of(use)}
        for use in (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS)
    )
    assert full and incremental and not full & incremental
    assert full | incremental < bitmaps


def of_case(known: str, replays: tuple[int, int], contract: bool = True) -> DirectedFinding:
    wrong = RealViolation(Verdict.ISOLATION, "wrong", cause=Cause(CauseKind.DIRECTED, "made"))
    case = made_case(lambda machine: wrong, contract=contract)
    return DirectedFinding(case, wrong, replays, known)


def test_what_a_directed_case_shows_counts_as_what_a_schedule_does() -> None:
    new = of_case("", (3, 3))
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, directed=[new]))
    assert judged.answer is Answer.NOT_RELIABLE
    assert [reason.finding for reason in judged.reasons] == [new]
    assert [reason.promised for reason in judged.reasons] == ["Something is promised."]
    unsteady = of_case("", (2, 3))
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, directed=[unsteady]))
    assert judged.answer is Answer.CANNOT_TELL and len(judged.doubts) == 1
    untried = of_case("", (0, 0))
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, directed=[untried]))
    assert judged.doubts == ("seen, and not tried again: isolation: wrong",)
    outside = of_case("", (3, 3), contract=False)
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, directed=[outside]))
    assert judged.answer is Answer.RELIABLE and judged.remarks[0].finding is outside
    assert judged.remarks[0].condition == "only against QEMU's documented rules"
    known = of_case("directed/iothread-client-leaves", (0, 0))
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, directed=[known]))
    assert [reason.entry for reason in judged.reasons] == [write_up(known.known)]
    assert judge(Use.COLO_PRIMARY, NONE_SEEN, replace(ALL, directed=[known])).reasons == ()


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("directed/blkdebug-small-discard", Use.NBD_EXPORT),
        ("directed/snapshot-of-smaller-disk", Use.FLEECING),
    ],
)
def test_a_crash_outside_ordinary_use_makes_no_use_unreliable(name: str, use: Use) -> None:
    """It takes a driver for tests, or that a disk is made smaller, which tools refuse."""
    known = of_case(name, (0, 0))
    entry = write_up(known.known)
    assert entry.meaning.severity.serious and entry.meaning.affects == (use,)
    judged = judge(use, NONE_SEEN, replace(ALL, directed=[known]))
    assert judged.answer is Answer.RELIABLE
    assert [remark.entry for remark in judged.remarks] == [entry]
    seen = SeenFinding(Verdict.CRASH, known.text, contract=True, known=entry.id)
    assert standing([seen]) is Standing.CONDITIONAL


def test_a_case_that_was_not_run_is_a_doubt() -> None:
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, cases=12, cases_run=11))
    assert judged.answer is Answer.CANNOT_TELL and "1 of 12 directed cases" in judged.doubts[0]
    judged = judge(Use.FLEECING, NONE_SEEN, replace(ALL, cases=12, cases_run=12))
    assert judged.answer is Answer.RELIABLE and "12 of 12 directed cases run" in judged.figures


PULL = next(one for one in WORKLOADS if one.workflow == "pull")


def ended(status: Status, *found: CaseFinding, workload: UseWorkload = PULL) -> list[WorkloadTrial]:
    return [WorkloadTrial(workload, CaseOutcome(status, "so", found, {"operations": 300}))]


def test_what_a_workload_shows_counts_for_its_uses() -> None:
    wrong = CaseFinding(Verdict.CONTENT, "made", "wrong")
    ran = ended(Status.DIVERGED, wrong)
    judged = judge(Use.FLEECING, NONE_SEEN, ALL, ran)
    assert judged.answer is Answer.NOT_RELIABLE and judged.reasons[0].workload is PULL
    assert "300 operations of random workloads" in judged.figures
    assert judge(Use.COLO_PRIMARY, NONE_SEEN, ALL, ran).answer is Answer.RELIABLE
    ran = ended(Status.OK, replace(wrong, known=SNAPSHOT.id))
    assert judge(Use.FLEECING, NONE_SEEN, ALL, ran).reasons[0].entry is SNAPSHOT
    assert judge(Use.FLEECING, NONE_SEEN, ALL, ended(Status.OK)).answer is Answer.RELIABLE


def test_what_a_workload_did_not_show_again_is_a_doubt() -> None:
    once = CaseFinding(Verdict.CONTENT, "made", "wrong", confirmed=False)
    judged = judge(Use.FLEECING, NONE_SEEN, ALL, ended(Status.DIVERGED, once))
    assert judged.answer is Answer.CANNOT_TELL and not judged.reasons
    assert judged.doubts == ("seen, and not each time it was tried again: content: wrong",)
    outside = replace(once, contract=False)
    judged = judge(Use.FLEECING, NONE_SEEN, ALL, ended(Status.DIVERGED, outside))
    assert judged.answer is Answer.RELIABLE


@pytest.mark.parametrize("status", [Status.BROKEN, Status.SKIPPED])
def test_a_workload_that_could_not_be_run_is_a_doubt(status: Status) -> None:
    judged = judge(Use.FLEECING, NONE_SEEN, ALL, ended(status))
    assert judged.answer is Answer.CANNOT_TELL and judged.doubts == ("the workload pull: so",)
