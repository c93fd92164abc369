"""`--on-notice`, `--on-saved`, `--on-exit` from outside: what they are told, how long they may take."""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from preemptd.observe.hooks import AT_ONCE, LONGEST, OF_THE_EVENT, OF_THE_NOTICE, SHORTEST
from tests.conftest import ROOT
from tests.metadata_server import FaultyEc2
from tests.serving import Serving
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

GRACE = 20.0
NOTE = "env | grep ^PREEMPTD_ > {0}.part; mv {0}.part {0}"
"""Writes down what a hook was told; the file is there when it is whole."""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=GRACE) as server:
        yield server


def on_ec2(server: FaultyEc2, **more: str) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false", **more}


def told(path: Path) -> dict[str, str]:
    """Read what `NOTE` wrote."""
    wait_until(path.exists, 30, str(path))
    return dict(line.partition("=")[::2] for line in path.read_text().splitlines())


def preempted(watch: Watch, ec2: FaultyEc2) -> int:
    watch.await_said("ready")
    ec2.announcement.announce()
    return watch.wait()


def hooks(watch: Watch, on: str, count: int = 1) -> list[dict[str, object]]:
    wait_until(lambda: len([line for line in watch.lines("hook") if line["on"] == on]) >= count, 30, on)
    return [line for line in watch.lines("hook") if line["on"] == on]


