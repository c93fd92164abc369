"""The one notice of an attempt, as news come in from all sides; time is the test's."""

import signal
from signal import SIGTERM, SIGUSR1, SIGUSR2

import pytest

from preemptd.notices import Kind, Meaning, Notice
from preemptd_providers._signal_file import Address, Scope, SignalFileContent, SignalText
from preemptd_providers._signal_search import FoundFile
from preemptd_providers.slurm.attempt import CONFIRMED, REQUEST_LASTS, SETTLED, Attempt
from preemptd_providers.slurm.classifier import Bringing
from preemptd_providers.slurm.job import Job
from preemptd_providers.slurm.row import Row

START = 1_000_000.0


class Story:
    """An attempt on a clock of its own: seconds since the start of the job."""

    def __init__(
        self, restart: int = 0, *, in_step: bool = False, has_controller: bool = True, counted: bool = True
    ) -> None:
        self.now = 0.0
        self.attempt = Attempt(
            Job("12", "12", restart, counted=counted, node="n1", in_step=in_step, is_first=True),
            120.0,
            START,
            has_controller=has_controller,
            clock=lambda: self.now,
            wall=lambda: START + self.now,
        )
        self.attempt.kill_wait, self.attempt.knows_kill_wait = 5.0, True

    def hears(self, signum: signal.Signals, *, direct: bool = True) -> Notice:
        return self.attempt.heard(signum, direct=direct)

    def sees(
        self, state: str = "RUNNING", end: float = 36_000, preempted: float | None = None, restarts: int = 0
    ) -> Notice | None:
        """Ask now: *end* and *preempted* in seconds since the start."""
        row = Row(state, "None", START + end, None if preempted is None else START + preempted, restarts, "12")
        return self.attempt.took(row, self.now)

    def finds(self, remaining: float | None = None) -> Notice | None:
        place = Address("/s/12.preempt", Scope.JOB)
        content = SignalFileContent((1, 2, 3), START, b"")
        return self.attempt.filed(FoundFile(place, content, SignalText(), START, self.now, remaining))

    def after(self, seconds: float) -> "Story":
        self.now += seconds
        return self


def decided(notice: Notice | None) -> tuple[Kind, Meaning]:
    assert notice is not None
    return notice.kind, notice.meaning


@pytest.mark.parametrize("signum", [SIGUSR1, SIGUSR2, SIGTERM])
def test_a_signal_is_told_at_once_and_decided_later(signum: signal.Signals) -> None:
    story = Story()
    story.sees()

    notice = story.after(10).hears(signum)

    assert (notice.event_id, notice.meaning) == ("slurm:12:0", Meaning.UNDECIDED)
    assert notice.source == signum.name
    assert story.attempt.is_unsettled


def test_a_sigterm_to_the_batch_script_leaves_killwait_and_has_reached_everybody() -> None:
    notice = Story().hears(SIGTERM)

    assert notice.remaining == 5.0
    assert notice.already_sent == {SIGTERM}


def test_a_sigterm_to_the_batch_script_alone_has_not_reached_the_training() -> None:
    """`scancel -b -s TERM`: the row says that the job runs on."""
    story = Story()
    story.hears(SIGTERM)

    notice = story.after(SETTLED).sees()

    assert decided(notice) == (Kind.REQUESTED, Meaning.STOPPED)
    assert notice is not None
    assert notice.already_sent == frozenset()


def test_a_signal_in_a_step_has_reached_the_training_in_it() -> None:
    story = Story(in_step=True)

    assert story.hears(SIGUSR1).already_sent == {SIGUSR1}
    assert story.hears(SIGTERM).already_sent == {SIGUSR1, SIGTERM}
    assert story.hears(SIGTERM).remaining is None  # it may be the begin of a grace as well as its end
    notice = story.after(1).sees(preempted=0, end=20)
    assert notice is not None
    assert notice.already_sent == {SIGUSR1, SIGTERM}


def test_what_the_canary_hears_was_not_sent_to_the_training_in_the_batch_script() -> None:
    story = Story()

    notice = story.hears(SIGTERM, direct=False)

    assert (notice.already_sent, notice.remaining) == (frozenset(), None)
    assert notice.source == "canary step: SIGTERM"
    assert story.attempt.sent_to_steps == {SIGTERM}


def test_a_running_row_of_the_first_moments_decides_no_request() -> None:
    story = Story()
    story.hears(SIGUSR1)

    first = story.after(SETTLED / 2).sees()
    again = story.attempt.is_unsettled
    second = story.after(SETTLED).sees()

    assert first is not None
    assert (first.meaning, again) == (Meaning.UNDECIDED, True)
    assert decided(second) == (Kind.REQUESTED, Meaning.PREEMPTED)
    assert not story.attempt.is_unsettled


