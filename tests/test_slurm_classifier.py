"""Each situation in which a job can be when it hears of something, as SLURM shows it, and its neighbours."""

from dataclasses import replace

import pytest

from preemptd.notices import Kind, Meaning
from preemptd_providers.slurm.classifier import Bringing, Circumstances, Verdict, Wake, classify
from preemptd_providers.slurm.row import Row

NOW = 1_000_000.0
FAR = NOW + 36_000
KILL_WAIT = 30.0
AT_NOW = Circumstances(now=NOW, restart=2, kill_wait=KILL_WAIT, lead=120.0)
TERMINATED = replace(AT_NOW, wake=Wake.TERM, terminated=True)

PREEMPTED, STOPPED, SUPERSEDED = Meaning.PREEMPTED, Meaning.STOPPED, Meaning.SUPERSEDED
OURS, SLURMS, NOBODYS = Bringing.OURS, Bringing.SLURMS, Bringing.NOBODYS


def row(  # one argument a column
    state: str,
    reason: str = "None",
    restarts: int = 2,
    preempted: float | None = None,
    end: float | None = FAR,
) -> Row:
    return Row(state, reason, end, preempted, restarts, "12")


RUNNING = row("RUNNING")
IN_GRACE = row("RUNNING", preempted=NOW - 5, end=NOW + 15)


def test_a_job_that_runs_and_hears_nothing_is_no_news() -> None:
    assert classify(RUNNING, AT_NOW) is None


@pytest.mark.parametrize("wake", [None, *Wake])
def test_in_its_grace_a_job_is_preempted_whatever_woke_us_and_has_time_until_endtime(wake: Wake | None) -> None:
    expected = Verdict(Kind.PREEMPT, PREEMPTED, 15.0, OURS, irrevocable=True)

    assert classify(IN_GRACE, replace(AT_NOW, wake=wake)) == expected


ENDS = {
    "preempted, requeued by SLURM": (
        row("COMPLETING", restarts=3, preempted=NOW - 20, end=None),
        (Kind.PREEMPT, PREEMPTED, SLURMS),
    ),
    "requeued by a person": (row("COMPLETING", restarts=3, end=None), (Kind.REQUEUED, PREEMPTED, SLURMS)),
    "preempted, PreemptMode=CANCEL": (
        row("COMPLETING", preempted=NOW, end=NOW),
        (Kind.PREEMPT, PREEMPTED, OURS),
    ),
    "time limit": (row("COMPLETING", "TimeLimit", end=NOW), (Kind.TIME_LIMIT, PREEMPTED, OURS)),
    "scancel": (row("COMPLETING", end=NOW), (Kind.CANCELLED, STOPPED, NOBODYS)),
    "scancel in the grace": (
        row("COMPLETING", preempted=NOW - 5, end=NOW),
        (Kind.CANCELLED, STOPPED, NOBODYS),
    ),
    "over: cancelled": (row("CANCELLED", end=NOW), (Kind.CANCELLED, STOPPED, NOBODYS)),
    "over: time limit": (row("TIMEOUT", end=NOW), (Kind.TIME_LIMIT, PREEMPTED, OURS)),
    "over: preempted": (row("PREEMPTED", preempted=NOW - 40, end=NOW), (Kind.PREEMPT, PREEMPTED, OURS)),
    "over: the node failed, and the job is not requeued": (
        row("NODE_FAIL", end=NOW),
        (Kind.NODE_FAILURE, PREEMPTED, OURS),
    ),
    "over: the batch script has ended before us": (row("COMPLETED", end=NOW), (Kind.CANCELLED, STOPPED, NOBODYS)),
    "over: its --deadline": (row("DEADLINE", end=NOW), (Kind.CANCELLED, STOPPED, NOBODYS)),
}


@pytest.mark.parametrize(("seen", "expected"), ENDS.values(), ids=ENDS)
def test_at_the_final_sigterm_the_row_tells_why(seen: Row, expected: tuple[Kind, Meaning, Bringing]) -> None:
    verdict = classify(seen, TERMINATED)

    assert verdict is not None
    assert (verdict.kind, verdict.meaning, verdict.bringing) == expected
    assert (verdict.remaining, verdict.everybody_terminated) == (KILL_WAIT, True)


LEFT_OVER = {
    "waits for its next start": (row("PENDING", "BeginTime", restarts=3), TERMINATED, Kind.NODE_FAILURE),
    "runs elsewhere": (row("RUNNING", restarts=3), AT_NOW, Kind.NODE_FAILURE),
    "runs elsewhere, and we are signalled": (row("RUNNING", restarts=3), TERMINATED, Kind.NODE_FAILURE),
    "is preempted there": (row("RUNNING", restarts=3, preempted=NOW), AT_NOW, Kind.REQUEUED),
    "ends there, and we heard nothing": (row("COMPLETING", restarts=3), AT_NOW, Kind.NODE_FAILURE),
    "ends there after two starts": (row("COMPLETING", restarts=4, preempted=NOW), TERMINATED, Kind.REQUEUED),
    "is held": (row("REQUEUE_HOLD", restarts=3), AT_NOW, Kind.NODE_FAILURE),
}


