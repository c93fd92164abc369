"""`make smoke-wandb` as far as it can be tried without the service: against the server on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.sweeping import training
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_public import answer
from tests.lab.wandb_sweeps import Sweep

RUN = "run0001a"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(150)]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        answer(backend)
        yield backend


def smoke(directory: Path, env: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.smoke", "--project", "project", *arguments],
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true", "HOME": str(directory), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=140,
    )


@pytest.mark.parametrize("env", [{}, {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}])
def test_without_a_key_or_the_service_it_refuses_in_one_line(tmp_path: Path, env: dict[str, str]) -> None:
    done = smoke(tmp_path, env)

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert ("no W&B API key" in done.stderr) is not bool(env)


def test_a_preempted_run_is_seen_preempting_preempted_and_finished(backend: WandbBackend, tmp_path: Path) -> None:
    done = smoke(tmp_path, backend.env(), "run", "--save-for", "3")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT AS EXPECTED" not in done.stdout
    assert [line.split(" (")[0].split(maxsplit=2)[2] for line in done.stdout.splitlines() if "(seen" in line] == [
        "before the notice: running",
        "told, and saving: preempting",
        "preemptd's exit status: 75",
        "after the end: preempted",
        f"the next start has the same run: {backend.runs()[0]}",
        "resumed, behind its checkpoint",
        "preemptd's exit status: 0",
        "after the second end: finished",
    ]
    assert f"{backend.url}/team/project/runs/{backend.runs()[0]}" in done.stdout


def test_a_preempted_sweep_run_is_seen_to_go_to_the_next_agent(backend: WandbBackend, tmp_path: Path) -> None:
    sweep = Sweep(backend, training(sys.executable, more="--save-for 3"), [RUN])
    done = smoke(tmp_path, backend.env(), "sweep", "--save-for", "3")

    assert done.returncode == 0, done.stdout + done.stderr
    assert [kind for _, kind, _ in sweep.handed] == ["run", "resume"]


def test_a_service_that_does_not_do_what_it_should_is_named(backend: WandbBackend, tmp_path: Path) -> None:
    honest = backend.answers["Run"]

    def forgetful(there: WandbBackend, variables: dict[str, object]) -> dict[str, object]:
        found = honest(there, variables)
        run = found["project"]["run"]
        run["state"] = "failed" if run["state"] == "preempted" else run["state"]
        return found

    backend.answers["Run"] = forgetful
    done = smoke(tmp_path, backend.env(), "run", "--save-for", "3", "--patience", "6")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT AS EXPECTED  after the end: preempted (seen: " in done.stdout
    assert done.stdout.endswith(" not as expected\n")
