"""Puts together what keeps a job's W&B run from one start to the next."""

import os
from collections.abc import Callable, Mapping, Sequence

from preemptd.cli.environment import state_directory
from preemptd.config import Settings
from preemptd.events import Event
from preemptd.journal import Journal
from preemptd.resumption.keeper import JobResumption, NoResumption, Resumption
from preemptd.resumption.page import Memory, Place
from preemptd.resumption.record import JobName, Record, job_name, variables


def resumption_of(
    environ: Mapping[str, str],
    settings: Settings,
    argv: Sequence[str],
    complain: Callable[[str], None],
    memory: Memory | None,
) -> Resumption:
    """Choose: nothing is kept where nothing would prove that a later start continues this one.

    Args:
        environ: what we were started with.
        settings: ours.
        argv: the command.
        complain: says a line to the user.
        memory: for our own restarts; None: there are none.
    """
    if settings.no_wandb or settings.dry_run:
        return NoResumption()
    if starts_agent(argv):
        environ = {"WANDB_SWEEP_ID": "", **environ}  # which the agent sets for its runs
    name = job_name(environ, settings.job_id, argv, os.getcwd())
    place = Place.of(settings.checkpoint_dir, state_directory(environ, settings.state_dir))
    if name is not None:
        return JobResumption(place, name, environ, complain)
    if memory is not None:
        return JobResumption(place, JobName("this"), environ, complain, memory)
    return NoResumption(variables(environ, Record()))


def starts_agent(argv: Sequence[str]) -> bool:
    if "agent" not in argv:
        return False
    from preemptd.targets.roles import is_agent

    return is_agent(argv)


def look(resumption: Resumption, journal: Journal, *, adopted: bool) -> Mapping[str, str]:
    """Find the W&B run that the command is to go on with, and say so; return the variables that it gets."""
    resumed = resumption.look(adopted=adopted)
    if not adopted and "WANDB_RUN_ID" in resumed:
        journal.write("resumes", run_id=resumed["WANDB_RUN_ID"])
    return resumed


def overheard(resumption: Resumption, put: Callable[[Event], None]) -> Callable[[Event], None]:
    """Let *resumption* hear, in the sender's thread, what goes through *put*."""

    def put_both(event: Event) -> None:
        resumption.hear(event)
        put(event)

    return put_both
