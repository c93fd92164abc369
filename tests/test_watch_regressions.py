"""`preemptd watch` where it once harmed or refused what it should have served."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preemptd.procfs import machine_life, process_id
from tests.metadata_server import FaultyEc2
from tests.test_telling import CATCHER
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, read_lines, trainer

BOTH = """
import signal, time, preemptd
signal.signal(signal.SIGUSR1, lambda *_: print("USR1", flush=True))
preemptd.should_preempt()
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def test_a_dry_run_kills_nobody_even_with_kill(tmp_path: Path) -> None:
    with (
        FaultyEc2(grace=1.0) as ec2,
        Watch(tmp_path, trainer("USR1"), "--dry-run", "--kill", env={**on_ec2(ec2), "STEPS": "100"}) as watch,
    ):
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 0
    assert watch.lines("told")


@pytest.mark.parametrize("where", ["another's", "nowhere"])
def test_a_link_that_was_inherited_from_another_job_does_not_keep_this_one_from_starting(
    tmp_path: Path, where: str
) -> None:
    with Watch(tmp_path, trainer("none")) as other:
        other.await_said("ready")
        link = str(other.await_line("started")[0]["link"]) if where == "another's" else "/proc/nowhere/preemptd/1.sock"
        with Watch(tmp_path, ["true"], env={"PREEMPTD_LINK": link}, name="submitted") as submitted:
            status = submitted.wait()

    assert status == 0
    assert "taking one of our own" in submitted.err


def test_a_pid_that_was_used_again_is_not_taken_for_the_training(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        now = process_id(stranger.pid)
        assert now is not None
        before = {"pid": now.pid, "start": now.start - 1000}
        record = {"life": machine_life(), "training": before, "group": now.pid, "attempt": 0, "futile": 0}
        (tmp_path / "run42.json").write_text(json.dumps({**record, "began": 1.0, "told": []}))
        with Watch(tmp_path, trainer("none"), "--job-id", "run42", "--state-dir", str(tmp_path)) as watch:
            watch.await_said("ready")
            started = watch.await_line("started")[0]
        stranger.kill()

    assert (started["adopted"], started["pid"] == now.pid) == (False, False)


def test_a_provider_without_watches_does_not_delay_the_start(tmp_path: Path) -> None:
    with Watch(tmp_path, ["sh", "-c", "echo $PPID"], "--provider", "sigterm", "--no-wandb") as watch:
        watch.wait()
    (warned,) = watch.lines("provider")

    assert float(str(watch.lines("started")[0]["mono"])) - float(str(warned["mono"])) < 0.25


def test_while_held_back_sigterm_ends_us_also_with_the_sigterm_provider(tmp_path: Path) -> None:
    with FaultyEc2(grace=30.0) as ec2:
        ec2.announcement.announce()
        options = ("--provider", "sigterm", "--provider", "ec2")
        with Watch(tmp_path, trainer("TERM"), *options, env=on_ec2(ec2)) as watch:
            watch.await_line("warning")
            watch.signal(signal.SIGTERM)
            status = watch.wait()

    assert status == 143
    assert watch.said() == []


def test_who_was_told_over_the_link_gets_no_signal_from_a_restarted_preemptd(tmp_path: Path) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    out = tmp_path / "out"
    command = ["sh", "-c", f"exec {sys.executable} -c '{BOTH}' > {out}"]
    with FaultyEc2(grace=10.0) as ec2, Watch(tmp_path, command, *options, env=on_ec2(ec2)) as first:
        wait_until(lambda: out.exists() and "ready" in out.read_text())
        ec2.announcement.announce()
        first.await_line("seen")
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        try:
            with Watch(tmp_path, ["true"], *options, env=on_ec2(ec2), name="again") as again:
                again.await_line("seen")
        finally:
            subprocess.run(["kill", "-KILL", str(first.lines("started")[0]["pid"])], check=True)

    assert again.lines("told") == []
    assert out.read_text() == "ready\n"


def test_that_another_users_process_cannot_be_told_is_said_once(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    journal = tmp_path / "journal"
    unable = ["setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill"]
    command = [*unable, *PREEMPTD, "watch", "--journal", str(journal), "--", sys.executable, "-c", CATCHER, "65534"]
    with (
        FaultyEc2(grace=30.0) as ec2,
        subprocess.Popen(command, env=environment(on_ec2(ec2)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as w,
    ):
        assert w.stdout is not None
        w.stdout.readline()
        ec2.announcement.announce()
        wait_until(lambda: "was refused" in journal.read_text())
        time.sleep(0.7)  # three scans
        pid = next(line["pid"] for line in read_lines(journal) if line["event"] == "started")
        subprocess.run(["kill", "-KILL", str(pid)], check=True)
        status = w.wait(20)

    assert journal.read_text().count("was refused") == 1
    assert status == 137


def test_an_old_time_that_lay_there_does_not_hide_the_next_interruption(tmp_path: Path) -> None:
    """EC2 leaves that of an interruption that did not come; the next one is written over it."""
    with FaultyEc2(grace=-900.0) as ec2:
        ec2.announcement.announce()
        with Watch(tmp_path, trainer("USR1"), env=on_ec2(ec2)) as watch:
            watch.await_said("ready")
            watch.await_line("notice")
            ec2.announcement.deadline = time.time() + 120
            ended = watch.wait()

    assert [line["acted"] for line in watch.lines("notice")] == [False, True]
    assert (len(watch.lines("told")), ended) == (1, 75)
