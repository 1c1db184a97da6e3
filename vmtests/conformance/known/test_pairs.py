"""What a written-up finding of a pair excuses, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qmpshim.commands.pair import seen_in
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.known import accelerator
from qmpshim.conformance.known.accelerator import best_accel
from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.known.matching import PairWriteUp
from qmpshim.conformance.known.seen import assessed
from qmpshim.conformance.known.write_ups import Version
from qmpshim.conformance.pair.plan import PairFinding, PairOutcome, PairPlan
from qmpshim.machine.builds.build import Build
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.cause_reader import pair_cause_from_text
from qmpshim.model.check.verdict import Verdict

#: As bundles of format 1 have it, with what became of it.
TEXTS = {
    "the guest of the secondary stands still": Cause(
        CauseKind.PAIR_GUEST_STOPS, "secondary", "stands still"
    ),
    "primary: migration is 'completed' instead of 'colo'": Cause(
        CauseKind.PAIR_MIGRATION, "primary", "completed"
    ),
    "primary deadlocked: a thread waits for a mutex that it holds itself": Cause(
        CauseKind.PAIR_DEADLOCKED, "primary", "a thread waits for a mutex that it holds itself"
    ),
    "a checkpoint is taken although writes have not reached the secondary": Cause(
        CauseKind.PAIR_WRITES_LEFT_OUT
    ),
    "primary: migration is 'failed' instead of 'colo': no: route": Cause(
        CauseKind.PAIR_MIGRATION, "primary", "failed (no: route)"
    ),
    "secondary ended by SIGABRT: no last words": Cause(
        CauseKind.PAIR_ENDED, "secondary", "SIGABRT: no last words"
    ),
    "secondary does not answer QMP": Cause(CauseKind.PAIR_UNRESPONSIVE, "secondary"),
    "both sides answer, and nothing moves": Cause(CauseKind.PAIR_STUCK),
    "lost-write: acknowledged writes on the disk of the primary": Cause(
        CauseKind.PAIR_DIVERGES, "acknowledged writes on the disk of the primary", "lost-write"
    ),
    "xen-set-replication: no": Cause(CauseKind.PAIR_FAILS, detail="xen-set-replication: no"),
}
STALE, COMPLETES, DEADLOCK, LOST, *_ = TEXTS.values()
V7, V10, V11 = (7, 2, 22), (10, 0, 3), (11, 1, 3)


def known_as(
    verdict: Verdict,
    cause: Cause,
    plan: PairPlan,
    versions: tuple[Version, Version],
    contract: bool,
) -> str:
    finding = PairFinding(Divergence(verdict, "", 1, "", ""), cause, contract)
    hits = [one.id for one in known_pairs() if one.covers(finding, plan, versions)]
    assert len(hits) <= 1
    return hits[0] if hits else ""


@pytest.mark.parametrize(
    ("verdict", "cause", "plan", "versions", "contract", "known"),
    [
        # A finding is excused where its reason holds ...
        (
            *(Verdict.HANG, STALE, PairPlan(guest="linux-booting"), (V11, V11), True),
            "colo-secondary-runs-stale-code-under-tcg",
        ),
        (
            *(Verdict.PROTOCOL, COMPLETES, PairPlan(), (V10, V11), False),
            "colo-migration-completes",
        ),
        (
            *(Verdict.HANG, DEADLOCK, PairPlan(guest="linux"), (V7, V11), False),
            "colo-primary-deadlocks-under-tcg",
        ),
        (
            *(Verdict.LOST_WRITE, LOST, PairPlan(), (V11, V11), False),
            "checkpoint-after-lost-writes",
        ),
        # ... and nowhere else: for these guests, the write-up says, all is well;
        (Verdict.HANG, STALE, PairPlan(guest="boot"), (V11, V11), True, ""),
        (Verdict.HANG, STALE, PairPlan(guest="linux"), (V11, V11), True, ""),
        (Verdict.HANG, STALE, PairPlan(guest="linux-booting", accel="kvm"), (V11, V11), True, ""),
        # the primary's version says whether its migration completes, whether it deadlocks;
        (Verdict.PROTOCOL, COMPLETES, PairPlan(), (V11, V10), False, ""),
        (Verdict.HANG, DEADLOCK, PairPlan(), (V11, V7), False, ""),
        (Verdict.HANG, DEADLOCK, PairPlan(accel="kvm"), (V7, V7), True, ""),
        (Verdict.HANG, DEADLOCK, PairPlan(guest="none"), (V7, V7), True, ""),
        # without COLO nothing of this is known; and what is known of a crash is another verdict.
        (Verdict.LOST_WRITE, LOST, PairPlan(colo=False), (V11, V11), False, ""),
        (Verdict.LOST_WRITE, LOST, PairPlan(), (V11, V11), True, ""),
        (Verdict.CRASH, DEADLOCK, PairPlan(), (V7, V7), True, ""),
    ],
)
def test_covers(
    verdict: Verdict,
    cause: Cause,
    plan: PairPlan,
    versions: tuple[Version, Version],
    contract: bool,
    known: str,
) -> None:
    assert known_as(verdict, cause, plan, versions, contract) == known


@pytest.mark.parametrize(("text", "cause"), TEXTS.items())
def test_old_bundles_are_read(text: str, cause: Cause) -> None:
    assert pair_cause_from_text(text) == cause


@pytest.mark.parametrize(
    ("versions", "guest", "kvm", "accel"),
    [
        ((V7, V7), "boot", True, "kvm"),
        ((V7, V7), "boot", False, "tcg"),
        ((V7, V7), "none", True, "tcg"),
        (((10, 2, 1), (10, 2, 1)), "boot", True, "kvm"),  # the write-up says: until 11.0
        (((11, 0, 0), (11, 0, 0)), "boot", True, "tcg"),
        ((V11, V7), "linux", True, "kvm"),
        ((V11, V11), "linux-booting", True, "kvm"),
    ],
)
def test_the_accelerator_is_the_write_ups(
    versions: tuple[Version, Version],
    guest: str,
    kvm: bool,
    accel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (replace(Build.system(), name=str(number)) for number in (0, 1))
    monkeypatch.setattr(accelerator, "has_kvm", lambda: kvm)
    monkeypatch.setattr(accelerator, "read_version", lambda build: (versions[int(build.name)], ""))
    assert best_accel((one, other), guest) == accel


def test_each_write_up_covers_its_own_case() -> None:
    for known in known_pairs():
        assert isinstance(known, PairWriteUp)
        assert known.plan.guest in known.guests
        since: Version = tuple(map(int, (known.since or "0").split(".")))
        assert known.may_come(known.plan, (since, since))


def test_a_trial_asks_for_guest_and_accelerator_whatever_the_version() -> None:
    """What KVM or another guest shows is not the write-up's, though the words are the same."""
    (deadlock,) = (one for one in known_pairs() if one.id == "colo-primary-deadlocks-under-tcg")
    found = PairFinding(Divergence(Verdict.HANG, "", 1, "", ""), DEADLOCK, True)
    assert deadlock.shown_by(found, deadlock.plan)
    for other in ({"accel": "kvm"}, {"guest": "none"}, {"colo": False}):
        assert not deadlock.shown_by(found, replace(deadlock.plan, **other))
    assert not deadlock.covers(found, deadlock.plan, (V11, V11))


def test_a_strict_run_ends_with_the_same_line() -> None:
    """What assess concludes does not depend on what fails the run."""
    completes = Cause(CauseKind.PAIR_MIGRATION, "primary", "completed")
    divergence = Divergence(Verdict.PROTOCOL, "start of COLO", 0, "COLO", "completed")
    lines = {
        assessed(
            seen_in(
                PairOutcome(
                    PairPlan(),
                    ("10.0.2", "10.0.2"),
                    findings=[PairFinding(divergence, completes, True, known)],
                )
            )
        )
        for known in ("", "colo-migration-completes")
    }
    (line,) = lines
    assert line.startswith("NOT RELIABLE for the COLO primary, the COLO secondary: hang: ")
