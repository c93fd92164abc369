"""What a notice means, from undecided to decided, and what a provider does last: a plug-in under a whole `watch`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.plugin_packages import PluginPackages, plugins
from tests.waiting import wait_until
from tests.watching import ROOT, Watch

pytestmark = pytest.mark.slow

__all__ = ["plugins"]

SCRIPTED = """
import json, os, time
from preemptd.errors import ProviderError
from preemptd.provider import *

HERE = os.environ["SCRIPTED"]

def read(name):
    try:
        with open(os.path.join(HERE, name)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None

def notice(word):
    return Notice("scripted", "scripted:1", Kind(word.get("kind", "preempt")), Level.ACT, "a file", time.monotonic(),
                  remaining=word.get("remaining", 20.0), already_sent=frozenset(word.get("sent", ())),
                  meaning=Meaning(word["meaning"]))

class Files(Watch):
    name = "scripted:file"
    interval = 0.05
    def observe(self):
        word = read("now")
        return Observation.of(notice(word)) if word else Observation.clear()

class Scripted(Provider):
    name = "scripted"
    settles_within = 3.0
    def watches(self):
        return [Files()]
    def signals(self):
        import signal
        return frozenset({signal.SIGUSR2, signal.SIGTERM})
    def on_signal(self, signum):
        word = read("signal")
        return Observation.of(notice(word)) if word else Observation.clear()
    def conclude(self, budget):
        word = read("last")
        return notice(word) if word else None
    def settle(self, conclusion, budget):
        with open(os.path.join(HERE, "settled"), "a") as file:
            file.write(json.dumps([conclusion.preempted, conclusion.stuck, conclusion.outcome.status]) + "\\n")
        if word := read("refuse"):
            raise ProviderError(word)
        return "did the last thing"
"""


class Script:
    """What the plug-in says, and what it was asked to do."""

    def __init__(self, directory: Path, plugins: PluginPackages) -> None:
        self._directory = directory
        plugins.add("scripted", SCRIPTED, "scripted = scripted:Scripted")
        site = str(plugins.site)
        self.env = {"PYTHONPATH": site, "SCRIPTED": str(directory)}

    def say(self, where: str, word: object) -> None:
        path = self._directory / f"{where}.new"
        path.write_text(json.dumps(word))
        path.rename(self._directory / where)

    def settled(self) -> list[list[object]]:
        path = self._directory / "settled"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def script(tmp_path: Path, plugins: PluginPackages) -> Script:
    return Script(tmp_path, plugins)


@contextmanager
def watching_a_run(tmp_path: Path, script: Script, *options: str) -> Iterator[Watch]:
    env = {**script.env, "PYTHONPATH": f"{script.env['PYTHONPATH']}:{ROOT}"}
    command = [sys.executable, "-m", "tests.standins.trainer_with_run", str(tmp_path)]
    with Watch(tmp_path, command, "--provider", "scripted", *options, env=env) as watch:
        wait_until(lambda: (tmp_path / "ready").exists() or watch.process.poll() is not None)
        yield watch
        (tmp_path / "end").touch()


def ends(watch: Watch, tmp_path: Path) -> int:
    (tmp_path / "end").touch()
    return watch.wait()


def sent(tmp_path: Path) -> tuple[int, list[str]]:
    """Say how often the training was told, and which runs were marked."""
    kept = json.loads((tmp_path / "frames").read_text())
    return kept["told"], [frame["preempting"] for frame in kept["frames"] if "preempting" in frame]


def test_an_undecided_notice_tells_at_once_and_marks_when_it_is_decided(tmp_path: Path, script: Script) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "undecided", "remaining": 40.0})
        watch.await_line("told")
        assert watch.lines("marked") == []
        script.say("now", {"meaning": "preempted", "remaining": 25.0})
        watch.await_line("marked")

        assert ends(watch, tmp_path) == 75
    assert [line["ok"] for line in watch.lines("marked")] == [True]
    assert sent(tmp_path) == (1, ["abc"])
    assert script.settled() == [[True, False, 3]]


def test_what_turns_out_to_be_somebodys_wish_is_not_marked_and_has_the_commands_own_status(
    tmp_path: Path, script: Script
) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "undecided", "remaining": 40.0})
        watch.await_line("told")
        script.say("now", {"meaning": "stopped", "kind": "cancelled", "remaining": 25.0})
        watch.await_line("notice", 2)

        assert ends(watch, tmp_path) == 3
    assert sent(tmp_path) == (1, [])
    assert watch.lines("repaired") == []
    assert script.settled() == [[False, False, 3]]


def test_a_wish_that_is_known_from_the_start_tells_nobody(tmp_path: Path, script: Script) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "stopped", "kind": "cancelled"})
        (line,) = watch.await_line("notice")

        assert ends(watch, tmp_path) == 3
    assert (line["kind"], line["acted"], line["why"]) == ("cancelled", False, "stopped")
    assert sent(tmp_path) == (0, [])


def test_what_stays_undecided_is_told_and_not_marked(tmp_path: Path, script: Script) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "undecided", "remaining": 40.0})
        watch.await_line("told")

        assert ends(watch, tmp_path) == 75
    assert sent(tmp_path) == (1, [])
    assert script.settled() == [[False, False, 3]]


def test_the_last_word_decides_after_the_command_has_ended(tmp_path: Path, script: Script) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "undecided", "remaining": 40.0})
        watch.await_line("told")
        script.say("last", {"meaning": "preempted", "remaining": 25.0})

        assert ends(watch, tmp_path) == 75
    assert script.settled() == [[True, False, 3]]
    assert watch.lines("settled")[0]["preempted"] is True


def test_an_end_by_the_platforms_own_signal_counts_as_told(tmp_path: Path, script: Script) -> None:
    """SLURM's SIGTERM goes to the command and to us at one instant: the end may be seen before the signal."""
    with watching_a_run(tmp_path, script) as watch:
        script.say("last", {"meaning": "preempted", "remaining": 5.0, "sent": [signal.SIGTERM]})

        assert ends(watch, tmp_path) == 75
    assert sent(tmp_path) == (0, [])
    assert script.settled() == [[True, False, 3]]


def test_a_job_that_runs_elsewhere_already_is_killed_here_and_left_alone(tmp_path: Path, script: Script) -> None:
    with watching_a_run(tmp_path, script) as watch:
        script.say("now", {"meaning": "superseded", "kind": "node-failure"})

        assert watch.wait() == 137
    assert [line["step"] for line in watch.lines("escalated")] == ["fence"]
    assert not (tmp_path / "frames").exists()
    assert [*watch.lines("told"), *watch.lines("marked"), *watch.lines("repaired")] == []
    assert script.settled() == [[False, False, 137]]
    assert watch.lines("settled")[0]["why"] == "this job runs elsewhere already; did the last thing"


def test_a_command_that_is_held_when_its_job_runs_elsewhere_never_starts(tmp_path: Path, script: Script) -> None:
    script.say("now", {"meaning": "superseded", "kind": "node-failure"})
    with Watch(tmp_path, ["touch", str(tmp_path / "ran")], "--provider", "scripted", env=script.env) as watch:
        assert watch.wait() == 137

    assert not (tmp_path / "ran").exists()


def test_what_the_last_act_could_not_do_is_said_in_one_line(tmp_path: Path, script: Script) -> None:
    script.say("refuse", "job 12 cannot be requeued: add #SBATCH --requeue")
    with Watch(tmp_path, ["true"], "--provider", "scripted", env=script.env) as watch:
        assert watch.wait() == 0

    assert "preemptd: warning: job 12 cannot be requeued: add #SBATCH --requeue\n" in watch.err
    assert script.settled() == [[False, False, 0]]


def test_a_command_under_the_shield_lives_through_sigterm_until_it_has_a_handler(tmp_path: Path) -> None:
    code = "from signal import *; raise_signal(SIGTERM); print(getsignal(SIGTERM) is SIG_IGN)"
    with Watch(tmp_path, [sys.executable, "-c", code], "--shield-term") as watch:
        assert watch.wait() == 0

    assert watch.out == "True\n"


@pytest.mark.parametrize(
    ("signum", "later", "status"),
    [
        (signal.SIGTERM, {"meaning": "stopped", "remaining": 20.0}, 7),
        (signal.SIGTERM, {"meaning": "stopped", "remaining": 20.0, "sent": [signal.SIGTERM]}, 0),
        (signal.SIGUSR2, {"meaning": "stopped", "remaining": 20.0}, 0),
    ],
)
def test_a_sigterm_to_us_alone_that_was_somebodys_wish_reaches_the_command_after_all(
    tmp_path: Path, script: Script, signum: signal.Signals, later: object, status: int
) -> None:
    """A provider makes a notice of it first: SLURM's reaches every process of a job."""
    script.say("signal", {"meaning": "undecided", "remaining": 30.0, "sent": [signum]})
    traps = "trap 'exit 7' TERM; trap 'exit 8' USR2"
    command = ["sh", "-c", f"{traps}; touch ready; while [ ! -e end ]; do sleep 0.05; done"]
    with Watch(tmp_path, command, "--provider", "scripted", env=script.env) as watch:
        wait_until((tmp_path / "ready").exists)
        watch.signal(signum)
        watch.await_line("notice")
        script.say("now", later)
        if status:
            wait_until(lambda: watch.process.poll() is not None)
        else:
            watch.await_line("notice", 2)
            (tmp_path / "end").touch()

        assert watch.wait() == status
    assert script.settled() == [[False, False, status]]
