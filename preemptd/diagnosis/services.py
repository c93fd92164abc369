"""The W&B services of a job: their runs, version and mode, and whether each would take a mark. None is delivered."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from preemptd.diagnosis import standing
from preemptd.diagnosis.credentials import has_key
from preemptd.diagnosis.findings import Finding, SeenRun
from preemptd.diagnosis.question import Answer, Questions
from preemptd.model import Process, Run
from preemptd.procfs import environ
from preemptd.runs.discovery import Core, cores

ANSWER_WITHIN = 1.0
"""Seconds that wandb-core has to answer; it needs a millisecond or two, unless it is stopped or flooded."""
_FLUSH_INTERVAL = "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL"
_FLUSHES_SINCE = (0, 31)
_AS_WHO = "run preemptd as the user who trains, or as root, and in the same container"
_LOOK = "its own log, logs/debug-internal.log in the run's directory, may say why"
_VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Services:
    runs: tuple[SeenRun, ...] = ()
    idle: tuple[int, ...] = ()
    """Pids of services without a run (an agent has one)."""
    findings: tuple[Finding, ...] = ()


def look(processes: Sequence[Process]) -> Services:
    """Find the runs among *processes*, and ask about each."""
    found = list(_looked_at(processes))
    answers = _answers(found)
    runs = tuple(
        _seen(run, core, answers[run]) for core in found for run in sorted(core.certain, key=lambda run: run.run_id)
    )
    findings = [finding for run in runs for finding in _of_run(run)]
    for core in found:
        if core.out_of_reach is not None and not core.certain:
            text = f"the runs of wandb-core {core.process.pid} could not be marked: {core.out_of_reach}"
            findings.append(Finding("run-not-marked", text, _AS_WHO, core.process.pid, loses=True))
    idle = tuple(core.process.pid for core in found if not core.certain and core.out_of_reach is None)
    return Services(runs, idle, tuple(findings))


def _looked_at(processes: Sequence[Process]) -> Iterator[Core]:
    for process in cores(processes):
        core = Core(process)
        try:
            core.look()
        except ProcessLookupError:
            continue
        yield core


def _answers(found: Sequence[Core]) -> Mapping[Run, Answer]:
    addresses, answers = {}, {}
    for core in found:
        for run in core.certain:
            if core.address is not None:
                addresses[run] = core.address
            else:
                answers[run] = Answer(core.out_of_reach or "its wandb-core does not listen")
    return {**answers, **Questions(addresses).ask(ANSWER_WITHIN)}


def _seen(run: Run, core: Core, answer: Answer) -> SeenRun:
    environs = [environ(run.owner_pid), environ(run.core_pid)]
    owner = standing.read(run.owner_pid)
    uid = owner.uids[0] if owner is not None and owner.uids else None
    offline = os.path.basename(run.directory).startswith("offline-run-")
    version = version_of(core.process)
    return SeenRun(
        run_id=run.run_id,
        core_pid=run.core_pid,
        owner_pid=run.owner_pid,
        version=version,
        offline=offline,
        survives=not offline or (_flushes(version) and any(_FLUSH_INTERVAL in one for one in environs)),
        key=has_key(run.owner_pid, uid, environs),
        sweep=next((sweep for one in environs if (sweep := one.get("WANDB_SWEEP_ID"))), None),
        undeliverable=answer.why_not,
        ms=answer.ms,
    )


def _of_run(run: SeenRun) -> Iterator[Finding]:
    if run.undeliverable is not None:
        text = f"W&B run {run.run_id} could not be marked: {run.undeliverable}"
        advice = _AS_WHO if "lets us not in" in text or "namespace" in text else _LOOK
        yield Finding("run-not-marked", text, advice, run.core_pid, loses=True)
    if not run.survives:
        text = f"W&B run {run.run_id} is offline: the last 32 KiB of its log, and the mark, are lost if it is killed"
        yield Finding("offline-log", text, f"wandb 0.31 with {_FLUSH_INTERVAL}=0.5 in its environment", run.core_pid)
    if not run.offline and not run.key:
        text = f"no API key of W&B run {run.run_id} was found where wandb looks: its end state could not be mended"
        yield Finding("no-key", text, "WANDB_API_KEY, or `wandb login`, for the user who trains", run.owner_pid)


def version_of(core: Process) -> str | None:
    """Read the version of the wandb package that *core*'s program lies in: .../wandb/bin/wandb-core.

    None: it is not found, or the program has been replaced since it was started.
    """
    try:
        exe = os.readlink(f"/proc/{core.pid}/exe")
    except OSError:
        return None
    package = os.path.dirname(os.path.dirname(exe))
    if os.path.basename(package) != "wandb" or exe.endswith(" (deleted)"):
        return None
    site = f"/proc/{core.pid}/root{os.path.dirname(package)}"
    try:
        names = sorted(name for name in os.listdir(site) if re.fullmatch(r"wandb-[^-]+\.dist-info", name))
        if len(names) != 1:  # two of them: a pip that was interrupted
            return None
        with open(f"{site}/{names[0]}/METADATA", encoding="utf-8", errors="replace") as file:
            match = _VERSION.search(file.read(4096))
    except OSError:
        return None
    return match[1] if match else None


def _flushes(version: str | None) -> bool:
    numbers = re.findall(r"\d+", version or "")[:2]
    return tuple(map(int, numbers)) >= _FLUSHES_SINCE
