"""`preemptd watch` typed into a bash on a real terminal: what the program adds to what test_terminal.py tests."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_terminal import BASH, CTRL_BACKSLASH, CTRL_C, CTRL_Z, INTERRUPTED, Session, parent, state
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import QUIET, read_lines, trainer


class Shell(Session):
    """A bash in which $P stands for `preemptd watch --`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(BASH, folder)
        self._journal = folder / "journal"

    def enter(self) -> "Shell":
        self.see("prompt> ")
        self.type("stty -echo")  # what is typed shall not be mistaken for what is printed
        self.see("prompt> ")
        return self

    @property
    def child(self) -> int:
        started = wait_until(lambda: [line for line in read_lines(self._journal) if line["event"] == "started"])
        return int(str(started[-1]["pid"]))

    def status(self) -> int:
        """Ask bash how the last command ended."""
        self.type("echo status-$?.")
        self.see("status-")
        self.see(".")
        return int(re.findall(r"status-(\d+)\.", self.screen)[-1])


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    settings = {"PREEMPTD_JOURNAL": str(tmp_path / "journal"), "P": f"{sys.executable} -m preemptd watch --", **QUIET}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def bash(environ: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:  # noqa: ARG001 - the shell inherits it
    shell = Shell(tmp_path)
    try:
        yield shell.enter()
    finally:
        shell.close()


@pytest.fixture
def preempted(environ: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Shell, FaultyEc2]]:
    with FaultyEc2(grace=20.0) as ec2:
        for name, value in on_ec2(ec2).items():
            environ.setenv(name, value)
        environ.setenv("LOG", str(tmp_path / "trainer"))
        shell = Shell(tmp_path)
        try:
            yield shell.enter(), ec2
        finally:
            shell.close()


def shown(screen: str) -> list[str]:
    """List the lines as a terminal shows them in the end."""
    return [line.rpartition("\x1b[K")[2].strip("\r") for line in screen.split("\n")]


def test_ctrl_c_ends_the_command_and_the_prompt_is_back_with_130(bash: Shell) -> None:
    bash.type("$P sh -c 'echo ready.; exec sleep 60'")
    bash.see("ready.\r")

    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 130
    assert bash.foreground == bash.process.pid


@pytest.mark.parametrize("how", ["$P {}", "$P {} | cat", "sh -c '$P {}; true'"])
def test_each_ctrl_c_reaches_a_command_that_ignores_it_once(bash: Shell, how: str) -> None:
    bash.type(how.format(INTERRUPTED))
    bash.see("ready.\r")

    for number in (1, 2, 3):
        bash.press(CTRL_C)
        bash.see(f"int-{number}.")
    bash.press(CTRL_BACKSLASH)

    bash.see("total-3.")
    bash.see("prompt> ")


def test_ctrl_c_ends_the_loop_around_us(bash: Shell, tmp_path: Path) -> None:
    (tmp_path / "loop").write_text("for i in 1 2 3; do $P sh -c 'echo begun.; exec sleep 60'; done; echo not-here.\n")
    bash.type("bash ./loop")
    bash.see("begun.\r")

    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 130
    assert bash.screen.count("begun.\r") == 1
    assert "not-here." not in bash.screen


def test_ctrl_z_jobs_bg_and_fg(bash: Shell) -> None:
    bash.type(f"$P {INTERRUPTED}")
    bash.see("ready.\r")
    child, watch = bash.child, parent(bash.child)

    bash.press(CTRL_Z)
    bash.see("prompt> ")
    wait_until(lambda: state(child) == state(watch) == "T")
    bash.type("jobs")
    bash.see("Stopped")
    bash.type("bg")
    wait_until(lambda: "T" not in {state(child), state(watch)})
    assert bash.foreground == bash.process.pid
    bash.type("fg")
    wait_until(lambda: bash.foreground != bash.process.pid)
    bash.press(CTRL_C)
    bash.see("int-1.")
    bash.press(CTRL_BACKSLASH)

    bash.see("total-1.")
    bash.see("prompt> ")
    assert bash.status() == 0


def test_a_background_job_leaves_the_terminal_alone(bash: Shell) -> None:
    bash.type("$P sh -c 'echo ready.; exec sleep 60' &")
    bash.see("ready.\r")
    bash.type("read line; echo got-$line.")

    bash.type("hello")

    bash.see("got-hello.")
    assert bash.foreground == bash.process.pid


