"""W&B runs of trainings that nobody wraps, under the real `preemptd daemon`: marked, and mended as they end."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from preemptd.cli.status import ask
from tests.conftest import WandbPythons
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import PATIENCE, patient
from tests.serving import Serving
from tests.waiting import wait_until
from tests.watching import environment, read_lines

pytestmark = patient
SCRIPT = """
import json, os, signal, sys, time
import wandb
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
run = wandb.init(project="daemon")
run.log({"loss": 1.0})
def note(what):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps({"what": what, "pid": os.getpid(), "run": run.id}) + "\\n")
note("ready")
while not told and not os.path.exists(os.environ["ENOUGH"]):
    time.sleep(0.02)
note("told" if told else "enough")
END
"""


@dataclass
class Trained:
    process: "subprocess.Popen[bytes]"
    log: Path
    enough: Path

    def said(self, what: str) -> list[dict[str, object]]:
        return [line for line in read_lines(self.log) if line["what"] == what]

    @property
    def run_id(self) -> str:
        return str(self.said("ready")[0]["run"])


@contextmanager
def training(directory: Path, python: str, backend: WandbBackend, end: str, name: str = "a") -> Iterator[Trained]:
    script = directory / f"{name}.py"
    script.write_text(SCRIPT.replace("END", end))
    log, enough = directory / f"{name}.notes", directory / f"{name}.enough"
    env = environment({**backend.env(), "WANDB_DIR": str(directory), "LOG": str(log), "ENOUGH": str(enough)})
    process = subprocess.Popen([python, str(script)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        trained = Trained(process, log, enough)
        wait_until(lambda: bool(trained.said("ready")) or process.poll() is not None, PATIENCE, "the run has begun")
        yield trained
    finally:
        process.kill()
        process.wait()


def config(*trained: Trained) -> str:
    targets = "".join(f"[[target]]\npid = {each.process.pid}\n" for each in trained)
    return f'provider = ["file"]\ngrace = 30\n{targets}'


def await_run(serving: Serving, run_id: str) -> None:
    link = str(serving.await_line("serving", timeout=PATIENCE)[0]["link"])
    wait_until(lambda: run_id in str((ask(link, must=True) or {}).get("runs")), PATIENCE, f"{run_id} is known")


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_told_run_ends_as_preempted_whatever_its_training_does(
    tmp_path: Path, wandb_pythons: WandbPythons, end: str
) -> None:
    with WandbBackend() as backend, training(tmp_path, wandb_pythons["0.31.0"], backend, end) as trained:
        with Serving(tmp_path, config(trained)) as serving:
            await_run(serving, trained.run_id)
            serving.notify()
            trained.process.wait(PATIENCE)
            (repaired,) = serving.await_line("repaired", timeout=PATIENCE)
        codes, marks = backend.exit_codes(trained.run_id), backend.preempting(trained.run_id)

    assert repaired["ok"], repaired
    assert codes[-1] == 75
    assert marks


def test_what_ends_by_itself_is_not_touched(tmp_path: Path, wandb_pythons: WandbPythons) -> None:
    python = wandb_pythons["0.31.0"]
    with (
        WandbBackend() as backend,
        training(tmp_path, python, backend, "pass") as trained,
        Serving(tmp_path, config(trained)) as serving,
    ):
        await_run(serving, trained.run_id)
        trained.enough.touch()
        trained.process.wait(PATIENCE)
        codes = backend.exit_codes(trained.run_id)

        assert (codes, backend.preempting(trained.run_id)) == ([0], [])
        assert serving.lines("repaired") == []


def test_a_run_whose_training_was_told_by_a_daemon_that_was_killed_is_mended_by_the_next_one(
    tmp_path: Path, wandb_pythons: WandbPythons
) -> None:
    python, end = wandb_pythons["0.31.0"], "time.sleep(8); os._exit(0)"
    with (
        WandbBackend() as backend,
        training(tmp_path, python, backend, end) as trained,
        Serving(tmp_path, config(trained)) as serving,
    ):
        await_run(serving, trained.run_id)
        serving.notify()
        serving.await_line("told")
        serving.signal(signal.SIGKILL)
        serving.restart()
        trained.process.wait(PATIENCE)
        (repaired,) = serving.await_line("repaired", timeout=PATIENCE)

        assert repaired["ok"], repaired
        assert backend.exit_codes(trained.run_id)[-1] == 75
        assert len(serving.lines("told")) == 1
