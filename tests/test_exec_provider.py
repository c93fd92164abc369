"""The `exec` provider: a command of the user's says by its exit status whether the end is near."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preemptd.notices import Kind, Level
from preemptd.provider import Observation, State, Surroundings, Watch
from preemptd.targets.reaping import Helpers
from preemptd_providers.exec import Exec, ExecOptions
from tests.waiting import wait_until


def watch_of(command: str, helpers: Helpers | None = None, **options: object) -> Watch:
    surroundings = Surroundings({}, commands=helpers or Helpers(), lead=100.0)
    (watch,) = Exec(ExecOptions.model_validate({"command": command, "within": 30, **options}), surroundings).watches()
    return watch


def in_thread(watch: Watch) -> Callable[[], Observation]:
    seen: list[Observation] = []
    thread = threading.Thread(target=lambda: seen.append(watch.observe()))
    thread.start()

    def result() -> Observation:
        thread.join(30)
        return seen[0]

    return result


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("exit 0", State.CLEAR),
        ("exit 75", State.NOTICE),
        ("exit 1", State.UNKNOWN),
        ("kill -9 $$", State.UNKNOWN),
        ("no-such-command-here", State.UNKNOWN),
        ("exec 1>&-; exit 75", State.NOTICE),
    ],
)
def test_its_status_says_what_it_knows(command: str, expected: State) -> None:
    assert watch_of(command).observe().state is expected


def test_the_statuses_may_be_others() -> None:
    assert watch_of("exit 3", notice_status=3).observe().state is State.NOTICE
    assert watch_of("exit 4", clear_status=4).observe().state is State.CLEAR


@pytest.mark.parametrize(
    ("said", "left"),
    [("echo 90; echo more", 90.0), ("true", None), ("echo soon", None), ("yes | head -c 100000", None)],
)
def test_its_first_line_may_say_how_much_time_is_left(said: str, left: float | None) -> None:
    notice = watch_of(f"{said}; exit 75").observe().notice

    assert notice is not None
    assert (notice.kind, notice.level, notice.remaining) == (Kind.PREEMPT, Level.ACT, left)
    assert len(notice.detail) <= 4096


def test_one_that_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    helpers = Helpers()
    observation = watch_of(f"sleep 600 & echo $! $$ >{pids}; wait", helpers, within=1.0).observe()

    assert observation.state is State.UNKNOWN
    assert "within 1 s" in str(observation.error)
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))
    wait_until(lambda: not helpers.pids)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_one_that_leaves_its_output_to_others_does_not_hold_us_up() -> None:
    began = time.monotonic()
    helpers = Helpers()
    observation = watch_of("sleep 600 & exit 75", helpers, within=2.0).observe()

    assert observation.state is State.NOTICE
    assert time.monotonic() - began < 30
    for pid in helpers.pids:
        os.killpg(pid, 9)


def test_close_ends_one_that_hangs_and_no_other_is_started(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    watch = watch_of(f"touch {begun}; exec sleep 600")
    result = in_thread(watch)
    wait_until(begun.exists)
    watch.close()

    assert result().state is State.UNKNOWN
    assert watch.observe().state is State.UNKNOWN


def test_where_no_commands_are_run_nothing_is_known() -> None:
    (watch,) = Exec(ExecOptions(command="exit 75"), Surroundings({})).watches()

    assert watch.observe().state is State.UNKNOWN


def test_advice_with_a_time_becomes_a_notice_at_the_lead() -> None:
    notice = watch_of("echo 3000; exit 75", level="advise").observe().notice

    assert notice is not None
    assert (notice.level, notice.remaining, notice.act_within) == (Level.ADVISE, 3000.0, 100.0)
