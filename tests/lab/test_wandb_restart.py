"""`--restart`: all attempts of one command are one W&B run, on the real wandb."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import Training, announce, patient, quickly, strings
from tests.metadata_server import FaultyGce

pytestmark = patient
SCRIPT = str(ROOT / "tests" / "standins" / "wandb_resume.py")
ENOUGH = 20


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        yield server


def at(gce: FaultyGce, home: Path, **more: str) -> dict[str, str]:
    here = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "WANDB_DIR": str(home)}
    return {**here, "GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false", **more}


def preempted_twice(watch: Training, gce: FaultyGce) -> list[tuple[str, bool]]:
    """Take the first notice back when the command has left; return the run of each attempt, and whether it went on."""
    watch.await_said("step", ENOUGH)
    announce(gce)
    watch.await_line("waiting")
    gce.announcement.revoke()
    watch.await_said("ready", 2)
    steps = len(watch.said("step"))
    watch.await_said("step", steps + ENOUGH)
    announce(gce)
    assert watch.wait() == 75
    return [(strings(line["runs"])[0], bool(line["resumed"])) for line in watch.said("ready")]


@quickly("0.31.0")
def test_a_mended_run_goes_on_in_place_without_a_job_id(
    wandb_pythons: Mapping[str, str], gce: FaultyGce, tmp_path: Path, version: str
) -> None:
    with WandbBackend() as backend:
        command = [wandb_pythons[version], SCRIPT, str(tmp_path / "checkpoints"), "--code", "0"]
        env = at(gce, tmp_path, **backend.env())
        with Training(tmp_path, command, "--restart", "1", env=env) as watch:
            (run_id, first), (same, goes_on) = preempted_twice(watch, gce)
        lines = [json.loads(line) for line in backend.lines(run_id, "wandb-history.jsonl")]
        codes = backend.exit_codes(run_id)
        unknown = backend.unknown()

    events = [line["event"] for line in watch.lines() if line["event"] in {"repaired", "restarted", "resumes"}]
    assert (same, first, goes_on) == (run_id, False, True)
    assert codes == [0, 75, 0, 75]
    assert events == ["repaired", "restarted", "resumes", "repaired"]
    assert [line["_step"] for line in lines] == list(range(len(lines)))
    assert [line["train_step"] for line in lines] == list(range(1, len(lines) + 1))
    assert unknown == []


def test_offline_attempts_are_parts_of_one_run(
    wandb_pythons: Mapping[str, str], gce: FaultyGce, tmp_path: Path
) -> None:
    command = [wandb_pythons["0.31.0"], SCRIPT, str(tmp_path / "checkpoints")]
    env = at(gce, tmp_path, WANDB_MODE="offline")
    with Training(tmp_path, command, "--restart", "1", env=env) as watch:
        (run_id, _), (same, _) = preempted_twice(watch, gce)

    assert same == run_id
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))) == 2
