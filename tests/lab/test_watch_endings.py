"""How W&B runs end under the real `preemptd watch`, besides the exit matrix of test_wandb_exits.py."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from preemptd.cli.status import ask
from tests.conftest import WandbPythons
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import PATIENCE, patient
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch

pytestmark = patient
SCRIPT = """
import json, os, signal, sys, time
import wandb
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
run = wandb.init(project="endings")  # one that is killed before its log is written can be named by this alone
run.log({{"loss": 1.0}})
def note(what):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps({{"what": what, "pid": os.getpid(), "run": run.id}}) + "\\n")
note("ready")
while not told and not os.path.exists("enough"):
    time.sleep(0.02)
{end}
"""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=30.0) as server:
        yield server


@dataclass(frozen=True)
class Played:
    """How it went: our exit status, and what the backend has seen of the run."""

    watch: Watch
    status: int
    codes: list[int]
    marks: int


def play(tmp_path: Path, ec2: FaultyEc2, python: str, end: str, *options: str, notice: bool = True) -> Played:
    """Run a script that ends so after the notice."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(end=end))
    with WandbBackend() as backend:
        env = {**on_ec2(ec2), **backend.env(), "WANDB_DIR": str(tmp_path)}
        with Watch(tmp_path, [python, str(script)], *options, env=env) as watch:
            run_id = str(watch.await_said("ready", timeout=PATIENCE)[0]["run"])
            link = str(watch.await_line("started")[0]["link"])
            wait_until(
                lambda: run_id in str((ask(link, must=True) or {}).get("runs"))
            )  # who is never seen is never mended
            if notice:
                ec2.announcement.announce()
            else:
                (tmp_path / "enough").touch()
            status = watch.wait(PATIENCE)
        print(watch.err, file=sys.stderr)
        return Played(watch, status, backend.exit_codes(run_id), len(backend.preempting(run_id)))


def test_exit_0_without_a_word_to_wandb_is_mended(tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons) -> None:
    played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "os._exit(0)")

    assert (played.status, played.codes) == (75, [75])
    assert played.marks >= 1


def test_a_normal_end_without_a_notice_is_not_touched(
    tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons
) -> None:
    played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "pass", notice=False)

    assert (played.status, played.codes, played.marks) == (0, [0], 0)
    assert played.watch.lines("repaired") == []


def test_before_our_own_kill_the_exit_record_goes_out_over_the_wire(
    tmp_path: Path, wandb_pythons: WandbPythons
) -> None:
    with FaultyEc2(grace=8.0) as ec2:
        played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "time.sleep(60)", "--kill")

    assert played.status == 75
    assert played.codes[-1] == 75
    assert "wire" in [line["how"] for line in played.watch.lines("repaired")]
