"""What is said while there is time to mend it."""

import pytest

from preemptd.model import Process
from preemptd.targets.reachability import Seen, warnings
from preemptd.targets.selection import select
from tests.snapshots import AUTO, process

CORE = process(13, 10, "/venv/wandb/bin/wandb-core --port-filename x", comm="wandb-core")
SHELL = process(10, 1, "bash job.sh")


def said(*processes: Process, in_part: bool = False) -> list[str]:
    selection = select(processes, processes[0].pid if processes else 10, AUTO, frozenset())
    return list(warnings(selection, AUTO.signals, Seen(anybody_listens=False, in_part=in_part)))


@pytest.mark.parametrize(
    "processes",
    [
        (),
        (SHELL,),
        (SHELL, CORE),
        (CORE,),
        (SHELL, process(11, 10, "python train.py", ["USR1"], state="Z")),
    ],
)
def test_nothing_is_said_of_a_job_of_which_everybody_has_just_ended(processes: tuple[Process, ...]) -> None:
    assert said(*processes) == []


@pytest.mark.parametrize("in_part", [False, True])
def test_a_training_that_handles_nothing_is_named(in_part: bool) -> None:
    (text,) = said(SHELL, process(11, 10, "python train.py"), in_part=in_part)

    assert text.startswith("nothing in this job handles SIGUSR1 or SIGTERM: python train.py (pid 11); ")


def test_a_launcher_that_waits_for_what_is_not_to_be_seen_is_warned_of_unless_others_tell_that() -> None:
    srun = process(11, 10, "srun python train.py")

    assert len(said(SHELL, srun)) == 1
    assert said(SHELL, srun, in_part=True) == []
