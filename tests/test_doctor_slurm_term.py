"""`preemptd doctor` on those that die of SLURM's own first SIGTERM, though they would be told by SIGUSR1."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.doctors import Diagnosis, doctor, running
from tests.linking import short_directory
from tests.test_doctor_slurm import IN_A_JOB, PARTITION, Slurm
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

IN_A_STEP = {**IN_A_JOB, "SLURM_STEP_ID": "0"}
NO_GRACE, GRACE = PARTITION.format("low", 0, "REQUEUE"), PARTITION.format("low", 120, "REQUEUE")


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    directory = tmp_path / "slurm"
    directory.mkdir()
    slurm = Slurm(directory)
    slurm.config(SlurmctldParameters="(null)")
    return slurm


def of(slurm: Slurm, how: str, env: Mapping[str, str], *before: str) -> Diagnosis:
    environment = slurm.environment(env)
    with running([*before, *trainer(how)], env=environment) as job:
        return doctor(job.pid, env={"PATH": environment["PATH"]})


@pytest.mark.parametrize(
    ("partition", "env", "words"),
    [
        (NO_GRACE, IN_A_JOB, "to every process of the job here (GraceTime=0)"),
        (NO_GRACE, IN_A_STEP, "to every process of the job here (GraceTime=0)"),
        (PARTITION.format("low", 0, "CANCEL"), IN_A_JOB, "to every process of the job here (GraceTime=0)"),
        (GRACE, IN_A_STEP, "to every process that srun has started"),
    ],
)
def test_a_training_that_handles_another_signal_alone_dies_of_slurms_own(
    slurm: Slurm, partition: str, env: Mapping[str, str], words: str
) -> None:
    slurm.says("partition", partition)
    found = of(slurm, "USR1", env)

    assert found.status == 1
    assert (
        f"handles SIGUSR1, not SIGTERM: a preemption begins with SIGTERM {words}"
        in (found.finding("dies-of-sigterm")["text"])
    )
    assert found.said["text"].startswith("LOST: pid ")


@pytest.mark.parametrize(
    ("partition", "how", "env", "before"),
    [
        (NO_GRACE, "both", IN_A_JOB, ()),
        (NO_GRACE, "TERM", IN_A_JOB, ()),
        (NO_GRACE, "USR1", IN_A_JOB, ("bash", "-c", 'trap "" TERM; exec "$@"', "bash")),
        (GRACE, "USR1", IN_A_JOB, ()),
        (GRACE, "both", IN_A_STEP, ()),
        (PARTITION.format("low", 0, "OFF"), "USR1", IN_A_STEP, ()),
        (PARTITION.format("low", 0, "SUSPEND"), "USR1", IN_A_STEP, ()),
    ],
)
def test_a_training_that_lives_on_is_not_spoken_of(
    slurm: Slurm, partition: str, how: str, env: Mapping[str, str], before: tuple[str, ...]
) -> None:
    slurm.says("partition", partition)

    assert "dies-of-sigterm" not in of(slurm, how, env, *before).kinds()


def test_a_cluster_that_sends_the_users_signal_spares_the_steps_in_a_grace(slurm: Slurm) -> None:
    slurm.config(SlurmctldParameters="preempt_send_user_signal")
    in_a_grace = of(slurm, "USR1", IN_A_STEP)
    slurm.says("partition", NO_GRACE)
    without = of(slurm, "USR1", IN_A_STEP)

    assert "dies-of-sigterm" not in in_a_grace.kinds()
    assert "dies-of-sigterm" in without.kinds()


def test_a_grace_that_the_qos_decides_on_is_judged_in_steps_alone(slurm: Slurm) -> None:
    slurm.config(PreemptType="preempt/qos", SlurmctldParameters="(null)")

    assert "dies-of-sigterm" in of(slurm, "USR1", IN_A_STEP).kinds()
    assert "dies-of-sigterm" not in of(slurm, "USR1", IN_A_JOB).kinds()


def test_shield_term_is_advised_where_preemptd_starts_the_training_and_helps_there(slurm: Slurm) -> None:
    slurm.says("partition", NO_GRACE)
    env = slurm.environment(IN_A_JOB)
    found = []
    for options in ((), ("--shield-term",)):
        with (
            short_directory() as short,
            Watch(
                short, trainer("USR1"), "--provider", "file", *options, "--link", str(short / "link"), env=env
            ) as watch,
        ):
            pid = watch.await_said("ready")[0]["pid"]
            found.append(doctor(pid, env={"PATH": env["PATH"]}))
    bare, shielded = found

    assert bare.finding("dies-of-sigterm")["advice"].startswith("preemptd watch --shield-term")
    assert "dies-of-sigterm" not in shielded.kinds()


@pytest.mark.parametrize(
    ("version", "key"),
    [
        ("22.05.8", "SlurmctldParameters=preempt_send_user_signal"),
        ("23.02.0", "PreemptParameters=send_user_signal"),
        ("25.11.1", "PreemptParameters=send_user_signal"),
    ],
)
def test_the_advice_to_admins_has_the_name_that_their_version_knows(slurm: Slurm, version: str, key: str) -> None:
    slurm.config(SLURM_VERSION=version, SlurmctldParameters="(null)")

    assert slurm.doctor().finding("slurm-notice")["advice"].endswith(f"admins: {key}")
