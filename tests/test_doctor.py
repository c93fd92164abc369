"""`preemptd doctor PID`: who would be told, who would not, and what would be lost."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctors import doctor, run_doctor, running, script
from tests.linking import short_directory
from tests.metadata_server import FaultyEc2, hang
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


def watch(directory: Path, command: list[str], ec2: FaultyEc2, *options: str, name: str = "job") -> Watch:
    return Watch(directory, command, "--link", str(directory / f"{name}.link"), *options, env=on_ec2(ec2), name=name)


def test_a_job_that_handles_nothing_and_that_nobody_watches_is_lost() -> None:
    with running(trainer("none")) as job:
        found = doctor(job.pid)
        text = run_doctor(job.pid)

    assert (found.status, found.said["verdict"]) == (1, "lost")
    assert found.kinds(losing=True) == {"catches-nothing", "not-watched"}
    assert found.process(job.pid)["signals"] == {"USR1": "default", "TERM": "default"}
    assert found.process(job.pid)["told_by"] is None
    assert text.returncode == 1
    assert text.stdout.splitlines()[-1].startswith(f"verdict     LOST: pid {job.pid} (")


def test_a_job_that_only_nobody_watches_is_lost_by_that_alone() -> None:
    with running(trainer("USR1")) as job:
        found = doctor(job.pid)

    assert (found.status, found.kinds()) == (1, {"not-watched"})
    assert found.process(job.pid)["told_by"] == "USR1"
    assert found.said["text"].startswith("LOST as it runs now: no preemptd watches this job. Under preemptd nothing")
    assert found.said["preemptds"] == []


@pytest.mark.parametrize("whom", ["watch", "command", "trainer"])
def test_of_a_watched_job_the_verdict_is_the_daemons_whichever_of_its_pids_is_named(
    short: Path, ec2: FaultyEc2, whom: str
) -> None:
    with watch(short, ["bash", "-c", " ".join([*trainer("both"), "; true"])], ec2) as job:
        pid = int(str(job.await_said("ready")[0]["pid"]))
        job.await_line("provider")
        pids = {"watch": job.process.pid, "command": int(str(job.lines("started")[0]["pid"])), "trainer": pid}
        found = doctor(pids[whom])

        assert (found.status, found.said["verdict"], found.kinds()) == (0, "nothing-lost", set())
        assert [one["pid"] for one in found.said["job"]["processes"]] == list(pids.values())[list(pids).index(whom) :]
        told = found.process(pid)
        assert (told["role"], told["told_by"], told["then"], told["watched"]) == ("work", "USR1", "TERM", True)
        assert (told["why"], told["purpose"]) == ("handles SIGUSR1", "caught, purpose unknown")
        assert f"if what catches the signal in pid {pid} saves" in found.said["text"]
        assert found.said["preemptds"][0]["preemptd"] == job.process.pid


def test_nobody_is_signalled_nothing_is_told_and_the_job_goes_on(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("both"), ec2) as job:
        pid = job.await_said("ready")[0]["pid"]
        doctor(pid)
        run_doctor(job.process.pid)

        assert job.said("signal") == []
        assert [line["event"] for line in job.lines() if line["event"] in {"told", "notice", "marked", "exited"}] == []
        assert job.process.poll() is None


def test_the_daemons_own_settings_count(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("both"), ec2, "--signal", "TERM") as job:
        pid = int(str(job.await_said("ready")[0]["pid"]))
        job.await_line("provider")
        found = doctor(pid, env={"PREEMPTD_SIGNAL": "USR2"})

    assert found.process(pid)["told_by"] == "TERM"


def test_without_a_daemon_the_environment_says_which_signal_would_tell() -> None:
    with running(trainer("USR1")) as job:
        found = doctor(job.pid, env={"PREEMPTD_SIGNAL": "USR2"})

    assert found.process(job.pid)["signals"] == {"USR1": "caught", "TERM": "default", "USR2": "default"}
    assert found.kinds(losing=True) == {"catches-nothing", "not-watched"}


def test_who_subscribed_is_told_over_the_link_and_nothing_is_left_to_guess(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("link"), ec2) as job:
        pid = int(str(job.await_said("ready")[0]["pid"]))
        wait_until(lambda: doctor(pid).said["preemptds"][0]["linked"] == [pid])
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.said["text"]) == (0, "NOTHING would be lost")
    assert (found.process(pid)["told_by"], found.process(pid)["purpose"]) == ("link", "told by message")


def test_each_disposition_has_its_name() -> None:
    code = """
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
"""
    with running(script(code)) as job:
        found = doctor(job.pid)

        assert found.process(job.pid)["signals"] == {"USR1": "ignored", "TERM": "blocked"}
        assert found.process(job.pid)["purpose"] == "blocked, purpose unknown"


@pytest.mark.parametrize("tool", ["faulthandler.register(signal.SIGUSR1)"])
def test_of_a_handler_only_its_existence_is_claimed(tool: str) -> None:
    with running(script(f"import faulthandler; {tool}")) as job:
        assert doctor(job.pid).process(job.pid)["purpose"] == "caught, purpose unknown"


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("4194305", "preemptd: there is no process 4194305"),
        ("0", "preemptd: there is no process 0"),
        ("x", "preemptd: Invalid value for 'PID': "),
    ],
)
def test_a_pid_that_is_none_costs_one_line_and_status_2(named: str, line: str) -> None:
    ended = run_doctor(named)

    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(line)


def test_what_has_ended_and_what_is_a_thread_are_named() -> None:
    waits = "import threading; t = threading.Thread(target=sys.stdin.read); t.start(); print(t.native_id, flush=True)"
    with subprocess.Popen(["true"]) as zombie, running(script(waits), ready="") as job:
        wait_until(lambda: Path(f"/proc/{zombie.pid}/stat").read_text().split()[2] == "Z")
        (thread,) = {int(path.name) for path in Path(f"/proc/{job.pid}/task").iterdir()} - {job.pid}
        ended, inside = run_doctor(zombie.pid), run_doctor(thread)

    assert (ended.returncode, ended.stderr) == (2, f"preemptd: process {zombie.pid} has ended\n")
    assert inside.stderr == f"preemptd: {thread} is a thread of process {job.pid}: ask for that one\n"


def test_settings_that_cannot_be_used_are_our_error() -> None:
    with running(trainer("USR1")) as job:
        ended = run_doctor(job.pid, env={"PREEMPTD_SIGNAL": "KILL"})

    assert (ended.returncode, ended.stderr.startswith("preemptd: environment: signal = 'KILL'")) == (2, True)


def test_a_dry_run_tells_nobody(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("USR1"), ec2, "--dry-run") as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.kinds()) == (1, {"dry-run"})


def test_a_daemon_that_leaves_wandb_alone_says_so(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("USR1"), ec2, "--no-wandb") as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.kinds()) == (0, {"no-wandb"})


def test_a_daemon_that_found_no_platform_hears_of_nothing(short: Path) -> None:
    with Watch(short, trainer("USR1"), "--link", str(short / "link")) as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.kinds()) == (1, {"no-source"})


def test_a_daemon_that_waits_for_sigterm_needs_nothing_else(short: Path) -> None:
    with Watch(short, trainer("USR1"), "--provider", "sigterm", "--link", str(short / "link")) as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.kinds()) == (0, set())


def test_a_metadata_server_that_never_answers_the_daemon_is_named(short: Path, ec2: FaultyEc2) -> None:
    ec2.fault = hang
    with watch(short, trainer("USR1"), ec2) as job:
        pid = job.await_said("ready")[0]["pid"]
        found = doctor(pid)

    assert (found.status, found.kinds()) == (1, {"no-answer"})
    assert "ec2:spot/instance-action" in found.finding("no-answer")["text"]


def test_an_open_notice_is_said(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("USR1", save=60), ec2) as job:
        pid = job.await_said("ready")[0]["pid"]
        ec2.announcement.announce()
        job.await_line("told")
        found = doctor(pid)

    assert "notice" in found.kinds()
    assert found.finding("notice")["text"].endswith("1 told, 0 saved")


def test_a_preemptd_without_a_link_that_answers_is_still_one(tmp_path: Path, ec2: FaultyEc2) -> None:
    (tmp_path / "preemptd").mkdir(mode=0o777)
    (tmp_path / "preemptd").chmod(0o777)
    env = {**on_ec2(ec2), "XDG_RUNTIME_DIR": str(tmp_path)}
    with Watch(tmp_path, trainer("USR1"), env=env) as job:
        pid = int(str(job.await_said("ready")[0]["pid"]))
        found = doctor(pid)

        assert (found.status, found.kinds()) == (0, {"silent-preemptd"})
        assert f"preemptd {job.process.pid} cannot be asked" in found.finding("silent-preemptd")["text"]
        assert found.process(pid)["told_by"] == "USR1"


def test_a_preemptd_that_is_stopped_would_tell_nobody(short: Path, ec2: FaultyEc2) -> None:
    with watch(short, trainer("USR1"), ec2) as job:
        pid = int(str(job.await_said("ready")[0]["pid"]))
        job.signal(signal.SIGSTOP)
        found = doctor(pid)
        job.signal(signal.SIGCONT)

        assert (found.status, found.kinds(losing=True)) == (1, {"mute-preemptd"})
        assert f"the preemptd at {short}/job.link hangs" in found.said["text"]


def test_a_script_with_two_watches_and_a_training_beside_them_is_judged_in_parts(short: Path, ec2: FaultyEc2) -> None:
    command = " ".join(trainer("USR1"))
    watches = [f"{' '.join(PREEMPTD)} watch --link {short}/{name} -- {command} &" for name in ("a", "b")]
    job_script = " ".join([*watches, " ".join(trainer("none")), "& wait"])
    log = {**on_ec2(ec2), "LOG": str(short / "log")}
    with running(["bash", "-c", job_script], env=log, cwd=short, stderr=subprocess.DEVNULL) as job:
        try:
            wait_until(lambda: (short / "log").exists() and (short / "log").read_text().count('"ready"') == 3, 40)
            wait_until(lambda: "no-answer" not in doctor(job.pid).kinds())
            found = doctor(job.pid)
            processes = found.said["job"]["processes"]

            assert found.kinds() == {"catches-nothing", "not-watched"}
            assert len(found.said["preemptds"]) == 2
            assert (
                sorted((one["told_by"], one["watched"]) for one in processes if one["told_by"]) == [("USR1", True)] * 2
            )
            assert [one["watched"] for one in processes if one["role"] == "work" and not one["told_by"]] == [False]
        finally:
            for one in reversed(doctor(job.pid).said["job"]["processes"]):
                subprocess.run(["kill", "-9", str(one["pid"])], check=False, capture_output=True)


def test_an_empty_shell_is_no_training() -> None:
    with running(["bash", "-c", "echo ready; read"]) as job:
        found = doctor(job.pid)

    assert (found.status, found.kinds()) == (1, {"nobody-listens", "not-watched"})


def test_the_doctor_does_not_find_itself() -> None:
    code = (
        f"import os, subprocess; sys.exit(subprocess.call({list(PREEMPTD)!r} + ['doctor', '--json', str(os.getpid())]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], env=environment(), capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert ended.stdout.count('"ppid"') == 1


def test_ranks_on_other_machines_are_mentioned_but_nothing_is_claimed(short: Path, ec2: FaultyEc2) -> None:
    env = {**on_ec2(ec2), "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "0"}
    with Watch(short, trainer("USR1"), "--link", str(short / "link"), env=env) as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(pid)

    assert (found.status, found.kinds()) == (0, {"other-nodes"})


def test_an_agent_of_a_sweep_is_mentioned(short: Path, ec2: FaultyEc2) -> None:
    agent = short / "wandb"
    agent.write_text(f"import subprocess\nsubprocess.run({trainer('USR1')})\n")
    with watch(short, [sys.executable, str(agent), "agent", "team/project/s1"], ec2) as job:
        pid = job.await_said("ready")[0]["pid"]
        job.await_line("provider")
        found = doctor(job.process.pid)

        assert pid in [one["pid"] for one in found.said["job"]["processes"]]
        assert (found.status, found.kinds()) == (0, {"sweep-agent"})


def test_a_client_of_a_container_daemon_is_not_taken_for_the_training(short: Path) -> None:
    client = short / "docker"
    client.symlink_to("/bin/bash")
    (short / "run").write_text("echo ready\nread\n")
    command = [str(client), "run", "--rm", "-e", "API_TOKEN=hush", "image", "python", "train.py"]
    with running(command, cwd=short) as job:
        found = doctor(job.pid)
        text = run_doctor(job.pid)

    assert found.kinds(losing=True) == {"container", "not-watched"}
    assert "only waits for a container (not found on this machine)" in found.finding("container")["text"]
    assert "hush" not in found.out + text.stdout


def test_what_a_command_line_holds_cannot_disturb_the_report() -> None:
    with running(script("", "--title", "\x1b[2Jx\nverdict     NOTHING", "--password", "hush")) as job:
        text = run_doctor(job.pid).stdout
        found = doctor(job.pid)

    assert "\x1b" not in text
    assert sum(line.startswith("verdict") for line in text.splitlines()) == 1
    assert "hush" not in text + found.out


def test_it_takes_less_than_a_second() -> None:
    """Ten times that, for the tests run side by side."""
    with running(trainer("USR1")) as job:
        began = time.monotonic()
        doctor(job.pid)

        assert time.monotonic() - began < 10


def test_a_process_that_ends_while_it_is_looked_at_does_no_harm() -> None:
    storm = "for n in range(400): __import__('subprocess').run(['true'])"
    with running(script(f"print('ready', flush=True)\n{storm}")) as job:
        for _ in range(3):
            assert run_doctor(job.pid).stderr == ""
        job.send_signal(signal.SIGKILL)
