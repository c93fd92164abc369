"""What `preemptd doctor` says in jobs of a real cluster, and whom `preemptd notify` means there."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job

BASH = "#!/bin/bash\n"
GOOD = "#SBATCH --signal=B:USR1@120\ntrap : USR1\n"
DIAGNOSE = "preemptd doctor --json > doctor.new; mv doctor.new doctor.json\n"


def doctor(job: Job, name: str = "doctor.json") -> dict[str, dict[str, Any]]:
    """Read the findings about SLURM, by kind."""
    job.until((job.directory / "doctor.json").exists, 60)
    findings = json.loads((job.directory / name).read_text())["findings"]
    return {one["kind"]: one for one in findings if one["kind"].startswith("slurm-")}


def losing(found: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {kind for kind, one in found.items() if one["loses"]}


@pytest.fixture(scope="module")
def other(make_cluster: Callable[[Options], Cluster]) -> Cluster:
    """A cluster with each setting the other way round."""
    extra = ("JobFileAppend=1", "RequeueExitHold=70-79")
    return make_cluster(Options(nodes=1, grace=60, kill_wait=40, usersig=True, extra=extra))


@pytest.mark.parametrize(
    ("partition", "kinds"),
    [
        ("low", {"slurm-notice", "slurm-kill-wait"}),
        ("low0", {"slurm-grace", "slurm-kill-wait"}),
        ("lowkill", {"slurm-preempt-mode", "slurm-notice", "slurm-kill-wait"}),
        ("high", {"slurm-preempt-mode", "slurm-kill-wait"}),
    ],
)
def test_each_partition_of_a_default_cluster_is_explained(slurm: Cluster, partition: str, kinds: set[str]) -> None:
    found = doctor(slurm.sbatch(f"{BASH}{GOOD}{DIAGNOSE}", partition=partition))

    assert set(found) == kinds
    assert losing(found) == set()


def test_a_cluster_that_is_set_the_other_way_round_is_explained(other: Cluster) -> None:
    found = doctor(other.sbatch(f"{BASH}{GOOD}{DIAGNOSE}"))

    assert set(found) == {"slurm-exit-held"}


def test_what_the_job_itself_asked_for_is_explained(slurm: Cluster) -> None:
    options = "--no-requeue", "--open-mode=truncate"
    found = doctor(slurm.sbatch(f"{BASH}#SBATCH --signal=USR1@60\n{DIAGNOSE}", *options, partition="high"))

    assert {"slurm-requeue", "slurm-open-mode", "slurm-signal"} <= set(found)
    assert "goes to the steps alone" in found["slurm-signal"]["text"]


@pytest.mark.parametrize(
    ("line", "kind"), [("", "slurm-batch-signal"), ("trap '' USR1\n", "slurm-signal"), ("trap : USR1\n", None)]
)
def test_a_batch_script_that_would_die_of_its_own_signal_is_lost(slurm: Cluster, line: str, kind: str | None) -> None:
    script = f"{BASH}#SBATCH --signal=B:USR1@60\n{line}preemptd doctor --json $$ > pid.json\n{DIAGNOSE}sleep 60\n"
    job = slurm.sbatch(script, partition="high")
    found, of_pid = doctor(job), doctor(job, "pid.json")

    for findings in (found, of_pid):
        assert {"slurm-batch-signal", "slurm-signal"} & set(findings) == ({kind} if kind else set())
        assert losing(findings) == ({kind} & {"slurm-batch-signal"} if kind else set())


def test_the_loss_is_real(slurm: Cluster) -> None:
    job = slurm.sbatch(f"{BASH}#SBATCH --signal=B:USR1@60\necho END; sleep 600\n", partition="high")
    job.wait_output("END")
    slurm.scancel("--batch", "--signal=USR1", job)

    assert job.wait_over().state == "FAILED"


def test_under_preemptd_as_the_batch_script_nothing_is_lost(slurm: Cluster) -> None:
    script = f"{BASH}#SBATCH --signal=B:USR1@60\ntrap '' USR1\nexec preemptd watch -- bash -c '{DIAGNOSE.strip()}'\n"
    found = doctor(slurm.sbatch(script, partition="high"))

    assert losing(found) == set()
    assert "slurm-signal" not in found


def test_a_step_finds_the_batch_script_and_a_job_of_srun_has_none(slurm: Cluster) -> None:
    step = doctor(slurm.sbatch(f"{BASH}#SBATCH --signal=B:USR1@60\nsrun bash -c '{DIAGNOSE.strip()}'\n"))
    ran = slurm.run(["srun", "--quiet", "preemptd", "doctor", "--json"])
    alone = {one["kind"] for one in json.loads(ran.stdout)["findings"]}

    assert losing(step) == {"slurm-batch-signal"}
    assert "slurm-requeue" in alone
    assert "slurm-signal" not in alone


def test_a_login_node_sees_all_partitions(slurm: Cluster) -> None:
    said = json.loads(slurm.run(["preemptd", "doctor", "--json"]).stdout)["findings"]
    texts = [one["text"] for one in said if one["kind"].startswith("slurm-")]

    assert any(text.startswith("partitions low, lowkill: a preemption is announced 20 s ahead") for text in texts)
    assert any(text.startswith("partition low0: a preemption begins with SIGTERM") for text in texts)
    assert any(text.startswith("partition high: jobs are not preempted") for text in texts)


def test_a_controller_that_hangs_holds_the_doctor_up_for_five_seconds_only(slurm: Cluster) -> None:
    slurm.freeze_controller()
    ran = slurm.run(["preemptd", "doctor", "--json"], timeout=30)
    slurm.thaw_controller()
    said = json.loads(ran.stdout)["findings"]

    assert {one["kind"] for one in said if one["kind"].startswith("slurm-")} == {"slurm-no-answer"}


NOTIFY = "preemptd notify --dir . --reason test; echo END"


def test_the_last_task_of_an_array_and_a_restarted_job_mean_themselves(slurm: Cluster) -> None:
    script = f"{BASH}mkdir -p $SLURM_ARRAY_TASK_ID; cd $SLURM_ARRAY_TASK_ID\n{NOTIFY}\nsleep 600\n"
    array = slurm.sbatch(script, "--array=0-1")
    last = array.task(1)
    last.wait_output("END")
    slurm.scontrol("requeue", last.id)
    last.wait_output("END", 2)
    written = sorted(path.name for path in (array.directory / "1").iterdir())

    assert written == [f"{array.id}_1.0.preempt", f"{array.id}_1.1.preempt"]


def test_a_heterogeneous_job_means_its_leader(slurm: Cluster) -> None:
    job = slurm.sbatch(f"{BASH}srun --het-group=1 bash -c '{NOTIFY}'\n", "-n1", ":", "-n1")
    job.wait_output("END")

    assert [path.name for path in job.directory.glob("*.preempt")] == [f"{job.id}.0.preempt"]


def test_who_writes_a_file_and_waits_hears_that_the_job_is_requeued(slurm: Cluster, job_python: str) -> None:
    trainer = f"{job_python} {ROOT}/tests/lab/slurm/trainer.py"
    job = slurm.sbatch(f"export PREEMPTD_SIGNAL_DIR=$PWD\nexec preemptd watch --journal journal -- {trainer}\n")
    job.wait_for_event("ready", journal=job.directory / "trainer-0")
    options = "--job", job.id, "--dir", str(job.directory), "--deadline", "60", "--wait", "40"
    ran = slurm.run(["preemptd", "notify", *options])
    job.wait_restarted(1)

    assert ran.stdout == f"wrote {job.directory}/{job.id}.preempt, for job {job.id}\n{job.id}: requeued\n"
    assert 0 < float(str(job.lines("notice")[0]["remaining"])) <= 60
