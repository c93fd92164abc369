"""Hugging Face's Trainer with our callback, for real: all ranks are told and save one step, the next run goes on."""

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab.launchers import STANDINS, Job, Place
from tests.lab.wandb_backend import WandbBackend
from tests.metadata_server import FaultyEc2
from tests.watching import environment

pytestmark = pytest.mark.timeout(900)
TRAINER = str(STANDINS / "hf_trainer.py")
PATIENCE = 300.0
"""Seconds for what takes five: two ranks import torch and transformers on a machine that does other things as well."""
GRACE = 120.0
BEST = {"load_best_model_at_end": True, "learning_rate": 0.01}
WORST_FIRST = {"eval_strategy": "steps", "load_best_model_at_end": True, "greater_is_better": True}
"""With the loss as what is better: the first checkpoint stays the best, and the last one is another."""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=GRACE) as server:
        yield server


@pytest.fixture
def place(torch_python: str, tmp_path: Path) -> Place:
    return Place(tmp_path, torch_python, lambda name: name)


def alone(place: Place, *options: str, **arguments: object) -> list[str]:
    return [place.python, TRAINER, json.dumps(arguments), *options]


def under_torchrun(place: Place, *options: str, **arguments: object) -> list[str]:
    return place.torchrun(TRAINER, json.dumps({"dataloader_num_workers": 2, **arguments}), *options)


def preempt(job: Job, ec2: FaultyEc2, said: str = "batch", count: int = 4) -> int:
    """Let the notice come when *said* has been noted *count* times; return the exit status of `preemptd watch`."""
    job.await_said(said, count, PATIENCE)
    ec2.announcement.announce()
    return job.wait(PATIENCE)


def again(place: Place, ec2: FaultyEc2, command: Sequence[str]) -> tuple[Job, int]:
    """Start the next attempt on a machine that is not going away; return it with the status it ended with."""
    ec2.announcement.revoke()
    for name in ("job.log", "job.journal"):
        (place.directory / name).unlink()
    with Job(place, ec2, command) as job:
        return job, job.wait(PATIENCE)


def samples(job: Job, rank: int = 0) -> list[tuple[int, str, object]]:
    """List step, samples and loss of each batch of *rank*."""
    return [
        (int(str(line["step"])), str(line["samples"]), line["loss"])
        for line in job.said("batch")
        if line["rank"] == rank
    ]


def steps(lines: Sequence[dict[str, object]]) -> set[int]:
    return {int(str(line["step"])) for line in lines}


def step_of(job: Job, ranks: int = 1) -> int:
    """Return the step that was saved for the notice, by all ranks and only once, with what belongs to that."""
    context = (job.out, job.err, job.said(), job.lines())
    pids = job.pids("ready").keys()
    began = min(map(job.mono, job.lines("saving")), default=0.0)
    after = [line for line in job.lines("saved") if job.mono(line) > began]
    checkpoints = job.journal.parent / "out"
    assert len(pids) == ranks, context
    assert job.pids("told") == dict.fromkeys(pids, 1), context
    assert {line["how"] for line in job.lines("told")} == {"link"}, context
    assert not job.lines("escalated"), context
    assert Counter(int(str(line["pid"])) for line in after) == dict.fromkeys(pids, 1), context
    (step,) = steps(after)
    assert {line["path"] for line in after} == {str(checkpoints / f"checkpoint-{step}")}, context
    assert set(Counter(line["step"] for line in job.said("saved")).values()) <= {ranks}, context
    assert len(list((checkpoints / f"checkpoint-{step}").glob("rng_state*.pth"))) == ranks, context
    assert not job.said("returned"), context
    return step