def test_a_grace_decides_at_once_and_endtime_is_what_remains() -> None:
    story = Story()
    story.hears(SIGTERM, direct=False)

    notice = story.after(0.01).sees(preempted=0, end=20)

    assert decided(notice) == (Kind.PREEMPT, Meaning.PREEMPTED)
    assert notice is not None
    assert notice.remaining == pytest.approx(19.99)
    assert not story.attempt.is_unsettled


def test_in_a_grace_a_later_signal_only_tightens_the_one_notice() -> None:
    story = Story()
    first = story.sees(preempted=0, end=20)
    second = story.after(3).hears(SIGUSR1)
    third = story.after(12).hears(SIGTERM)

    assert first is not None
    assert {notice.event_id for notice in (first, second, third)} == {"slurm:12:0"}
    assert {notice.meaning for notice in (first, second, third)} == {Meaning.PREEMPTED}
    assert [notice.remaining for notice in (first, second, third)] == [20.0, 20.0, 5.0]


def test_usr1_near_a_known_time_limit_says_what_remains_before_anybody_is_asked() -> None:
    story = Story()
    story.sees(end=600)

    assert story.after(450).hears(SIGUSR1).remaining == 150.0


def test_the_final_sigterm_counts_down_from_when_it_was_seen() -> None:
    story = Story()
    story.hears(SIGTERM)
    early = story.after(1).sees("COMPLETING", end=0, preempted=0)
    late = story.after(3).sees("COMPLETING", end=0, preempted=0)

    assert early is not None
    assert late is not None
    assert early.remaining is not None
    assert late.remaining == pytest.approx(early.remaining - 3)
    assert late.already_sent == {SIGTERM}


def test_scancel_after_the_grace_began_undoes_what_was_decided() -> None:
    story = Story()
    story.sees(preempted=0, end=20)
    story.after(5).hears(SIGTERM)

    assert decided(story.sees("COMPLETING", end=5, preempted=0)) == (Kind.CANCELLED, Meaning.STOPPED)


# Superseded


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING"])
def test_nothing_is_killed_before_two_looks_say_that_the_job_runs_elsewhere(state: str) -> None:
    story = Story()
    story.sees()

    first = story.after(30).sees(state, restarts=1)
    unsettled = story.attempt.is_unsettled
    second = story.after(CONFIRMED).sees(state, restarts=1)

    assert first is None
    assert unsettled
    assert decided(second) == (Kind.NODE_FAILURE, Meaning.SUPERSEDED)


def test_a_row_that_is_ahead_of_our_own_sigterm_kills_nobody() -> None:
    story = Story()
    ahead = story.sees("COMPLETING", preempted=0, restarts=1)
    story.after(0.02).hears(SIGTERM)

    assert ahead is None
    notice = story.after(CONFIRMED).sees("COMPLETING", preempted=0, restarts=1)
    assert decided(notice) == (Kind.PREEMPT, Meaning.PREEMPTED)
    assert story.attempt.verdict is not None
    assert story.attempt.verdict.bringing is Bringing.SLURMS


def test_a_copy_that_slurm_ends_itself_is_not_superseded_by_its_own_next_run_within_killwait() -> None:
    story = Story()
    story.hears(SIGTERM)
    story.sees("COMPLETING", preempted=0, restarts=1)

    soon = [story.after(CONFIRMED).sees("PENDING", restarts=1) for _ in range(3)]
    late = [story.after(20).sees("RUNNING", restarts=1) for _ in range(2)]

    assert {decided(notice) for notice in soon} == {(Kind.PREEMPT, Meaning.PREEMPTED)}
    assert decided(late[-1]) == (Kind.NODE_FAILURE, Meaning.SUPERSEDED)


def test_a_restart_count_inherited_from_another_job_is_put_right_by_the_first_row() -> None:
    """Sbatch in a job that was requeued twice hands its SLURM_RESTART_COUNT on to a job of restart 0."""
    story = Story(restart=2)
    story.sees(restarts=0)

    assert story.attempt.restart == 0
    story.after(1).sees("RUNNING", restarts=1)
    assert decided(story.after(1).sees("RUNNING", restarts=1)) == (Kind.NODE_FAILURE, Meaning.SUPERSEDED)


def test_without_a_count_in_the_environment_the_first_row_that_runs_is_ours() -> None:
    """`ssh node preemptd watch`, `docker run -e SLURM_JOB_ID`: the job may be in its third run."""
    story = Story(counted=False)
    first = [story.after(1).sees("RUNNING", restarts=2) for _ in range(3)]

    assert first == [None, None, None]
    assert story.attempt.restart == 2
    story.after(1).sees("PENDING", restarts=3)
    assert decided(story.after(CONFIRMED).sees("PENDING", restarts=3)) == (Kind.NODE_FAILURE, Meaning.SUPERSEDED)


def test_without_a_count_and_before_any_row_that_runs_nothing_is_killed_and_nothing_requeued() -> None:
    story = Story(counted=False)

    assert [story.after(CONFIRMED).sees("PENDING", restarts=2) for _ in range(3)] == [None, None, None]
    assert story.attempt.seems_elsewhere
    assert not story.attempt.is_unsettled


