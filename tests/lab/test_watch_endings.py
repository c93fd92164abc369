"""How W&B runs end under the real `preemptd watch`, whatever the told script does: seen by the backend."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from preemptd.cli.status import ask
from tests.conftest import WandbPythons
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import quickly
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch

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
ENDS = {
    "returns": "pass",
    "sys.exit(0)": "sys.exit(0)",
    "raise SystemExit(143)": "raise SystemExit(143)",
    "os._exit(0)": "os._exit(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "finish(exit_code=9)": "run.finish(exit_code=9)",
    "core gone": "os.system(f'pkill -TERM -P {os.getpid()} wandb-core'); os._exit(1)",
}


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
            run_id = str(watch.await_said("ready", timeout=50)[0]["run"])
            link = str(watch.await_line("started")[0]["link"])
            wait_until(
                lambda: run_id in str((ask(link, must=True) or {}).get("runs"))
            )  # who is never seen is never mended
            if notice:
                ec2.announcement.announce()
            else:
                (tmp_path / "enough").touch()
            status = watch.wait(50)
        print(watch.err, file=sys.stderr)
        return Played(watch, status, backend.exit_codes(run_id), len(backend.preempting(run_id)))


@pytest.mark.parametrize("end", ENDS)
@quickly("0.31.0")
def test_however_a_told_script_ends_its_run_is_preempted_with_a_code_that_is_not_0(
    tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons, version: str, end: str
) -> None:
    played = play(tmp_path, ec2, wandb_pythons[version], ENDS[end])

    assert played.status == 75
    assert played.marks >= 1
    assert played.codes[-1] != 0


@pytest.mark.parametrize("version", ["0.22.3", "0.19.11"])
def test_exit_0_is_mended_with_older_versions_too(
    tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons, version: str
) -> None:
    played = play(tmp_path, ec2, wandb_pythons[version], "sys.exit(0)")

    assert played.status == 75
    assert played.codes[-1] == 75


def test_a_normal_end_without_a_notice_is_not_touched(
    tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons
) -> None:
    played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "pass", notice=False)

    assert (played.status, played.codes, played.marks) == (0, [0], 0)
    assert played.watch.lines("repaired") == []


def test_exit_zero_done_leaves_a_0_as_it_is(tmp_path: Path, ec2: FaultyEc2, wandb_pythons: WandbPythons) -> None:
    played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "sys.exit(0)", "--exit-zero", "done")

    assert (played.status, played.codes) == (0, [0])


def test_before_our_own_kill_the_exit_record_goes_out_over_the_wire(
    tmp_path: Path, wandb_pythons: WandbPythons
) -> None:
    with FaultyEc2(grace=8.0) as ec2:
        played = play(tmp_path, ec2, wandb_pythons["0.31.0"], "time.sleep(60)", "--kill")

    assert played.status == 75
    assert played.codes[-1] == 75
    assert "wire" in [line["how"] for line in played.watch.lines("repaired")]
