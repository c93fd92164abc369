"""Ranks agree on a step through a store, whoever is told, whenever, and whatever fails."""

import random
import threading
import time

import pytest

from tests.agreeing import Ranks, Shared, pace
from tests.waiting import wait_until


def finish(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank hangs"


@pytest.mark.parametrize("seed", range(12))
def test_all_stop_at_the_same_call_whoever_is_told_and_however_far_apart_they_are(seed: int) -> None:
    chance = random.Random(seed)
    with Ranks(chance.choice([2, 3, 5])) as ranks:
        threads = ranks.all_train(pace(seed))
        time.sleep(chance.uniform(0, 0.3))
        for link in chance.sample(ranks.links, chance.randint(1, len(ranks.links))):
            link.tell()
            time.sleep(chance.choice([0, 0, 0.01]))
        finish(threads)

    assert len(set(ranks.steps)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_wait_for_each_other_in_every_step_are_not_held_up(seed: int) -> None:
    chance = random.Random(seed)
    together = threading.Barrier(3)
    with Ranks(3) as ranks:
        threads = ranks.all_train(lambda: together.wait(30))
        time.sleep(chance.uniform(0, 0.2))
        chance.choice(ranks.links).tell()
        finish(threads)

    assert len(set(ranks.steps)) == 1


def test_without_a_notice_no_call_answers_true_and_nothing_is_said_to_anybody() -> None:
    with Ranks(2) as ranks:
        wait_until(lambda: len(ranks.store.names()) == 2, what="both look")

        assert not any(agreement.agree() for agreement in ranks.agreements for _ in range(1000))
        assert ranks.store.names() == {"joined/0", "joined/1"}


def test_each_later_call_answers_true_as_well_for_whoever_else_asks() -> None:
    with Ranks(2) as ranks:
        ranks.links[0].tell()
        finish(ranks.all_train(pace(0)))

        assert all(agreement.agree() for agreement in ranks.agreements)


def test_a_rank_that_was_not_told_says_to_its_own_daemon_who_was_and_how_long_there_is() -> None:
    with Ranks(3, left=42.0) as ranks:
        threads = ranks.all_train(pace(1))
        ranks.links[2].tell()
        finish(threads)

    assert [link.passed_on for link in ranks.links] == [
        [(42.0, "rank 2 has been told")],
        [(42.0, "rank 2 has been told")],
        [],
    ]


def test_it_says_nothing_when_its_own_daemon_tells_it_a_moment_later() -> None:
    with Ranks(2) as ranks:
        threads = ranks.all_train(pace(2))
        ranks.links[0].tell()
        wait_until(lambda: any(key.endswith("told") for key in ranks.store.names()))
        ranks.links[1].tell()
        finish(threads)

    assert [link.passed_on for link in ranks.links] == [[], []]
    assert len(set(ranks.steps)) == 1


def test_a_notice_that_is_revoked_at_once_still_stops_all_at_the_same_call() -> None:
    with Ranks(3) as ranks:
        threads = ranks.all_train(pace(3))
        ranks.links[1].tell()
        ranks.links[1].told = False
        finish(threads)

    assert len(set(ranks.steps)) == 1


def test_a_rank_that_is_elsewhere_for_long_neither_blocks_the_others_nor_is_left_behind() -> None:
    evaluates, over = threading.Event(), threading.Event()

    def evaluate() -> None:
        evaluates.set()
        over.wait(30)

    with Ranks(3) as ranks:
        evaluation = ranks.start(0, evaluate)
        threads = [ranks.start(number, pace(number)) for number in (1, 2)]
        assert evaluates.wait(30)
        wait_until(lambda: min(ranks.steps[1:]) > 5)
        ranks.links[2].tell()
        finish(threads)
        behind = ranks.steps[0]
        over.set()
        finish([evaluation])

    assert behind == 0
    assert len(set(ranks.steps)) == 1


def test_those_who_answer_stop_together_when_one_does_not() -> None:
    with Ranks(3, left=3.0, begun=2) as ranks:
        threads = ranks.all_train(pace(4))
        wait_until(lambda: min(ranks.steps[:2]) > 3)
        began = time.monotonic()
        ranks.links[0].tell()
        finish(threads)
        took = time.monotonic() - began

    assert ranks.steps[0] == ranks.steps[1] > 3
    assert 1.0 <= took < 15  # a third of the three seconds


def test_a_rank_that_has_left_is_not_waited_for_where_it_can_say_so() -> None:
    with Ranks(3, outlived=True) as ranks:
        assert not ranks.agreements[2].agree()
        ranks.agreements[2].close()
        threads = [ranks.start(number, pace(number)) for number in (0, 1)]
        began = time.monotonic()
        ranks.links[0].tell()
        finish(threads)
        took = time.monotonic() - began

    assert ranks.steps[0] == ranks.steps[1]
    assert took < 15  # not the 30 seconds for one that does not answer


def test_a_store_that_is_gone_leaves_each_rank_with_its_own_notice() -> None:
    with Ranks(2) as ranks:
        ranks.store.fails.set()
        wait_until(lambda: all(agreement._settled.is_set() for agreement in ranks.agreements))
        before = [agreement.agree() for agreement in ranks.agreements]
        ranks.links[1].tell()

        assert before == [False, False]
        assert [agreement.agree() for agreement in ranks.agreements] == [False, True]


def test_a_store_that_goes_while_ranks_agree_stops_those_who_know_that_one_was_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Shared()
    with Ranks(3, store) as ranks:
        ranks.agreements[2].close()  # so that there is no agreement
        ranks.links[0].tell()
        wait_until(lambda: {"1/calls/0", "1/calls/1"} <= store.names())
        store.fails.set()
        answers = [ranks.agreements[number].agree() for number in (0, 1)]

    assert answers == [True, True]
    assert sum("store is gone" in record.message for record in caplog.records) == 2


def test_a_store_that_hangs_holds_a_rank_that_is_told_only_for_a_third_of_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Ranks(2, left=3.0) as ranks:
        wait_until(lambda: len(ranks.store.names()) == 2)
        ranks.store.hangs.set()
        time.sleep(0.5)  # both are inside the store now
        ranks.links[0].tell()
        began = time.monotonic()
        answers = [agreement.agree() for agreement in ranks.agreements]
        took = time.monotonic() - began

    assert answers == [True, False]
    assert 1.0 <= took < 15
    assert any("does not answer" in record.message for record in caplog.records)


def test_a_group_that_is_made_anew_finds_nothing_of_the_last_time() -> None:
    store = Shared()
    for _ in range(3):
        with Ranks(2, store) as ranks:
            threads = ranks.all_train(pace(5))
            ranks.links[1].tell()
            finish(threads)
        with Ranks(2, store) as ranks:
            wait_until(lambda: all(agreement._thread.is_alive() for agreement in ranks.agreements))

            assert not any(agreement.agree() for agreement in ranks.agreements for _ in range(100))


@pytest.mark.parametrize("outlived", [False, True])
def test_the_thread_ends_with_the_group_and_who_asks_after_that_gets_its_own_notice(outlived: bool) -> None:
    with Ranks(2, outlived=outlived) as ranks:
        ranks.group_lives = False
        wait_until(lambda: not any(agreement._thread.is_alive() for agreement in ranks.agreements))
        before = [agreement.agree() for agreement in ranks.agreements]
        ranks.links[0].tell()

        assert before == [False, False]
        assert [agreement.agree() for agreement in ranks.agreements] == [True, False]
