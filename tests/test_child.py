import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

WATCH = [sys.executable, "-W", "error", str(Path(__file__).parent / "standins" / "child_watch.py")]
PROBE = [sys.executable, str(Path(__file__).parent / "standins" / "child_probe.py")]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "watch.log"
    path.touch()
    return path


@pytest.fixture
def start(log: Path, tmp_path: Path) -> Iterator[Start]:
    """Start the small `watch` of the stand-in around a command."""
    with contextlib.ExitStack() as stack:

        def start(
            *command: str, launcher: tuple[str, ...] = (), pass_fds: tuple[int, ...] = (), **env: str
        ) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [*launcher, *WATCH, *command],
                env={**os.environ, "CHILD_LOG": str(log), **env},
                cwd=tmp_path,
                pass_fds=pass_fds,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(kill_session, process.pid)
            return process

        yield start


def kill_session(session: int) -> None:
    """End what a test leaves behind in the session that it made."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == session:
                    os.kill(int(name), signal.SIGKILL)


def child_pid(log: Path) -> int:
    return int(wait_until(lambda: re.findall(r"^prepared (\d+) \d+$", log.read_text(), re.MULTILINE))[0])


def said(log: Path, line: str, times: int = 1) -> None:
    wait_until(lambda: log.read_text().count(line) >= times, what=f"{line!r} in {log}")


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    assert select.select([process.stdout], [], [], 20)[0], "the stand-in says nothing"
    return process.stdout.readline().strip()


def probe(process: "subprocess.Popen[str]") -> dict[str, str]:
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    return dict(line.split("=", 1) for line in out.splitlines())


def state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


# How it ends


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("ulimit -c unlimited; kill -SEGV $$", 139),
    ],
)
def test_the_exit_status_is_the_commands_own_and_128_plus_n_for_a_signal(
    start: Start, command: str, status: int
) -> None:
    process = start("sh", "-c", command)

    assert process.wait(20) == status


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("no-such-command", 127, "no-such-command: No such file or directory"),
        ("./no-such-file", 127, "./no-such-file: No such file or directory"),
        ("/etc/passwd/x", 127, "/etc/passwd/x: Not a directory"),
        ("", 127, ": No such file or directory"),
        ("/etc", 126, "/etc: Permission denied"),
        ("./plain", 126, "./plain: Permission denied"),
        ("./foreign", 126, "./foreign: Exec format error"),
        ("./lost", 127, "./lost: No such file or directory (the file is there: what its first line"),
    ],
)
def test_a_command_that_cannot_run_is_127_or_126_and_one_line(
    start: Start, tmp_path: Path, command: str, status: int, message: str
) -> None:
    (tmp_path / "plain").write_text("echo never")
    for name, content in {"foreign": b"\x7fELF\0\0\0for another machine\n", "lost": b"#!/no/such/sh\n"}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)

    process = start(command)
    _, err = process.communicate(timeout=20)

    assert process.returncode == status
    assert err.startswith(f"preemptd: {message}")
    assert err.count("\n") == 1


def test_a_script_without_an_interpreter_line_runs_as_every_shell_runs_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "script").write_text('echo "$1 $2"; exit 3\n')
    (tmp_path / "script").chmod(0o755)

    process = start("./script", "a b", "c")
    out, _ = process.communicate(timeout=20)

    assert (process.returncode, out) == (3, "a b c\n")


def test_the_command_is_looked_up_in_the_path_of_its_own_environment(start: Start, tmp_path: Path) -> None:
    for folder, mode in {"first": 0o644, "second": 0o755}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train").write_text("#!/bin/sh\necho $0\n")
        (tmp_path / folder / "train").chmod(mode)

    process = start("train", CHILD_PATH="none:first:second")
    out, _ = process.communicate(timeout=20)

    assert out == "second/train\n"


def test_what_may_not_be_executed_anywhere_in_the_path_is_126(start: Start, tmp_path: Path) -> None:
    (tmp_path / "train").write_text("")

    process = start("train", CHILD_PATH=f"{tmp_path}:none")

    assert process.wait(20) == 126


# What it inherits


def test_the_command_leads_a_process_group_of_its_own_in_our_session(start: Start) -> None:
    process = start(*PROBE)
    found = probe(process)

    assert found["pgid"] == found["pid"]
    assert found["sid"] == str(process.pid)


def test_signal_dispositions_are_as_we_inherited_them(start: Start) -> None:
    found = probe(start(*PROBE))

    assert found["SigIgn"] == "0"
    assert found["SigBlk"] == "0"


def test_what_nohup_and_a_background_shell_ignore_stays_ignored(start: Start) -> None:
    found = probe(start(*PROBE, launcher=("sh", "-c", 'trap "" HUP INT; exec "$@"', "sh")))

    assert int(found["SigIgn"], 16) == 1 << (signal.SIGHUP - 1) | 1 << (signal.SIGINT - 1)


def test_the_signal_mask_is_the_one_we_inherited(start: Start) -> None:
    block = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {12}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    found = probe(start(*PROBE, launcher=(sys.executable, "-c", block)))

    assert int(found["SigBlk"], 16) == 1 << 11


def test_inherited_descriptors_are_passed_on_and_ours_are_not(start: Start) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        process = start(*PROBE, pass_fds=(write,))
        found = probe(process)
    finally:
        os.close(read)
        os.close(write)

    assert found["fds"] == f"0 1 2 {write}"


def test_standard_streams_are_untouched(start: Start) -> None:
    process = start("sh", "-c", "cat; echo err >&2")
    out, err = process.communicate("in\n", timeout=20)

    assert (out, err) == ("in\n", "err\n")


def test_closed_standard_streams_stay_closed(start: Start, tmp_path: Path) -> None:
    process = start(*PROBE, str(tmp_path / "found"), launcher=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))

    assert process.wait(20) == 0
    assert "fds=\n" in (tmp_path / "found").read_text()


# Signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_stopped_command_is_continued_to_see_the_signal_that_ends_it(
    start: Start, log: Path, signum: signal.Signals
) -> None:
    process = start("sh", "-c", 'trap "exit 5" TERM INT HUP QUIT; echo ready; while :; do sleep 0.1; done')
    assert line_of(process) == "ready"
    os.kill(child_pid(log), signal.SIGSTOP)
    said(log, "stopped SIGSTOP")

    process.send_signal(signum)

    assert process.wait(20) == 5


def test_stop_and_continue_are_reported_once_each(start: Start, log: Path) -> None:
    process = start("sh", "-c", "echo ready; exec sleep 60")
    assert line_of(process) == "ready"

    for turn in range(1, 4):
        os.kill(child_pid(log), signal.SIGSTOP)
        said(log, "stopped SIGSTOP", turn)
        os.kill(child_pid(log), signal.SIGCONT)
        said(log, "continued", turn)
    process.terminate()

    assert process.wait(20) == 143
    assert log.read_text().count("stopped") == 3
    assert log.read_text().count("continued") == 3
    assert log.read_text().count("exited") == 1


def test_without_a_terminal_a_stop_of_the_command_does_not_stop_us(start: Start, log: Path) -> None:
    process = start("sh", "-c", "echo ready; exec sleep 60")
    assert line_of(process) == "ready"
    os.kill(child_pid(log), signal.SIGTSTP)
    said(log, "stopped SIGTSTP")

    assert state(process.pid) in "RS"
    process.send_signal(signal.SIGCONT)
    said(log, "continued")


def test_a_kill_of_us_leaves_the_training_running(start: Start, log: Path) -> None:
    process = start("sh", "-c", "echo ready; exec sleep 60")
    assert line_of(process) == "ready"

    process.kill()
    process.wait(20)

    assert state(child_pid(log)) in "RS"


# The gate


def test_a_held_command_does_not_run_before_it_is_released(start: Start, log: Path, tmp_path: Path) -> None:
    process = start("sh", "-c", "echo $$; touch ran", CHILD_HOLD="1")
    pid = child_pid(log)
    assert not (tmp_path / "ran").exists()

    process.send_signal(signal.SIGUSR2)

    assert line_of(process) == str(pid)
    assert process.wait(20) == 0
    assert float(log.read_text().partition("released ")[2].split()[0]) < 1000


def test_the_identity_of_a_held_command_stays_the_same_when_it_runs(start: Start, log: Path) -> None:
    process = start("sleep", "60", CHILD_HOLD="1")
    pid = child_pid(log)

    process.send_signal(signal.SIGUSR2)
    said(log, "released")

    with open(f"/proc/{pid}/stat") as file:
        stat = file.read()
    assert "(sleep)" in stat
    assert f"prepared {pid} {stat.rpartition(')')[2].split()[19]}\n" in log.read_text()


def test_a_held_command_that_is_abandoned_never_runs(start: Start, log: Path, tmp_path: Path) -> None:
    process = start("touch", "ran", CHILD_HOLD="abandon")
    os.kill(child_pid(log), signal.SIGSTOP)
    said(log, "stopped SIGSTOP")

    process.send_signal(signal.SIGUSR2)
    process.wait(20)

    assert state(child_pid(log)) == "gone"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_to_a_held_command_ends_it(start: Start, log: Path, signum: signal.Signals, status: int) -> None:
    process = start("touch", "ran", CHILD_HOLD="1")
    child_pid(log)

    process.send_signal(signum)

    assert process.wait(20) == status
    assert log.read_text().count("forwarding") == 1  # none came back through our own wake-up pipe


def test_a_held_command_that_was_ended_can_be_released_in_vain(start: Start, log: Path) -> None:
    process = start("touch", "ran", CHILD_HOLD="1")
    pid = child_pid(log)
    process.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGCONT)

    assert process.wait(20) == 137


def test_a_held_command_is_gone_when_we_are_killed(start: Start, log: Path) -> None:
    process = start("sleep", "60", CHILD_HOLD="1")
    pid = child_pid(log)

    process.kill()

    wait_until(lambda: state(pid) in {"gone", "Z"})


def test_an_exec_that_fails_behind_the_gate_is_reported(start: Start, log: Path) -> None:
    process = start("./none", CHILD_HOLD="1")
    child_pid(log)

    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (127, "preemptd: ./none: No such file or directory\n")


def test_a_file_size_limit_ends_the_command_as_it_would_without_us(start: Start) -> None:
    process = start("sh", "-c", "ulimit -c 0; ulimit -f 1; dd if=/dev/zero of=big bs=1M count=1 2>/dev/null; exit $?")

    assert process.wait(20) == 128 + signal.SIGXFSZ


def test_a_signal_right_after_the_fork_is_neither_swallowed_nor_sent_back_to_us() -> None:
    script = Path(__file__).parent / "standins" / "child_rounds.py"
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False)

    assert process.stderr == ""
    assert process.stdout == "wrong [], left set()\n"


def test_an_exec_that_hangs_does_not_hang_us_and_its_late_failure_is_reported(start: Start, log: Path) -> None:
    process = start("./none", CHILD_HOLD="1")
    pid = child_pid(log)
    os.kill(pid, signal.SIGSTOP)  # as a file system does that does not answer
    said(log, "stopped SIGSTOP")
    process.send_signal(signal.SIGUSR2)
    said(log, "released")

    os.kill(pid, signal.SIGCONT)

    assert process.wait(20) == 127


# Orphans


def test_the_status_is_kept_where_sigchld_was_ignored_when_we_started(start: Start) -> None:
    process = start("sh", "-c", "exit 7", launcher=("sh", "-c", 'trap "" CHLD; exec "$@"', "sh"))

    assert process.wait(20) == 7


def test_descendants_that_lose_their_parents_are_adopted_and_reaped(start: Start, log: Path) -> None:
    process = start("sh", "-c", "(sh -c 'echo $$; exec sleep 0.2' &) ; read line")
    orphan = int(line_of(process))

    said(log, "reaped 1")

    assert state(orphan) == "gone"
    assert process.stdin
    process.stdin.write("done\n")
    process.stdin.close()
    assert process.wait(20) == 0


def test_return_codes_of_helpers_are_never_wrong_while_orphans_are_reaped() -> None:
    script = Path(__file__).parent / "standins" / "child_reaping.py"
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False)

    assert process.stderr == ""
    assert process.stdout == "wrong 0, orphans left 0\n"


def test_as_pid_1_zombies_are_reaped_and_the_status_is_kept(needs_root: None, start: Start, log: Path) -> None:
    del needs_root
    process = start(
        "sh",
        "-c",
        "for i in 1 2 3; do (sleep 0.1 &); done; sleep 0.4; ps -eo stat= | grep -c Z; exit 4",
        launcher=("unshare", "--pid", "--fork", "--mount-proc"),
    )
    out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (4, "0\n", "")
    assert "prepared 2 " in log.read_text()
