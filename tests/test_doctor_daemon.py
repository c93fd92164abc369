"""`preemptd doctor` and `preemptd status` where a daemon looks after what others have started."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctors import Diagnosis, doctor, run_doctor
from tests.linking import short_directory
from tests.serving import Serving, Training

pytestmark = pytest.mark.slow

FILE = 'provider = ["file"]\ngrace = 20\nno_wandb = true\n'


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def match(*names: str) -> str:
    return FILE + "".join(f"[[target]]\nmatch = '{name}'\n" for name in names)


def ask(serving: Serving, *words: object) -> Diagnosis:
    return doctor(*words, env=serving.environ)


def start(serving: Serving, **trainings: str) -> list[Training]:
    """Start them, and make them the targets."""
    serving.await_line("serving")
    started = [serving.train(how, name) for name, how in trainings.items()]
    serving.config.write_text(FILE + "".join(f"[[target]]\npid = {training.pid}\n" for training in started))
    serving.signal(signal.SIGHUP)
    serving.await_line("target", len(started), lambda line: line["state"] == "running")
    return started


def test_a_target_of_a_daemon_is_watched_by_it(short: Path) -> None:
    with Serving(short, FILE) as serving:
        (training,) = start(serving, a="USR1")
        found = ask(serving, training.pid)
        text = run_doctor(training.pid, env=serving.environ).stdout

    assert (found.status, found.kinds(losing=True)) == (0, set())
    assert [one["pid"] for one in found.said["preemptds"]] == [serving.process.pid]
    assert found.process(training.pid)["told_by"] == "USR1"
    assert f"watched     by preemptd {serving.process.pid}, link " in text


def test_a_target_that_handles_nothing_is_lost_though_a_daemon_watches_it(short: Path) -> None:
    with Serving(short, FILE) as serving:
        (training,) = start(serving, a="none")
        found = ask(serving, training.pid)

    assert (found.status, found.kinds(losing=True)) == (1, {"catches-nothing"})


def test_what_is_no_target_of_the_daemon_is_watched_by_nobody(short: Path) -> None:
    with Serving(short, match("no such proces[s]")) as serving:
        serving.await_line("serving")
        training = serving.train("USR1")
        found = ask(serving, training.pid)

    assert (found.status, found.kinds()) == (1, {"not-watched"})
    assert found.said["preemptds"] == []


def test_of_a_shell_with_two_trainings_the_one_that_is_no_target_is_named(short: Path) -> None:
    ready = "sys.stdout.write('ready\\n'); sys.stdout.flush()"  # print() may write the line's end by itself
    stays = f"import signal, sys; signal.signal(signal.SIGUSR1, print); {ready}; sys.stdin.read()"
    line = " ".join(f'"{sys.executable}" -c "{stays}" {name} <&3 &' for name in ("mine-of-this-test", "other"))
    command = ["bash", "-c", f"exec 3<&0; {line} wait"]
    with (
        Serving(short, match(" mine-of-this-test$")) as serving,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell,
    ):
        assert shell.stdout is not None
        assert [shell.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        serving.await_line("target", wanted=lambda line: line["state"] == "running")
        found = ask(serving, shell.pid)
        assert shell.stdin is not None
        shell.stdin.close()

    (other,) = [one["pid"] for one in found.said["job"]["processes"] if one["command"].endswith(" other")]
    assert found.kinds(losing=True) == {"not-watched"}
    assert found.finding("not-watched")["text"] == f"no preemptd watches pid {other}"


def test_of_the_machine_each_target_of_a_daemon_is_judged_and_what_is_wrong_with_it_is_said_once(short: Path) -> None:
    with Serving(short, FILE) as serving:
        trainings = start(serving, one="USR1", two="none")
        found = ask(serving)
        kinds = [one["kind"] for one in found.said["findings"]]

    assert {one["pid"] for one in found.said["machine"]["jobs"]} == {training.pid for training in trainings}
    assert found.kinds(losing=True) == {"catches-nothing"}
    assert kinds.count("no-wandb") == 1


def test_a_daemon_whose_targets_do_not_run_has_nothing_to_lose(short: Path) -> None:
    with Serving(short, match("no such proces[s]")) as serving:
        serving.await_line("serving")
        found = ask(serving)

    assert (found.status, found.kinds(losing=True)) == (0, set())
    assert [one["command"] for one in found.said["machine"]["jobs"]] == ["a daemon without a running target"]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "warning: there is no [[target]], so only who registers over the link is told: looking after 0 targets"),
        (["x"], ": looking after 1 target;"),
        (["x", "y"], ": looking after 2 targets;"),
    ],
)
def test_it_says_how_many_targets_it_has_and_that_it_has_none(short: Path, targets: list[str], said: str) -> None:
    with Serving(short, match(*targets)) as serving:
        serving.await_line("serving")
        serving.process.terminate()

        assert said in serving.end()[1]


def test_a_state_directory_that_cannot_be_used_is_said_with_what_is_lost(short: Path) -> None:
    (short / "file").touch()
    with Serving(short, match("x"), "--state-dir", str(short / "file" / "state")) as serving:
        serving.await_line("serving")
        (warning,) = serving.lines("warning")

    assert str(warning["text"]).endswith(": a daemon that is started after this one tells again what this one has told")
