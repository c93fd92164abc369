"""W&B agents among other processes: which they are, and that they end without a word to what they have started."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.config import Settings
from preemptd.model import Outcome
from preemptd.notices import Meaning
from preemptd.procfs import Tree
from preemptd.settling import Ending, settle
from preemptd.targets.agents import PASSES_ON_WITHIN, Agents, agent_above
from preemptd.targets.roles import is_agent
from preemptd.targets.selection import Policy, select
from tests.conftest import ROOT
from tests.waiting import wait_until

AGENT = "import subprocess, sys\nprint('up', flush=True)\nsubprocess.run([sys.executable, '-c', sys.argv[2]])\n"
CHILD = "import signal, time\nsignal.signal(10, lambda *_: None)\nprint('ready', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    "command",
    [
        "wandb agent team/project/s1",
        "/venv/bin/wandb agent --count 1 s1",
        "/usr/bin/python3.11 /venv/bin/wandb agent s1",
        "python -u -X dev /venv/bin/wandb agent s1",
        "python -m wandb agent s1",
    ],
)
def test_these_are_agents(command: str) -> None:
    assert is_agent(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "wandb sync run",
        "wandb sweep agent.yaml",
        "python train.py wandb agent s1",
        "python -c code wandb agent",
        "bash -c wandb agent s1",
        "uv run wandb agent s1",
        "python -m wandb service",
        "wandb-core --pid 1",
        "",
    ],
)
def test_these_are_none(command: str) -> None:
    assert not is_agent(command.split())


def test_an_agent_is_ended_and_its_training_hears_nothing_and_is_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "wandb"
    script.write_text(AGENT)
    with subprocess.Popen([sys.executable, str(script), "agent", CHILD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"up\n", b"ready\n"]
        before = Tree(process.pid, include_root=True).snapshot()
        (training,) = (one for one in before if one.ppid == process.pid)
        agents = Agents()
        found = agent_above(training.pid)
        ended = agents.end(before, frozenset(), 0.0)
        status = process.wait(10)
        after = Tree(training.pid, include_root=True).snapshot()
        left = agents.left(select(after, 0, Policy(), frozenset()))
        wait_until(lambda: Tree(training.pid, include_root=True).snapshot()[0].state == "S")
        agents.pass_on(signal.SIGUSR1, select(after, 0, Policy(), frozenset()))
        lives = Tree(training.pid, include_root=True).snapshot() != ()
        subprocess.run(["kill", "-9", str(training.pid)], check=True)

    assert found == process.pid
    assert [one.pid for one in ended] == [process.pid]
    assert (status, left, lives) == (-signal.SIGKILL, True, True)
    assert not agents.left(select((), 0, Policy(), frozenset()))
    assert not Agents().left(select(after, 0, Policy(), frozenset()))


def test_an_agent_that_was_told_itself_has_time_to_pass_it_on(tmp_path: Path) -> None:
    script = tmp_path / "wandb"
    script.write_text("print('up', flush=True)\ninput()\n")
    with subprocess.Popen(
        [sys.executable, str(script), "agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = Tree(process.pid, include_root=True).snapshot()
        agents, told = Agents(), frozenset({seen[0].id})
        results = [len(agents.end(seen, told, now)) for now in (5.0, 5.1, 5.0 + PASSES_ON_WITHIN, 9.0)]

    assert results == [0, 0, 1, 0]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("exit_zero", ["preempted", "done"])
@pytest.mark.parametrize("status", [0, 137])
def test_a_job_that_has_lost_its_agent_is_to_come_back_whatever_its_training_said(
    done: bool, exit_zero: str, status: int
) -> None:
    ending = Ending(Outcome(status), True, True, Meaning.PREEMPTED, done, frozenset(), 1.0, False, 3.0, 20.0)
    settled = settle(dataclasses.replace(ending, agent_ended=True), Settings(exit_zero=exit_zero), None, 0)  # type: ignore[arg-type]

    assert (settled.status, settled.preempted) == (75, True)


def test_the_command_that_the_page_shows_is_that_of_the_example() -> None:
    page = (ROOT / "docs" / "wandb.md").read_text()
    shown = page.partition("```yaml\n")[2].partition("```")[0]

    assert shown.startswith("command:")
    assert (ROOT / "docs" / "examples" / "sweep.yaml").read_text().endswith(shown)
