"""`preemptd watch`."""

import os
from typing import Annotated

import typer

from preemptd.cli import options
from preemptd.errors import ConfigError


def watch(  # noqa: PLR0913, PLR0917 - one parameter an option: that is how typer reads them
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND...", help="What to run and watch over.", show_default=False),
    ] = None,
    provider: options.Provider = None,
    config: options.Config = None,
    signal: options.Signal = None,
    signal_target: options.SignalTarget = None,
    grace: options.Grace = None,
    lead: options.Lead = None,
    act_on: options.ActOn = None,
    reserve: options.Reserve = None,
    kill: options.Kill = None,
    when_pending: Annotated[
        str | None,
        typer.Option(metavar="hold|start|exit", help="What to do if a notice is pending at the start. Default: hold."),
    ] = None,
    preempted_exit_code: options.PreemptedExitCode = None,
    exit_zero: Annotated[
        str | None,
        typer.Option(metavar="preempted|done", help="What a told command's exit 0 means. Default: preempted."),
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Name of the job: one watch at a time; what still runs is taken over, its W&B run goes on.",
        ),
    ] = None,
    checkpoint_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where checkpoints go: shows whether an attempt made progress; the W&B run's id is kept there.",
        ),
    ] = None,
    on_advice: options.OnAdvice = None,
    on_notice: options.OnNotice = None,
    on_saved: options.OnSaved = None,
    on_exit: options.OnExit = None,
    webhook: options.Webhook = None,
    webhook_file: options.WebhookFile = None,
    webhook_format: options.WebhookFormat = None,
    listen: options.Listen = None,
    journal: options.Journal = None,
    link: options.Link = None,
    state_dir: options.StateDir = None,
    no_wandb: options.NoWandb = None,
    log_format: options.LogFormat = None,
    dry_run: options.DryRun = None,
    die_with_parent: Annotated[
        bool | None,
        typer.Option("--die-with-parent", help="SIGTERM to the command if preemptd is killed.", show_default=False),
    ] = None,
    sweep: Annotated[
        bool | None, typer.Option("--sweep", help="End what the command leaves running.", show_default=False)
    ] = None,
    sync: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR=URL",
            help="Restore DIR from URL before the start, and bring there what is saved (repeatable).",
        ),
    ] = None,
    loop: Annotated[
        bool | None,
        typer.Option(
            "--loop",
            help="Run COMMAND, a `wandb agent --count 1`, again and again until its sweep has ended.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Start COMMAND again if the notice that ended it is revoked or outlived, at most N times. Default: 0.",
        ),
    ] = None,
    requeue_on: Annotated[
        str | None,
        typer.Option(
            metavar="preempt,timelimit,request|none",
            help="SLURM: what ends a job that we then requeue. Default: all three.",
        ),
    ] = None,
    max_requeues: Annotated[
        int | None, typer.Option(metavar="N", help="SLURM: requeue at most so often. Default: as often as it takes.")
    ] = None,
    requeue_delay: Annotated[
        float | None,
        typer.Option(metavar="S", help="SLURM: seconds from the requeue to the next start. Default: the cluster's."),
    ] = None,
    azure_approve: Annotated[
        bool | None,
        typer.Option(
            "--azure-approve",
            help="Azure: let the event begin early when all is saved, and this machine is the only one it names.",
            show_default=False,
        ),
    ] = None,
    shield_term: Annotated[
        bool | None,
        typer.Option(
            "--shield-term",
            help="Start COMMAND with SIGTERM ignored: SLURM's TERM to all of a job does not kill it while it saves.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Run COMMAND, and tell its processes in time when this machine is about to be taken away.

    Each option is also PREEMPTD_<NAME> in the environment and a key of the configuration file.
    """
    flags = options.given(locals())
    if not command:
        raise ConfigError("no command: preemptd watch [options] -- COMMAND...")
    from preemptd.cli.compose import run
    from preemptd.cli.jobs import Job
    from preemptd.config import settings
    from preemptd.targets.reaping import Helpers
    from preemptd.targets.terminal import interrupt_own_group

    environ = dict(os.environ)
    job = Job(tuple(command), environ, settings(flags, environ, config), Helpers())
    if job.settings.loop:
        from preemptd.cli.looping import run_rounds as run
    elif job.settings.restart:
        from preemptd.cli.restarting import run_again as run
    ended = run(job)
    if ended.interrupted:
        interrupt_own_group()
    return ended.status
