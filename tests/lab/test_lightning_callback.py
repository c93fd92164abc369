"""Lightning's Trainer with our callback, for real: all ranks are told and save one step, the next run goes on."""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.lab import lightning_table
from tests.lab.launchers import GRACE, Job, Place
from tests.lab.lightning_jobs import LAUNCHERS, PATIENCE, SIGNALLED, TRAINER, Bare, alone, by_itself
from tests.lab.wandb_backend import WandbBackend
from tests.metadata_server import FaultyEc2
from tests.watching import environment, read_lines

pytestmark = pytest.mark.timeout(4 * PATIENCE)
FEW = ("--batches", "5", "--pace", "0.001")
VALIDATED = (*FEW, "--validation", "3")
MANY = ("--batches", "20000")
MOMENTS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object]]] = {
    "within an epoch": ("batch:7", FEW, {}),
    "at the last batch of an epoch": ("batch:5", FEW, {}),
    "within an epoch, with validations": ("batch:7", VALIDATED, {}),
    "at the last batch before a validation": ("batch:5", VALIDATED, {}),
    "in a validation": ("validated:5", VALIDATED, {}),
    "in a validation within an epoch": ("validated:4", VALIDATED, {"val_check_interval": 2}),
    "before gradients are applied": ("batch:3", FEW, {"accumulate_grad_batches": 2}),
    "in the sanity check": ("sanity:1", VALIDATED, {}),
}
"""Where a notice comes, and the training that it comes to."""

MENDED = """
import multiprocessing, os, resource, signal, subprocess, torch
import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from preemptd.integrations.lightning import PreemptionCallback, last_checkpoint

class Model(BoringModel):
    tell, seen = False, 0
    def training_step(self, batch, index):
        self.seen += 1
        if self.tell:
            os.kill(os.getpid(), signal.SIGUSR1)
        for worker in multiprocessing.active_children():
            subprocess.run(["kill", str(worker.pid)])
        return super().training_step(batch, index)

def began(worker):
    open(f"began-{worker}", "w").close()

def train(model, loader, **more):
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False)
    pl.Trainer(accelerator="cpu", max_steps=6, callbacks=[PreemptionCallback()], **quiet, **more).fit(model, loader)
    return model

try:
    last_checkpoint(pl.Trainer(callbacks=[PreemptionCallback], logger=False))
except ValueError as error:
    print(error)
loader = torch.utils.data.DataLoader(RandomDataset(32, 64), num_workers=2, worker_init_fn=began)
print(train(Model(), loader, limit_val_batches=0).seen, "batches beside 2 workers that had a SIGTERM")
pl.seed_everything(1, workers=True)
loader = torch.utils.data.DataLoader(RandomDataset(32, 64))
train(BoringModel(), loader, limit_val_batches=0)
print("seeded by", loader.worker_init_fn._init.func.__name__)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
model = Model()
model.tell = True
try:
    train(model, loader)
except Exception:
    print("not saved, and there lies", sorted(name for name in os.listdir(".") if name != "checkpoints"))
"""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=GRACE) as server:
        yield server


@pytest.fixture
def place(torch_python: str, tmp_path: Path) -> Place:
    return Place(tmp_path, torch_python, lambda name: name)


def preempt(job: Job, ec2: FaultyEc2) -> int:
    """Let the notice come when all ranks train; return the exit status of `preemptd watch`."""
    job.await_said("batch", 8, PATIENCE)
    ec2.announcement.announce()
    return job.wait(PATIENCE)


def step_of(job: Job, path: Path, ranks: int = 2) -> int:
    """Return the step that was saved after the notice, by all ranks and only once, with what belongs to that."""
    context = (job.out, job.err, job.said(), job.lines())
    once = dict.fromkeys(job.pids("ready"), 1)
    assert len(once) == ranks, context
    assert job.pids("told") == once, context
    assert {line["how"] for line in job.lines("told")} == {"link"}, context
    assert not job.lines("escalated"), context
    for acknowledged in ("seen", "saving", "saved"):
        assert job.acknowledgements(acknowledged) == once, context
    assert {line["path"] for line in job.lines("saved")} == {str(path)}, context
    assert path.exists(), context
    assert not job.said("returned"), context
    (step,) = {int(str(line["step"])) for line in job.lines("saved")}
    return step


