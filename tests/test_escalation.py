from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.escalation import Escalation, Killing, Step, Timing, Verdict, acts_at, judge, reserve, term_after
from preemptd.notices import Kind, Level, Notice

PLAIN = Timing()


def a_notice(
    remaining: float | None, event_id: str = "ec2:terminate", observed: float = 1000.0, **more: object
) -> Notice:
    fields: dict[str, object] = {"level": Level.ACT, **more}
    return Notice("ec2", event_id, Kind.TERMINATE, source="test", observed=observed, remaining=remaining, **fields)  # type: ignore[arg-type]  # a test's shorthand


def test_a_terminate_with_120_s_has_its_term_step_15_s_before_the_end() -> None:
    escalation = Escalation.open(1, a_notice(120.0), PLAIN)

    assert escalation.at(Step.TERM) == 1105.0
    assert escalation.at(Step.KILL) is None
    assert escalation.deadline == 1120.0


def test_a_source_without_a_time_counts_30_s_or_the_users_grace() -> None:
    assert Escalation.open(1, a_notice(None), PLAIN).deadline == 1030.0
    assert Escalation.open(1, a_notice(None), Timing(grace=90.0)).deadline == 1090.0


def test_an_hour_old_deadline_at_first_sight_is_stale_and_a_minute_old_one_is_not() -> None:
    assert judge(a_notice(-3600.0), PLAIN) is Verdict.STALE
    assert judge(a_notice(-60.0), PLAIN) is Verdict.ACT


def test_a_dated_maintenance_acts_when_only_the_lead_is_left() -> None:
    far = a_notice(3600.0, level=Level.ADVISE, act_within=120.0)
    near = a_notice(100.0, level=Level.ADVISE, act_within=120.0)

    assert judge(far, PLAIN) is Verdict.ADVISE
    assert acts_at(far, PLAIN, 1000.0) == 4480.0
    assert judge(near, PLAIN) is Verdict.ACT


def test_advice_without_a_date_never_acts() -> None:
    advice = a_notice(10.0, level=Level.ADVISE)

    assert judge(advice, PLAIN) is Verdict.ADVISE
    assert acts_at(advice, PLAIN, 1000.0) is None


def test_a_final_notice_plans_no_term_step() -> None:
    escalation = Escalation.open(1, a_notice(0.0, final=True), PLAIN)

    assert escalation.at(Step.TERM) is None
    assert escalation.due(1000.0) == (Step.DEADLINE,)


def test_a_later_notice_tightens_and_never_loosens() -> None:
    escalation = Escalation.open(1, a_notice(120.0), PLAIN)

    tighter = escalation.joined(a_notice(30.0, "gce:preempted", 1010.0), 1010.0)
    looser = escalation.joined(a_notice(300.0, observed=1010.0), 1010.0)

    assert (tighter.deadline, tighter.since) == (1040.0, 1010.0)
    assert (looser.deadline, looser.since) == (1120.0, 1000.0)


def test_a_maintenance_that_is_acted_on_ahead_of_time_and_put_off_has_its_new_date() -> None:
    acted = Escalation.open(1, a_notice(20.0, act_within=120.0), PLAIN)

    put_off = acted.joined(a_notice(2000.0, observed=1010.0, act_within=120.0), 1010.0)
    jitter = acted.joined(a_notice(50.0, observed=1010.0, act_within=120.0), 1010.0)

    assert (put_off.deadline, put_off.since) == (3010.0, 1010.0)
    assert (jitter.deadline, jitter.since) == (1020.0, 1000.0)


def test_one_of_two_notices_revoked_leaves_the_other_and_its_deadline() -> None:
    two = Escalation.open(1, a_notice(120.0), PLAIN).joined(a_notice(30.0, "gce:preempted"), 1000.0)

    one = two.without("gce:preempted", 1005.0)

    assert one is not None
    assert one.deadline == 1120.0
    assert one.without("ec2:terminate", 1006.0) is None


def test_kill_comes_at_the_reserve_or_at_the_deadline_only_when_asked_for() -> None:
    assert Escalation.open(1, a_notice(120.0), Timing(kill=Killing.AT_RESERVE)).at(Step.KILL) == 1115.0
    assert Escalation.open(1, a_notice(120.0), Timing(kill=Killing.AT_DEADLINE)).at(Step.KILL) == 1120.0


@pytest.mark.parametrize(
    ("kill", "at"), [(Killing.NEVER, None), (Killing.AT_RESERVE, None), (Killing.AT_DEADLINE, 1030.0)]
)
def test_what_is_final_is_killed_by_nobody_but_a_rehearsal_after_its_grace(kill: Killing, at: float | None) -> None:
    hibernation = replace(a_notice(0.0), final=True)

    assert Escalation.open(1, hibernation, Timing(grace=30.0, kill=kill)).at(Step.KILL) == at


@given(total=st.floats(0, 1e5), wish=st.none() | st.floats(0, 1e5))
def test_the_term_step_is_never_before_half_of_the_time_nor_after_its_end(total: float, wish: float | None) -> None:
    assert 0.5 * total <= term_after(total, wish) <= total
    assert 0 <= reserve(total, wish) <= total


@given(
    remaining=st.lists(st.floats(-200, 7200), min_size=1, max_size=6),
    steps=st.lists(st.floats(0, 100), min_size=6, max_size=6),
)
def test_each_step_is_done_once_whatever_arrives_when(remaining: list[float], steps: list[float]) -> None:
    now, escalation, done = 1000.0, None, []
    for number, (seconds, pause) in enumerate(zip(remaining, steps, strict=False)):
        notice = a_notice(seconds, f"event-{number}", now)
        escalation = escalation.joined(notice, now) if escalation else Escalation.open(1, notice, PLAIN)
        now += pause
        for step in escalation.due(now):
            done.append(step)
            escalation = escalation.did(step)

    assert len(done) == len(set(done))
