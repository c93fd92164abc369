import os
import signal

from preemptd.notices import Level
from preemptd.provider import Machine, Options, State, Surroundings
from preemptd_providers.sigterm import Sigterm


def sigterm() -> Sigterm:
    return Sigterm(Options(), Surroundings({}))


def test_our_own_sigterm_is_a_notice_to_act_on_with_an_unknown_deadline() -> None:
    observation = sigterm().on_signal(signal.SIGTERM)

    assert observation.state is State.NOTICE
    assert observation.notice is not None
    assert (observation.notice.level, observation.notice.remaining) == (Level.ACT, None)


def test_only_the_daemon_got_the_signal_so_that_the_processes_may_get_it_from_us() -> None:
    notice = sigterm().on_signal(signal.SIGTERM).notice

    assert notice is not None
    assert notice.already_sent == frozenset()


def test_a_second_sigterm_is_the_same_event_and_another_daemons_is_another() -> None:
    provider = sigterm()
    ids = {provider.on_signal(signal.SIGTERM).notice, provider.on_signal(signal.SIGTERM).notice}

    assert {notice.event_id for notice in ids if notice} == {f"sigterm:{os.getpid()}"}


def test_other_signals_stay_ordinary_signals() -> None:
    provider = sigterm()

    assert provider.signals() == {signal.SIGTERM}
    assert provider.on_signal(signal.SIGINT).state is State.CLEAR


def test_it_is_only_used_when_named_and_never_detected() -> None:
    assert Sigterm.opt_in
    assert Sigterm.detect(Machine({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})) is None
    assert sigterm().watches() == ()