def test_under_torchrun_with_workers_all_ranks_save_one_step_and_the_next_run_trains_each_later_step_once(
    place: Place, ec2: FaultyEc2
) -> None:
    options = {**WORST_FIRST, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    with WandbBackend() as backend:
        command = under_torchrun(place, "--evaluate", "1", "--before", "1", report_to="wandb", **options)
        with Job(place, ec2, command, env=backend.env()) as first:
            status = preempt(first, ec2, count=12)
        stopped = step_of(first, ranks=2)
        done, undone = first.pids("done"), first.pids("undone")
        (run,) = backend.runs()
        marks, codes = len(backend.preempting(run)), backend.exit_codes(run)
    (place.directory / "out" / "checkpoint-99999").mkdir()  # one that was never written to its end
    second, ended = again(place, ec2, under_torchrun(place, max_steps=stopped + 3))

    assert (status, ended) == (75, 0)
    assert set(done.values()) == {1}
    assert (len(done), done) == (2, undone)  # the training before was, this one is not
    assert marks >= 1
    assert set(codes) == {75}
    assert steps(second.said("ready")) == {stopped}
    for rank in (0, 1):
        assert [step for step, _, _ in samples(second, rank)] == [stopped, stopped + 1, stopped + 2]
    assert len(second.said("returned")) == 2


def test_an_evaluation_of_the_last_step_is_left_and_all_that_the_next_run_does(place: Place, ec2: FaultyEc2) -> None:
    arguments = {**BEST, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    command = alone(place, "--evaluate", "20", "--pace", "0.1", "--callbacks", "2", max_steps=4, **arguments)
    with Job(place, ec2, command) as first:
        status = preempt(first, ec2, "predicted", 22)
    stopped, predicted = step_of(first), len(first.said("predicted"))
    exits = [line["status"] for line in first.lines("exited")]
    second, ended = again(place, ec2, alone(place, "--evaluate", "20", max_steps=4, **arguments))

    assert (stopped, status, ended) == (4, 75, 0)
    assert exits == [75]
    assert predicted < 40
    assert first.err.count("preempted at step") == 1
    assert not second.said("batch")
    assert [line["step"] for line in second.said("predicted")] == [4] * 20
    assert [line["best"] for line in second.said("returned")] == ["out/checkpoint-4"]


def test_a_sigterm_to_preemptd_watch_is_no_preemption_but_the_training_saves_and_leaves(
    place: Place, ec2: FaultyEc2
) -> None:
    with Job(place, ec2, alone(place, dataloader_num_workers=1)) as job:
        job.await_said("batch", 3, PATIENCE)
        job.signal(signal.SIGTERM)
        status = job.wait(PATIENCE)

    assert status == 143, (job.err, job.said())
    assert not job.lines("notice")
    (line,) = job.lines("saved")
    assert line["path"] == str(place.directory / "out" / f"checkpoint-{line['step']}")


def test_a_sigterm_ends_a_forked_child_and_the_process_whose_training_has_failed(torch_python: str) -> None:
    code = """
import os, signal
from preemptd.integrations.stopping import Stop
trains = True
Stop(lambda frame: trains).catch()
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
if os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGTERM:
    os.kill(os.getpid(), signal.SIGTERM)  # trains on
    trains = False
    os.kill(os.getpid(), signal.SIGTERM)"""
    env = environment({"PREEMPTD_LINK": "/nowhere", "OMP_NUM_THREADS": "1"})
    done = subprocess.run([torch_python, "-c", code], env=env, check=False, timeout=PATIENCE)

    assert done.returncode == -signal.SIGTERM


# -- the rest is for the soak ------------------------------------------------------------------------------------


@pytest.mark.soak
def test_two_ranks_leave_an_evaluation_together(place: Place, ec2: FaultyEc2) -> None:
    options = ["--evaluate", "300", "--pace", "0.05"]
    with Job(place, ec2, under_torchrun(place, *options, eval_strategy="steps", eval_steps=3)) as job:
        status = preempt(job, ec2, "predicted", 2)

    assert (step_of(job, ranks=2), status) == (3, 75)


@pytest.mark.soak
def test_an_evaluation_before_the_first_step_is_left_as_well(place: Place, ec2: FaultyEc2) -> None:
    options = ["--evaluate", "300", "--pace", "0.05"]
    with Job(place, ec2, alone(place, *options, eval_strategy="steps", eval_steps=3, eval_on_start=True)) as job:
        status = preempt(job, ec2, "predicted", 2)
    assert (step_of(job), status) == (0, 75)
    second, ended = again(place, ec2, alone(place, max_steps=2))

    assert ended == 0
    assert [step for step, _, _ in samples(second)] == [0, 1]


@pytest.mark.soak
def test_gradient_accumulation_stops_between_two_batches_and_these_batches_are_trained_again(
    place: Place, ec2: FaultyEc2
) -> None:
    with Job(place, ec2, under_torchrun(place, "--pace", "0.05", gradient_accumulation_steps=100)) as first:
        status = preempt(first, ec2, count=2 * 110)
    stopped = step_of(first, ranks=2)
    unfinished = [line for line in samples(first) if line[0] == stopped]
    second, ended = again(place, ec2, under_torchrun(place, gradient_accumulation_steps=100, max_steps=stopped + 1))

    assert (stopped, status, ended) == (1, 75, 0)
    assert 0 < len(unfinished) < 100
    assert len(samples(second)) == 100
    assert [line[1] for line in samples(second)][: len(unfinished)] == [line[1] for line in unfinished]


@pytest.mark.soak
@pytest.mark.parametrize(
    "arguments",
    [
        {"save_strategy": "no"},
        {"save_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 1},
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},
        {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "loss"},
        {"save_strategy": "epoch", "eval_strategy": "epoch"},
    ],
    ids=str,
)
def test_whatever_the_save_strategy_is_the_step_is_saved_once(
    place: Place, ec2: FaultyEc2, arguments: dict[str, object]
) -> None:
    with Job(place, ec2, alone(place, "--evaluate", "1", **arguments)) as job:
        status = preempt(job, ec2, count=7)

    assert step_of(job) >= 6
    assert status == 75


@pytest.mark.soak
def test_a_notice_while_it_imports_is_heard_when_the_callback_is_there(place: Place, ec2: FaultyEc2) -> None:
    with Job(place, ec2, under_torchrun(place)) as job:
        status = preempt(job, ec2, "importing", 1)

    assert step_of(job, ranks=2) <= 2
    assert status == 75


@pytest.mark.soak
def test_the_loss_goes_on_bit_by_bit_as_if_nothing_had_been(place: Place, ec2: FaultyEc2) -> None:
    with Job(place, ec2, alone(place, "--without", max_steps=150), "--no-wandb") as job:
        job.wait(PATIENCE)
    undisturbed = samples(job)
    for name in ("job.log", "job.journal"):
        (place.directory / name).unlink()
    with Job(place, ec2, alone(place, max_steps=150, dataloader_num_workers=2)) as first:
        preempt(first, ec2)
    before = samples(first)
    second, _ = again(place, ec2, alone(place, max_steps=150, dataloader_num_workers=2))

    assert len(before) < 150
    assert [*before, *samples(second)] == undisturbed


@pytest.mark.soak
def test_a_notice_in_the_last_step_has_it_saved_and_the_next_run_goes_on_behind_the_training(
    place: Place, ec2: FaultyEc2
) -> None:
    """4000 samples, 1000 a step."""
    arguments = {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 1000}
    with Job(place, ec2, alone(place, "--pace", "3", **arguments)) as first:
        first.await_said("batch", 3, PATIENCE)
        ec2.announcement.announce()
        status = first.wait(PATIENCE)
    stopped = step_of(first)
    second, ended = again(place, ec2, alone(place, **arguments))

    assert (stopped, status, ended) == (4, 75, 0)
    assert samples(second) == []
    assert len(second.said("returned")) == 1


@pytest.mark.soak
def test_a_notice_in_the_last_step_of_an_epoch_leaves_its_evaluation_to_the_next_run(
    place: Place, ec2: FaultyEc2
) -> None:
    """1000 samples a step, 4 steps an epoch."""
    each = {"eval_strategy": "epoch", "save_strategy": "epoch", "per_device_train_batch_size": 1000}
    arguments = {**BEST, **each, "num_train_epochs": 1, "max_steps": -1}
    with Job(place, ec2, alone(place, "--evaluate", "3", "--pace", "3", **arguments)) as first:
        first.await_said("batch", 3, PATIENCE)
        ec2.announcement.announce()
        status = first.wait(PATIENCE)
    stopped, predicted = step_of(first), first.said("predicted")
    second, ended = again(place, ec2, alone(place, "--evaluate", "3", **arguments))

    assert (stopped, status, ended) == (4, 75, 0)
    assert not predicted
    assert not second.said("batch")
    assert [line["step"] for line in second.said("predicted")] == [4] * 3
    assert [line["best"] for line in second.said("returned")] == ["out/checkpoint-4"]


@pytest.mark.soak
def test_a_training_that_has_ended_by_itself_is_done_and_a_later_notice_changes_nothing(
    place: Place, ec2: FaultyEc2
) -> None:
    with Job(place, ec2, alone(place, "--linger", "5", max_steps=3)) as job:
        status = preempt(job, ec2, "returned", 1)

    assert status == 0
    assert job.lines("told")


@pytest.mark.soak
def test_the_own_sigterm_checkpoint_of_the_trainer_leaves_a_notice_to_us(place: Place, ec2: FaultyEc2) -> None:
    """Its flag is up three seconds after the signal, in the middle of a step, and it would save before that step."""
    with Job(place, ec2, alone(place, "--pace", "5", enable_jit_checkpoint=True)) as job:
        job.await_said("batch", 1, PATIENCE)
        ec2.announcement.announce()
        (told,) = job.await_line("told")
        os.kill(int(str(told["pid"])), signal.SIGTERM)
        status = job.wait(PATIENCE)

    assert status == 75
    assert sorted(os.listdir(place.directory / "out")) == [f"checkpoint-{step_of(job)}"]


@pytest.mark.soak
def test_without_a_notice_the_own_sigterm_checkpoint_of_the_trainer_works_as_ever(place: Place, ec2: FaultyEc2) -> None:
    with Job(place, ec2, alone(place, enable_jit_checkpoint=True)) as job:
        job.await_said("batch", 3, PATIENCE)
        job.signal(signal.SIGTERM)
        status = job.wait(PATIENCE)

    assert len(os.listdir(place.directory / "out")) == 1
    assert len(job.said("returned")) == 1
    assert status == 0


@pytest.mark.soak
@pytest.mark.parametrize("said", ["batch", "predicted"])
def test_a_sigterm_to_the_dataloader_workers_as_slurm_sends_it_does_not_keep_us_from_saving(
    place: Place, ec2: FaultyEc2, said: str
) -> None:
    """They have six batches ready and are needed for the next ones: the trainer dies when they do."""
    options = ["--evaluate", "300", "--pace", "0.5"]
    arguments = {
        "dataloader_num_workers": 2,
        "eval_strategy": "steps",
        "eval_steps": 1 if said == "predicted" else 1000,
    }
    with Job(place, ec2, under_torchrun(place, *options, **arguments)) as job:
        job.await_said(said, 4, PATIENCE)
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in job.processes()}
        workers = [pid for pid, name in names.items() if name == "pt_data_worker"]
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        job.await_said(said, 4 + 2 * 10, PATIENCE)
        status = preempt(job, ec2, said, 1)

    assert len(workers) >= 4
    assert step_of(job, ranks=2) >= 1
    assert status == 75