def again(place: Place, ec2: FaultyEc2, command: Sequence[str]) -> tuple[Job, int]:
    """Start the next attempt on a machine that is not going away; return it with the status it ended with."""
    ec2.announcement.revoke()
    for name in ("job.log", "job.journal"):
        (place.directory / name).unlink()
    with Job(place, ec2, command) as job:
        return job, job.wait(PATIENCE)


def samples(job: Job, rank: int) -> list[tuple[int, list[int]]]:
    """List step and samples of each batch of *rank*."""
    mine = [line for line in job.said("batch") if line["rank"] == rank]
    return [(int(str(line["step"])), json.loads(str(line["samples"]))) for line in mine]


def seen(lines: Sequence[Mapping[str, object]]) -> list[tuple[object, ...]]:
    """List what was trained and validated, in its order, each thing once: a validation is begun anew."""
    every = [line for line in lines if line["what"] in {"batch", "validated"}]
    return list(dict.fromkeys(tuple(line[name] for name in ("what", "epoch", "index", "step")) for line in every))


def goes_on(place: Place, ec2: FaultyEc2, launcher: str, *more: str) -> tuple[Counter[int], Counter[int]]:
    build = LAUNCHERS[launcher]
    checkpoint = place.directory / "checkpoints" / "last-preempted.ckpt"
    options = ("--checkpoints", str(checkpoint.parent), *MANY)
    with WandbBackend() as backend:
        with Job(place, ec2, build(place, *options, "--wandb", *more), env=backend.env()) as first:
            status = preempt(first, ec2)
        (run,) = backend.runs()
        marks, codes = len(backend.preempting(run)), backend.exit_codes(run)
    stopped, said = step_of(first, checkpoint), (first.pids("done"), first.pids("undone"))
    before = {rank: samples(first, rank) for rank in (0, 1)}
    second, end = again(place, ec2, build(place, *options, max_steps=stopped + 3))
    after = {rank: samples(second, rank) for rank in (0, 1)}

    assert (status, end) == (75, 0), (first.err, second.err)
    assert marks >= 1
    assert codes
    assert 0 not in codes
    for rank in (0, 1):
        assert [step for step, _ in before[rank]] == list(range(stopped))
        assert [step for step, _ in after[rank]] == [stopped, stopped + 1, stopped + 2]
    trained = [sample for batches in (*before.values(), *after.values()) for _, batch in batches for sample in batch]
    assert len(set(trained)) == len(trained) == 4 * (stopped + 3)  # in an order of Lightning's, none of them twice
    assert not checkpoint.exists()  # training has come to its end
    return said


def test_under_torchrun_with_workers_all_ranks_save_one_step_and_the_next_run_goes_on_with_the_next_batch(
    place: Place, ec2: FaultyEc2
) -> None:
    done, undone = goes_on(place, ec2, "torchrun", "--before")

    assert set(done.values()) == {1}
    assert (len(done), done) == (2, undone)  # the fit() before was, this one is not


@pytest.mark.soak
def test_started_by_lightning_itself_all_ranks_save_one_step_and_the_next_run_goes_on_with_the_next_batch(
    place: Place, ec2: FaultyEc2
) -> None:
    goes_on(place, ec2, "Lightning's own launcher")


def test_wherever_a_notice_comes_the_next_run_trains_as_one_that_was_never_interrupted(place: Place) -> None:
    sessions = []
    for moment, (tell, options, arguments) in MOMENTS.items():
        for name, more in (("plain", []), ("told", ["--tell", tell]), ("told", [])):
            directory = place.directory / moment.replace(" ", "-") / name
            directory.mkdir(parents=True, exist_ok=True)
            sessions.append(json.dumps([str(directory), json.dumps(arguments), *options, *more]))
    command = [place.python, TRAINER, "--sessions"]
    env = environment({"OMP_NUM_THREADS": "1", "LOG": str(place.directory / "log")})
    done = subprocess.run(
        command, input="\n".join(sessions), env=env, capture_output=True, text=True, check=False, timeout=300
    )

    assert done.returncode == 0, done.stderr
    for moment in MOMENTS:
        plain, told = (
            read_lines(place.directory / moment.replace(" ", "-") / name / "job.log") for name in ("plain", "told")
        )
        assert [line["status"] for line in told if line["what"] == "ended"] == [75, 0], (moment, told, done.stderr)
        assert seen(told) == seen(plain), moment
        assert told[-2]["what"] == "returned", moment
        assert told[-2]["weight"] == plain[-2]["weight"], moment
        assert len([line for line in told if line["what"] == "saving"]) == (moment != "in the sanity check"), moment


