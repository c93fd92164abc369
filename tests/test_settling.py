from dataclasses import replace

import pytest

from preemptd.config import Settings
from preemptd.model import Outcome
from preemptd.notices import Meaning
from preemptd.settling import FUTILE_LIMIT, Ending, settle


def ending(
    status: int = 0,
    *,
    told: bool = True,
    done: bool = False,
    saved: bool = False,
    known: bool = True,
    meaning: Meaning = Meaning.PREEMPTED,
) -> Ending:
    return Ending(Outcome(status, known), True, told, meaning, done, frozenset(), 1.0, saved, 3.0, 20.0)


@pytest.mark.parametrize("status", [0, 1, 3, 75, 137, 143])
def test_the_status_of_a_command_that_was_not_told_is_its_own(status: int) -> None:
    settled = settle(ending(status, told=False), Settings(), None, 2)

    assert (settled.status, settled.preempted, settled.futile) == (status, False, 0)


@pytest.mark.parametrize("status", [0, 1, 75, 137])
def test_a_command_that_was_told_is_preempted_whatever_its_own_status(status: int) -> None:
    settled = settle(ending(status), Settings(), None, 0)

    assert (settled.status, settled.preempted) == (75, True)
    assert str(status) in settled.why


@pytest.mark.parametrize(
    ("told", "meaning", "status", "preempted"),
    [
        (True, Meaning.PREEMPTED, 75, True),  # the platform has sent a signal itself
        (False, Meaning.PREEMPTED, 143, False),  # a notice is pending, and somebody has stopped us
        (True, Meaning.STOPPED, 143, False),
        (True, Meaning.UNDECIDED, 143, False),
        (True, Meaning.SUPERSEDED, 143, False),
    ],
)
def test_a_command_that_was_held_back_is_preempted_if_the_platform_has_ended_it(
    told: bool, meaning: Meaning, status: int, preempted: bool
) -> None:
    settled = settle(replace(ending(143, told=told, meaning=meaning), started=False), Settings(), None, 2)

    assert (settled.status, settled.preempted, settled.futile) == (status, preempted, 2)


@pytest.mark.parametrize("code", [0, 1, 143, 255])
def test_the_status_of_a_preemption_is_the_users_choice(code: int) -> None:
    settled = settle(ending(9), Settings(preempted_exit_code=code), None, 0)

    assert (settled.status, settled.preempted) == (code, True)


@pytest.mark.parametrize(
    ("end", "exit_zero", "status", "preempted"),
    [
        (ending(0, done=True), "preempted", 0, False),
        (ending(4, done=True), "preempted", 4, False),
        (ending(0), "done", 0, False),
        (ending(4), "done", 75, True),
        (ending(0, known=False), "done", 75, True),
    ],
)
def test_a_finished_job_is_not_preempted_if_it_says_so(
    end: Ending, exit_zero: str, status: int, preempted: bool
) -> None:
    settled = settle(end, Settings.model_validate({"exit_zero": exit_zero}), None, 0)

    assert (settled.status, settled.preempted) == (status, preempted)


def test_attempts_without_progress_are_counted_and_the_third_passes_the_own_status_on() -> None:
    futile, statuses = 0, []
    for _ in range(FUTILE_LIMIT + 1):
        settled = settle(ending(9), Settings(), False, futile)
        futile = settled.futile
        statuses.append((settled.status, settled.preempted))

    assert statuses == [(75, True), (75, True), (9, True), (9, True)]


@pytest.mark.parametrize("progress", [True, None])
def test_progress_or_ignorance_begins_the_count_anew(progress: bool | None) -> None:
    settled = settle(ending(9), Settings(), progress, FUTILE_LIMIT - 1)

    assert (settled.status, settled.futile) == (75, 0)


@pytest.mark.parametrize(
    ("progress", "why"),
    [
        (True, "preempted (its own status was 143)"),
        (None, "preempted (its own status was 143)"),
        (False, "preempted (its own status was 143; nothing new and complete lies in its --checkpoint-dir)"),
    ],
)
def test_an_attempt_that_saved_nothing_says_so_at_its_end(progress: bool | None, why: str) -> None:
    assert settle(ending(143), Settings(), progress, 0).why == why


def test_an_end_that_nobody_saw_is_named() -> None:
    settled = settle(ending(1, told=False, known=False), Settings(), None, 0)

    assert settled.why == "its exit status is not known"


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("meaning", "status", "futile"),
    [(Meaning.STOPPED, 3, 0), (Meaning.SUPERSEDED, 3, 2)],
)
def test_what_somebody_stopped_or_what_runs_elsewhere_is_no_preemption(
    meaning: Meaning, status: int, futile: int, *, told: bool
) -> None:
    settled = settle(ending(3, told=told, meaning=meaning), Settings(), False, 2)

    assert (settled.status, settled.preempted, settled.futile) == (status, False, futile)


def test_who_was_told_and_never_heard_why_exits_as_preempted_and_nothing_else_is_made_of_it() -> None:
    settled = settle(ending(0, meaning=Meaning.UNDECIDED), Settings(), False, 2)

    assert (settled.status, settled.preempted, settled.futile, settled.stuck) == (75, False, 2, False)


def test_a_job_is_stuck_after_three_preempted_attempts_without_progress() -> None:
    assert [settle(ending(0), Settings(), False, before).stuck for before in range(4)] == [False, False, True, True]
