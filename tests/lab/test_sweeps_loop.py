"""`preemptd watch --loop -- wandb agent --count 1`: one real agent after the other."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.sweeping import ENDS, PATIENCE, agent, machine, training
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_sweeps import Sweep
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(500)

RUNS = ["run0001a", "run0002a", "run0003a"]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


def test_agents_follow_one_another_until_the_sweep_has_ended(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python), list(RUNS))
    with machine(tmp_path / "one", backend, agent(python, "--count", "1"), "--loop", env=ENDS) as (watch, _):
        status, left = watch.wait(), watch.left()

    assert (status, left) == (0, [])
    assert sweep.handed == [(f"agent-{number}", "run", run) for number, run in enumerate(RUNS, 1)]
    assert sweep.agents == 4
    assert [backend.exit_codes(run) for run in RUNS] == [[0], [0], [0]]
    assert [backend.preempting(run) for run in RUNS] == [[], [], []]


@pytest.mark.parametrize(
    "version",
    ["0.31.0", pytest.param("0.22.3", marks=pytest.mark.soak), pytest.param("0.19.11", marks=pytest.mark.soak)],
)
def test_a_notice_in_the_middle_ends_the_loop_and_the_run_goes_elsewhere(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path, version: str
) -> None:
    python = wandb_pythons[version]
    sweep = Sweep(backend, training(python), RUNS[:2])
    slow = {"STEPS": "150"}
    with machine(tmp_path / "one", backend, agent(python, "--count", "1"), "--loop", env=slow) as (watch, gce):
        watch.await_said("ready", 2)
        gce.announcement.announce()
        status, left = watch.wait(), watch.left()
    with machine(tmp_path / "two", backend, agent(python, "--count", "1"), "--loop", env=ENDS) as (second, _):
        again = second.wait()

    assert (status, left, again) == (75, [], 0)
    assert sweep.handed == [
        ("agent-1", "run", RUNS[0]),
        ("agent-2", "run", RUNS[1]),
        ("agent-3", "resume", RUNS[1]),
    ]
    assert backend.exit_codes(RUNS[1])[0] == 75
    assert [run[:2] for run in second.ready()] == [(RUNS[1], True)]


def test_an_agent_that_gets_no_answer_is_started_again_later_and_later(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python), RUNS[:1])
    sweep.deleted = True
    with machine(tmp_path / "one", backend, agent(python, "--count", "1"), "--loop", env=ENDS) as (watch, _):
        wait_until(lambda: len(watch.lines("warning")) == 2, PATIENCE)
        sweep.deleted = False
        status = watch.wait()

    assert status == 0
    assert [str(line["text"]).partition(": again in ")[2] for line in watch.lines("warning")][:2] == ["1 s", "2 s"]
    assert [kind for _, kind, _ in sweep.handed] == ["run"]
    assert backend.exit_codes(RUNS[0]) == [0]
