"""`preemptd daemon` from outside: targets that others start, told once, while the daemon goes on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.serving import Serving, Training
from tests.waiting import wait_until
from tests.watching import PREEMPTD

FILE = 'provider = ["file"]\ngrace = 20\nno_wandb = true\n'


def pid_of(training: Training, **more: str) -> str:
    lines = "".join(f'{name} = "{value}"\n' for name, value in more.items())
    return f"[[target]]\npid = {training.pid}\n{lines}"


def with_target(serving: Serving, training: Training) -> None:
    serving.config.write_text(FILE + pid_of(training))
    serving.signal(signal.SIGHUP)
    serving.await_line("serving", 2)


def test_a_target_is_told_and_saves_and_the_daemon_goes_on(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("USR1")
        with_target(serving, training)
        serving.notify()
        training.await_said("saved")
        training.process.wait(30)

        (told,) = serving.lines("told")
        assert (told["pid"], told["how"]) == (training.pid, "USR1")
        assert [line["name"] for line in training.said("signal")] == ["SIGUSR1"]
        assert serving.process.poll() is None


def test_each_target_is_told_once_and_no_one_else(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        one, two, other = (serving.train("USR1", name) for name in ("one", "two", "other"))
        serving.config.write_text(FILE + pid_of(one, name="first") + pid_of(two))
        serving.signal(signal.SIGHUP)
        serving.await_line("serving", 2)
        serving.notify()
        for training in (one, two):
            training.await_said("saved")

        assert {line["pid"] for line in serving.lines("told")} == {one.pid, two.pid}
        assert other.said("signal") == []


def test_who_registers_over_the_link_is_a_target(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        (line,) = serving.await_line("serving")
        training = serving.train("link", env={"PREEMPTD_LINK": str(line["link"])})
        serving.await_line("target", wanted=lambda line: line["pid"] == training.pid)
        serving.notify()
        training.await_said("saved")

        assert [line["how"] for line in serving.lines("told")] == ["link"]


def test_a_restart_in_the_middle_of_a_notice_tells_nobody_again(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("USR1", save=8)
        with_target(serving, training)
        serving.notify()
        serving.await_line("told")
        serving.signal(signal.SIGKILL)
        serving.restart()
        serving.await_line("notice", 2)
        training.await_said("saved")

        assert len(training.said("signal")) == 1
        assert len(serving.lines("told")) == 1


def test_a_bad_configuration_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("USR1")
        with_target(serving, training)
        for bad in (
            "grace = 'soon'\n",
            "[[target]]\npid = 5\nunit = 'a.service'\n",
            "provider = ['nonesuch']\n",
            "=\n",
        ):
            before = len(serving.lines("warning"))
            serving.config.write_text(bad)
            serving.signal(signal.SIGHUP)
            serving.await_line("warning", before + 1)
        serving.notify()
        training.await_said("saved")

        assert all("refused" in str(line["text"]) for line in serving.lines("warning")[:4])
        assert serving.process.poll() is None


def ask(serving: Serving, deadline: float) -> None:
    command = [*PREEMPTD, "notify", "--link", str(serving.lines("serving")[0]["link"]), "--deadline", str(deadline)]
    subprocess.run(command, env=serving.environ, check=True, capture_output=True, timeout=30)


@pytest.mark.slow
def test_what_came_over_the_link_is_over_a_while_after_its_deadline_and_the_next_one_is_news(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("many")
        with_target(serving, training)
        ask(serving, 2)
        ask(serving, 1)
        serving.await_line("revoked")
        ask(serving, 30)
        training.await_said("signal", 2)

        assert len({line["event_id"] for line in serving.lines("notice")}) == 2
        assert [line["pid"] for line in serving.lines("told")] == [training.pid] * 2


def test_while_a_notice_is_open_the_configuration_stays(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        serving.notify()
        serving.await_line("notice")
        serving.signal(signal.SIGHUP)
        (warning,) = serving.await_line("warning", wanted=lambda line: "SIGHUP" in str(line["text"]))

        assert "a notice is open" in str(warning["text"])
        assert len(serving.lines("serving")) == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("job_id = 'x'\n", "unknown key 'job_id'"),
        ("[[target]]\n", "target 1: it says who is meant by exactly one of pid, pidfile, unit, match, runs = true"),
        ("[[target]]\nmatch = '('\n", "match = '(' is no regular expression"),
        ("[[target]]\npid = 1\n", "target"),
        ("[[target]]\nunit = 'a/b.service'\n", "target"),
        ("[[target]]\nruns = false\n", "target"),
    ],
)
def test_a_bad_configuration_at_the_start_is_one_line(tmp_path: Path, config: str, says: str) -> None:
    with Serving(tmp_path, FILE + config) as serving:
        status, err = serving.end()

    assert status == 2
    assert err.startswith("preemptd: configuration file ")
    assert says in err
    assert err.count("\n") == 1


def test_a_stop_is_no_preemption(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("both")
        with_target(serving, training)
        serving.signal(signal.SIGTERM)
        status, _ = serving.end()

        assert status == 0
        assert training.said("signal") == []
        assert training.process.poll() is None


def test_with_the_sigterm_provider_our_own_stop_is_the_notice_and_we_go_when_they_have_saved(tmp_path: Path) -> None:
    config = FILE.replace('"file"', '"sigterm"')
    with Serving(tmp_path, config) as serving:
        (line,) = serving.await_line("serving")
        training = serving.train("link", save=1.0, env={"PREEMPTD_LINK": str(line["link"])})
        serving.await_line("target", wanted=lambda line: line["pid"] == training.pid)
        serving.signal(signal.SIGTERM)
        status, _ = serving.end()

        assert status == 0
        assert len(training.said("saved")) == 1
        assert [line["event"] for line in serving.lines() if line["event"] in {"told", "saved"}] == ["told", "saved"]


def test_a_second_daemon_of_the_same_user_is_refused(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        second = tmp_path / "second"
        second.mkdir()
        same = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
        with Serving(second, FILE, env=same) as other:
            status, err = other.end()

        assert status == 2
        assert f"another daemon of this user runs already (pid {serving.process.pid})" in err


def test_status_lists_the_targets(tmp_path: Path) -> None:
    with Serving(tmp_path, FILE) as serving:
        serving.await_line("serving")
        training = serving.train("USR1")
        serving.config.write_text(FILE + pid_of(training, name="mine"))
        serving.signal(signal.SIGHUP)
        serving.await_line("serving", 2)
        answer = json.loads(serving.status())
        wait_until(lambda: json.loads(serving.status())["would_tell"])

        (target,) = answer["targets"]
        assert (target["name"], target["state"], target["pids"]) == ("mine", "running", [training.pid])
        assert json.loads(serving.status())["would_tell"] == [{"pid": training.pid, "how": "USR1"}]


def test_a_target_that_comes_later_is_told_too(tmp_path: Path) -> None:
    unlike_any_other = 0.1 + int.from_bytes(os.urandom(4), "big") / 1e11
    with Serving(tmp_path, FILE + f"[[target]]\nmatch = 'trainer.py USR1 {unlike_any_other}'\n") as serving:
        serving.await_line("serving")
        serving.notify()
        serving.await_line("notice")
        training = serving.train("USR1", save=unlike_any_other)
        training.await_said("saved")

        assert len(training.said("signal")) == 1
