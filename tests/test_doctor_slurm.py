"""`preemptd doctor` in a SLURM job: what the settings of cluster, partition and job mean for a save."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from preemptd.diagnosis.scontrol import parse_config, parse_records
from preemptd.diagnosis.slurm_settings import Wish, wish_of
from tests.conftest import ROOT
from tests.doctors import Diagnosis, doctor, run_doctor, running
from tests.watching import trainer

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "slurm.md").read_text()
SOURCE = "".join((ROOT / "preemptd" / "diagnosis" / name).read_text() for name in ("slurm.py", "slurm_settings.py"))

# As 22.05.8 prints it. 23.02 puts `PreemptParameters` between mode and type; 25.11 has `(null)` for no PreemptType.
CONFIG = """\
Configuration data as of 2026-11-20T13:52:36
AccountingStorageBackupHost = (null)
JobFileAppend           = 0
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
RequeueExit             = (null)
RequeueExitHold         = (null)
SlurmctldParameters     = preempt_send_user_signal
SLURM_VERSION           = 22.05.8

Cgroup Support Configuration:
AllowedDevicesFile      = /etc/slurm/cgroup_allowed_devices_file.conf
Slurmctld(primary) at lab is UP
"""
PARTITION = (
    "PartitionName={} AllowGroups=ALL QoS=N/A DefaultTime=01:00:00 GraceTime={} MaxTime=UNLIMITED Nodes=n[1-2]"
    " OverTimeLimit=NONE PreemptMode={} State=UP JobDefaults=(null)\n"
)
JOB = (
    "JobId=12 JobName=a b=c Account=(null) QOS=normal JobState=RUNNING Reason=None Requeue={} Restarts=0 BatchFlag={}"
    " TimeLimit={} PreemptTime=None Partition=low NodeList=n1 Command=/data/a b/job.sh Power= \n"
)
SCRIPT = "#!/bin/bash\n#SBATCH --signal=B:USR1@120\nexec preemptd watch -- python train.py\n"
GOOD = {
    "config": CONFIG,
    "partition": PARTITION.format("low", 120, "REQUEUE"),
    "job": JOB.format(1, 1, "01:00:00"),
    "script": SCRIPT,
}
IN_A_JOB = {"SLURM_JOB_ID": "12", "SLURM_OPEN_MODE": "a"}


class Slurm:
    """A directory of programs, as a job finds SLURM's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("scontrol", "squeue", "srun"):
            shutil.copy(ROOT / "tests" / "standins" / "scontrol.sh", directory / name)
        for name, text in GOOD.items():
            self.says(name, text)

    def says(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def config(self, **changed: str) -> None:
        text = CONFIG
        for key, value in changed.items():
            text, count = re.subn(rf"^({key} +=).*$", rf"\1 {value}", text, flags=re.MULTILINE)
            text += "" if count else f"{key} = {value}\n"
        self.says("config", text)

    def asked(self) -> list[str]:
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": f"{self.directory}:/usr/bin:/bin", **extra}

    def doctor(self, *arguments: object, **extra: str) -> Diagnosis:
        return doctor(*arguments, env=self.environment({**IN_A_JOB, **extra}))


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    directory = tmp_path / "slurm"
    directory.mkdir()
    return Slurm(directory)


def kinds(found: Diagnosis) -> set[str]:
    return {kind for kind in found.kinds() if kind.startswith("slurm-")}


def test_settings_that_cost_nothing_are_not_spoken_of(slurm: Slurm) -> None:
    found = slurm.doctor()

    assert (found.status, kinds(found)) == (0, set())


def test_it_only_asks(slurm: Slurm) -> None:
    slurm.doctor()

    assert slurm.asked() == [
        "show config",
        "--oneliner show job 12",
        "--oneliner show partition low",
        "write batch_script 12 -",
    ]


def test_of_an_array_the_one_task_is_asked_for(slurm: Slurm) -> None:
    other = JOB.format(0, 1, "01:00:00").replace("JobId=12", "JobId=14 ArrayJobId=12 ArrayTaskId=2")
    slurm.says("job", other + GOOD["job"].replace("JobId=12", "JobId=12 ArrayJobId=12 ArrayTaskId=3"))

    assert "slurm-requeue" not in kinds(slurm.doctor())
    assert "write batch_script 12_3 -" in slurm.asked()


def test_a_job_that_was_submitted_in_a_task_of_an_array_is_asked_for_itself(slurm: Slurm) -> None:
    slurm.doctor(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")

    assert "--oneliner show job 12" in slurm.asked()
    assert "write batch_script 12 -" in slurm.asked()


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"SlurmctldParameters": "(null)"}, "slurm-notice", "announced 120 s ahead to the steps"),
        ({"KillWait": "10 sec"}, "slurm-kill-wait", "SIGKILL comes 10 s after SIGTERM"),
        ({"KillWait": "2 sec"}, "slurm-kill-wait", "SIGKILL comes 5 s after SIGTERM"),
        ({"PreemptType": "preempt/none"}, "slurm-preempt-mode", "are not preempted"),
        ({"PreemptType": "(null)"}, "slurm-preempt-mode", "are not preempted"),
        ({"PreemptType": "preempt/qos"}, "slurm-preempt-mode", "depends on its QOS"),
        ({"RequeueExitHold": "3,70-79"}, "slurm-exit-held", "requeued and held"),
    ],
)
def test_a_setting_of_the_cluster_is_explained(slurm: Slurm, changed: Mapping[str, str], kind: str, words: str) -> None:
    slurm.config(**changed)
    found = slurm.doctor()

    assert (found.status, kinds(found)) == (0, {kind})
    assert words in found.finding(kind)["text"]


