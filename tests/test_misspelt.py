"""Variables that were meant for us, and mean nothing as they stand."""

import subprocess
from pathlib import Path

import pytest

from preemptd.cli import misspelt
from preemptd.config import variables
from tests.watching import PREEMPTD, environment


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PREEMPTD_MAX_REQUEUS", "PREEMPTD_MAX_REQUEUES"),
        ("PREEMPTD_REQUEUEON", "PREEMPTD_REQUEUE_ON"),
        ("PREEMPTD_PROVIDERS", "PREEMPTD_PROVIDER"),
        ("PREEMPTD_CHECKPOINTS_DIR", "PREEMPTD_CHECKPOINT_DIR"),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours_is_named_with_it(name: str, meant: str) -> None:
    assert list(misspelt.warnings({name: "3"})) == [f"{name} is no setting of ours: is {meant} meant?"]


@pytest.mark.parametrize(
    "name",
    [
        *sorted(variables()),
        *(f"PREEMPTD_{name}" for name in ("SIGNAL_DIR", "ATTEMPT", "RESUMED", "EVENT_ID", "STEP", "STATUS", "SOURCE")),
        *("PREEMPTD_MYCLOUD_URL", "PREEMPTD_AZURE", "PREEMPTD_", "MAX_REQUEUS", "preemptd_grace"),
    ],
)
def test_what_is_ours_or_like_none_of_ours_is_not_spoken_of(name: str) -> None:
    assert list(misspelt.warnings({name: "3"})) == []


@pytest.mark.parametrize(("number", "said"), [("4711", 0), ("", 0), ("abc", 1), ("4711_3", 1), ("\u0663", 1)])
def test_a_job_id_that_is_no_number_is_said(number: str, said: int) -> None:
    texts = list(misspelt.warnings({"SLURM_JOB_ID": number}))

    assert [text.partition(" is no number: ")[2] for text in texts] == ["this is not taken for a SLURM job"] * said


def test_watch_says_it_once_and_runs_the_command(tmp_path: Path) -> None:
    env = environment({"PREEMPTD_MAX_REQUEUS": "3", "SLURM_JOB_ID": "abc"})
    run = subprocess.run(
        [*PREEMPTD, "watch", "--", "echo", "done"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    warnings = [line for line in run.stderr.splitlines() if "warning: " in line]

    assert run.stdout == "done\n"
    assert len(warnings) == 2
    assert "is PREEMPTD_MAX_REQUEUES meant?" in warnings[0]
