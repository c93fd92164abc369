"""One agent, and orders that a test gives it."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from preemptd.procfs import machine_life, process_id
from tests.fake_slurm import slurmd
from tests.waiting import wait_until
from tests.watching import PREEMPTD, environment, read_lines, trainer

pytestmark = pytest.mark.timeout(120)


class Node:
    """A node with one trainer, an agent, and a test in place of the daemon."""

    def __init__(self, directory: Path, how: str) -> None:
        self.log = directory / "log"
        self.reports = directory / "reports"
        self._slurm = directory / "slurm"
        job = str(random.randint(10**6, 10**9))
        self._environ = environment(
            {
                "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
                "FAKE_SLURM": str(self._slurm),
                "SLURM_JOB_ID": job,
                "LOG": str(self.log),
                "CHECKPOINTS": str(directory),
            }
        )
        self.training = subprocess.Popen(["srun", "--nodes=1", *trainer(how)], env=self._environ)
        self.trainer = int(str(self.said("ready")[0]["pid"]))
        agent = [*PREEMPTD, "slurm-node", json.dumps({"component": job})]
        with self.reports.open("wb") as reports:
            self.agent = subprocess.Popen(
                ["srun", "--nodes=1", "--input=all", *agent], env=self._environ, stdin=subprocess.PIPE, stdout=reports
            )
        self.reported("hello")

    def order(self, **more: object) -> None:
        self.send({"life": machine_life(), "notices": [], "fenced": False, "linked": [], **more})

    def send(self, line: Mapping[str, object]) -> None:
        assert self.agent.stdin is not None
        self.agent.stdin.write(json.dumps(line).encode() + b"\n")
        self.agent.stdin.flush()

    def reported(self, event: str) -> dict[str, object]:
        """Wait for a line of the agent."""
        return wait_until(lambda: [line for line in read_lines(self.reports) if line["event"] == event], 30, event)[0]

    def said(self, what: str) -> list[dict[str, object]]:
        return wait_until(lambda: [line for line in read_lines(self.log) if line["what"] == what], 30, what)

    def close(self) -> None:
        for process in (self.agent, self.training):
            if process.stdin is not None:
                process.stdin.close()
            process.kill()
            process.wait()


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with slurmd(tmp_path):
        made = Node(tmp_path, getattr(request, "param", "both"))
        yield made
        made.close()


def catches(how: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [how], indirect=True)


def notice(remaining: float = 30.0, **more: object) -> dict[str, object]:
    usual = {"provider": "slurm", "event_id": "e", "kind": "preempt", "source": "squeue", "final": False}
    return {**usual, "already_sent": [], "meaning": "preempted", "remaining": remaining, **more}


def test_it_tells_and_says_so(node: Node) -> None:
    node.order(notices=[notice()])

    assert node.reported("told")["pid"] == node.trainer
    assert [line["name"] for line in node.said("signal")] == ["SIGUSR1"]


@catches("TERM")
def test_it_does_not_repeat_what_slurm_has_sent_to_all_steps(node: Node) -> None:
    agent = int((node._slurm / "step-1-f0-0").read_text())
    for pid in (agent, node.trainer):  # as SLURM does when a grace begins
        os.kill(pid, signal.SIGTERM)
    assert node.reported("heard")["signal"] == "SIGTERM"

    node.order(notices=[notice()])
    node.said("exit")

    assert [line["name"] for line in node.said("signal")] == ["SIGTERM"]
    assert [line for line in read_lines(node.reports) if line["event"] == "told"] == []


@catches("faulthandler")
def test_the_last_step_comes_by_the_time_that_the_daemon_has_counted(node: Node) -> None:
    began = time.monotonic()

    node.order(notices=[notice(remaining=4.0)])

    line = node.reported("escalated")
    assert (line["step"], line["pids"]) == ("term", [node.trainer])
    assert time.monotonic() - began > 1.9
    assert [line["name"] for line in node.said("signal")] == ["SIGTERM"]


def test_a_copy_that_runs_elsewhere_already_is_killed(node: Node) -> None:
    node.order(fenced=True)

    wait_until(lambda: process_id(node.trainer) is None, 30)
    assert node.reported("escalated")["step"] == "fence"


def test_who_is_told_over_the_link_is_told_by_signal_once_that_fails(node: Node) -> None:
    trainer = process_id(node.trainer)
    assert trainer is not None
    node.order(notices=[notice()], linked=[[trainer.pid, trainer.start]])
    node.send({"sync": 1})
    assert node.reported("synced")["number"] == 1

    node.order(notices=[notice()])

    assert node.reported("told")["how"] == "USR1"
    assert [line["name"] for line in node.said("signal")] == ["SIGUSR1"]


def test_what_it_does_not_understand_ends_nothing(node: Node) -> None:
    node.send({"end": {"preempted": True}})
    node.order(notices=[{"kind": "none"}])

    node.order(notices=[notice()])

    assert node.reported("told")["pid"] == node.trainer
    assert str(node.reported("warning")["text"]).startswith("not understood")


@pytest.mark.parametrize("last", [{"end": {"preempted": True, "code": 75, "budget": 5.0}}, None], ids=["end", "EOF"])
def test_it_ends_when_it_is_told_to_and_when_the_daemon_has_gone(node: Node, last: dict[str, object] | None) -> None:
    if last is not None:
        node.send(last)
    elif node.agent.stdin is not None:
        node.agent.stdin.close()

    assert node.reported("ended")["node"] == "f0"
    assert node.agent.wait(30) == 0
    assert process_id(node.trainer) is not None


@pytest.mark.parametrize("given", ["", "1", "{}", '{"component": "1", "signal": "HUP"}'])
def test_people_who_start_it_are_told_that_it_is_not_for_them(given: str) -> None:
    done = subprocess.run([*PREEMPTD, "slurm-node", given], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "preemptd: slurm-node is started by preemptd itself, inside of a SLURM job\n"
