"""The example scripts of the documentation do what they are shown for: save when told, and go on from there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@contextmanager
def running(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run *command* as a user would, W&B offline. SIGTERM for what is left at the end: torchrun passes it on."""
    path = f"{Path(command[0]).parent}:/usr/bin:/bin"
    environ = {"PATH": path, "HOME": str(directory), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=directory, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_until(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"ended with {process.wait()} without a line that starts with {start!r}")


def test_the_training_example_saves_when_told_and_the_next_run_goes_on_from_there(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train.py")]
    with running(command, tmp_path) as first:
        read_until(first, "step 500 ")
        first.send_signal(signal.SIGUSR1)
        saved = read_until(first, "saved ").removeprefix("saved ")
        status = first.wait()
    with running(command, tmp_path) as second:
        resumed = read_until(second, "resumed from ").removeprefix("resumed from ")

    assert (status, resumed) == (75, saved)
    assert list(tmp_path.glob("checkpoints/*.tmp")) == []


def test_the_training_example_learns(tmp_path: Path) -> None:
    with running([sys.executable, str(EXAMPLES / "train.py"), "--steps", "1500"], tmp_path) as training:
        losses = [float(read_until(training, f"step {step} ").split()[-1]) for step in (500, 1500)]
        status = training.wait()

    assert status == 0
    assert losses[1] < 0.4  # a guess costs 0.69


def rank_of(pid: int) -> str | None:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((word[5:].decode() for word in environ if word.startswith(b"RANK=")), None)


@pytest.mark.timeout(180)  # torch and wandb, three processes, twice
def test_the_ddp_example_stops_all_ranks_at_the_same_step_when_one_is_told(tmp_path: Path, torch_python: str) -> None:
    torchrun = str(Path(torch_python).parent / "torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "train_ddp.py")]
    with running(command, tmp_path) as first:
        read_until(first, "step 500 ")
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        (told,) = (int(pid) for pid in children if rank_of(int(pid)) == "1")
        os.kill(told, signal.SIGUSR1)
        saved = read_until(first, "saved ").removeprefix("saved ")
        status = first.wait()
    with running([*command, "--steps", "1"], tmp_path) as second:
        resumed = read_until(second, "resumed from ").removeprefix("resumed from ")
        second.wait()

    assert (status, resumed) == (0, saved)
