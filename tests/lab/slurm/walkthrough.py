"""The templates of docs/examples/slurm, played on a cluster, and the output that docs/slurm.md shows of them.

`python -m tests.lab.slurm.walkthrough` (as root) plays them, and writes what they print today into the page.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import OVER, Job
from tests.lab.slurm.side_by_side import SideBySide
from tests.lab.wandb_backend import ENTITY, WandbBackend
from tests.lab.wandb_sweeps import SWEEP, Sweep

EXAMPLES = ROOT / "docs" / "examples"
PAGE = ROOT / "docs" / "slurm.md"
BLOCK = re.compile(r"(<!-- played: (\w+) -->\n```\n)(.*?)(```\n<!-- /played -->)", re.DOTALL)
RATES = {"k3v9x2ab": 0.03, "p7d1m5qe": 0.1, "c8w4t6zn": 0.3}
"""The grid of sweep.yaml; the ids are ours."""
EPOCHS = 8
"""Instead of the 60 of sweep.yaml."""
PATIENCE = 150.0
"""Seconds; all of it takes less than a minute on a machine that has nothing else to do."""
LEFT_OUT = re.compile(r"wandb_agent - INFO|^\t(rate|epochs): |^wandb: |^slurmstepd-|warning: ")
"""The log of W&B's agent, and lines that come now and then."""
Blocks = Mapping[str, str]


def cluster_options() -> Options:
    """Describe a cluster on which each task has a node of its own."""
    return Options(nodes=10, cpus=1)


def submit(
    cluster: Cluster, template: str, *arguments: str, files: Sequence[str], env: Mapping[str, str]
) -> Sequence[Job]:
    """Do as a user does: copy the files into one directory, and say `sbatch` there. Return the job, or its tasks."""
    directory = cluster.job_directory()
    for name in (template, *files):
        shutil.copy(EXAMPLES / name, directory)
    path = directory / Path(template).name
    submitted = cluster.run(["sbatch", "--parsable", path.name, *arguments], directory=directory, env=env)
    assert submitted.returncode == 0, submitted.stderr
    cluster.rows(fresh=True)
    job_id = submitted.stdout.strip()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", path.read_text(), re.MULTILINE))
    output = options["output"].replace("%x", options["job-name"]).replace("%j", job_id).replace("%A", job_id)
    if "array" not in options:
        return [Job(cluster, job_id, directory, directory / output)]
    tasks = range(int(options["array"].partition("-")[2].partition("%")[0]) + 1)
    return [Job(cluster, f"{job_id}_{n}", directory, directory / output.replace("%a", str(n))) for n in tasks]


def squeue(job: Job, *options: str) -> str:
    """Ask as the user does."""
    command = ["squeue", "--me", "--job", job.id.partition("_")[0], *options]
    return " ".join(["$ squeue --me", *options]) + "\n" + job.cluster.run(command).stdout


def said(job: Job, begin: str, end: str) -> str:
    """Return the job's output from the first line with *begin* to the last one with *end*."""
    lines = [line for line in job.output.splitlines() if not LEFT_OUT.search(line)]
    first = next(number for number, line in enumerate(lines) if begin in line)
    last = max(number for number, line in enumerate(lines) if end in line)
    return "".join(f"{line}\n" for line in lines[first : last + 1])


def drill(cluster: Cluster, backend: WandbBackend) -> tuple[Job, Blocks]:
    """Play what the page tells its reader to try first."""
    (job,) = submit(cluster, "slurm/one-node.sbatch", files=["train.py"], env=backend.env())
    job.wait_output("step 500 ", timeout=PATIENCE)
    # A run is known within 5 s; before that, one whose training ends as soon as it was told may be missed.
    (run,) = backend.runs()
    job.until(lambda: run in cluster.run(["preemptd", "status", "--json"]).stdout, PATIENCE, "the run is known")
    drilled = cluster.run(["scancel", "-b", "-s", "USR1", job.id])
    assert drilled.returncode == 0, drilled.stderr
    job.wait_output("resumed from", timeout=PATIENCE)
    job.wait_output("step ", job.output.count("step ") + 1, timeout=PATIENCE)
    cluster.scancel(job)
    job.wait_over(PATIENCE)
    shown = f"$ scancel -b -s USR1 {job.id}\n{said(job, 'NOTICE', 'resumed from')}"
    return job, {"drill": shown}


def sweep(cluster: Cluster, backend: WandbBackend) -> tuple[Sequence[Job], Sweep, Blocks]:
    """Play the walk-through: three runs, two at a time, and one of them is preempted."""
    server = Sweep(backend, [], list(RATES))
    server.args_of = {run: {"rate": {"value": rate}, "epochs": {"value": EPOCHS}} for run, rate in RATES.items()}
    made = cluster.run(["wandb", "sweep", "sweep.yaml"], directory=_sweep_files(cluster), env=_loud(backend))
    path = f"{ENTITY}/project/{SWEEP}"
    files = [f"slurm/sweep/{name}" for name in ("sweep.yaml", "train.py")]
    tasks = submit(cluster, "slurm/sweep/launch.sh", path, files=files, env=backend.env())
    begun = f"$ wandb sweep sweep.yaml\n{made.stderr}$ sbatch launch.sh {path}\n"
    begun += f"Submitted batch job {tasks[0].id.partition('_')[0]}\n"
    for job in tasks[:2]:
        job.wait_output("begins after", timeout=PATIENCE)
    begun += squeue(tasks[0])
    preempted = _preempt(cluster, tasks)
    for job in tasks:
        job.wait_over(PATIENCE)
    finished = f"$ cat {_file(tasks[2])}\n{said(tasks[2], 'begins after', 'saved after')}"
    finished += f"$ tail {_file(tasks[0])}\n{_last(tasks[0])}{squeue(tasks[0], '--states=all')}"
    return tasks, server, {"queue": begun, "preempted": preempted, "finished": finished, "runs": _table(tasks, server)}