@pytest.mark.parametrize(("seen", "known", "kind"), LEFT_OVER.values(), ids=LEFT_OVER)
def test_a_copy_that_slurm_has_given_up_is_superseded(seen: Row, known: Circumstances, kind: Kind) -> None:
    assert classify(seen, known) == Verdict(kind, SUPERSEDED, 0.0, SLURMS)


def test_a_lower_count_than_ours_is_none_of_a_newer_copy() -> None:
    assert classify(row("RUNNING", restarts=1), AT_NOW) is None


# The time limit


@pytest.mark.parametrize("wake", [Wake.SIGNAL, Wake.TERM])
def test_a_signal_near_the_time_limit_announces_it(wake: Wake) -> None:
    near = row("RUNNING", end=NOW + 100)

    assert classify(near, replace(AT_NOW, wake=wake)) == Verdict(Kind.TIME_LIMIT, PREEMPTED, 100.0, OURS)


@pytest.mark.parametrize(
    ("lead", "left", "kind"),
    [
        (120.0, 210.0, Kind.TIME_LIMIT),
        (120.0, 211.0, Kind.REQUESTED),
        (10.0, 210.0, Kind.TIME_LIMIT),  # --signal=B:USR1@120 whatever --lead says
        (600.0, 690.0, Kind.TIME_LIMIT),
        (600.0, 691.0, Kind.REQUESTED),
    ],
)
def test_near_is_what_signal_at_120_or_lead_may_mean_plus_slurms_own_earliness(
    lead: float, left: float, kind: Kind
) -> None:
    verdict = classify(row("RUNNING", end=NOW + left), replace(AT_NOW, lead=lead, wake=Wake.SIGNAL))

    assert verdict is not None
    assert verdict.kind is kind


@pytest.mark.parametrize(("left", "expected"), [(121.0, None), (120.0, Kind.TIME_LIMIT), (-3.0, Kind.TIME_LIMIT)])
def test_without_any_signal_the_time_limit_is_acted_on_at_its_lead(left: float, expected: Kind | None) -> None:
    verdict = classify(row("RUNNING", end=NOW + left), replace(AT_NOW, unasked_lead=120.0))

    assert (verdict and verdict.kind) == expected
    assert verdict is None or verdict.remaining == left


def test_a_job_without_a_limit_never_comes_near_it() -> None:
    known = replace(AT_NOW, wake=Wake.SIGNAL, unasked_lead=120.0)

    assert classify(row("RUNNING", end=None), known) == Verdict(Kind.REQUESTED, PREEMPTED, None, OURS)


# Signals of people


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "SUSPENDED"])
def test_usr1_far_from_the_limit_is_a_request_that_brings_the_job_back(state: str) -> None:
    verdict = classify(row(state), replace(AT_NOW, wake=Wake.SIGNAL))

    assert verdict == Verdict(Kind.REQUESTED, PREEMPTED, FAR - NOW, OURS)


@pytest.mark.parametrize(("end", "left"), [(FAR, None), (NOW + 100, 100.0)])
def test_a_file_is_a_preemption_wherever_the_limit_is(end: float, left: float | None) -> None:
    verdict = classify(row("RUNNING", end=end), replace(AT_NOW, wake=Wake.FILE))

    assert verdict == Verdict(Kind.PREEMPT, PREEMPTED, left, OURS)


def test_a_sigterm_to_a_running_job_is_somebodys_wish_to_stop() -> None:
    verdict = classify(RUNNING, TERMINATED)

    assert verdict == Verdict(Kind.REQUESTED, STOPPED, None, NOBODYS)


# A grace that is cut short


def test_scancel_in_a_grace_that_we_have_seen_is_known_even_in_its_first_second() -> None:
    end = row("COMPLETING", preempted=NOW, end=NOW)

    early, in_time = (classify(end, replace(TERMINATED, grace_end=NOW + left)) for left in (18.0, 0.0))

    assert early is not None
    assert in_time is not None
    assert (early.kind, in_time.kind) == (Kind.CANCELLED, Kind.PREEMPT)


def test_a_second_between_two_times_that_are_meant_to_be_equal_is_a_tick() -> None:
    verdict = classify(row("COMPLETING", preempted=NOW - 1, end=NOW), TERMINATED)

    assert verdict is not None
    assert verdict.kind is Kind.PREEMPT


# Nobody answers


@pytest.mark.parametrize(("wake", "kind"), [(Wake.SIGNAL, Kind.REQUESTED), (Wake.FILE, Kind.PREEMPT)])
def test_without_an_answer_usr1_is_a_request_and_a_file_a_preemption(wake: Wake, kind: Kind) -> None:
    assert classify(None, replace(AT_NOW, wake=wake)) == Verdict(kind, PREEMPTED, None, OURS)


@pytest.mark.parametrize("wake", [None, Wake.TERM])
def test_without_an_answer_a_sigterm_may_be_anything(wake: Wake | None) -> None:
    assert classify(None, replace(AT_NOW, wake=wake)) is None
