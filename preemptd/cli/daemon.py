"""`preemptd daemon`."""

import os

from preemptd.cli import options


def daemon(  # noqa: PLR0913, PLR0917 - one parameter an option: that is how typer reads them
    config: options.Config = None,
    provider: options.Provider = None,
    signal: options.Signal = None,
    signal_target: options.SignalTarget = None,
    grace: options.Grace = None,
    lead: options.Lead = None,
    act_on: options.ActOn = None,
    reserve: options.Reserve = None,
    kill: options.Kill = None,
    preempted_exit_code: options.PreemptedExitCode = None,
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
) -> int:
    """Look after the training that others start: the [[target]] tables of FILE, and whoever registers over the link.

    SIGHUP reads FILE anew. Each option is also PREEMPTD_<NAME> in the environment and a key of FILE.
    """
    flags = options.given(locals())
    from preemptd.cli.serving import serve

    return serve(flags, dict(os.environ), config)
