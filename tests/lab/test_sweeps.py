"""The real `wandb agent` under `preemptd watch`: its training is told, and no other run is taken on this machine."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.sweeping import ENDS, ENOUGH, PATIENCE, TRAIN, agent, machine, training
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_sweeps import Sweep
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(500)

RUN = "run0001a"


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


def steps(backend: WandbBackend, run_id: str) -> list[int]:
    return [json.loads(line)["_step"] for line in backend.lines(run_id, "wandb-history.jsonl")]


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("0.31.0", ()),
        ("0.31.0", ("--forward-signals",)),
        ("0.22.3", ()),
        pytest.param("0.19.11", (), marks=pytest.mark.soak),
    ],
)
def test_the_training_below_an_agent_is_told_once_and_its_run_goes_to_another_machine(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path, version: str, options: tuple[str, ...]
) -> None:
    python = wandb_pythons[version]
    sweep = Sweep(backend, training(python), [RUN])
    with machine(tmp_path / "one", backend, agent(python, *options)) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        status, left = first.wait(), first.left()
    with machine(tmp_path / "two", backend, agent(python, *options), env=ENDS) as (second, _):
        again = second.wait()
    events = [line["event"] for line in first.lines() if line["event"] in {"told", "escalated"}]
    (told,), (escalated,) = first.lines("told"), first.lines("escalated")

    assert (status, again) == (75, 0)
    assert told["pid"] == first.said("ready")[0]["pid"]
    assert len(first.said("saved")) == 1
    assert escalated["step"] == "agent"
    assert events == ["told", "escalated"]
    assert left == []
    assert backend.preempting(RUN) != []
    assert [code for code in backend.exit_codes(RUN) if code != 75] == [0]
    assert backend.exit_codes(RUN)[0] == 75
    assert sweep.handed == [("agent-1", "run", RUN), ("agent-2", "resume", RUN)]
    assert [run[:2] for run in second.ready()] == [(RUN, True)]
    assert steps(backend, RUN) == list(range(len(steps(backend, RUN))))
    assert backend.unknown() == []


def test_an_agent_with_no_training_is_ended_and_the_sweep_is_to_go_on(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python), [])
    sweep.idles = True
    with machine(tmp_path / "one", backend, agent(python)) as (first, gce):
        wait_until(lambda: "Heartbeat" in {call.operation for call in backend.calls}, PATIENCE)
        gce.announcement.announce()
        status, left = first.wait(), first.left()

    assert (status, left, sweep.handed) == (75, [], [])
    assert [line["step"] for line in first.lines("escalated")] == ["agent"]


def test_a_shell_that_starts_the_next_agent_has_it_ended_as_well(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    sweep = Sweep(backend, training(python, more="--save-for 4"), [RUN, "run0002a"])
    one = shlex.join(agent(python, "--count", "1"))
    with machine(tmp_path / "one", backend, ["bash", "-c", f"{one}; {one}; {one}"]) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        status, left = first.wait(), first.left()
    ended = [pid for line in first.lines("escalated") for pid in line["pids"]]  # type: ignore[attr-defined]

    assert (status, left) == (75, [])
    assert len(ended) == 3
    assert sweep.handed == [("agent-1", "run", RUN)]
    assert backend.exit_codes(RUN) == [75]


def test_a_training_that_still_imports_is_waited_for_and_told_although_its_agent_is_gone(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python, go = wandb_pythons["0.31.0"], tmp_path / "go"
    command = [
        "${env}",
        "sh",
        "-c",
        f'until [ -e {go} ]; do sleep 0.1; done; exec {python} {TRAIN} "$CHECKPOINTS/$WANDB_RUN_ID"',
    ]
    sweep = Sweep(backend, command, [RUN])
    with machine(tmp_path / "one", backend, agent(python)) as (first, gce):
        wait_until(lambda: sweep.handed, PATIENCE)
        gce.announcement.announce()
        first.await_line("escalated")
        go.touch()
        status, left = first.wait(), first.left()

    assert (status, left) == (75, [])
    assert [line["pid"] for line in first.lines("told")] == [line["pid"] for line in first.said("ready")]
    assert len(first.said("saved")) == 1
    assert backend.exit_codes(RUN) == [75]


def test_after_a_revoked_notice_the_training_ends_by_itself_and_the_agent_is_to_be_started_again(
    backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path
) -> None:
    python = wandb_pythons["0.31.0"]
    Sweep(backend, training(python, more="--deaf"), [RUN])
    with machine(tmp_path / "one", backend, agent(python), env={"STEPS": "400"}) as (first, gce):
        first.await_said("step", ENOUGH)
        gce.announcement.announce()
        first.await_line("escalated")
        gce.announcement.revoke()
        first.await_line("revoked")
        status, left = first.wait(), first.left()

    assert (status, left) == (75, [])
    assert first.said("step")[-1]["step"] == 400
    assert float(str(first.said("step")[-1]["mono"])) < first.number("exited")