def _sweep_files(cluster: Cluster) -> Path:
    directory = cluster.job_directory()
    shutil.copy(EXAMPLES / "slurm" / "sweep" / "sweep.yaml", directory)
    return directory


def _loud(backend: WandbBackend) -> Mapping[str, str]:
    return {**backend.env(), "WANDB_SILENT": "false"}


def _preempt(cluster: Cluster, tasks: Sequence[Job]) -> str:
    """Take the node of the first task away in the middle of its run; return when another one has taken the run."""
    run = runs_of(tasks[0])[0]
    tasks[0].until(lambda: epoch_of(tasks[0], run) >= 1, PATIENCE, "an epoch")
    preemptor = cluster.preempt(tasks[0])
    tasks[0].wait_for("PENDING", timeout=PATIENCE)
    tasks[2].wait_for("RUNNING", *OVER, timeout=PATIENCE)
    shown = f"$ cat {_file(tasks[0])}\n{said(tasks[0], 'begins after', 'exit 75')}{squeue(tasks[0])}"
    cluster.release(preemptor)
    return shown


def _file(job: Job) -> str:
    return f"sweep-{job.id}.out"


def _last(job: Job) -> str:
    """Return what the training of the job's last attempt said."""
    return said(job, f"run {runs_of(job)[-1]}, rate", "saved after")


def runs_of(job: Job) -> Sequence[str]:
    """List the runs that *job* had, in order."""
    return re.findall(r"^run (\w+), rate", job.output, re.MULTILINE)


def _lives(job: Job, run: str) -> Sequence[tuple[int, str]]:
    """List (epoch, job) of each time that *run* began in *job*."""
    begun = re.findall(rf"^run {run}, rate .*: begins after epoch (\d+)$", job.output, re.MULTILINE)
    return [(int(epoch), job.id) for epoch in begun]


def epoch_of(job: Job, run: str) -> int:
    state = job.file(f"checkpoints/{run}/state.json")
    return int(json.loads(state)["epoch"]) if state else 0


def epochs_logged(server: Sweep, run: str) -> Sequence[int]:
    """List the steps of *run* in the history that W&B has, in the order in which they came."""
    return [int(json.loads(line)["_step"]) for line in server.backend.lines(run, "wandb-history.jsonl")]


def _table(tasks: Sequence[Job], server: Sweep) -> str:
    """Say what became of each run, by what W&B's server got."""
    rows = [("run", "rate", "in jobs", "marked", "exit codes", "epochs in its history", "state")]
    for run, rate in RATES.items():
        had = [job_id for _, job_id in sorted(pair for job in tasks for pair in _lives(job, run))]
        codes = ", ".join(map(str, server.backend.exit_codes(run)))
        marks, epochs = len(server.backend.preempting(run)), " ".join(map(str, epochs_logged(server, run)))
        rows.append((run, str(rate), ", ".join(had), str(marks), codes, epochs, server.state(run)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def shape(line: str) -> str:
    """Return *line* without what is another each time."""
    line = re.sub(r"\brun [a-z0-9]{8}\b", "run #", line)
    line = re.sub(r"NOTICE from slurm: .*", "NOTICE", line)
    # Marked while it still ran, or afterwards: who is first, its training or squeue's word on what the notice means?
    line = re.sub(r"(W&B run #) (marked|mended).*", r"\1 marked", line)
    line = re.sub(r"\d+_\d+(, \d+_\d+)+", "#_#", line)  # the next to ask may be the same job
    line = re.sub(r"\b[A-Z]+\)$|\bR\b|\bCG\b|\bn\d+$", "#", re.sub(r"\(\w+\)$", "#", line))
    return " ".join(re.sub(r"[\d.]+", "#", line).split())


def shapes(text: str) -> set[str]:
    return {shape(line) for line in text.splitlines()}


def play() -> Blocks:
    with WandbBackend() as drilled, WandbBackend() as swept, Cluster(cluster_options()) as cluster:
        stories = {"drill": lambda: drill(cluster, drilled)[-1], "sweep": lambda: sweep(cluster, swept)[-1]}
        told = SideBySide(lambda name: stories[name](), stories)
        return {**told["drill"], **told["sweep"]}


def main() -> None:
    played = play()
    PAGE.write_text(BLOCK.sub(lambda match: match[1] + played[match[2]] + match[4], PAGE.read_text()))


if __name__ == "__main__":
    main()
