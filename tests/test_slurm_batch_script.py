"""What is said of a batch script that keeps SLURM's signals from preemptd; `exec -a` plays slurmstepd."""

import os
from pathlib import Path

import pytest

from tests.slurm_world import JOB, SlurmWorld
from tests.waiting import wait_until
from tests.watching import Watch, trainer

SLURMSTEPD = """exec -a "$0" sh -c '"$@"; exit $?' sh "$@" """
BATCH = "slurmstepd: [12.batch]"
WISH = "#!/bin/bash\n#SBATCH --requeue\n#SBATCH --time=60 --signal=B:USR1@120\n"
NO_WISH = "#!/bin/bash\n#SBATCH --signal=USR1@120\n"
RUN = '"$@"; exit $?'
TRAP = f"trap '' USR1; {RUN}"


def warnings(directory: Path, program: str, script: str = WISH, title: str = BATCH, **environ: str) -> str:
    """Start preemptd by *program*, a batch script, below a process with this *title*; return what it warns of."""
    world = SlurmWorld(directory)
    world.say(write=script, job=JOB.replace("Requeue=1", "Requeue=0"))  # that is said at last
    env = {**world.environ(**environ), "PATH": f"{world.bin}{os.pathsep}{os.environ['PATH']}"}
    shells = ("bash", "-c", SLURMSTEPD, title, "bash", "-c", program, "script")
    with Watch(directory, trainer("USR1"), "--no-wandb", env=env, before=shells) as watch:
        watch.await_said("ready")
        wait_until(lambda: "will not be requeued" in said(watch), 30)
        return said(watch)


def said(watch: Watch) -> str:
    return " ".join(str(line["text"]) for line in watch.lines("warning"))


def test_a_trap_without_exec_keeps_the_signal_from_us(tmp_path: Path) -> None:
    text = warnings(tmp_path, TRAP)

    assert "the batch script's own process (bash, pid " in text
    assert "ignores SIGUSR1: --signal=B:USR1 reaches nobody. Make `exec preemptd watch ...` the script's last" in text


def test_without_signal_a_trap_keeps_the_drill_from_us(tmp_path: Path) -> None:
    assert "ignores SIGUSR1: what `scancel -b` sends reaches nobody" in warnings(tmp_path, TRAP, NO_WISH)


def test_without_a_trap_the_job_dies_of_the_signal(tmp_path: Path) -> None:
    text = warnings(tmp_path, RUN)

    assert "will die of SIGUSR1, which its --signal asks for, and the job with it: make `trap '' USR1` its" in text


@pytest.mark.parametrize(
    ("program", "script", "title"),
    [
        (f"trap '' USR1; exec {RUN}", WISH, BATCH),
        (f"trap 'echo told' USR1; {RUN}", WISH, BATCH),
        (RUN, NO_WISH, BATCH),
        (RUN, "", BATCH),
        (TRAP, WISH, "bash"),
        (TRAP, WISH, "slurmstepd: [13.batch]"),
    ],
    ids=["exec", "a trap that does something", "no such wish", "unknown", "nothing to be seen", "another job"],
)
def test_where_nothing_is_lost_for_sure_nothing_is_said(tmp_path: Path, program: str, script: str, title: str) -> None:
    assert "SIGUSR1" not in warnings(tmp_path, program, script, title)


def test_of_a_step_the_script_that_waits_for_its_srun_is_looked_at(tmp_path: Path) -> None:
    step = """exec -a "slurmstepd: [12.0]" sh -c '"$@"; exit $?' sh "$@" """
    (tmp_path / "step").write_text(step)
    text = warnings(tmp_path, f'trap "" USR1; bash {tmp_path}/step "$@"; exit $?')

    assert "Make `exec srun preemptd watch ...` the script's last line" in text
