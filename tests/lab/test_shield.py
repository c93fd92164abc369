"""DataLoader workers outlive signals that are for their trainer, and nothing else."""

import os
import re
import signal
import subprocess
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.test_agree import lines, running
from tests.waiting import wait_until

LOADER = str(ROOT / "tests" / "standins" / "shielded_loader.py")
FORK = pytest.param("fork", marks=pytest.mark.soak)
SPAWN = pytest.param("spawn", marks=pytest.mark.soak)


def rest(process: "subprocess.Popen[str]") -> tuple[str, str]:
    return process.communicate(timeout=300)


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def assert_gone(pids: Sequence[int]) -> None:
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 150, f"{pids} are gone")


def ready(process: "subprocess.Popen[str]") -> list[int]:
    """Return the pids of the workers."""
    (line,) = lines(process, 1)
    return list(line["ready"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("method", ["fork", SPAWN])  # the forkserver itself dies of it
def test_a_training_saves_when_its_whole_group_gets_sigterm_and_its_workers_end_with_it(
    torch_python: str, method: str
) -> None:
    with running([torch_python, LOADER, method]) as process:
        workers = ready(process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = rest(process)

    assert '"saved"' in out, err
    assert len(workers) == 2
    assert process.returncode == 0
    assert_gone(workers)


@pytest.mark.timeout(400)
def test_without_the_shield_it_loses_its_checkpoint(torch_python: str) -> None:
    with running([torch_python, LOADER, "fork", "--bare"]) as process:
        ready(process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = rest(process)

    assert '"saved"' not in out
    assert "RuntimeError: DataLoader worker (pid" in err  # killed, or exited unexpectedly: whichever is seen first


@pytest.mark.timeout(400)
def test_each_rank_saves_when_torchrun_passes_sigterm_on_to_their_groups(torch_python: str) -> None:
    torchrun = str(Path(torch_python).parent / "torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", "2", LOADER, "fork"]
    with running(command) as process:
        workers = [*ready(process), *ready(process)]
        process.terminate()
        out, err = rest(process)

    assert out.count('"saved"') == 2, err
    assert_gone(workers)


@pytest.mark.timeout(400)
def test_workers_ignore_the_other_signals_that_are_for_the_trainer(torch_python: str) -> None:
    with running([torch_python, LOADER, "fork", "--steps", "200"]) as process:
        for pid in ready(process):
            for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, signum)
        out, err = rest(process)

    assert ('"saved"' in out, process.returncode) == (True, 0), err


@pytest.mark.timeout(400)
@pytest.mark.parametrize("method", [FORK, SPAWN, "forkserver"])
def test_no_worker_outlives_a_trainer_that_is_killed(torch_python: str, method: str) -> None:
    with running([torch_python, LOADER, method]) as process:
        workers = ready(process)
        process.kill()
        process.wait(150)

        assert_gone(workers)


@pytest.mark.timeout(400)
def test_a_worker_that_hangs_is_ended_by_its_trainer_as_without_the_shield(torch_python: str) -> None:
    with running([torch_python, LOADER, "fork", "--steps", "5", "--stuck"]) as process:
        workers = ready(process)
        began = time.monotonic()
        out, err = rest(process)

    assert ('"saved"' in out, process.returncode) == (True, 0), err
    assert time.monotonic() - began < 300  # DataLoader waits five seconds for each; the batch would take a thousand
    assert_gone(workers)


@pytest.mark.timeout(400)
def test_the_examples_of_the_page_run(torch_python: str, tmp_path: Path) -> None:
    loop, workers, own_init = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "pytorch.md").read_text(), re.MULTILINE | re.DOTALL
    )
    around = """
        import numpy, os, torch, torch.distributed as dist
        from torch.utils.data import DataLoader
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        data, path, seed = list(range(1000)), "x.pt", 1
        train = lambda batch: preemptd.notify(30) if 25 in batch else None
        save = lambda step, path: print("saved", step)
    """
    script = tmp_path / "page.py"
    ends = f"print(len(list(DataLoader(data, 100, num_workers=1, worker_init_fn=init))))\n{workers}"
    script.write_text(textwrap.dedent(around) + loop + own_init + ends)
    with running([torch_python, str(script)]) as process:
        out, err = rest(process)

    assert out.split() == ["saved", "25", "10"], err
