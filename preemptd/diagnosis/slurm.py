"""SLURM: what the settings of cluster, partition and job mean for a save, and what to do (docs/slurm.md)."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from preemptd.diagnosis import batch, scontrol, slurm_term
from preemptd.diagnosis.findings import Finding, Seen
from preemptd.diagnosis.scontrol import Answers
from preemptd.diagnosis.slurm_settings import (
    USUAL_KILL_WAIT,
    Wish,
    kill_wait,
    mode_of,
    number,
    sends_user_signal,
    version_of,
    wish_of,
)
from preemptd.model import Process
from preemptd.procfs import environ

PREEMPTED_EXIT_CODE = 75
_OWN_PREEMPT_PARAMETERS = (23, 2)
"""Since this version there is the key PreemptParameters."""
_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
_RECIPE = "#SBATCH --signal=B:USR1@120"


def of_job(pid: int, processes: Sequence[Process], seen: Sequence[Seen] = ()) -> list[Finding]:
    """Look at the SLURM job that *pid*, with the processes below it, belongs to; nothing if it is in none.

    Args:
        pid: its topmost process, or any other of it.
        processes: its snapshot.
        seen: what was found out of them.
    """
    if (found := _first_in_slurm(one.pid for one in processes)) is None:
        return []
    return _of_job(found[1], f"/proc/{found[0]}/root", pid, seen)


def of_told(seen: Sequence[Seen]) -> list[Finding]:
    """Look only at who of a SLURM job would die before it has saved; nothing if it is in none."""
    found = _first_in_slurm(one.process.pid for one in seen)
    if found is None:
        return []
    answers = scontrol.ask(found[1]["SLURM_JOB_ID"], found[1])
    return list(slurm_term.of_told(answers, seen))


def _first_in_slurm(pids: Iterable[int]) -> tuple[int, Mapping[str, str]] | None:
    environs = ((pid, environ(pid)) for pid in pids)
    return next(((pid, env) for pid, env in environs if env.get("SLURM_JOB_ID")), None)


def of_machine(environment: Mapping[str, str]) -> list[Finding]:
    """Look at the job that we run in; outside of one, at the cluster, where there is one."""
    if environment.get("SLURM_JOB_ID"):
        return _of_job(environment, "", os.getpid())
    has_cluster = environment.get("SLURM_CONF") or any(map(os.path.exists, _CONFIGURATIONS))
    if not has_cluster or shutil.which("scontrol") is None:
        return []
    answers = scontrol.ask(None, environment)
    return [*_of_silence(answers), *of_cluster(answers)]


def _of_job(environment: Mapping[str, str], root: str, pid: int, seen: Sequence[Seen] = ()) -> list[Finding]:
    missing = [name for name in ("scontrol", "squeue", "srun") if not _has(name, environment, root)]
    findings = list(_of_tools(missing))
    answers = scontrol.ask(environment["SLURM_JOB_ID"], environment)
    if answers.silent and "scontrol" in missing:
        return findings
    first = batch.process(environment["SLURM_JOB_ID"])
    findings += [*_of_silence(answers), *of_cluster(answers)]
    findings += of_script(answers, first, "srun" not in missing)
    findings += slurm_term.of_told(answers, seen)
    # What srun starts from outside (--overlap --jobid) has not the variables of the batch script.
    findings += of_output(answers, environ(first.pid) if first is not None else environment)
    return [replace(finding, pid=finding.pid or pid) for finding in findings]


def _has(program: str, environment: Mapping[str, str], root: str) -> bool:
    """Say whether the job would find *program*, in its own file system."""
    directories = environment.get("PATH", os.defpath).split(":")
    return any(os.access(f"{root}{directory}/{program}", os.X_OK) for directory in directories if directory)


def _of_tools(missing: Sequence[str]) -> Iterator[Finding]:
    if "scontrol" in missing or "squeue" in missing:
        text = f"the job cannot run {' and '.join(missing)}: it hears by signals and files alone, and is not requeued"
        advice = "put preemptd outside of the container (preemptd watch -- apptainer exec ...), or SLURM's programs,"
        yield Finding("slurm-tools", text, f"{advice} /etc/slurm and /run/munge into it")
    elif missing:
        text = "the job cannot run srun: what SLURM says to steps alone is found out by asking, up to 30 s late"
        yield Finding("slurm-tools", text, "put srun on the job's PATH")


def _of_silence(answers: Answers) -> Iterator[Finding]:
    if answers.silent:
        text = f"SLURM's settings are not known: {answers.silent}"
        yield Finding("slurm-no-answer", text, "a job is told all the same; it is requeued when SLURM answers again")


def of_cluster(answers: Answers) -> Iterator[Finding]:
    """Judge what the cluster and the partitions say; one finding for all partitions that are alike."""
    if not answers.config:
        return
    alike: dict[Finding, list[str]] = {}
    for partition in answers.partitions:
        mode = mode_of(answers.config, partition)
        for finding in (*_of_mode(mode, answers.job), *_of_grace(mode, partition, answers.config)):
            alike.setdefault(finding, []).append(partition.get("PartitionName", "?"))
    for finding, names in alike.items():
        where = f"partition{'s' if len(names) > 1 else ''} {', '.join(names)}"
        yield replace(finding, text=f"{where}: {finding.text}")
    yield from _of_kill_wait(answers.config)
    yield from _of_requeue(answers)


def _of_mode(mode: str, job: Mapping[str, str]) -> Iterator[Finding]:
    words = {
        "OFF": ("jobs are not preempted: the time limit, scancel and broken nodes end them (PreemptMode)", ""),
        "CANCEL": ("preempted jobs are cancelled (PreemptMode=CANCEL): SLURM does not requeue them", "preemptd does"),
        "SUSPEND": ("preempted jobs are stopped as they stand (PreemptMode=SUSPEND), and go on later", ""),
        "QOS": (
            "how, and with which grace, a job is preempted depends on its QOS",
            " ".join(["sacctmgr show qos", *filter(None, [job.get("QOS")]), "format=Name,PreemptMode,GraceTime"]),
        ),
    }
    if mode in words:
        yield Finding("slurm-preempt-mode", *words[mode])


def _of_grace(mode: str, partition: Mapping[str, str], config: Mapping[str, str]) -> Iterator[Finding]:
    if mode not in {"REQUEUE", "CANCEL"}:
        return
    grace = number(partition.get("GraceTime", ""))
    if grace == 0:
        text = f"a preemption begins with SIGTERM (GraceTime=0), and {kill_wait(config)} s later comes SIGKILL"
        yield Finding("slurm-grace", text, "save often; admins: GraceTime=120 for this partition")
    elif not sends_user_signal(config):
        text = f"a preemption is announced {grace} s ahead to the steps of a job alone: the batch script hears nothing"
        has_own = version_of(config) >= _OWN_PREEMPT_PARAMETERS
        key = "PreemptParameters=send_user_signal" if has_own else "SlurmctldParameters=preempt_send_user_signal"
        yield Finding("slurm-notice", text, f"preemptd hears it by a step of its own; admins: {key}")


def _of_kill_wait(config: Mapping[str, str]) -> Iterator[Finding]:
    seconds = kill_wait(config)
    if seconds < USUAL_KILL_WAIT:
        text = f"at the time limit, and when a grace is over, SIGKILL comes {seconds} s after SIGTERM (KillWait)"
        yield Finding("slurm-kill-wait", text, f"be told earlier: {_RECIPE}")


def _of_requeue(answers: Answers) -> Iterator[Finding]:
    if answers.job.get("BatchFlag") == "0":
        text = "this job was started by srun or salloc: SLURM requeues batch jobs alone"
        yield Finding("slurm-requeue", text, "submit it by sbatch")
    elif answers.job.get("Requeue") == "0":
        text = "this job may not be requeued (--no-requeue, or JobRequeue=0): what it saves waits for you"
        yield Finding("slurm-requeue", text, "#SBATCH --requeue")
    elif not answers.job and answers.config.get("JobRequeue") == "0":
        text = "jobs are not requeued here unless they ask for it (JobRequeue=0)"
        yield Finding("slurm-requeue", text, "#SBATCH --requeue")
    if PREEMPTED_EXIT_CODE in _codes(answers.config.get("RequeueExitHold", "")):
        text = f"a job that ends with {PREEMPTED_EXIT_CODE} is requeued and held (RequeueExitHold): it waits for you"
        yield Finding("slurm-exit-held", text, "--preempted-exit-code with another number")


def of_script(answers: Answers, first: Process | None, has_srun: bool) -> Iterator[Finding]:
    """Judge the ``--signal`` of the batch script.

    Args:
        answers: hold the script; what was said on the command line of sbatch stands nowhere.
        first: the process of the batch script; None: it is not on this machine, or not to be seen.
        has_srun: a step can be started that hears what goes to steps.
    """
    if not answers.script:
        return
    wish = wish_of(answers.script)
    if wish is None:
        if answers.job.get("TimeLimit") != "UNLIMITED":
            text = "the batch script has no --signal (one on sbatch's command line cannot be seen): without, the time"
            yield Finding("slurm-signal", f"{text} limit comes unannounced", _RECIPE)
    elif wish.to_batch:
        yield from _of_batch_signal(wish, first)
    else:
        how = "preemptd hears it by a step of its own" if has_srun else "without srun, preemptd cannot hear it"
        text = f"--signal={wish.name} goes to the steps alone, not to the batch script: {how}"
        yield Finding("slurm-signal", text, _RECIPE)


def _of_batch_signal(wish: Wish, first: Process | None) -> Iterator[Finding]:
    if first is None or wish.signum is None or first.catches(wish.signum):
        return
    who = f"pid {first.pid} ({first.comm}), the process of the batch script"
    if first.ignored >> (wish.signum - 1) & 1:
        text = f"{who}, ignores {wish.signum.name}: --signal=B:{wish.name} reaches nobody"
        yield Finding("slurm-signal", text, "exec preemptd watch -- ..., as the script's last line", first.pid)
    else:
        text = f"{who}, dies of {wish.signum.name}, which --signal=B:{wish.name} sends it: the job ends as FAILED"
        advice = f"trap '' {wish.name} at its beginning, and exec preemptd watch -- ... as its last line"
        yield Finding("slurm-batch-signal", text, advice, first.pid, loses=True)


def of_output(answers: Answers, environment: Mapping[str, str]) -> Iterator[Finding]:
    """SLURM_OPEN_MODE is set where sbatch was told; else the cluster's default holds."""
    mode = environment.get("SLURM_OPEN_MODE") or ("a" if answers.config.get("JobFileAppend") == "1" else "t")
    if answers.config and answers.job.get("BatchFlag") == "1" and mode == "t":
        text = "each attempt of this job starts its output file anew: what the one before wrote is gone"
        yield Finding("slurm-open-mode", text, "#SBATCH --open-mode=append")


def _codes(text: str) -> set[int]:
    """Read a list of exit codes: 3,75,80-90."""
    codes: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        codes.update(range(int(first), int(last or first) + 1))
    return codes