@pytest.mark.parametrize(
    "changed",
    [
        {"SlurmctldParameters": "(null)", "PreemptParameters": "send_user_signal"},
        {"SlurmctldParameters": "(null)", "PreemptParameters": "youngest_first,send_user_signal"},
        {"SlurmctldParameters": "enable_configless,Preempt_Send_User_Signal"},
        {"RequeueExit": "75", "RequeueExitHold": "74,76"},
    ],
)
def test_a_cluster_that_sends_the_users_signal_is_known_by_its_old_and_its_new_name(
    slurm: Slurm, changed: Mapping[str, str]
) -> None:
    slurm.config(**changed)

    assert kinds(slurm.doctor()) == set()


@pytest.mark.parametrize(
    ("partition", "kind", "words"),
    [
        (("low", 0, "REQUEUE"), "slurm-grace", "begins with SIGTERM (GraceTime=0), and 30 s later"),
        (("low", 120, "CANCEL"), "slurm-preempt-mode", "partition low: preempted jobs are cancelled"),
        (("low", 120, "SUSPEND"), "slurm-preempt-mode", "stopped as they stand"),
        (("low", 120, "GANG,SUSPEND"), "slurm-preempt-mode", "stopped as they stand"),
        (("low", 0, "OFF"), "slurm-preempt-mode", "are not preempted"),
    ],
)
def test_a_setting_of_the_partition_is_explained(
    slurm: Slurm, partition: tuple[str, int, str], kind: str, words: str
) -> None:
    slurm.says("partition", PARTITION.format(*partition))
    found = slurm.doctor()

    assert kinds(found) == {kind}
    assert words in found.finding(kind)["text"]


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        ((0, 1, "01:00:00"), "slurm-requeue", "may not be requeued"),
        ((1, 0, "01:00:00"), "slurm-requeue", "started by srun or salloc"),
    ],
)
def test_a_job_that_cannot_be_requeued_is_named(slurm: Slurm, job: tuple[int, int, str], kind: str, words: str) -> None:
    slurm.says("job", JOB.format(*job))
    found = slurm.doctor()

    assert kinds(found) == {kind}
    assert words in found.finding(kind)["text"]


