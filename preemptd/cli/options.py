"""The options of ``watch`` and ``daemon``, and the way from what typer hands over to what the settings take."""

from collections.abc import Mapping
from typing import Annotated

import typer

_NOT_SETTINGS = frozenset({"command", "config"})
_REPEATABLE = frozenset({"provider", "act_on", "sync"})

Provider = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Where notices come from (repeatable); see `preemptd providers`. Default: found out."
    ),
]
Config = Annotated[str | None, typer.Option(metavar="FILE", help="Settings in TOML, by the names used here.")]
Signal = Annotated[
    str | None,
    typer.Option(
        metavar="auto|USR1|USR2|TERM", help="The signal that tells. auto: USR1, else TERM, by what is caught."
    ),
]
SignalTarget = Annotated[
    str | None,
    typer.Option(metavar="auto|main|tree", help="Who is told. auto: the topmost processes that catch the signal."),
]
Grace = Annotated[
    float | None, typer.Option(metavar="S", help="Seconds to count with where the source names none. Default: 30.")
]
Lead = Annotated[
    float | None, typer.Option(metavar="S", help="Act on a dated maintenance so many seconds ahead. Default: 120.")
]
ActOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="rebalance,maintenance,migrate,freeze",
        help="Act on advice of these kinds at once (repeatable). Default: on none.",
    ),
]
Reserve = Annotated[
    float | None,
    typer.Option(metavar="S", help="Seconds kept free before the deadline. Default: 15 % of the time, at most 5."),
]
Kill = Annotated[
    bool | None,
    typer.Option("--kill", help="SIGKILL what is left when only the reserve is left.", show_default=False),
]
PreemptedExitCode = Annotated[
    int | None, typer.Option(metavar="N", help="Exit status after a preemption. Default: 75.")
]
Journal = Annotated[str | None, typer.Option(metavar="FILE", help="Append one JSON line an event.")]
Link = Annotated[str | None, typer.Option(metavar="PATH", help="Socket that trainers may subscribe to.")]
StateDir = Annotated[
    str | None, typer.Option(metavar="DIR", help="Locks and ledgers. Default: ~/.local/state/preemptd.")
]
NoWandb = Annotated[bool | None, typer.Option("--no-wandb", help="Leave W&B runs alone.", show_default=False)]
LogFormat = Annotated[str | None, typer.Option(metavar="text|json", help="Of what we say on stderr.")]
DryRun = Annotated[
    bool | None, typer.Option("--dry-run", help="Say who would be told; touch nobody.", show_default=False)
]
OnAdvice = Annotated[
    str | None, typer.Option(metavar="CMD", help="Shell command to run when the platform advises: nobody is told.")
]
OnNotice = Annotated[str | None, typer.Option(metavar="CMD", help="Shell command to run when a notice is acted on.")]
OnSaved = Annotated[
    str | None, typer.Option(metavar="CMD", help="Shell command to run when a process says that it has saved.")
]
OnExit = Annotated[
    str | None,
    typer.Option(metavar="CMD", help="Shell command to run when the command (daemon: a told process) has ended."),
]
Webhook = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where to POST what happens. Better in PREEMPTD_WEBHOOK or --webhook-file: a URL may be a secret.",
    ),
]
WebhookFile = Annotated[str | None, typer.Option(metavar="FILE", help="File with the URL of --webhook.")]
WebhookFormat = Annotated[
    str | None, typer.Option(metavar="json|slack", help="Shape of what is posted. Default: json.")
]
Listen = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics (Prometheus) and /healthz there.")
]


def given(arguments: Mapping[str, object]) -> dict[str, object]:
    """Keep the settings that the command line names."""
    flags = {name: value for name, value in arguments.items() if value is not None and name not in _NOT_SETTINGS}
    for name in _REPEATABLE & flags.keys():
        values = flags[name]
        flags[name] = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    return flags
