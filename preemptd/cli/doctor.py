"""`preemptd doctor`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from preemptd.cli.providers import survey
from preemptd.cli.status import ask, links
from preemptd.errors import ConfigError

if TYPE_CHECKING:
    from preemptd.diagnosis.findings import JobDiagnosis, MachineDiagnosis
    from preemptd.diagnosis.watcher import Heard


def doctor(
    pid: Annotated[
        int | None, typer.Argument(metavar="PID", help="A running job. Default: this machine.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.", show_default=False)] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not ask the network.", show_default=False)] = False,
) -> int:
    """Say what would be lost if this machine were taken away now. Exit 0: nothing, 1: something.

    Of a job: who would be told, who not and why, and whether its W&B runs could be marked. Of the machine: what its
    platform answers, and what the running preemptds would do. Nobody is signalled, and nothing is marked.
    """
    from preemptd.diagnosis.findings import losses
    from preemptd.diagnosis.report import as_json as report

    diagnosis = _machine(no_probe=no_probe) if pid is None else _job(pid, no_probe=no_probe)
    print(json.dumps(report(diagnosis)) if as_json else _text(diagnosis))
    return 1 if losses(diagnosis.findings) else 0


def _text(diagnosis: "JobDiagnosis | MachineDiagnosis") -> str:
    from preemptd.diagnosis.findings import JobDiagnosis
    from preemptd.diagnosis.report import render_job, render_machine

    return render_job(diagnosis) if isinstance(diagnosis, JobDiagnosis) else render_machine(diagnosis)


def _machine(*, no_probe: bool) -> "MachineDiagnosis":
    from preemptd.diagnosis.machine import diagnose
    from preemptd.diagnosis.slurm import of_machine, of_told

    slurm = [] if no_probe else of_machine(os.environ)
    heard = _heard(links(os.environ))
    with survey(no_probe=no_probe) as found:
        diagnosis = diagnose(found.words, () if no_probe else found.here, heard, slurm)
    if no_probe:
        return diagnosis
    dying = [finding for job in diagnosis.jobs for finding in of_told(job.processes)]
    return replace(diagnosis, findings=[*diagnosis.findings, *dying])


def _job(pid: int, *, no_probe: bool) -> "JobDiagnosis":
    from preemptd.config import settings
    from preemptd.diagnosis import stops
    from preemptd.diagnosis.job import diagnose, snapshot
    from preemptd.diagnosis.slurm import of_job
    from preemptd.diagnosis.watcher import link_paths
    from preemptd.targets.selection import Policy

    wishes = settings({}, os.environ, None)
    processes = snapshot(pid)
    heard = _heard([*link_paths(pid, processes), *links(os.environ)])
    found = diagnose(pid, processes, heard, Policy(wishes.signals, wishes.signal_target))
    of_slurm = [] if no_probe else of_job(pid, processes, found.processes)
    return replace(found, findings=[*found.findings, *of_slurm, *stops.of_job(found)])


def _heard(paths: Sequence[str]) -> "Heard":
    """Ask the preemptds at *paths*. What does not answer as one does is passed over, and so is what is left of one."""
    from preemptd.diagnosis.watcher import Heard

    answers: list[Mapping[str, object]] = []
    mute = []
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        try:
            answer = ask(path, must=True)
        except ConfigError as error:
            if isinstance(error.__cause__, TimeoutError):
                mute.append(path)
            continue
        if answer is not None:
            answers.append(answer)
    return Heard(answers, mute)
