import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from preemptd.provider import Found, Machine
from preemptd.registry import choose, installed, load
from preemptd_providers.slurm.job import job_of
from preemptd_providers.slurm.provider import Slurm

TASK = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "12"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        (TASK, "12_3"),
        ({**TASK, "SLURM_JOB_ID": "15"}, "12_3"),
        ({**TASK, "SLURM_ARRAY_TASK_ID": "0"}, "12_0"),
        ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_JOB_ID": "12"}, "12"),
    ],
)
def test_until_squeue_has_named_it_the_id_is_the_environments(environ: Mapping[str, str], expected: str) -> None:
    job = job_of(environ)

    assert job is not None
    assert job.id == expected


@pytest.mark.parametrize("text", ["", "many", "12;rm", "-1", "12 13", "\N{ARABIC-INDIC DIGIT THREE}", "../12", "\0"])
def test_what_is_no_number_is_no_job(text: str) -> None:
    assert job_of({"SLURM_JOB_ID": text}) is None


@pytest.mark.parametrize(
    ("count", "restart"), [("", 0), ("0", 0), ("2", 2), ("many", 0), ("-1", 0), ("9" * 5000, 0), ("\u0663", 0)]
)
def test_the_restart_is_unset_in_the_first_run(count: str, restart: int) -> None:
    job = job_of({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": count})

    assert job is not None
    assert (job.restart, job.counted) == (restart, count in {"0", "2"})


@pytest.mark.parametrize(
    ("step", "in_step"),
    [("", False), ("0", True), ("7", True), ("batch", False), ("4294967291", False), ("4294967290", False)],
)
def test_the_batch_script_is_no_step_even_where_slurm_numbers_it_as_one(step: str, in_step: bool) -> None:
    job = job_of({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": step})

    assert job is not None
    assert job.in_step is in_step


@pytest.mark.parametrize(
    ("title", "variable", "in_step"),
    [
        ("slurmstepd: [12.batch]", "0", False),
        ("slurmstepd: [12.interactive]", "0", False),
        ("slurmstepd: [12.4294967291]", "0", False),
        ("slurmstepd: [12.0]", "", True),
        ("slurmstepd: [12+1.3]", "", True),
        ("slurmstepd", "0", True),
        ("bash", "", False),
    ],
)
def test_the_slurmstepd_above_knows_better_than_a_variable_that_sbatch_inherited(
    title: str, variable: str, in_step: bool
) -> None:
    """Sbatch in a step hands SLURM_STEP_ID on to the batch script of the new job."""
    asking = (
        "import os; from preemptd.nodes.wanted import is_wanted; from preemptd_providers.slurm.job import job_of; "
        "print(job_of(os.environ).in_step, is_wanted(os.environ))"
    )
    done = subprocess.run(
        [title, "-c", '"$1" -c "$2"; exit $?', "sh", sys.executable, asking],
        executable="/bin/sh",
        env={**os.environ, "SLURM_JOB_ID": "12", "SLURM_STEP_ID": variable},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.stdout.split() == [str(in_step), str(not in_step)], done.stderr


@pytest.mark.parametrize(
    ("node", "rank", "first"),
    [(None, None, True), ("0", "0", True), ("0", "1", False), ("1", "2", False), ("1", "0", False)],
)
def test_rank_0_of_node_0_speaks_for_the_whole_job(node: str | None, rank: str | None, first: bool) -> None:
    said = {"SLURM_JOB_ID": "12", "SLURM_NODEID": node, "SLURM_PROCID": rank}
    job = job_of({name: text for name, text in said.items() if text is not None})

    assert job is not None
    assert job.is_first is first


def test_it_is_detected_in_a_job_and_nowhere_else() -> None:
    detection = Slurm.detect(Machine(TASK))

    assert detection is not None
    assert (detection.found, detection.why) == (Found.ENVIRONMENT, "SLURM job 12_3")
    assert Slurm.detect(Machine({"SLURM_CONF": "/etc/slurm.conf"})) is None


def test_in_a_job_the_file_provider_stands_down_and_a_cloud_is_watched_too() -> None:
    machine = Machine(
        {"SLURM_JOB_ID": "12", "PREEMPTD_SIGNAL_DIR": "/x"}, {"sys_vendor": "Amazon EC2", "board_vendor": "Amazon EC2"}
    )
    names = [chosen.provider.name for chosen in choose(load(installed()), (), machine).chosen]

    assert "slurm" in names
    assert "ec2" in names
    assert "file" not in names
