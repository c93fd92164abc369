"""`preemptd watch --restart N`: what is not started again, and what ends the waiting."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from preemptd.config import settings
from preemptd.errors import ConfigError
from tests.metadata_server import FaultyEc2
from tests.restarting import Restarting, on_ec2, training
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(200)]


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=30.0) as server:
        yield server


# -- stops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131), (signal.SIGTERM, 75)]
)
def test_a_stop_ends_the_waiting_at_once(tmp_path: Path, ec2: FaultyEc2, signum: signal.Signals, status: int) -> None:
    with Restarting(tmp_path, ec2) as watch:
        watch.preempt()
        watch.await_line("waiting")
        watch.signal(signum)
        ended = watch.wait()

    assert ended == status
    assert watch.texts()[-1] == f"{signum.name} ends the waiting"
    assert len(watch.said("ready")) == 1
    assert watch.lines("restarted") == []


@pytest.mark.parametrize(
    ("signum", "status", "why"),
    [
        (signal.SIGTERM, 75, "preempted before it was started"),
        (signal.SIGINT, 130, "never started"),
    ],
)
def test_a_stop_ends_the_waiting_of_a_start_that_is_held_back_as_well(
    tmp_path: Path, signum: signal.Signals, status: int, why: str
) -> None:
    with FaultyEc2(grace=-54.0) as ec2, Restarting(tmp_path, ec2) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("waiting")
        ec2.announcement.deadline = time.time() + 120
        wait_until(lambda: any("not started before" in text for text in watch.texts()), 60)
        watch.signal(signum)
        ended = watch.wait()

    assert (ended, len(watch.said("ready"))) == (status, 1)
    assert watch.lines("settled")[-1]["why"] == why
    assert ("not started again: SIGINT has come" in watch.texts()) is (signum is signal.SIGINT)


def test_a_sigterm_in_the_pause_when_nothing_is_announced_any_more_is_a_stop(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, how="futile") as watch:
        watch.preempt_in_vain(1)
        watch.preempt(2)
        watch.await_line("waiting", 2)
        ec2.announcement.revoke()
        watch.await_line("revoked", 2)
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 143
    assert len(watch.said("ready")) == 2


def test_other_signals_do_not_end_the_waiting(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, last=2) as watch:
        watch.preempt()
        watch.await_line("waiting")
        for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD):
            watch.signal(signum)
        ec2.announcement.revoke()
        status = watch.wait()

    assert (status, len(watch.said("ready"))) == (0, 2)


def test_whoever_was_sent_sigterm_while_its_command_saved_does_not_start_it_again(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    script = "trap 'touch told' USR1; while [ ! -e end ]; do sleep 0.05; done"
    with Watch(tmp_path, ["sh", "-c", script], "--restart", "3", "--signal-target", "main", env=on_ec2(ec2)) as watch:
        watch.await_line("started")
        ec2.announcement.announce()
        watch.await_line("told")
        watch.signal(signal.SIGTERM)
        wait_until((tmp_path / "told").exists)
        (tmp_path / "end").touch()
        status = watch.wait()

    assert status == 75
    assert watch.lines("waiting") == []


def test_a_pod_that_is_ended_ends(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, "--provider", "sigterm") as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 75
    assert len(watch.said("saved")) == 1
    assert watch.lines("waiting") == []


# -- other ends ----------------------------------------------------------------------------------------------------


def test_a_command_that_fails_by_itself_is_not_started_again(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, ["sh", "-c", "exit 3"], "--restart", "3", env=on_ec2(ec2)) as watch:
        status = watch.wait()

    assert (status, len(watch.lines("started")), watch.lines("waiting")) == (3, 1, [])


def test_a_job_that_is_done_is_not_started_again(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, how="done") as watch:
        watch.preempt()
        status = watch.wait()

    assert (status, watch.lines("waiting")) == (0, [])


def test_with_0_the_end_is_the_end(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Restarting(tmp_path, ec2, "--restart", "0") as watch:
        watch.preempt()
        status = watch.wait()

    assert (status, watch.lines("waiting")) == (75, [])


def test_a_copy_that_is_still_at_work_is_never_joined_by_a_second_one(tmp_path: Path, ec2: FaultyEc2) -> None:
    work = "import os, time; open('worker', 'w').write(str(os.getpid())); time.sleep(600)"
    script = f"trap 'exit 0' USR1; {sys.executable} -c \"{work}\" & wait"
    with Watch(tmp_path, ["bash", "-c", script], "--restart", "3", "--signal-target", "main", env=on_ec2(ec2)) as watch:
        worker = int(wait_until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text()))
        ec2.announcement.announce()
        watch.await_line("told")
        ec2.announcement.revoke()
        wait_until(lambda: "(--sweep ends it)" in str(watch.lines("warning")), 40)
        os.kill(worker, signal.SIGKILL)
        status = watch.wait()

    assert status == 75
    assert f"(pid {worker}) (--sweep ends it)" in str(watch.lines("warning")[-1]["text"])


# -- where somebody else brings it back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"SLURM_JOB_ID": "12"}, "the job is requeued"),
        ({"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1"}, "W&B gives a preempted run of a sweep to whichever agent"),
    ],
)
def test_where_somebody_else_brings_it_back_it_is_said_that_the_option_has_no_effect(
    tmp_path: Path, ec2: FaultyEc2, env: Mapping[str, str], why: str
) -> None:
    with Restarting(tmp_path, ec2, "--provider", "ec2", env=env) as watch:
        watch.preempt()
        status = watch.wait()

    assert (status, watch.lines("waiting")) == (75, [])
    assert [text for text in watch.texts() if text.startswith(f"--restart has no effect here: {why}")] != []


def test_of_two_preemptds_the_outer_one_decides(tmp_path: Path, ec2: FaultyEc2) -> None:
    inner = [*PREEMPTD, "watch", "--journal", str(tmp_path / "inner"), "--restart", "3", "--", *training(last=2)]
    with Watch(tmp_path, inner, "--restart", "1", env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("waiting")
        ec2.announcement.revoke()
        status = watch.wait()

    assert status == 0
    assert [line["PREEMPTD_ATTEMPT"] for line in watch.said("ready")] == ["0", "0"]
    inner_lines = read_lines(tmp_path / "inner")
    assert [line for line in inner_lines if line["event"] in {"waiting", "restarted"}] == []
    assert "--restart has no effect here: the preemptd around this one decides" in [
        line["text"] for line in inner_lines if line["event"] == "warning"
    ]


def test_a_rehearsal_plays_one_attempt(tmp_path: Path) -> None:
    env = {"PREEMPTD_RESTART": "3", "PREEMPTD_CHECKPOINT_DIR": str(tmp_path), "LOG": str(tmp_path / "log")}
    command = [*PREEMPTD, "rehearse", "--after", "1", "--grace", "4", "--", *training()]
    done = subprocess.run(
        command, env=environment({**env, "CHECKPOINTS": str(tmp_path)}), capture_output=True, check=False, cwd=tmp_path
    )

    assert done.returncode == 0, done.stderr
    assert len([line for line in read_lines(tmp_path / "log") if line["what"] == "ready"]) == 1


@pytest.mark.parametrize("number", ["-1", "many", "1.5"])
def test_what_is_no_number_of_restarts_is_refused(number: str) -> None:
    with pytest.raises(ConfigError, match="restart"):
        settings({}, {"PREEMPTD_RESTART": number}, None)