def test_a_script_reads_the_terminal_after_us(bash: Shell, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("$P sh -c 'exit 3'\necho after-$?.\nread line\necho got-$line.\n")
    bash.type("sh ./script")
    bash.see("after-3.")

    bash.type("hello")

    bash.see("got-hello.")


def test_nohup_outlives_the_terminal(bash: Shell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    bash.type("nohup $P sh -c 'read go < go; echo done > done' > out 2>&1 &")
    child = bash.child

    bash.hang_up()
    bash.process.wait(20)
    assert state(child) != "Z"
    (tmp_path / "go").write_text("go\n")

    wait_until((tmp_path / "done").exists)


def test_a_reader_of_the_terminal_behind_us_works_when_the_pipe_is_inside(bash: Shell) -> None:
    bash.type("""$P sh -c 'echo page. | sh -c "cat; read key < /dev/tty; echo got-\\$key."'""")
    bash.see("page.\r")

    bash.type("q")

    bash.see("got-q.")
    bash.see("prompt> ")


def test_ctrl_z_works_while_the_command_is_held_back(preempted: tuple[Shell, FaultyEc2]) -> None:
    bash, ec2 = preempted
    ec2.announcement.announce()
    bash.type("while $P true; do :; done")  # it is started where a busy machine does not hear within 100 ms
    bash.see("not started before")

    bash.press(CTRL_Z)
    bash.see("Stopped")
    bash.type("fg")
    wait_until(lambda: bash.foreground != bash.process.pid)
    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 130


def test_a_line_shows_the_progress_of_the_grace_and_is_wiped_at_the_end(preempted: tuple[Shell, FaultyEc2]) -> None:
    bash, ec2 = preempted
    bash.type(f"$P {' '.join(trainer('USR1', save=1.5))} > /dev/null")
    bash.see("watching ec2")
    wait_until((bash.log.parent / "trainer").exists)

    ec2.announcement.announce()
    bash.see(" s left, 1 told, 0 saved")
    bash.see("exit 75")
    bash.see("prompt> ")

    assert bash.status() == 75
    assert [line for line in shown(bash.screen) if " s left" in line] == []
    assert all(line.startswith(("prompt>", "preemptd:", "status-")) for line in shown(bash.screen) if line)


def test_a_pipe_gets_no_progress_line(preempted: tuple[Shell, FaultyEc2], tmp_path: Path) -> None:
    bash, ec2 = preempted
    bash.type(f"$P {' '.join(trainer('USR1', save=1.2))} 2>&1 > /dev/null | cat > err")
    wait_until((tmp_path / "trainer").exists)

    ec2.announcement.announce()
    bash.see("prompt> ")

    text = (tmp_path / "err").read_text()
    assert "exit 75" in text
    assert " s left" not in text
    assert "\x1b" not in text


def test_ctrl_c_after_the_telling_reaches_the_command_and_the_status_is_75(
    preempted: tuple[Shell, FaultyEc2],
) -> None:
    bash, ec2 = preempted
    bash.type(f"$P {' '.join(trainer('USR1', save=60))} > /dev/null")
    wait_until((bash.log.parent / "trainer").exists)
    ec2.announcement.announce()
    bash.see("1 told")

    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 75


def test_the_terminals_hangup_reaches_the_command(bash: Shell, tmp_path: Path) -> None:
    bash.type("$P sh -c 'trap \"echo hup > hup; exit 0\" HUP; echo ready.; while :; do sleep 0.05; done'")
    bash.see("ready.\r")
    child = bash.child

    bash.hang_up()

    wait_until((tmp_path / "hup").exists)
    wait_until(lambda: not os.path.exists(f"/proc/{child}"))


def test_a_stop_that_is_sent_to_us_stops_the_whole_job(bash: Shell) -> None:
    bash.type(f"$P {INTERRUPTED}")
    bash.see("ready.\r")

    os.kill(parent(bash.child), signal.SIGTSTP)

    bash.see("Stopped")
    wait_until(lambda: state(bash.child) == state(parent(bash.child)) == "T")


def test_ctrl_z_and_ctrl_c_work_while_a_restart_is_waited_for(preempted: tuple[Shell, FaultyEc2]) -> None:
    bash, ec2 = preempted
    bash.type(f"PREEMPTD_RESTART=1 $P {' '.join(trainer('USR1'))} > /dev/null")
    wait_until((bash.log.parent / "trainer").exists)
    ec2.announcement.announce()
    bash.see("exit put off")

    bash.press(CTRL_Z)
    bash.see("Stopped")
    bash.type("fg")
    wait_until(lambda: bash.foreground != bash.process.pid)
    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 130


def test_ctrl_c_after_the_telling_is_a_wish_that_nothing_is_started_again(preempted: tuple[Shell, FaultyEc2]) -> None:
    bash, ec2 = preempted
    bash.type(f"PREEMPTD_RESTART=1 $P {' '.join(trainer('USR1', save=60))} > /dev/null")
    wait_until((bash.log.parent / "trainer").exists)
    ec2.announcement.announce()
    bash.see("told pid")

    bash.press(CTRL_C)
    bash.see("prompt> ")

    assert bash.status() == 75
    assert "exit put off" not in bash.screen
