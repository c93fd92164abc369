"""Ways to survive a preemption on SLURM, each as its own documentation says; trainings write what trainer.py does."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import join

from tests.conftest import LAB
from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.supervised import watching

STEP = 0.1
EPOCH = 10
"""Steps from one call of wandb_preempt's step() to the next."""
LEAD = 60
"""Seconds that each asks for with --signal."""
SUBMITIT, WANDB_PREEMPT = "submitit==1.5.4", "wandb_preempt==0.1.0"

NOTES = f"""
import json, os, sys, time
def put(name, line):
    fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\\n")
    os.close(fd)
def note(event, step):
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    put("trainer-0", json.dumps({{"event": event, "step": step, "attempt": attempt, "mono": time.monotonic()}}))
def train(step):
    end = time.monotonic() + {STEP}
    while (left := end - time.monotonic()) > 0:  # a signal does not shorten it
        time.sleep(left)
    put("steps-0", f"{{os.environ.get('SLURM_RESTART_COUNT', '0')}} {{step}}")
"""

# argv: partition. Run once it submits itself; submitit then calls checkpoint() and, in the next attempt, __call__.
TRAINS_WITH_SUBMITIT = f"""{NOTES}
import submitit
class Training:
    step = 0
    def __call__(self):
        note("ready", self.step)
        while True:
            train(self.step + 1)
            self.step += 1
    def checkpoint(self):
        note("signal", self.step)
        note("saved", self.step)
        return submitit.helpers.DelayedSubmission(self)
executor = submitit.AutoExecutor(folder="submitit")
executor.update_parameters(slurm_partition=sys.argv[1], timeout_min=60, slurm_signal_delay_s={LEAD})
executor.update_parameters(slurm_additional_parameters={{"exclusive": True}})
print(executor.submit(Training()).job_id)
"""

TRAINS_WITH_WANDB_PREEMPT = f"""{NOTES}
import torch, wandb
from wandb_preempt import Checkpointer
class Noting(Checkpointer):
    def mark_preempted(self, *of_signal):
        note("signal", step)
        super().mark_preempted(*of_signal)
    def save_checkpoint(self, extra_info):
        super().save_checkpoint(extra_info)
        note("saved", step)
step = 0
run = os.environ["SLURM_JOB_ID"]
wandb.init(project="bench", id=run, resume="allow")
checkpointer = Noting(run, torch.nn.Linear(1, 1), None)
step = checkpointer.load_latest_checkpoint()[1].get("step", 0)
note("ready", step)
while True:
    for _ in range({EPOCH}):
        train(step + 1)
        step += 1
    checkpointer.step({{"step": step}})
"""

TRAP = """#!/bin/bash
mkdir -p checkpoints
{training} &
PID=$!
trap 'kill -USR1 $PID; wait $PID; scontrol requeue $SLURM_JOB_ID' USR1
wait $PID
"""

# As the package's own launch.sh: the training leaves its pid in a file, and requeues the job itself.
LAUNCH = """#!/bin/bash
handle() {{ kill -USR1 $(cat $SLURM_JOB_ID.pid); wait $CHILD; }}
trap handle USR1
export WANDB_MODE=offline WANDB_SILENT=true
srun {training} &
CHILD=$!
wait $CHILD
"""


@dataclass(frozen=True)
class Way:
    name: str
    submit: Callable[[Cluster, str], Job]
    """Takes the cluster and the partition."""


def _batch(script: str) -> Callable[[Cluster, str], Job]:
    options = ["--requeue", f"--signal=B:USR1@{LEAD}", "--exclusive"]
    return lambda cluster, partition: cluster.sbatch(script, *options, partition=partition)


def own_ways() -> list[Way]:
    """List us and the recipe, each around a training that catches both signals, and around one of SIGUSR1 alone."""
    found = []
    for names in ("USR1,TERM", "USR1"):
        training = trainer("--catch", names, f"--step-seconds={STEP}", "--checkpoints=checkpoints")
        shield = ["--shield-term"] if names == "USR1" else []
        watch = join(watching("--checkpoint-dir=checkpoints", *shield, training=training))
        ours = f"mkdir -p checkpoints\ntrap '' USR1 USR2 TERM\nexec {watch}\n"
        recipe = TRAP.format(training=join(training))
        only = " (training: USR1 only)" if names == "USR1" else ""
        found.append(Way(f"preemptd watch{' --shield-term' if shield else ''}{only}", _batch(ours)))
        found.append(Way(f"bash trap{only}", _batch(recipe)))
    return found


def peers(scratch: Path) -> list[Way]:
    """Install those that are packages into an environment of their own below *scratch*, where that is possible."""
    base = LAB / "torch" / "bin" / "python"
    python = scratch / "peers" / "bin" / "python"
    subprocess.run([str(base) if base.exists() else sys.executable, "-m", "venv", str(scratch / "peers")], check=True)
    found = []
    if _install(python, SUBMITIT):
        script = scratch / "train_with_submitit.py"
        script.write_text(TRAINS_WITH_SUBMITIT)
        found.append(Way(SUBMITIT.replace("==", " "), partial(_with_submitit, python, script)))
    if base.exists() and _install(python, "--no-deps", WANDB_PREEMPT):
        _lend(base, python)
        script = scratch / "train_with_wandb_preempt.py"
        script.write_text(TRAINS_WITH_WANDB_PREEMPT)
        found.append(
            Way(WANDB_PREEMPT.replace("==", " "), _batch(LAUNCH.format(training=join([str(python), str(script)]))))
        )
    return found


def _with_submitit(python: Path, script: Path, cluster: Cluster, partition: str) -> Job:
    home = cluster.job_directory()
    done = cluster.run([str(python), str(script), partition], directory=home)
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[-1]
    cluster.rows(fresh=True)
    return Job(cluster, number, home, home / "submitit" / f"{number}_0_log.out")


def _install(python: Path, *wanted: str) -> bool:
    done = subprocess.run([str(python), "-m", "pip", "install", "-qq", *wanted], check=False)
    if done.returncode != 0:
        print(f"not measured: {wanted[-1]} cannot be installed here", file=sys.stderr)
    return done.returncode == 0


def _lend(base: Path, python: Path) -> None:
    """Let *python* see what *base* has installed: torch is large."""
    ask = ["-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    theirs, own = (subprocess.check_output([str(each), *ask], text=True).strip() for each in (base, python))
    Path(own, "lent.pth").write_text(f"{theirs}\n")
