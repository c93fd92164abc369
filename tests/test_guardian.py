"""`--die-with-parent`: what it does, and that it is in nobody's way."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, environment, read_lines, trainer

DIE = "--die-with-parent"


def guardian_of(preemptd: int, journal: Path) -> int:
    """Find it among the children of *preemptd*: the one whose arguments are the training's."""
    wait_until(lambda: any(line["event"] == "started" for line in read_lines(journal)))
    training = next(str(line["pid"]) for line in read_lines(journal) if line["event"] == "started")

    def find() -> int:
        for pid in children(preemptd):
            if argv(pid)[-2:-1] == [training] and argv(pid)[-3].endswith("guardian.py"):
                return pid
        return 0

    return wait_until(find)


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


def argv(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def is_armed(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "preemptd\n" and os.readlink(f"/proc/{pid}/cwd") == "/"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_preemptd_ends_the_training_by_one_sigterm_and_the_guardian_goes_too(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("TERM"), DIE) as watch:
        watch.await_said("ready")
        guardian = guardian_of(watch.process.pid, watch.journal)
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
        wait_until(lambda: watch.said("exit"))
        wait_until(lambda: not alive(guardian))

    assert [line["name"] for line in watch.said("signal")] == ["SIGTERM"]
    assert len(watch.said("saved")) == 1


def test_what_a_terminal_or_a_service_manager_sends_to_all_does_not_end_the_guardian(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("TERM", save=30.0), DIE) as watch:
        watch.await_said("ready")
        guardian = guardian_of(watch.process.pid, watch.journal)
        wait_until(lambda: is_armed(guardian))
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            os.kill(guardian, signum)
        assert os.getsid(guardian) == guardian
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
        wait_until(lambda: watch.said("signal"))
        wait_until(lambda: not alive(guardian))

    assert len(watch.said("signal")) == 1


def test_the_guardian_holds_nothing_that_somebody_may_wait_for(tmp_path: Path) -> None:
    command = [*Watch.command("watch"), DIE, "--journal", str(tmp_path / "journal"), "--", "cat"]
    read, write = os.pipe()
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, pass_fds=(write,)) as process:
        guardian = guardian_of(process.pid, tmp_path / "journal")
        wait_until(lambda: is_armed(guardian))
        held = {fd: os.readlink(f"/proc/{guardian}/fd/{fd}") for fd in os.listdir(f"/proc/{guardian}/fd")}
    os.close(read)
    os.close(write)

    assert {fd: held[fd] for fd in held if fd != "0"} == {"1": "/dev/null", "2": "/dev/null"}
    assert held["0"].startswith("pipe:")
    assert process.returncode == 0


@pytest.mark.parametrize("command", [["true"], ["sh", "-c", "exit 5"], ["./none"]])
def test_with_the_training_the_guardian_ends(tmp_path: Path, command: list[str]) -> None:
    with Watch(tmp_path, command, DIE) as watch:
        status = watch.wait()

    assert status == {"true": 0, "sh": 5, "./none": 127}[command[0]]
    assert [pid for pid in os.listdir("/proc") if pid.isdecimal() and is_guardian_in(int(pid), tmp_path)] == []


def is_guardian_in(pid: int, directory: Path) -> bool:
    """Tell a guardian that this test left by what it inherited: its environment names the test's directory."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(word.endswith("guardian.py") for word in argv(pid)) and bytes(directory) in environ


def test_a_name_that_is_no_text_protects_nobody(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff) Z 1 (")
    os.symlink(shutil.which("sh") or "", name)
    script = "trap 'echo saved; exit' TERM; echo ready; while :; do sleep 0.05; done"
    command = [*Watch.command("watch"), DIE, "--", name, "-c", script]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()

        assert process.stdout.read() == b"saved\n"


def test_the_guardian_is_no_part_of_the_job(tmp_path: Path) -> None:
    with FaultyEc2(grace=20.0) as ec2, Watch(tmp_path, trainer("TERM"), DIE, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        wait_until(lambda: is_armed(guardian_of(watch.process.pid, watch.journal)))
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.lines("told")) == 1
    assert watch.lines("spared") == []


def test_the_guardian_of_a_nested_preemptd_is_a_launcher_to_the_outer_one(tmp_path: Path) -> None:
    inner = [*Watch.command("watch"), DIE, "--", *trainer("TERM")]
    with FaultyEc2(grace=20.0) as ec2, Watch(tmp_path, inner, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGTERM"]
    assert {str(line["why"]) for line in watch.lines("spared")} == {"preemptd, the launcher"}


def test_a_training_that_was_taken_over_is_guarded_anew_even_while_it_is_stopped(tmp_path: Path) -> None:
    options = ("--job-id", "run42", "--state-dir", str(tmp_path / "state"))
    with Watch(tmp_path, trainer("TERM"), *options) as first:
        pid = int(str(first.await_said("ready")[0]["pid"]))
        first.signal(signal.SIGKILL)
        first.process.wait(20)
        with Watch(tmp_path, trainer("TERM"), *options, DIE, name="again") as again:
            again.await_line("started")
            os.kill(pid, signal.SIGSTOP)
            again.signal(signal.SIGKILL)
            again.process.wait(20)
            wait_until(lambda: first.said("exit"))

    assert [line["name"] for line in first.said("signal")] == ["SIGTERM"]
