"""`preemptd watch --restart N`: a notice that came to nothing, and the same command again, in place."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2, FaultyGce
from tests.restarting import Restarting, on_ec2, training
from tests.waiting import wait_until
from tests.watching import ROOT, TRAINER, Watch, environment, read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(200)]

FIELDS = ("PREEMPTD_ATTEMPT", "PREEMPTD_RESUMED", "PREEMPTD_RESTART")


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=30.0) as server:
        yield server


# -- the way back --------------------------------------------------------------------------------------------------


def test_a_revoked_notice_brings_the_command_back_at_its_checkpoint(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, last=2) as watch:
        watch.preempt()
        watch.await_line("waiting")
        waited = [line["event"] for line in watch.lines()][-1]
        ec2.announcement.revoke()
        status = watch.wait()

    (saved,) = watch.said_of("saved", "step")
    assert (status, waited) == (0, "waiting")
    assert watch.said_of("ready", "step") == [0, saved]
    assert watch.said_of("exit", "step") == [saved, int(str(saved)) + 10]
    assert watch.said("second") == []
    assert [tuple(line[name] for name in FIELDS) for line in watch.said("ready")] == [
        ("0", None, None),
        ("1", "1", None),
    ]
    assert [line["argv"] for line in watch.said("ready")] == [["saves", "2"]] * 2
    (restarted,) = watch.lines("restarted")
    known = {name: restarted[name] for name in ("number", "of", "attempt", "why")}
    assert known == {"number": 1, "of": 3, "attempt": 1, "why": "the notice was taken back"}
    assert [line["attempt"] for line in watch.lines("started")] == [0, 1]
    assert [line["status"] for line in watch.lines("settled")] == [75, 0]
    assert "preemptd: starts the command again (1 of 3): the notice was taken back\n" in watch.err


ONCE = """
import os, signal, sys, time
if os.path.exists("second"): sys.exit(0)
open("second", "w").close()
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
print("ready", flush=True)
while True: time.sleep(0.1)
"""
PLANNED = """
act_on = "maintenance"
[providers.exec]
command = "test -e when || exit 0; cat when; exit 75"
level = "advise"
kind = "maintenance"
interval = 1
"""


def test_maintenance_that_is_acted_on_and_moves_while_it_is_waited_for_is_not_taken_back(tmp_path: Path) -> None:
    (tmp_path / "planned.toml").write_text(PLANNED)
    options = ("--provider", "exec", "--config", "planned.toml", "--restart", "3")
    with Watch(tmp_path, [sys.executable, "-c", ONCE], *options) as watch:
        wait_until((tmp_path / "second").exists)
        watch.await_line("provider")
        (tmp_path / "when").write_text("2000")
        watch.await_line("waiting")
        (tmp_path / "when").write_text("1500")
        watch.await_line("notice", 2)
        before = watch.lines("revoked"), watch.lines("restarted")
        (tmp_path / "when").unlink()
        watch.await_line("restarted")
        status = watch.wait()

    assert before == ([], [])
    assert status == 0


def test_status_and_history_show_it(tmp_path: Path, ec2: FaultyEc2) -> None:
    state = {"PREEMPTD_STATE_DIR": str(tmp_path / "state")}
    with Restarting(tmp_path, ec2, "--link", str(tmp_path / "link"), last=2, env=state) as watch:
        watch.preempt()
        watch.await_line("waiting")
        status = told_of(watch, "status", "--link", str(tmp_path / "link"), env=state)
        ec2.announcement.revoke()
        watch.wait()
    history = told_of(watch, "history", env=state)

    assert "(has ended: the command is started again (1 of 3) when the notice is taken back, or 60 s after" in status
    assert "NOTICE ec2:terminate" in status
    assert "would tell: nobody" in status
    assert history.rstrip().endswith("started again (1 of 3): the notice was taken back")
    assert told_of(watch, "history", "--journal", str(watch.journal)).rstrip().endswith("the notice was taken back")


def told_of(watch: Watch, *command: str, env: Mapping[str, str] | None = None) -> str:
    """Ask until there is an answer."""
    line = [*watch.command(command[0]), *command[1:]]

    def ask() -> str:
        done = subprocess.run(line, env=environment(env), capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    return wait_until(ask, 30)


def test_a_machine_that_outlives_the_deadline_by_a_minute_goes_on(tmp_path: Path) -> None:
    with FaultyEc2(grace=-56.0) as ec2, Restarting(tmp_path, ec2, last=2) as watch:
        watch.preempt()
        status = watch.wait()

    (notice,), (restarted,), (outlived,) = (watch.lines(event) for event in ("notice", "restarted", "outlived"))
    assert status == 0
    assert restarted["why"] == "the machine has outlived the notice"
    assert seconds(restarted, "mono") >= seconds(notice, "mono") + seconds(notice, "grace") + 59.5
    assert outlived["event_id"] == notice["event_id"]
    assert len(watch.said("ready")) == 2
    assert len(watch.lines("told")) == 1


def seconds(line: Mapping[str, object], name: str) -> float:
    return float(str(line[name]))


def test_what_was_outlived_and_is_announced_anew_is_told_again(tmp_path: Path) -> None:
    with FaultyEc2(grace=-58.0) as ec2, Restarting(tmp_path, ec2, "--restart", "1") as watch:
        watch.preempt()
        watch.await_line("outlived")
        ec2.announcement.revoke()
        watch.await_line("revoked")
        watch.preempt(2)
        status = watch.wait()

    assert status == 75
    assert len(watch.lines("told")) == 2
    assert "not started again: --restart 1 is used up" in watch.texts()


def test_what_was_outlived_and_is_announced_for_a_later_time_is_told_again(tmp_path: Path) -> None:
    with FaultyEc2(grace=-58.0) as ec2, Restarting(tmp_path, ec2, "--restart", "1") as watch:
        watch.preempt()
        watch.await_line("outlived")
        watch.await_said("ready", 2)
        ec2.announcement.deadline = time.time() + 120
        status = watch.wait()

    assert status == 75
    assert [line["acted"] for line in watch.lines("notice")] == [True, True]
    assert len(watch.lines("told")) == 2


def test_what_is_announced_for_a_later_time_meanwhile_holds_the_next_attempt(tmp_path: Path) -> None:
    with FaultyEc2(grace=-45.0) as ec2, Restarting(tmp_path, ec2, last=2) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("notice")
        ec2.announcement.deadline = time.time() + 120
        watch.await_line("restarted")
        wait_until(lambda: any("not started before" in text for text in watch.texts()))
        started = len(watch.said("ready"))
        ec2.announcement.revoke()
        status = watch.wait()

    assert (status, started, len(watch.said("ready"))) == (0, 1, 2)


def test_what_was_outlived_stays_so_over_a_second_restart(tmp_path: Path) -> None:
    with FaultyEc2(grace=-58.0) as ec2, FaultyGce(grace=20.0) as gce:
        env = {"GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        with Restarting(tmp_path, ec2, last=3, env=env) as watch:
            watch.preempt()
            watch.await_line("outlived")
            watch.await_said("ready", 2)
            gce.announcement.announce()
            watch.await_line("waiting", 2)
            gce.announcement.revoke()
            status = watch.wait()

    assert status == 0
    assert len(watch.lines("told")) == 2
    assert len(watch.lines("outlived")) == 2
    assert [line["number"] for line in watch.lines("restarted")] == [1, 2]


def test_a_notice_from_the_link_is_outlived_when_it_expires(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, "--link", str(tmp_path / "link"), last=2) as watch:
        watch.await_said("ready")
        told_of(watch, "notify", "--link", str(tmp_path / "link"), "--deadline", "1")
        status = watch.wait()

    assert status == 0
    assert [line["why"] for line in watch.lines("restarted")] == ["the machine has outlived the notice"]


def test_a_second_notice_while_it_waits_is_waited_for_as_well(tmp_path: Path, ec2: FaultyEc2) -> None:
    with FaultyGce(grace=20.0) as gce:
        env = {"GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        with Restarting(tmp_path, ec2, last=2, env=env) as watch:
            watch.preempt()
            watch.await_line("waiting")
            gce.announcement.announce()
            watch.await_line("notice", 2)
            ec2.announcement.revoke()
            watch.await_line("revoked")
            early = watch.lines("restarted")
            gce.announcement.revoke()
            status = watch.wait()

    assert (status, early) == (0, [])
    assert len(watch.lines("told")) == 1
    assert len(watch.said("ready")) == 2


def test_a_notice_that_was_taken_back_before_the_end_is_enough(tmp_path: Path, ec2: FaultyEc2) -> None:
    command = training(last=2)
    slow = ["sh", "-c", '"$@"; sleep 2', "sh", *command]
    with Watch(tmp_path, slow, "--restart", "1", env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("exit")
        ec2.announcement.revoke()
        watch.await_line("revoked")
        status = watch.wait()

    assert status == 0
    assert [line["why"] for line in watch.lines("waiting")] == ["the command is started again (1 of 1) in 1 s"]
    assert len(watch.said("ready")) == 2


# -- how often -----------------------------------------------------------------------------------------------------


def test_the_budget_is_for_all_restarts_together(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, "--restart", "2") as watch:
        watch.preempt_in_vain(1)
        watch.preempt_in_vain(2)
        watch.preempt(3)
        status = watch.wait()

    assert status == 75
    assert [line["number"] for line in watch.lines("restarted")] == [1, 2]
    assert watch.texts() == ["not started again: --restart 2 is used up"]
    assert [line["PREEMPTD_ATTEMPT"] for line in watch.said("ready")] == ["0", "1", "2"]


def test_three_attempts_without_a_checkpoint_are_enough_and_the_pause_between_them_doubles(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with Restarting(tmp_path, ec2, "--restart", "9", "--checkpoint-dir", str(checkpoints), how="futile") as watch:
        watch.preempt_in_vain(1)
        watch.preempt_in_vain(2)
        watch.preempt(3)
        status = watch.wait()

    assert status == 9
    assert "preempted 3 times in a row without a new checkpoint" in str(watch.lines("settled")[-1]["why"])
    ended, again = ([seconds(line, "mono") for line in watch.lines(event)] for event in ("settled", "restarted"))
    assert len(again) == 2
    assert [again[0] - ended[0] >= 1, again[1] - ended[1] >= 2] == [True, True]


# -- one job, several preemptds ------------------------------------------------------------------------------------


def test_killed_while_it_waits_it_leaves_a_preempted_job_to_the_next_watch(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Restarting(tmp_path, ec2, *options, last=2) as first:
        first.preempt()
        first.await_line("waiting")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        record = json.loads((tmp_path / "state" / "run42.json").read_text())
        ec2.announcement.revoke()
        with Restarting(tmp_path, ec2, *options, last=2, name="again") as again:
            status = again.wait()

    said = read_lines(first.log) + read_lines(again.log)
    assert (record["training"], record["attempt"], status) == (None, 0, 0)
    assert [line["PREEMPTD_ATTEMPT"] for line in said if line["what"] == "ready"] == ["0", "1"]
    assert [line for line in said if line["what"] == "second"] == []


def test_a_training_that_was_taken_over_is_started_again_as_well(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Restarting(tmp_path, ec2, *options, last=2) as first:
        first.await_said("ready")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Restarting(tmp_path, ec2, *options, last=2, name="again") as again:
            again.await_line("started")
            ec2.announcement.announce()
            again.await_line("waiting")
            ec2.announcement.revoke()
            status = again.wait()

    assert status == 0
    assert [line["adopted"] for line in again.lines("started")] == [True, False]
    assert again.said_of("ready", "PREEMPTD_ATTEMPT") == ["1"]
    assert first.said("second") == again.said("second") == []


def test_the_loop_goes_on_with_the_next_agent(tmp_path: Path, ec2: FaultyEc2) -> None:
    (tmp_path / "plan").write_text("a 0\nb train\nb 0\n- 0\n")
    (tmp_path / "rounds").touch()
    agent = [str(ROOT / "tests" / "standins" / "wandb"), "agent", "--count", "1", "team/project/sweep"]
    ours = {
        "PLAN": str(tmp_path / "plan"),
        "ROUNDS": str(tmp_path / "rounds"),
        "PYTHON": training()[0],
        "TRAINER": TRAINER,
    }
    with Watch(tmp_path, agent, "--loop", "--restart", "1", env={**ours, **on_ec2(ec2)}) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("waiting")
        ec2.announcement.revoke()
        status = watch.wait()

    assert status == 0
    assert (tmp_path / "rounds").read_text().splitlines() == ["0 0 unset"] * 4
    assert len(watch.lines("restarted")) == 1


def test_what_the_watches_say_is_heard_while_it_waits(tmp_path: Path, ec2: FaultyEc2) -> None:
    listen = tmp_path / "link"
    with Restarting(tmp_path, ec2, "--link", str(listen), last=2) as watch:
        watch.preempt()
        watch.await_line("waiting")
        told_of(watch, "notify", "--link", str(listen), "--deadline", "600")
        watch.await_line("notice", 2)
        ec2.announcement.revoke()
        watch.await_line("revoked")
        waits = wait_until(lambda: [line["event"] for line in watch.lines()][-1] == "revoked")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert (waits, status) == (True, 75)
    assert watch.lines("restarted") == []
