"""preemptd in a sweep's `command:`: the agent above gets its training back only when the machine is safe, or gone."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.sweeping import ENDS, ENOUGH, PATIENCE, agent, inside, machine, training
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_sweeps import Sweep
from tests.lab.wandb_watching import quickly
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(500)

RUN = "run0001a"
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@quickly("0.31.0")
def test_a_preempted_run_goes_to_another_machine_and_the_agent_is_held_off_on_this_one(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path, version: str
) -> None:
    python = wandb_pythons[version]
    sweep = Sweep(backend, training(python, *inside()), [RUN])
    with machine(tmp_path / "one", backend, agent(python), watched=False) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        first.await_line("settled")
        first.await_line("warning")
        with machine(tmp_path / "two", backend, agent(python), env=ENDS, watched=False) as (second, _):
            again = second.wait()
        handed, lives = list(sweep.handed), first.process.poll() is None

    assert (again, lives) == (0, True)
    assert handed == [("agent-1", "run", RUN), ("agent-2", "resume", RUN)]
    assert backend.exit_codes(RUN)[0] == 75
    assert backend.exit_codes(RUN)[-1] == 0
    assert [run[:2] for run in second.ready()] == [(RUN, True)]
    assert second.ready()[0][2] >= ENOUGH
    assert "would take the sweep's next run" in str(first.lines("warning")[-1]["text"])
    assert backend.unknown() == []


def test_the_run_is_mended_before_the_agent_is_held_off(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    Sweep(backend, training(python, *inside(), more="--code 0"), [RUN])
    with machine(tmp_path / "one", backend, agent(python), watched=False) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        first.await_line("warning")
        codes, lives = backend.exit_codes(RUN), first.process.poll() is None

    assert (codes, lives) == ([0, 75], True)


def test_a_revoked_notice_gives_the_agent_its_training_back(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python, *inside()), [RUN])
    with machine(tmp_path / "one", backend, agent(python, "--count", "2"), env={}, watched=False) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        first.await_line("warning")
        gce.announcement.revoke()
        wait_until(lambda: len(sweep.handed) == 2, PATIENCE)
        first.await_said("ready", 2)

    assert sweep.handed == [("agent-1", "run", RUN), ("agent-1", "resume", RUN)]
    assert [run[:2] for run in first.ready()] == [(RUN, False), (RUN, True)]


def test_a_stop_ends_the_holding_off_at_once(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python, *inside()), [RUN])
    with machine(tmp_path / "one", backend, agent(python), watched=False) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        first.await_line("warning")
        sweep.idles = True
        (wrapper,) = (pid for pid in first.alive() if b"preemptd" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(wrapper, signal.SIGTERM)
        wait_until(lambda: wrapper not in first.alive(), PATIENCE)
        wait_until(lambda: len(sweep.handed) == 2, PATIENCE)

    assert first.lines("settled")[0]["status"] == 75


def test_an_outer_preemptd_sees_to_the_agent_and_the_inner_one_does_not_wait(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python, *inside()), [RUN])
    with machine(tmp_path / "one", backend, agent(python)) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        status, left = first.wait(), first.left()

    assert (status, left) == (75, [])
    assert len(first.lines("told")) == 1
    assert backend.exit_codes(RUN) == [75]
    assert sweep.handed == [("agent-1", "run", RUN)]


def test_the_sweep_of_the_documentation_works_as_it_stands(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, [], [RUN], config=(EXAMPLES / "sweep.yaml").read_text())
    sweep.program, sweep.args = "sweep_train.py", {"rate": {"value": 0.3}}
    env = {"PATH": f"{Path(python).parent}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(EXAMPLES / "sweep_train.py", tmp_path / name)
    state = tmp_path / "checkpoints" / RUN / "state.json"
    endless = {**env, "STEPS": "10000000"}
    with machine(tmp_path / "one", backend, agent(python), env=endless, watched=False) as (_, gce):
        wait_until(state.exists, PATIENCE)
        gce.announcement.announce()
        wait_until(lambda: backend.exit_codes(RUN), PATIENCE)
        step = int(json.loads(state.read_text())["step"])
        last = {**env, "STEPS": str(step + 10)}
        with machine(tmp_path / "two", backend, agent(python), env=last, watched=False) as (second, _):
            status = second.wait()
    lines = [json.loads(line) for line in backend.lines(RUN, "wandb-history.jsonl")]

    assert status == 0
    assert backend.exit_codes(RUN) == [75, 0]
    assert [line["_step"] for line in lines] == list(range(1, step + 11))
    assert sweep.handed == [("agent-1", "run", RUN), ("agent-2", "resume", RUN)]