def test_a_copy_that_may_be_ending_is_not_killed_while_killwait_is_unknown() -> None:
    story = Story()
    story.attempt.knows_kill_wait = False
    story.sees()

    assert [story.after(20).sees("COMPLETING", preempted=0, restarts=1) for _ in range(3)] == [None, None, None]
    story.sees("PENDING", restarts=1)
    assert decided(story.after(CONFIRMED).sees("PENDING", restarts=1)) == (Kind.NODE_FAILURE, Meaning.SUPERSEDED)


def test_a_signal_long_before_the_limit_leaves_the_time_until_then() -> None:
    """`--signal=B:USR1@3600`: a save may take long, and nothing but the limit ends the job."""
    story = Story()
    story.sees()
    first = story.hears(SIGUSR1)

    notice = story.after(SETTLED).sees(end=3000)

    assert first.remaining is None
    assert notice is not None
    assert notice.remaining == 3000 - SETTLED


# Nobody answers, and requests that pass


@pytest.mark.parametrize(
    ("signum", "meaning"), [(SIGUSR1, Meaning.PREEMPTED), (SIGUSR2, Meaning.PREEMPTED), (SIGTERM, Meaning.UNDECIDED)]
)
def test_when_nobody_answers_usr1_decides_for_itself_and_sigterm_never(
    signum: signal.Signals, meaning: Meaning
) -> None:
    story = Story()
    story.hears(signum)

    notice = story.after(5).attempt.unanswered()

    assert notice is not None
    assert notice.meaning is meaning


def test_an_outage_with_nothing_heard_is_no_notice_and_forgets_none() -> None:
    quiet, in_grace = Story(), Story()
    in_grace.sees(preempted=0, end=20)

    assert quiet.attempt.unanswered() is None
    assert decided(in_grace.after(5).attempt.unanswered()) == (Kind.PREEMPT, Meaning.PREEMPTED)


def test_in_a_container_usr1_decides_at_once() -> None:
    story = Story(has_controller=False)

    assert story.hears(SIGUSR1).meaning is Meaning.PREEMPTED
    assert Story(has_controller=False).hears(SIGTERM).meaning is Meaning.UNDECIDED


def test_a_training_that_saves_on_usr1_and_goes_on_is_not_preempted_by_it_for_ever() -> None:
    story = Story()
    story.hears(SIGUSR1)
    soon = story.after(REQUEST_LASTS / 2).sees()
    late = story.after(REQUEST_LASTS).sees()

    assert decided(soon) == (Kind.REQUESTED, Meaning.PREEMPTED)
    assert late is None


def test_a_time_limit_that_is_extended_takes_the_notice_back() -> None:
    story = Story()
    near = story.sees(end=100)

    assert near is None  # 120 s would be the whole of this job: a tenth of it is enough
    assert decided(story.after(91).sees(end=100)) == (Kind.TIME_LIMIT, Meaning.PREEMPTED)
    assert story.sees(end=7200) is None


@pytest.mark.parametrize(("limit", "lead"), [(36_000.0, 120.0), (600.0, 60.0), (60.0, 6.0)])
def test_unasked_we_act_at_lead_but_never_in_more_than_the_last_tenth(limit: float, lead: float) -> None:
    story = Story()
    story.sees(end=limit)

    assert story.attempt.seconds_to_unasked == pytest.approx(limit - lead)


# Files


def test_a_file_is_told_at_once_and_decided_by_the_next_row() -> None:
    story = Story()
    story.sees()
    first = story.after(10).finds(remaining=40)
    story.after(SETTLED).sees()

    assert first is not None
    assert (first.meaning, first.source, first.remaining) == (Meaning.UNDECIDED, "/s/12.preempt", 40.0)
    assert decided(story.finds(remaining=40)) == (Kind.PREEMPT, Meaning.PREEMPTED)
    assert story.attempt.sent_to_steps == frozenset()


def test_a_file_in_the_grace_names_the_nearer_end() -> None:
    story = Story()
    story.sees(preempted=0, end=20)

    notices = story.finds(remaining=40), story.finds(remaining=7)

    assert [notice and notice.remaining for notice in notices] == [20.0, 7.0]


def test_a_file_that_is_removed_is_taken_back_unless_slurm_says_the_same() -> None:
    alone, in_grace = Story(), Story()
    for story in (alone, in_grace):
        story.sees()
        story.finds()
    alone.after(SETTLED).sees()
    in_grace.after(SETTLED).sees(preempted=0, end=20)

    assert alone.attempt.filed(None) is None
    assert decided(in_grace.attempt.filed(None)) == (Kind.PREEMPT, Meaning.PREEMPTED)


def test_in_a_container_a_file_decides_and_its_removal_takes_it_back() -> None:
    story = Story(has_controller=False)

    assert decided(story.finds()) == (Kind.PREEMPT, Meaning.PREEMPTED)
    assert story.attempt.filed(None) is None