def signalled(place: Place, launcher: str, whom: str) -> None:
    checkpoint = place.directory / "last-preempted.ckpt"
    with Bare(place, LAUNCHERS[launcher](place, *MANY)) as job:
        job.terminate(SIGNALLED[whom])
        status = job.ended(PATIENCE)

    saved = {line["rank"]: (line["step"], line["weight"]) for line in job.said("saving")}
    assert status == (0 if launcher == "torchrun" else 75), (job.err, job.said())
    assert saved.keys() == {0, 1}
    assert saved[0] == saved[1]
    assert len(job.said("saving")) == 2
    assert checkpoint.exists()
    assert not job.said("returned")


def test_a_sigterm_to_one_rank_only_without_a_daemon_has_all_ranks_save_and_none_hangs(place: Place) -> None:
    signalled(place, "Lightning's own launcher", "rank 1 only")


@pytest.mark.soak
@pytest.mark.parametrize("whom", SIGNALLED)
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("_time", range(3))
def test_whoever_gets_a_sigterm_and_however_often_none_hangs(
    place: Place, launcher: str, whom: str, _time: int
) -> None:
    signalled(place, launcher, whom)


def stopped(place: Place, ec2: FaultyEc2, command: Sequence[str], ranks: int) -> None:
    with Job(place, ec2, command) as job:
        job.await_said("batch", 4 * ranks, PATIENCE)
        job.signal(signal.SIGTERM)
        status = job.wait(PATIENCE)

    assert status == 143, (job.err, job.said())  # the script's own
    assert not job.lines("notice")
    assert len({(line["step"], line["path"]) for line in job.lines("saved")}) == 1
    assert len(job.pids("saved")) == ranks
    assert (place.directory / "last-preempted.ckpt").exists()


def test_a_sigterm_to_preemptd_watch_is_no_preemption_but_the_training_saves_and_leaves(
    place: Place, ec2: FaultyEc2
) -> None:
    stopped(place, ec2, alone(place, *MANY), 1)


@pytest.mark.soak
def test_a_sigterm_to_preemptd_watch_reaches_the_first_rank_and_all_of_them_save_and_leave(
    place: Place, ec2: FaultyEc2
) -> None:
    stopped(place, ec2, by_itself(place, *MANY), 2)


def test_workers_are_shielded_beside_their_own_start_and_a_full_disk_leaves_no_part_of_a_checkpoint(
    torch_python: str, tmp_path: Path
) -> None:
    env = environment({"OMP_NUM_THREADS": "1"})
    command = [torch_python, "-c", MENDED]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "give the Trainer our callback, an instance of it: Trainer(callbacks=[PreemptionCallback()])",
        "6 batches beside 2 workers that had a SIGTERM",
        "seeded by pl_worker_init_function",
        "not saved, and there lies ['began-0', 'began-1']",
    ]


def test_the_page_shows_the_whole_table_of_sigterms_as_it_was_played() -> None:
    rows = lightning_table.shown()

    assert [tuple(row[:2]) for row in rows] == list(lightning_table.ROWS)
    for row in rows:
        assert row[-1] == lightning_table.SAVED


@pytest.mark.soak
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_without_the_callback_a_sigterm_to_one_rank_only_hangs_as_the_page_says(
    torch_python: str, launcher: str
) -> None:
    assert torch_python == lightning_table.PYTHON
    alone, _ours = lightning_table.WAYS

    assert lightning_table.played(launcher, "rank 1 only", alone) == "lost, hung"
