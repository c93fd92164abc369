"""`preemptd watch --loop`: rounds of an agent, until a notice, a stop, or the end of the sweep."""

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from preemptd.cli.looping import FAILURES, after
from preemptd.cli.rounds import LONE_WITHIN, LONGEST_PAUSE
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until
from tests.watching import ROOT, TRAINER, Watch

pytestmark = [pytest.mark.slow, pytest.mark.long]

AGENT = [str(ROOT / "tests" / "standins" / "wandb"), "agent", "--count", "1", "team/project/sweep"]


def loop(directory: Path, plan: Sequence[str], *options: str, env: Mapping[str, str] | None = None) -> Watch:
    (directory / "plan").write_text("".join(f"{line}\n" for line in plan))
    (directory / "rounds").touch()
    ours = {
        "PLAN": str(directory / "plan"),
        "ROUNDS": str(directory / "rounds"),
        "PYTHON": sys.executable,
        "TRAINER": TRAINER,
    }
    return Watch(directory, AGENT, "--loop", *options, env={**ours, **(env or {})})


def rounds(directory: Path) -> list[str]:
    return (directory / "rounds").read_text().splitlines()


def texts(watch: Watch) -> list[str]:
    return [str(line["text"]) for line in watch.lines("warning")]


def test_the_agent_is_run_again_until_it_takes_no_run(tmp_path: Path) -> None:
    with loop(tmp_path, ["a 0", "b 0", "a 0", "- 0", "c 0"]) as watch:
        status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (0, 4)
    assert len(watch.lines("started")) == len(watch.lines("settled")) == 4
    assert "its sweep has ended" in texts(watch)[-1]


def test_a_round_begins_when_the_last_one_has_ended_and_waits_for_no_thread_of_it(tmp_path: Path) -> None:
    with loop(tmp_path, ["a 0", "b 0", "c 0", "- 0"]) as watch:
        watch.wait()

    ended, begun = ([float(str(line["mono"])) for line in watch.lines(event)] for event in ("settled", "started"))
    assert min(later - earlier for earlier, later in zip(ended, begun[1:], strict=False)) < LONE_WITHIN / 2


def announced(directory: Path, ago: float) -> tuple[Mapping[str, str], Callable[[], Path]]:
    """Make a function that announces what had its deadline so many seconds *ago*; it returns the signal file."""
    signals = directory / "signals"
    signals.mkdir()

    def announce() -> Path:
        file = directory / "announced"
        file.write_text(json.dumps({"deadline": time.time() - ago}))
        return file.rename(signals / "sweep.preempt")

    return {"PREEMPTD_SIGNAL_DIR": str(signals)}, announce


def test_a_notice_that_comes_between_two_rounds_is_outlived_by_the_next_one(tmp_path: Path) -> None:
    env, announce = announced(tmp_path, ago=45)
    options = ("--restart", "1", "--job-id", "sweep", "--state-dir", str(tmp_path / "state"))
    with loop(tmp_path, ["- 1", "a 0", "- 0"], *options, env=env) as watch:
        wait_until(lambda: any("again in 1 s" in text for text in texts(watch)), 30)
        announce()
        wait_until(lambda: any("not started before" in text for text in texts(watch)))
        held = len(rounds(tmp_path))
        status = watch.wait()

    assert (status, held, len(rounds(tmp_path))) == (0, 1, 3)
    assert "not started before the notice is taken back, or 60 s after its deadline" in str(texts(watch))
    assert len(watch.lines("outlived")) >= 1
    assert (watch.lines("told"), watch.lines("restarted")) == ([], [])


def test_a_round_that_may_not_be_restarted_waits_until_the_notice_is_taken_back(tmp_path: Path) -> None:
    env, announce = announced(tmp_path, ago=200)
    options = ("--job-id", "sweep", "--state-dir", str(tmp_path / "state"))
    with loop(tmp_path, ["- 1", "- 0"], *options, env=env) as watch:
        wait_until(lambda: any("again in 1 s" in text for text in texts(watch)), 30)
        file = announce()
        wait_until(lambda: any("not started before" in text for text in texts(watch)))
        held = len(rounds(tmp_path))
        file.unlink()
        status = watch.wait()

    assert (status, held, len(rounds(tmp_path))) == (0, 1, 2)
    assert watch.lines("outlived") == []


def test_a_round_is_no_attempt_of_the_job(tmp_path: Path) -> None:
    with loop(tmp_path, ["a 0", "b 1", "c 0", "- 0"], "--job-id", "sweep", "--state-dir", str(tmp_path)) as watch:
        status = watch.wait()

    assert status == 0
    assert rounds(tmp_path) == ["0 0 unset"] * 4


def test_an_agent_that_fails_is_started_again_after_a_pause(tmp_path: Path) -> None:
    with loop(tmp_path, ["- 3", "- 4", "a 5", "- 0"]) as watch:
        status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (0, 4)
    assert [text for text in texts(watch) if "failed" in text] == [
        "the command failed with status 3: again in 1 s",
        "the command failed with status 4: again in 2 s",
        "the command failed with status 5: again in 1 s",
    ]


def test_the_pause_doubles_up_to_five_minutes_and_a_taken_run_resets_it() -> None:
    pauses, failures = [], 0
    for _ in range(FAILURES):
        following = after(1, took=False, failures=failures)
        failures = following.failures
        pauses.append(following.pause)

    assert pauses[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, LONGEST_PAUSE]
    assert pauses[-2:] == [LONGEST_PAUSE, None]
    assert after(1, took=True, failures=15).failures == 0
    assert after(1, took=True, failures=15).pause == 1


def test_an_agent_that_cannot_be_started_is_not_tried_again(tmp_path: Path) -> None:
    with Watch(tmp_path, [str(tmp_path / "absent"), "agent"], "--loop") as watch:
        status = watch.wait()

    assert (status, watch.lines("started")) == (127, [])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_during_the_pause_ends_it_at_once(tmp_path: Path, signum: signal.Signals) -> None:
    with loop(tmp_path, ["- 1"] * 9) as watch:
        wait_until(lambda: any("again in 8 s" in text for text in texts(watch)), 30)
        watch.signal(signum)
        status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (128 + signum, 4)


def test_a_stop_during_a_round_ends_the_loop_with_the_commands_status(tmp_path: Path) -> None:
    with loop(tmp_path, ["a 0", "b train", "c 0"]) as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (143, 2)
    assert not watch.lines("settled")[-1]["preempted"]


def test_other_signals_during_the_pause_do_not_end_it(tmp_path: Path) -> None:
    with loop(tmp_path, ["- 1", "- 1", "a 0", "- 0"]) as watch:
        wait_until(lambda: any("again in 2 s" in text for text in texts(watch)), 30)
        watch.signal(signal.SIGUSR1)
        status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (0, 4)


def test_a_notice_in_the_middle_ends_the_loop_as_preempted(tmp_path: Path) -> None:
    with FaultyGce() as gce:
        env = {"GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        with loop(tmp_path, ["a 0", "b train", "c 0"], env=env) as watch:
            watch.await_said("ready")
            gce.announcement.announce()
            status = watch.wait()

    assert (status, len(rounds(tmp_path))) == (75, 2)
    assert len(watch.lines("told")) == 1