def test_each_hook_runs_once_and_hears_what_is_announced_and_what_came_of_it(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = [word for on in ("notice", "saved", "exit") for word in (f"--on-{on}", NOTE.format(on))]
    with Watch(tmp_path, trainer("link"), *options, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        announced = time.time()
        status = watch.wait()

    notice, saved, ended = (told(tmp_path / on) for on in ("notice", "saved", "exit"))
    assert status == 75
    ran = [(line["on"], line["status"], line["why"]) for line in watch.lines("hook")]
    assert sorted(map(str, ran)) == [str((on, 0, None)) for on in ("exit", "notice", "saved")]  # they run side by side
    for heard in (notice, saved, ended):
        assert heard["PREEMPTD_KIND"] == "terminate"
        assert heard["PREEMPTD_PROVIDER"] == "ec2"
        assert heard["PREEMPTD_SOURCE"] == watch.lines("notice")[0]["source"]
        assert heard["PREEMPTD_EVENT_ID"] == watch.lines("notice")[0]["event_id"]
        assert abs(int(heard["PREEMPTD_DEADLINE"]) - announced - GRACE) < 10
        assert 0 < int(heard["PREEMPTD_REMAINING"]) <= GRACE
    assert [heard["PREEMPTD_EVENT"] for heard in (notice, saved, ended)] == ["notice", "saved", "exit"]
    (said,) = watch.said("saved")
    assert (saved["PREEMPTD_PID"], saved["PREEMPTD_STEP"]) == (str(said["pid"]), str(said["step"]))
    assert saved["PREEMPTD_PATH"] == said["path"]
    assert (ended["PREEMPTD_STATUS"], ended["PREEMPTD_PREEMPTED"]) == ("0", "1")
    assert "preemptd: the command of" not in watch.err


def test_no_setting_of_ours_is_handed_on_and_nothing_that_systemd_meant_for_us(tmp_path: Path) -> None:
    secret = "https://127.0.0.1:1/services/s3cr3t"
    ours = {"PREEMPTD_WEBHOOK": secret, "PREEMPTD_GRACE": "7", "PREEMPTD_ON_EXIT": "env > hook", "OF_THE_USER": "1"}
    with Watch(tmp_path, ["true"], env={**ours, "NOTIFY_SOCKET": "/nowhere"}) as watch:
        status = watch.wait()

    names = {line.partition("=")[0] for line in (tmp_path / "hook").read_text().splitlines()}
    assert status == 0
    assert {name for name in names if name.startswith("PREEMPTD_")} == {
        "PREEMPTD_EVENT",
        "PREEMPTD_OWN_COMMAND",
        "PREEMPTD_PID",
        "PREEMPTD_STATUS",
        "PREEMPTD_PREEMPTED",
    }
    assert "OF_THE_USER" in names
    assert "NOTIFY_SOCKET" not in names
    assert secret not in (tmp_path / "hook").read_text()


def test_the_end_of_a_command_that_nothing_was_announced_for_is_heard_too(tmp_path: Path) -> None:
    with Watch(tmp_path, ["sh", "-c", "exit 3"], "--on-exit", NOTE.format("hook")) as watch:
        status = watch.wait()

    heard = told(tmp_path / "hook")
    assert status == 3
    assert (heard["PREEMPTD_STATUS"], heard["PREEMPTD_PREEMPTED"]) == ("3", "0")
    assert "PREEMPTD_KIND" not in heard


def test_a_notice_that_is_taken_back_and_comes_again_is_two_events_and_an_update_is_none(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    with Watch(tmp_path, trainer("none"), "--on-notice", "echo >> count", env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        hooks(watch, "notice")
        ec2.announcement.revoke()
        watch.await_line("revoked")
        ec2.announcement.announce()
        hooks(watch, "notice", 2)
        watch.signal(signal.SIGKILL)

    assert len((tmp_path / "count").read_text().splitlines()) == 2


def test_a_periodic_checkpoint_that_no_notice_asked_for_runs_no_hook(tmp_path: Path) -> None:
    code = "import preemptd; preemptd.should_preempt(); preemptd.saved(5)"
    with Watch(tmp_path, [sys.executable, "-c", code], "--on-saved", "echo >> count", "--on-exit", "true") as watch:
        watch.wait()

    assert [line["on"] for line in watch.lines("hook")] == ["exit"]


def test_a_hook_that_fails_is_one_line_with_its_last_words_and_costs_nothing(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(
        tmp_path, trainer("USR1"), "--on-notice", "echo a; echo the bucket is gone >&2; exit 3", env=on_ec2(ec2)
    ) as watch:
        status = preempted(watch, ec2)

    (line,) = watch.lines("hook")
    said = [line for line in watch.err.splitlines() if "--on-notice" in line]
    assert status == 75
    assert (line["status"], line["why"], line["output"]) == (3, "ended with status 3", "a\nthe bucket is gone")
    assert len(said) == 1
    assert said[0].endswith(": the bucket is gone")


@pytest.mark.slow
def test_hooks_that_hang_keep_nobody_from_being_told_and_are_killed_with_all_they_started(
    tmp_path: Path,
) -> None:
    hang = "echo $$ >> pids; sleep 600 & echo $! >> pids; wait"
    options = ("--on-notice", hang, "--on-saved", hang, "--on-exit", hang)
    with FaultyEc2(grace=8.0) as ec2, Watch(tmp_path, trainer("link"), *options, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("exit")
        ended = time.monotonic()
        status = watch.wait(60)
        took = time.monotonic() - ended

    assert status == 75
    assert took < 20
    assert {line["on"]: line["status"] for line in watch.lines("hook")} == dict.fromkeys(("notice", "saved", "exit"))
    assert all("killed" in str(line["why"]) for line in watch.lines("hook"))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 6
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)])
    told_line, notice_hook = watch.lines("told")[0], watch.lines("hook")[0]
    assert float(str(told_line["mono"])) < float(str(notice_hook["mono"]))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_a_hook_leaves_in_a_session_of_its_own_is_no_training(tmp_path: Path, ec2: FaultyEc2) -> None:
    ec2.event = "rebalance"
    leaves = f"setsid {shlex.join(trainer('USR1'))} > /dev/null 2>&1 &"
    with Watch(tmp_path, trainer("USR1"), "--on-advice", leaves, env=on_ec2(ec2)) as watch:
        (training,) = watch.await_said("ready")
        ec2.announcement.announce()
        left = {line["pid"] for line in watch.await_said("ready", 2)} - {training["pid"]}
        wait_until(lambda: [psutil.Process(int(str(pid))).ppid() for pid in left] == [watch.process.pid])
        ec2.event = "terminate"
        status = watch.wait()

    assert [line["pid"] for line in watch.lines("told")] == [training["pid"]]
    assert {line["pid"] for line in watch.said("signal")} == {training["pid"]}
    assert status == 75


def test_the_examples_of_the_documentation_do_what_they_say(tmp_path: Path, ec2: FaultyEc2) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"^```toml\n(on_advice.*?)^```", page, re.MULTILINE | re.DOTALL)
    shared = tmp_path / "shared"
    shared.mkdir()
    file = tmp_path / "preemptd.toml"
    file.write_text(example.replace("/mnt/shared", str(shared)))
    with Watch(tmp_path, trainer("link"), "--config", str(file), env=on_ec2(ec2)) as watch:
        preempted(watch, ec2)

    assert [line["why"] for line in watch.lines("hook")] == [None] * 3
    assert re.fullmatch(r"terminate in \d+ s\n", (shared / "notices").read_text())
    assert (shared / Path(str(watch.said("saved")[0]["path"])).name).exists()
    assert (shared / "preempted").exists()


def test_the_documentation_names_every_variable_and_the_limits() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("### What a hook is told")[2].partition("###")[0]
    known = {"event", "deadline", "remaining", "own_command", *OF_THE_NOTICE, *OF_THE_EVENT}

    assert set(re.findall(r"`PREEMPTD_(\w+)`", table)) == {name.upper() for name in known}
    assert f"at most {LONGEST:.0f} s, at least {SHORTEST:.0f} s" in page
    assert AT_ONCE == 8


def test_what_a_hook_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    with Watch(tmp_path, ["true"], "--on-exit", "sleep 60 > /dev/null & echo $! > pid") as watch:
        status = watch.wait()
    pid = int((tmp_path / "pid").read_text())
    left = is_alive(pid)
    os.kill(pid, signal.SIGKILL)

    assert (status, left) == (0, True)
    assert [line["status"] for line in watch.lines("hook")] == [0]


def test_what_a_hook_runs_or_leaves_in_the_background_is_told_of_nothing(tmp_path: Path, ec2: FaultyEc2) -> None:
    """Programs in Go catch every signal, and die of those that they have no use for: rclone, in the middle of it."""
    other = " ".join(shlex.quote(word) for word in trainer("USR1"))
    hook = f"{other} > /dev/null & {other} > /dev/null & exec {other} > /dev/null"
    left = f"{other} > /dev/null 2>&1 &"
    env = on_ec2(ec2, STEPS="150")
    with Watch(tmp_path, trainer("none"), "--on-notice", hook, "--sweep", env=env) as watch:
        (main,) = watch.await_said("ready")
        ec2.announcement.announce()
        watch.wait()
        wait_until(lambda: len(watch.said("exit")) == 4, 30)
    ec2.announcement.revoke()
    with Watch(tmp_path, trainer("none"), "--on-notice", left, env=env, name="left") as other_watch:
        other_watch.await_said("ready")
        ec2.announcement.announce()
        other_watch.wait()
        wait_until(lambda: len(other_watch.said("exit")) == 2, 30)

    for one in (watch, other_watch):
        assert one.lines("told") == one.said("signal") == []
    assert [line["status"] for line in watch.lines("hook")] == [0]
    assert main["pid"] in {line["pid"] for line in watch.lines("exited")}


def test_a_hook_that_writes_without_end_is_read_and_not_kept(tmp_path: Path) -> None:
    with Watch(tmp_path, ["true"], "--on-exit", "yes | head -c 50000000; echo last; exit 1") as watch:
        watch.wait()

    (line,) = watch.lines("hook")
    assert line["output"] == "y\ny\nlast"


def test_a_hook_that_closes_its_output_is_waited_for_all_the_same(tmp_path: Path) -> None:
    with Watch(tmp_path, ["true"], "--on-exit", "exec >&- 2>&-; sleep 0.3; exit 4") as watch:
        watch.wait()

    assert [line["status"] for line in watch.lines("hook")] == [4]


def test_ctrl_c_ends_the_hook_that_our_end_waits_for(tmp_path: Path) -> None:
    with Watch(tmp_path, ["true"], "--on-exit", "echo > ready; sleep 600") as watch:
        wait_until((tmp_path / "ready").exists)
        watch.signal(signal.SIGINT)
        status = watch.wait()

    assert status == 0
    assert ["killed" in str(line["why"]) for line in watch.lines("hook")] == [True]


def test_sigterm_at_our_end_leaves_the_hook_its_time(tmp_path: Path) -> None:
    with Watch(tmp_path, ["true"], "--on-exit", "echo > ready; while ! [ -e go ]; do sleep 0.05; done") as watch:
        wait_until((tmp_path / "ready").exists)
        watch.signal(signal.SIGTERM)
        time.sleep(0.2)  # nothing shows that it was not minded
        (tmp_path / "go").touch()
        status = watch.wait()

    assert status == 0
    assert [line["status"] for line in watch.lines("hook")] == [0]


def test_a_path_that_no_variable_can_hold_is_a_failure_of_that_hook_alone(tmp_path: Path, ec2: FaultyEc2) -> None:
    code = (
        "import time, preemptd\n"
        "preemptd.should_preempt(); open('ready', 'w').close()\n"
        "while not preemptd.should_preempt(): time.sleep(0.02)\n"
        "preemptd.saved(1, 'a\\0b'); preemptd.saved(2, 'whole'); preemptd.done()\n"
    )
    with Watch(tmp_path, [sys.executable, "-c", code], "--on-saved", "true", env=on_ec2(ec2)) as watch:
        wait_until((tmp_path / "ready").exists)
        ec2.announcement.announce()
        watch.wait()

    assert [line["status"] for line in watch.lines("hook")] == [None, 0]
    assert "could not be run" in str(watch.lines("hook")[0]["why"])


def test_a_dry_run_and_a_rehearsal_run_no_hook(tmp_path: Path, ec2: FaultyEc2) -> None:
    by_variable = {"PREEMPTD_ON_NOTICE": "echo >> count", "PREEMPTD_ON_EXIT": "echo >> count"}
    with Watch(tmp_path, trainer("none"), "--dry-run", env=on_ec2(ec2, STEPS="60", **by_variable)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.wait()
    with Watch(tmp_path, trainer("USR1"), "--after", "0.5", env=by_variable, verb="rehearse", name="r") as rehearsed:
        rehearsed.wait()

    assert len(watch.lines("notice")) == len(rehearsed.lines("notice")) == 1
    assert not (tmp_path / "count").exists()


def test_in_a_slurm_job_the_jobs_sigterm_does_not_end_a_hook(tmp_path: Path) -> None:
    """SLURM signals every process of a job; `trap -p` would not show what was ignored from the start."""
    hook = "grep SigIgn /proc/self/status > ignored"
    with Watch(tmp_path, ["true"], "--on-exit", hook, "--provider", "sigterm", env={"SLURM_JOB_ID": "1"}) as watch:
        watch.wait()
    mask = int((tmp_path / "ignored").read_text().split()[1], 16)

    assert [bool(mask & 1 << (signum - 1)) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)] == [True] * 3


def test_the_daemon_runs_them_for_told_processes_and_goes_on(tmp_path: Path) -> None:
    config = 'provider = ["file"]\ngrace = 20\nno_wandb = true\n'
    hook = "".join(f'on_{on} = "{NOTE.format(on)}"\n' for on in ("notice", "saved", "exit"))
    with Serving(tmp_path, config + hook) as serving:
        (line,) = serving.await_line("serving")
        training = serving.train("link", env={"PREEMPTD_LINK": str(line["link"])})
        serving.notify()
        training.process.wait(30)
        notice, saved, ended = (told(tmp_path / on) for on in ("notice", "saved", "exit"))

        assert serving.process.poll() is None
    assert notice["PREEMPTD_PROVIDER"] == saved["PREEMPTD_PROVIDER"] == "file"
    assert saved["PREEMPTD_PID"] == ended["PREEMPTD_PID"] == str(training.pid)
    assert ended["PREEMPTD_PREEMPTED"] == "1"
    assert "PREEMPTD_STATUS" not in ended  # it is nobody's child there
