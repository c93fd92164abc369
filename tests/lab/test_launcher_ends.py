"""What comes after the save, and who comes late: restarts, loops, uploads, slow imports, other nodes, no handler."""

import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.launchers import GRACE, PATIENCE, STANDINS, TRAINER, Job, Place, left_over
from tests.metadata_server import FaultyEc2
from tests.waiting import wait_until
from tests.watching import environment

pytestmark = pytest.mark.timeout(120)
UPLOAD = str(STANDINS / "ddp_upload.py")


@pytest.fixture
def place(torch_python: str, lab_tool: Callable[[str], str], tmp_path: Path) -> Place:
    return Place(tmp_path, torch_python, lab_tool)


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=GRACE) as server:
        yield server


def after_the_last_save(job: Job) -> float:
    return job.mono(job.lines("exited")[0]) - max(map(job.mono, job.said("saved")))


def steps_of(job: Job) -> set[str]:
    return {str(line["step"]) for line in job.lines("escalated")}


def warned(job: Job, words: str) -> bool:
    return any(words in str(line["text"]) for line in job.lines("warning"))


@pytest.mark.parametrize("listener", ["USR1", "link"])
def test_torchrun_with_max_restarts_does_not_train_on(place: Place, ec2: FaultyEc2, listener: str) -> None:
    command = place.torchrun("--max-restarts", "3", TRAINER, listener, "--exit", "75")
    with Job(place, ec2, command) as job:
        job.await_said("ready", 2, PATIENCE)
        ec2.announcement.announce()
        status = job.wait(PATIENCE)
        left = left_over(job)

    assert status == 75
    assert len(job.said("ready")) == len(job.said("saved")) == len(job.pids("told")) == 2
    assert steps_of(job) == {"launcher"}
    assert after_the_last_save(job) < 20
    assert not left


@pytest.mark.parametrize(
    "body",
    [
        "{python} {train}",
        "{torchrun} {train}",
        "(cd . && {torchrun} {train}) | cat",
        pytest.param("{accelerate} launch --cpu --num_processes 1 {train}", marks=pytest.mark.soak),
        pytest.param(
            "{uv} run --no-project --offline --cache-dir uv --python {python} python {train}", marks=pytest.mark.soak
        ),
    ],
)
def test_a_loop_that_starts_the_same_training_again_is_stopped(place: Place, ec2: FaultyEc2, body: str) -> None:
    tools = {name: place.tool(name) for name in ("accelerate", "uv")}
    line = body.format(
        python=place.python, torchrun=shlex.join(place.torchrun()), train=f"{TRAINER} USR1 --exit 75", **tools
    )
    script = place.script("loop.sh", "for attempt in 1 2 3 4 5; do", line, "done", "echo given up")
    with Job(place, ec2, [script]) as job:
        job.await_said("ready", 2 if "torchrun" in body else 1, PATIENCE)
        ec2.announcement.announce()
        status = job.wait(PATIENCE)
        left = left_over(job)

    ranks = job.pids("ready").keys()
    assert status == 75
    assert job.pids("saved") == job.pids("told") == dict.fromkeys(ranks, 1)
    assert len(ranks) == (2 if "torchrun" in body else 1)
    assert steps_of(job) == {"launcher"}
    assert after_the_last_save(job) < 20
    assert "given up" not in job.out
    assert not left


def test_an_upload_after_the_training_runs_to_its_end(place: Place, ec2: FaultyEc2) -> None:
    lines = [f"{place.python} {TRAINER} USR1", f"{place.python} {UPLOAD}", "echo all is there"]
    with Job(place, ec2, [place.script("job.sh", *lines)]) as job:
        job.await_said("ready", 1, PATIENCE)
        ec2.announcement.announce()
        status = job.wait(PATIENCE)

    assert status == 75
    assert job.pids("told") == job.pids("saved")
    assert len(job.said("saved")) == len(job.said("uploaded")) == 1
    assert steps_of(job) == set()
    assert "all is there" in job.out


def test_ranks_that_still_import_torch_are_told_when_their_handlers_are_there(place: Place, ec2: FaultyEc2) -> None:
    go = place.directory / "go"
    with Job(place, ec2, place.torchrun(TRAINER, "USR1"), env={"IMPORT_WHEN": str(go)}) as job:
        job.await_said("importing", 2, PATIENCE)
        ec2.announcement.announce()
        job.await_line("notice")
        assert job.lines("told") == []
        go.touch()
        status = job.wait(PATIENCE)

    assert status == 75
    assert job.pids("signal") == job.pids("told") == job.pids("saved") == dict.fromkeys(job.pids("importing"), 1)
    assert [line["status"] for line in job.lines("exited")] == [0]


def test_torchrun_without_handlers_is_never_signalled_and_runs_to_its_last_second(place: Place) -> None:
    stop = place.directory / "stop"
    with (
        FaultyEc2(grace=6.0) as ec2,
        Job(place, ec2, place.torchrun(TRAINER, "none", "--loader", "fork"), env={"STOP_WHEN": str(stop)}) as job,
    ):
        job.await_said("ready", 2, PATIENCE)
        ec2.announcement.announce()
        deadline = job.mono(job.await_line("notice")[0]) + 6.0
        wait_until(lambda: len([line for line in job.said("step") if job.mono(line) > deadline + 0.5]) >= 2)
        stop.touch()
        status = job.wait(PATIENCE)

    assert status == 0
    assert job.lines("told") == job.lines("escalated") == []
    assert job.pids("exit") == job.pids("ready")
    assert warned(job, "nothing in this job handles SIGUSR1 or SIGTERM")
    assert job.lines("settled")[0]["preempted"] is False


def test_ranks_on_another_node_are_named_at_the_notice(place: Place, ec2: FaultyEc2) -> None:
    """The second node's torchrun is not under `preemptd watch`: its rank stops because the ranks agree."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    nodes = [place.torchrun(TRAINER, "USR1", ranks=1, options=(*options, "--node-rank", node)) for node in "01"]
    with Job(place, ec2, nodes[0]) as job:
        other = subprocess.Popen(nodes[1], env=environment(job.env), cwd=place.directory, stderr=subprocess.DEVNULL)
        job.await_said("ready", 2, PATIENCE)
        ec2.announcement.announce()
        status = job.wait(PATIENCE)
        other.wait(PATIENCE)

    assert status == 75
    assert other.returncode == 0
    assert warned(job, "this job has 2 ranks, and only 1 of them run here")
    assert len(job.lines("told")) == len(job.said("signal")) == 1
    assert len({line["rank"] for line in job.said("saved")}) == 2


def test_a_launcher_that_waits_before_it_starts_anew_is_stopped_too(place: Place, ec2: FaultyEc2) -> None:
    lines = ["while :; do", f"{place.python} {TRAINER} USR1 --exit 75", "sleep 2", "done"]
    with Job(place, ec2, [place.script("loop.sh", *lines)]) as job:
        job.await_said("ready", 1, PATIENCE)
        ec2.announcement.announce()
        began = time.monotonic()
        status = job.wait(PATIENCE)

    assert status == 75
    assert time.monotonic() - began < GRACE
    assert len(job.said("ready")) == len(job.lines("told")) == 1
    assert not left_over(job)
