"""`preemptd notify --job ARRAY`: every task that runs, and no word of a whole job when one task was told."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.linking import short_directory
from tests.watching import PREEMPTD, Watch, environment, trainer

ARRAY = {"64": "2", "65": "1"}
"""Tasks of array 64 by their SLURM_JOB_ID: the last one has the array's own."""


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def task(short: Path, number: str, **more: str) -> Watch:
    """Run task *number* of the array as it would on a node; more: what else it has in its environment."""
    array = {"SLURM_JOB_ID": number, "SLURM_ARRAY_JOB_ID": "64", "SLURM_ARRAY_TASK_ID": ARRAY.get(number, "1")}
    env = {"XDG_RUNTIME_DIR": str(short), **array, **more}
    return Watch(short, trainer("USR1"), "--provider", "file", env=env, name=number)


def squeue(short: Path, tasks: Mapping[str, str] | None) -> dict[str, str]:
    """Make the PATH on which squeue knows *tasks*; None: slurmctld does not answer."""
    rows = "".join(f"{number}|{index}|\n" for number, index in (tasks or {}).items())
    programs = short / "bin"
    programs.mkdir()
    (programs / "rows").write_text(rows)
    (programs / "squeue").write_text(
        f"#!/bin/sh\nexec cat {programs}/rows\n" if tasks is not None else "#!/bin/false\n"
    )
    (programs / "squeue").chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin", "XDG_RUNTIME_DIR": str(short)}


def notify(*arguments: object, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [*PREEMPTD, "notify", *map(str, arguments)]
    return subprocess.run(command, env=environment(env), capture_output=True, text=True, check=False, timeout=50)


def test_all_tasks_on_this_machine_are_told_and_no_job_that_one_of_them_has_submitted(short: Path) -> None:
    with ExitStack() as stack:
        tasks = [stack.enter_context(task(short, number)) for number in ("64", "65", "70")]
        for watch in tasks:
            watch.await_said("ready")
        ended = notify("--job", "64", env=squeue(short, ARRAY))
        statuses = [watch.wait() for watch in tasks[:2]]
        told = tasks[2].lines("notice")

    assert (ended.returncode, ended.stderr, statuses, told) == (0, "", [75, 75], [])
    assert ended.stdout.count(".sock") == 2
    assert ended.stdout.endswith(", for job 64_1, 64_2\n")


@pytest.mark.parametrize("known", [True, False], ids=["squeue", "no squeue"])
def test_tasks_that_nothing_reaches_are_named_and_it_is_no_success(short: Path, known: bool) -> None:
    tasks = {**ARRAY, "66": "3"} if known else None
    env = {**squeue(short, tasks), "PREEMPTD_SIGNAL_DIR": str(short / "none")}
    with task(short, "64") as watch:
        watch.await_said("ready")
        ended = notify("--job", "64", env=env)
        status = watch.wait()

    missing = "64_1, 64_3" if known else "the other tasks of 64"
    assert (ended.returncode, status) == (1, 75)
    assert ended.stdout.endswith(".sock, for job 64_2\n")
    assert ended.stderr.startswith(f"preemptd: not told: {missing}: ")
    assert "there is no directory" in ended.stderr


def test_tasks_that_no_message_reaches_get_a_file(short: Path) -> None:
    (short / "signals").mkdir()
    env = {**squeue(short, ARRAY), "PREEMPTD_SIGNAL_DIR": str(short / "signals")}
    with (
        task(short, "64") as here,
        task(short, "65", XDG_RUNTIME_DIR=str(short / "bin"), PREEMPTD_SIGNAL_DIR=str(short / "signals")) as elsewhere,
    ):
        for watch in (here, elsewhere):
            watch.await_said("ready")
        ended = notify("--job", "64", env=env)
        statuses = [here.wait(), elsewhere.wait()]

    assert (ended.returncode, statuses) == (0, [75, 75])
    first, second = ended.stdout.splitlines()
    assert first.endswith(".sock, for job 64_2")
    assert second == f"wrote {short}/signals/64.preempt, for job 64"
    assert elsewhere.lines("notice")[0]["source"] == f"{short}/signals/64.preempt"


def test_one_that_is_no_array_is_told_as_ever(short: Path) -> None:
    with task(short, "12", SLURM_ARRAY_JOB_ID="", SLURM_ARRAY_TASK_ID="") as watch:
        watch.await_said("ready")
        ended = notify("--job", "12", env=squeue(short, {"12": "N/A"}))
        status = watch.wait()

    assert (ended.returncode, status) == (0, 75)
    assert ended.stdout.endswith(".sock, for job 12\n")


# -- the answers


def answers(directory: Path, said: Mapping[str, str], *options: str, env: Mapping[str, str]) -> tuple[str, int]:
    """Ask and wait, in a job that answers what is *said*, by task."""
    program = [*PREEMPTD, "notify", "--job", "64", "--dir", str(directory), "--wait", "20", *options]
    process = subprocess.Popen(program, env=environment(env), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    for job, state in said.items():
        (directory / "new").write_text(json.dumps({"state": state, "t": time.time()}))
        (directory / "new").rename(directory / f"{job}.0.ack")
    out, _ = process.communicate(timeout=40)
    return out, process.returncode


def test_every_task_of_an_array_answers_for_itself(tmp_path: Path) -> None:
    (tmp_path / "signals").mkdir()
    said = {"64_1": "requeued", "64_2": "failed"}

    heard = answers(tmp_path / "signals", said, env=squeue(tmp_path, ARRAY))

    assert heard == ("64_1: requeued\n64_2: failed\n", 1)


@pytest.mark.parametrize(
    ("state", "words", "status"),
    [
        ("ended", "ended, and does not come back, as was asked", 0),
        ("failed", "failed", 1),
        ("requeued", "requeued", 1),
    ],
)
def test_who_asked_for_an_end_without_a_requeue_hears_whether_that_happened(
    tmp_path: Path, state: str, words: str, status: int
) -> None:
    (tmp_path / "signals").mkdir()

    heard = answers(tmp_path / "signals", {"64": state}, "--no-requeue", env=squeue(tmp_path, {}))

    assert heard == (f"64: {words}\n", status)
