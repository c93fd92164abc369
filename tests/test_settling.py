import pytest

from preemptd.config import Settings
from preemptd.model import Outcome
from preemptd.settling import FUTILE_LIMIT, Ending, settle


def ending(
    status: int = 0, *, told: bool = True, done: bool = False, saved: bool = False, known: bool = True
) -> Ending:
    return Ending(Outcome(status, known), True, told, done, frozenset(), 1.0, saved, 3.0, 20.0)


@pytest.mark.parametrize("status", [0, 1, 3, 75, 137, 143])
def test_the_status_of_a_command_that_was_not_told_is_its_own(status: int) -> None:
    settled = settle(ending(status, told=False), Settings(), None, 2)

    assert (settled.status, settled.preempted, settled.futile) == (status, False, 0)


@pytest.mark.parametrize("status", [0, 1, 75, 137])
def test_a_command_that_was_told_is_preempted_whatever_its_own_status(status: int) -> None:
    settled = settle(ending(status), Settings(), None, 0)

    assert (settled.status, settled.preempted) == (75, True)
    assert str(status) in settled.why


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


def test_an_end_that_nobody_saw_is_named() -> None:
    settled = settle(ending(1, told=False, known=False), Settings(), None, 0)

    assert settled.why == "its exit status is not known"