@pytest.mark.parametrize(
    ("script", "limit", "words"),
    [
        ("#!/bin/sh\nsleep 1\n", "01:00:00", "the batch script has no --signal"),
        ("#!/bin/sh\n# --signal=B:USR1@9\n", "01:00:00", "the batch script has no --signal"),
        ("#!/bin/sh\n#SBATCH --signal=USR1@60\n", "01:00:00", "--signal=USR1 goes to the steps alone"),
        ("#!/bin/sh\n#SBATCH --signal=USR1@60\n", "UNLIMITED", "--signal=USR1 goes to the steps alone"),
    ],
)
def test_a_time_limit_that_would_not_be_announced_is_named(slurm: Slurm, script: str, limit: str, words: str) -> None:
    slurm.says("job", JOB.format(1, 1, limit))
    slurm.says("script", script)
    found = slurm.doctor()

    assert kinds(found) == {"slurm-signal"}
    assert words in found.finding("slurm-signal")["text"]


def test_without_a_time_limit_no_signal_is_missed(slurm: Slurm) -> None:
    slurm.says("job", JOB.format(1, 1, "UNLIMITED"))
    slurm.says("script", "#!/bin/sh\n")

    assert kinds(slurm.doctor()) == set()


@pytest.mark.parametrize(
    ("line", "wish"),
    [
        ("--signal=B:USR1@120", Wish("USR1", to_batch=True)),
        ("--signal=SIGTERM", Wish("TERM", to_batch=False)),
        ("--signal R:usr2@60 --time=5", Wish("USR2", to_batch=False)),
        ("--time=5 --signal=RB:10@60", Wish("10", to_batch=True)),
        ('--signal="B:USR1@30"', Wish("USR1", to_batch=True)),
    ],
)
def test_the_signal_of_a_script_is_read_in_each_way_to_write_it(line: str, wish: Wish) -> None:
    assert wish_of(f"#!/bin/sh\n#SBATCH {line}\necho\n") == wish


@pytest.mark.parametrize(
    ("env", "append", "is_named"),
    [
        ({"SLURM_OPEN_MODE": "t"}, "1", True),
        ({"SLURM_OPEN_MODE": ""}, "0", True),
        ({"SLURM_OPEN_MODE": ""}, "1", False),
    ],
)
def test_an_output_that_begins_anew_is_named(slurm: Slurm, env: Mapping[str, str], append: str, is_named: bool) -> None:
    slurm.config(JobFileAppend=append)

    assert kinds(slurm.doctor(**env)) == ({"slurm-open-mode"} if is_named else set())


def test_a_controller_that_hangs_is_given_up_on_after_one_question(slurm: Slurm) -> None:
    slurm.says("hang", "")
    found = slurm.doctor()

    assert (found.status, kinds(found)) == (0, {"slurm-no-answer"})
    assert "no answer to `scontrol show config` within 5 s" in found.finding("slurm-no-answer")["text"]
    assert slurm.asked() == ["show config"]


def test_a_controller_that_refuses_is_quoted(slurm: Slurm) -> None:
    (slurm.directory / "job").unlink()

    assert "show job 12`: /bin/cat: " in slurm.doctor().finding("slurm-no-answer")["text"]


def test_a_batch_script_that_may_not_be_read_is_not_spoken_of(slurm: Slurm) -> None:
    (slurm.directory / "script").unlink()

    assert kinds(slurm.doctor()) == set()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (
            ["scontrol", "squeue", "srun"],
            "cannot run scontrol and squeue and srun: it hears by signals and files alone",
        ),
        (["srun"], "cannot run srun: what SLURM says to steps alone"),
    ],
)
def test_programs_that_a_container_lacks_are_named(slurm: Slurm, missing: list[str], words: str) -> None:
    for name in missing:
        (slurm.directory / name).unlink()
    env = {**IN_A_JOB, "PATH": str(slurm.directory)}
    found = doctor(env=env)

    assert (found.status, kinds(found)) == (0, {"slurm-tools"})
    assert words in found.finding("slurm-tools")["text"]


