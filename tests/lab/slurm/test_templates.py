"""docs/examples/slurm works as it stands, and docs/slurm.md shows what it prints; all templates run side by side."""

import dataclasses
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.slurm import walkthrough
from tests.lab.slurm.cluster import PATH, Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job, trainer
from tests.lab.slurm.side_by_side import SideBySide
from tests.lab.slurm.walkthrough import EPOCHS, EXAMPLES, PAGE, PATIENCE, RATES, Blocks, shapes, submit
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_sweeps import Sweep

pytestmark = [pytest.mark.xdist_group("slurm-templates"), pytest.mark.timeout(400)]
QUIET = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
TEMPLATES = sorted(path for path in (EXAMPLES / "slurm").rglob("*") if path.suffix in {".sbatch", ".sh"})
SHOWN = {name: text for _, name, text, _ in walkthrough.BLOCK.findall(PAGE.read_text())}


@dataclasses.dataclass(frozen=True)
class Told:
    """What one template came to."""

    jobs: Sequence[Job]
    backend: WandbBackend
    blocks: Blocks = dataclasses.field(default_factory=dict)
    sweep: Sweep | None = None


def one_node(cluster: Cluster, backend: WandbBackend) -> Told:
    job, blocks = walkthrough.drill(cluster, backend)
    return Told([job], backend, blocks)


def sweep(cluster: Cluster, backend: WandbBackend) -> Told:
    tasks, server, blocks = walkthrough.sweep(cluster, backend)
    return Told(tasks, backend, blocks, server)


def array(cluster: Cluster, backend: WandbBackend) -> Told:
    tasks = submit(cluster, "slurm/array.sbatch", files=["train.py"], env=QUIET)
    for task in tasks:
        task.wait_output("step 500 ", timeout=PATIENCE)
    preempt_and_resume(cluster, tasks[-1])
    untouched = tasks[0].output
    cluster.scancel(tasks[0].id.partition("_")[0])
    for task in tasks:
        task.wait_over(PATIENCE)
    return Told(tasks, backend, {"first task": untouched})


def several_nodes(cluster: Cluster, backend: WandbBackend, torch_python: str) -> Told:
    env = {**QUIET, "PATH": f"{Path(torch_python).parent}:{PATH}"}
    (job,) = submit(cluster, "slurm/several-nodes.sbatch", files=["train_ddp.py"], env=env)
    job.wait_output("step 500 ", timeout=PATIENCE)
    preempt_and_resume(cluster, job)
    cluster.scancel(job)
    job.wait_over(PATIENCE)
    return Told([job], backend)


def preempted_early(cluster: Cluster, backend: WandbBackend) -> Told:
    """Something slow stands in the batch script before preemptd, and SLURM will not requeue: PreemptMode=CANCEL."""
    script = (
        "trap '' USR1 USR2 TERM\necho early\nuntil [ -e go ]; do sleep 0.1; done\nexec preemptd watch --no-wandb -- "
    )
    job = cluster.sbatch(script + " ".join(trainer("--steps", "1")), "--requeue", partition="lowkill")
    job.wait_output("early", timeout=PATIENCE)
    job.wait_for("RUNNING", timeout=PATIENCE)
    preemptor = cluster.preempt(job)
    job.until(lambda: job.row.preempt_time, PATIENCE, "the grace")
    (job.directory / "go").touch()
    job.until(lambda: job.restarts == 1, PATIENCE, "the requeue")
    cluster.release(preemptor)
    job.wait_over(PATIENCE)
    return Told([job], backend)


def preempt_and_resume(cluster: Cluster, job: Job) -> None:
    preemptor = cluster.preempt(job)
    job.until(lambda: job.restarts == 1, PATIENCE, "the requeue")
    cluster.release(preemptor)
    job.wait_output("resumed from", timeout=PATIENCE)


@pytest.fixture(scope="module")
def told(make_cluster: Callable[[Options], Cluster], torch_python: str) -> Iterator[SideBySide[str, Told]]:
    stories: Mapping[str, Callable[[Cluster, WandbBackend], Told]] = {
        "one_node": one_node,
        "array": array,
        "several_nodes": functools.partial(several_nodes, torch_python=torch_python),
        "sweep": sweep,
        "preempted_early": preempted_early,
    }
    with ExitStack() as stack:
        cluster = make_cluster(walkthrough.cluster_options())
        backends = {name: stack.enter_context(WandbBackend()) for name in stories}
        yield SideBySide(lambda name: stories[name](cluster, backends[name]), stories)


