import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

STANDINS = Path(__file__).parent / "standins"
WATCH = f"{sys.executable} -W error {STANDINS / 'child_watch.py'}"
INTERRUPTED = f"{sys.executable} {STANDINS / 'child_interrupted.py'}"
BASH = ("bash", "--norc", "--noprofile", "--noediting", "-i")
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = b"\x03", b"\x04", b"\x1a", b"\x1c"


class Session:
    """A session with a real terminal of its own, whose keys are pressed and whose screen is read here."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        self.log = folder / "watch.log"
        self.log.touch()
        self._keyboard, terminal = os.openpty()
        env = {**os.environ, "CHILD_LOG": str(self.log), "PS1": "prompt> ", "TERM": "dumb", "W": WATCH}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=terminal, stdout=terminal, stderr=terminal, env=env, cwd=folder
        )
        os.close(terminal)
        self._unread = ""
        self.screen = ""

    def press(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def type(self, line: str) -> None:
        self.press(line.encode() + b"\n")

    def see(self, text: str) -> None:
        """Wait for *text* on the screen, after what was seen before."""
        end = time.monotonic() + 20
        while text not in self._unread:
            ready, _, _ = select.select([self._keyboard], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} is not in {self._unread!r}; before: {self.screen!r}; log: {self.log.read_text()!r}"
            new = os.read(self._keyboard, 4096).decode()
            self._unread += new
            self.screen += new
        self._unread = self._unread.partition(text)[2]

    def said(self, line: str, times: int = 1) -> None:
        wait_until(lambda: self.log.read_text().count(line) >= times, what=f"{line!r} in the log, {self.screen!r}")

    @property
    def child(self) -> int:
        return int(wait_until(lambda: re.findall(r"^prepared (\d+) \d+$", self.log.read_text(), re.MULTILINE))[-1])

    @property
    def foreground(self) -> int:
        return os.tcgetpgrp(self._keyboard)

    def hang_up(self) -> None:
        os.close(self._keyboard)
        self._keyboard = -1

    def close(self) -> None:
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(20)
        if self._keyboard >= 0:
            os.close(self._keyboard)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Session]:
    session = Session(BASH, tmp_path)
    try:
        session.see("prompt> ")
        session.type("stty -echo")  # what is typed shall not be mistaken for what is printed
        session.see("prompt> ")
        yield session
    finally:
        session.close()


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_the_command_is_in_the_foreground_and_the_shell_is_afterwards(bash: Session) -> None:
    bash.type("$W sh -c 'echo ready.; read line; echo got-$line.'")
    bash.see("ready.")
    assert bash.foreground == bash.child == os.getpgid(bash.child)

    bash.type("hello")

    bash.see("got-hello.")
    bash.see("prompt> ")
    assert bash.foreground == bash.process.pid


def test_a_job_that_is_started_in_the_background_does_not_steal_the_terminal(bash: Session) -> None:
    bash.type("$W sleep 60 &")
    bash.said("released")
    bash.type("read line; echo got-$line.")

    bash.type("hello")

    bash.see("got-hello.")
    assert bash.foreground == bash.process.pid


@pytest.mark.parametrize("command", ["true", "./none", "sh -c 'kill -9 $$'"])
def test_a_script_reads_the_terminal_after_us_however_the_command_ended(
    bash: Session, command: str, tmp_path: Path
) -> None:
    (tmp_path / "script").write_text(f"$W {command}\necho after.\nread line\necho got-$line.\n")
    bash.type("sh ./script")
    bash.see("after.")

    bash.type("hello")

    bash.see("got-hello.")


def test_the_terminal_comes_back_from_a_group_that_the_command_left_in_front(bash: Session, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n"
        "job = os.fork() or signal.pause()\n"
        "os.setpgid(job, job); os.tcsetpgrp(0, job); os.kill(job, 9); os.waitpid(job, 0)\n"
    )
    (tmp_path / "script").write_text(f"$W {sys.executable} job.py\necho after.\nread line\necho got-$line.\n")
    bash.type("sh ./script")
    bash.see("after.")

    bash.type("hello")

    bash.see("got-hello.")


@pytest.mark.parametrize("how", ["$W {}", "sh -c '$W {}; true'", "$W $W {}", "$W {} | cat"])
def test_each_ctrl_c_reaches_the_command_once(bash: Session, how: str) -> None:
    bash.type(how.format(INTERRUPTED))
    bash.see("ready.")

    for number in (1, 2, 3):
        bash.press(CTRL_C)
        bash.see(f"int-{number}.")
    bash.press(CTRL_BACKSLASH)

    bash.see("total-3.")
    bash.see("prompt> ")


def test_ctrl_c_reaches_a_background_job_once_after_fg(bash: Session) -> None:
    bash.type(f"$W {INTERRUPTED} &")
    bash.see("ready.")
    bash.type("fg")
    wait_until(lambda: bash.foreground != bash.process.pid)

    for number in (1, 2, 3):
        bash.press(CTRL_C)
        bash.see(f"int-{number}.")
    bash.press(CTRL_BACKSLASH)

    bash.see("total-3.")


@pytest.mark.parametrize("shell", ["sh ./loop", "bash ./loop", ". ./loop"])
def test_ctrl_c_ends_the_loop_that_runs_us_as_it_would_without_us(bash: Session, shell: str, tmp_path: Path) -> None:
    (tmp_path / "loop").write_text("for i in 1 2 3; do $W sh -c 'echo begun.; exec sleep 60'; done; echo not-here.\n")
    bash.type(shell)
    bash.see("begun.")

    bash.press(CTRL_C)
    bash.see("prompt> ")
    bash.type("echo here.")
    bash.see("here.")

    assert bash.screen.count("begun.") == 1
    assert "not-here." not in bash.screen


def test_a_loop_goes_on_when_the_command_survives_ctrl_c(bash: Session, tmp_path: Path) -> None:
    saving = "trap 'echo saved-$1.; exit 0' INT\necho begun-$1.\nwhile :; do sleep 0.05; done\n"
    (tmp_path / "saving").write_text(saving)
    (tmp_path / "loop").write_text("for i in 1 2; do $W sh ./saving $i; done; echo end.\n")
    bash.type("bash ./loop")

    for number in (1, 2):
        bash.see(f"begun-{number}.")
        bash.press(CTRL_C)
        bash.see(f"saved-{number}.")

    bash.see("end.")


def test_an_interactive_shell_runs_under_us_with_its_own_job_control(bash: Session) -> None:
    bash.type("PS1='inner> ' $W bash --norc --noprofile --noediting -i")
    bash.see("inner> ")
    bash.type(INTERRUPTED)
    bash.see("ready.")
    bash.press(CTRL_Z)
    bash.see("Stopped")
    bash.see("inner> ")
    assert state(bash.child) != "T"
    bash.type("fg")
    wait_until(lambda: bash.foreground != bash.child)
    bash.press(CTRL_BACKSLASH)
    bash.see("total-0.")
    bash.see("inner> ")

    bash.type("exit 3")
    bash.see("prompt> ")

    bash.said("exited 3")
    assert bash.foreground == bash.process.pid


@pytest.mark.parametrize("how", ["$W {}", "sh -c '$W {}; true'", "$W $W {}"])
def test_ctrl_z_stops_the_job_and_fg_resumes_it(bash: Session, how: str) -> None:
    bash.type(how.format(INTERRUPTED))
    bash.see("ready.")
    child, watch, front = bash.child, parent(bash.child), bash.foreground

    for _ in range(3):
        bash.press(CTRL_Z)
        bash.see("Stopped")
        bash.see("prompt> ")
        wait_until(lambda: state(front) == state(child) == state(watch) == "T")
        assert bash.foreground == bash.process.pid
        bash.type("fg")
        wait_until(lambda: bash.foreground == front)
        wait_until(lambda: "T" not in {state(front), state(child), state(watch)})
    bash.press(CTRL_C)
    bash.see("int-1.")
    bash.press(CTRL_BACKSLASH)

    bash.see("total-1.")
    bash.see("prompt> ")


def test_bg_resumes_the_job_without_the_terminal(bash: Session) -> None:
    bash.type(f"$W {INTERRUPTED}")
    bash.see("ready.")
    bash.press(CTRL_Z)
    bash.see("Stopped")

    bash.type("bg")
    bash.said("continued")

    assert state(bash.child) != "T"
    assert bash.foreground == bash.process.pid
    os.kill(bash.child, signal.SIGQUIT)
    bash.see("total-0.")


def test_a_stop_that_is_sent_to_us_stops_the_job(bash: Session) -> None:
    bash.type(f"$W {INTERRUPTED}")
    bash.see("ready.")

    os.kill(parent(bash.child), signal.SIGTSTP)

    bash.see("Stopped")
    wait_until(lambda: state(bash.child) == "T")


def test_a_kill_stop_of_the_command_gives_the_shell_its_terminal(bash: Session) -> None:
    bash.type(f"$W {INTERRUPTED}")
    bash.see("ready.")

    os.kill(bash.child, signal.SIGSTOP)

    bash.see("Stopped")
    bash.type("fg")
    wait_until(lambda: bash.foreground == bash.child)
    bash.press(CTRL_BACKSLASH)
    bash.see("total-0.")


def test_a_background_job_that_reads_the_terminal_stops_until_fg(bash: Session) -> None:
    bash.type("$W sh -c 'read line; echo got-$line.' &")
    bash.said("stopped SIGTTIN")
    bash.type("jobs")
    bash.see("Stopped")
    bash.type("fg")
    wait_until(lambda: bash.foreground == bash.child)

    bash.type("hello")

    bash.see("got-hello.")


def test_a_running_background_job_can_read_the_terminal_after_fg(bash: Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    bash.type("$W sh -c 'read go < go; read line; echo got-$line.' &")
    bash.said("released")
    bash.type("fg")  # of a job that runs: bash sends no SIGCONT
    wait_until(lambda: bash.foreground != bash.process.pid)

    (tmp_path / "go").write_text("go\n")
    bash.type("hello")

    bash.see("got-hello.")


def test_a_command_that_a_script_put_in_the_background_does_not_take_the_terminal(bash: Session) -> None:
    bash.type("sh -c '$W sleep 60 & echo $! >&2; wait'")
    bash.said("released")

    assert bash.foreground == os.getpgid(parent(bash.child)) != bash.child
    bash.press(CTRL_C)  # would be ignored by the command: the script must get it
    bash.see("prompt> ")


def test_ctrl_z_where_no_shell_could_resume_does_not_stop_the_training_for_ever(tmp_path: Path) -> None:
    session = Session((*WATCH.split(), *INTERRUPTED.split()), tmp_path)
    try:
        session.see("ready.")

        session.press(CTRL_Z)
        session.said("stopped SIGTSTP")
        session.said("continued")
        wait_until(lambda: session.foreground == session.child)
        session.press(CTRL_BACKSLASH)

        session.see("total-0.")
        assert session.process.wait(20) == 0
    finally:
        session.close()


def test_a_held_command_takes_the_terminal_when_it_is_released(bash: Session) -> None:
    bash.type("CHILD_HOLD=1 $W sh -c 'read line; echo got-$line.'")
    watch = parent(bash.child)
    assert bash.foreground == os.getpgid(watch) != bash.child

    os.kill(watch, signal.SIGUSR2)
    wait_until(lambda: bash.foreground == bash.child)
    bash.type("hello")

    bash.see("got-hello.")


def test_ctrl_c_ends_a_command_that_is_held(bash: Session) -> None:
    bash.type("CHILD_HOLD=1 $W touch ran; echo status-$?.")
    assert bash.foreground != bash.child

    bash.press(CTRL_C)

    bash.see("status-130.")


def test_a_line_of_ours_under_tostop_does_not_stop_us(bash: Session) -> None:
    bash.type(f"stty tostop; CHILD_TALKS=1 $W {INTERRUPTED}")
    bash.see("ready.")

    os.kill(parent(bash.child), signal.SIGUSR1)

    bash.see("forwarding SIGUSR1")
    bash.said("exited 138")


def test_a_hangup_of_the_terminal_does_not_stop_the_waiting(bash: Session) -> None:
    bash.type(f"trap '' HUP; $W {INTERRUPTED}")
    bash.see("ready.")
    child, watch = bash.child, parent(bash.child)

    bash.hang_up()
    os.kill(child, signal.SIGKILL)

    bash.said("exited 137")
    wait_until(lambda: not os.path.exists(f"/proc/{watch}"))