def test_of_a_process_the_job_is_known_by_its_environment(slurm: Slurm) -> None:
    slurm.config(KillWait="10 sec")
    env = slurm.environment(IN_A_JOB)
    with running(trainer("both"), env=env) as job:
        found = doctor(job.pid, env={"PATH": env["PATH"]})
        quiet = doctor(job.pid, "--no-probe", env={"PATH": env["PATH"]})
        text = run_doctor(job.pid, env={"PATH": env["PATH"]}).stdout

    assert kinds(found) == {"slurm-kill-wait"}
    assert found.finding("slurm-kill-wait")["pid"] == job.pid
    assert kinds(quiet) == set()
    assert "            SIGKILL" not in text
    assert (
        "note        at the time limit, and when a grace is over, SIGKILL comes 10 s after SIGTERM (KillWait)" in text
    )


def test_outside_of_a_job_all_partitions_are_looked_at_and_those_that_are_alike_named_together(slurm: Slurm) -> None:
    slurm.config(SlurmctldParameters="", JobRequeue="0")
    partitions = [("a", 60, "REQUEUE"), ("b", 60, "CANCEL"), ("c", 0, "REQUEUE"), ("d", 0, "OFF")]
    slurm.says("partition", "".join(PARTITION.format(*partition) for partition in partitions))
    found = doctor(env=slurm.environment({"SLURM_CONF": "/nonexistent"}))
    said = [one["text"] for one in found.said["findings"] if one["kind"].startswith("slurm-")]

    assert len(said) == 5
    assert any(text.startswith("partitions a, b: a preemption is announced 60 s ahead") for text in said)
    assert any(text.startswith("partition b: preempted jobs are cancelled") for text in said)
    assert any(text.startswith("partition c: a preemption begins with SIGTERM") for text in said)
    assert any(text.startswith("partition d: jobs are not preempted") for text in said)
    assert any(text.startswith("jobs are not requeued here unless they ask for it") for text in said)


def test_programs_without_a_cluster_are_not_asked(slurm: Slurm) -> None:
    if any(map(os.path.exists, ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf"))):
        pytest.skip("this machine belongs to a cluster: run it elsewhere")
    found = doctor(env=slurm.environment({}))

    assert (slurm.asked(), kinds(found)) == ([], set())


def test_without_the_network_slurm_is_not_asked(slurm: Slurm) -> None:
    slurm.doctor("--no-probe")

    assert slurm.asked() == []


def test_null_and_missing_values_are_empty() -> None:
    assert parse_config("A   = (null)\nB = x = y\nC   = \n") == {"A": "", "B": "x = y", "C": ""}
    assert parse_records("A=(null) B=N/A C=d:e=f\n\nG=1\n") == [{"A": "", "B": "", "C": "d:e=f"}, {"G": "1"}]


def test_the_page_has_a_row_for_each_finding_and_a_finding_for_each_name_in_it() -> None:
    (table,) = re.findall(r"^\| setting .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`(slurm-[\w-]+)`", table))

    assert named == set(re.findall(r'Finding\("(slurm-[\w-]+)"', SOURCE))


def test_the_page_explains_each_setting_that_is_looked_at() -> None:
    looked_at = set(re.findall(r'(?:config|partition)\.get\("(\w+)"', SOURCE)) - {"PartitionName", "SLURM_VERSION"}

    assert len(looked_at) >= 7
    assert {name for name in looked_at if f"`{name}" not in PAGE} == set()
    assert all(f"`{option}" in PAGE for option in ("--signal", "--requeue", "--no-requeue", "--open-mode"))