def saved_and_resumed(job: Job) -> tuple[list[str], list[str]]:
    saved, resumed = (re.findall(rf"^{word} (\S+)$", job.output, re.MULTILINE) for word in ("saved", "resumed from"))
    return saved, resumed


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_each_template_has_the_three_lines_and_hands_over_to_preemptd(path: Path) -> None:
    text = path.read_text()
    checked = subprocess.run(["bash", "-n", str(path)], check=False, capture_output=True, text=True)

    assert "#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --signal=B:USR1@120\n" in text
    assert re.search(r"^trap '' USR1 USR2 TERM ", text, re.MULTILINE)
    assert re.findall(r"^\w+", text, re.MULTILINE)[-1] == "exec"
    assert checked.stderr == ""


@pytest.mark.parametrize(("story", "of"), [("one_node", 0), ("array", 1), ("several_nodes", 0)])
def test_a_template_saves_is_requeued_and_goes_on_from_there(told: SideBySide[str, Told], story: str, of: int) -> None:
    job = told[story].jobs[of]
    saved, resumed = saved_and_resumed(job)

    assert resumed == saved[:1]
    assert job.restarts == 1
    assert re.fullmatch(rf"checkpoints/{job.id}/step-\d+\.\w+", resumed[0])


def test_the_wb_run_of_a_requeued_job_is_marked_and_goes_on(told: SideBySide[str, Told]) -> None:
    backend = told["one_node"].backend
    (run,) = backend.runs()
    steps = [int(json.loads(line)["_step"]) for line in backend.lines(run, "wandb-history.jsonl")]

    assert backend.preempting(run), told["one_node"].jobs[0].output
    assert backend.exit_codes(run)[0] == 75
    assert steps == list(range(1, len(steps) + 1))


def test_no_other_task_of_an_array_is_touched(told: SideBySide[str, Told]) -> None:
    array = told["array"]

    assert array.jobs[0].restarts == 0
    assert "NOTICE" not in array.blocks["first task"]


def test_each_rank_of_several_nodes_is_told_once(told: SideBySide[str, Told]) -> None:
    first_attempt = told["several_nodes"].jobs[0].output.partition("exit 75")[0]
    ranks = re.findall(r"^preemptd: ((?:n\d+: )?told pid \d+)", first_attempt, re.MULTILINE)

    assert len(ranks) == len(set(ranks)) == 2


def test_a_job_that_is_preempted_before_its_training_began_comes_back(told: SideBySide[str, Told]) -> None:
    (job,) = told["preempted_early"].jobs

    assert (job.state, job.restarts) == ("COMPLETED", 1)
    assert "exit 75: preempted before it was started; requeued job" in job.output


def test_a_preempted_run_of_the_sweep_is_given_out_again_and_each_epoch_is_trained_once(
    told: SideBySide[str, Told],
) -> None:
    about = told["sweep"]
    assert about.sweep is not None
    had = [run for job in about.jobs for run in walkthrough.runs_of(job)]
    (again,) = (run_id for _, kind, run_id in about.sweep.handed if kind == "resume")

    assert [(job.state, job.restarts) for job in about.jobs] == [("COMPLETED", 1), ("COMPLETED", 0), ("COMPLETED", 0)]
    assert walkthrough.runs_of(about.jobs[0])[0] == again
    assert sorted(had) == sorted([*RATES, again])
    for run in RATES:
        assert about.backend.exit_codes(run) == ([75, 0] if run == again else [0])
        assert len(about.backend.preempting(run)) == (run == again)
        assert walkthrough.epochs_logged(about.sweep, run) == list(range(1, EPOCHS + 1))
    assert about.backend.unknown() == []


@pytest.mark.parametrize("block", SHOWN)
def test_the_output_that_the_page_shows_is_what_is_printed(told: SideBySide[str, Told], block: str) -> None:
    printed = told["one_node" if block == "drill" else "sweep"].blocks[block]

    assert shapes(SHOWN[block]) <= shapes(printed), f"{printed}python -m tests.lab.slurm.walkthrough writes it anew"


def test_the_page_shows_the_template_of_one_node_and_every_block_that_is_played() -> None:
    template = (EXAMPLES / "slurm" / "one-node.sbatch").read_text()

    assert f"```sh\n{template}```" in PAGE.read_text()
    assert SHOWN.keys() == {"drill", "queue", "preempted", "finished", "runs"}
    assert re.search(r"^k3v9x2ab .* (\d+)_0, \1_2 ", SHOWN["runs"], re.MULTILINE), "the text says that it was so"
