"""The client without a daemon, beside what real trainings have: DataLoader workers, W&B runs."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import quickly
from tests.linking import ROOT, line_of

SCRIPT = str(ROOT / "tests" / "standins" / "wandb_inside.py")

LOADS = """
import multiprocessing, os, signal, preemptd as p
from torch.utils.data import DataLoader
def say(*words): os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
class Numbers:
    def __len__(self): return 1_000_000
    def __getitem__(self, number): return float(number)
p.should_preempt()
batches = iter(DataLoader(Numbers(), 4, num_workers=2, multiprocessing_context="fork"))
next(batches)
workers = multiprocessing.active_children()
say("ready", *(worker.pid for worker in workers))
while not p.should_preempt(): next(batches)
for _ in range(50): next(batches)             # the workers live
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's raises wherever we are when a worker has died
say("saved", p.notice().source)
workers[0].join()
say("ended", workers[0].exitcode)
os._exit(0)
"""


@pytest.mark.timeout(120)
def test_a_sigusr1_to_all_processes_costs_no_dataloader_worker_and_a_sigterm_still_ends_one(torch_python: str) -> None:
    """Workers that are forked are silent copies of us, until PyTorch's own handlers are there."""
    command = [torch_python, "-c", LOADS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        ready, *workers = line_of(process).split()
        os.killpg(process.pid, signal.SIGUSR1)
        saved = line_of(process)
        os.kill(int(workers[0]), signal.SIGTERM)
        out, _ = process.communicate(timeout=60)

    assert (ready, len(workers)) == ("ready", 2)
    assert saved == "saved SIGUSR1"
    assert (out.strip(), process.returncode) == ("ended -15", 0)


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@quickly("0.31.0")
@pytest.mark.parametrize(
    ("signum", "script", "heard"),
    [
        (signal.SIGUSR1, ("leaves_at_once", "finishes"), (1, [75])),
        (signal.SIGUSR1, ("polls", "falls_off"), (1, [75])),
        (signal.SIGUSR1, ("polls", "done"), (1, [0])),
        (signal.SIGTERM, ("polls", "falls_off"), (0, [0])),
    ],
)
def test_a_sigusr1_is_a_preemption_for_the_processs_own_runs_and_a_sigterm_is_a_stop(
    wandb_pythons: Mapping[str, str],
    backend: WandbBackend,
    tmp_path: Path,
    version: str,
    signum: signal.Signals,
    script: tuple[str, str],
    heard: tuple[int, list[int]],
) -> None:
    environment = {**os.environ, **backend.env(), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [wandb_pythons[version], SCRIPT, *script],
        env=environment,
        cwd=tmp_path,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            run_id = line_of(process).split()[-1]
            process.send_signal(signum)
            _, err = process.communicate(timeout=50)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    assert (process.returncode, err) == (0, "")
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == heard
