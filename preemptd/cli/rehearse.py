"""`preemptd rehearse`."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from preemptd.cli import options
from preemptd.errors import ConfigError, PreemptdError
from preemptd.rehearsal.clouds import AHEAD, CLOUDS, table, variables

if TYPE_CHECKING:
    from preemptd.config import Settings
    from preemptd.journal import Line
    from preemptd.targets.child import Helpers
    from preemptd.written import Written

_ENVIRONMENT_KEYS = ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK")
"""Would have the provider not look at all; a rehearsal never leaves the machine."""


LONGEST = 3600.0
"""Seconds of ``--grace`` and ``--lead``: the providers of the clouds take what is further away for a mistake."""

Command = Annotated[
    list[str] | None, typer.Argument(metavar="-- COMMAND...", help="What to rehearse with.", show_default=False)
]
Platform = Annotated[
    str, typer.Option("--provider", metavar="|".join(CLOUDS), help="The platform whose notice is rehearsed.")
]
Word = Annotated[
    str | None,
    typer.Option(
        metavar="WORD", help="Which of its events: any other word lists them. Default: the end of the machine."
    ),
]
After = Annotated[float, typer.Option(metavar="S", help="Seconds from the start to the announcement.")]
Grace = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="Seconds from the announcement to the end. Default: what the platform gives; --lead and ten more for an "
        "event with a date.",
    ),
]
CheckpointDir = Annotated[
    str | None, typer.Option(metavar="DIR", help="Where the command writes checkpoints: shows what it saved.")
]
Journal = Annotated[str | None, typer.Option(metavar="FILE", help="Keep the journal: one JSON line an event.")]
Signal = Annotated[str | None, typer.Option(metavar="auto|USR1|USR2|TERM", help="The signal that tells.")]


def rehearse(  # noqa: PLR0913, PLR0917 - a command's options
    command: Command = None,
    platform: Platform = "ec2",
    event: Word = None,
    after: After = 5.0,
    grace: Grace = None,
    lead: options.Lead = None,
    act_on: options.ActOn = None,
    checkpoint_dir: CheckpointDir = None,
    journal: Journal = None,
    signal: Signal = None,
    no_wandb: options.NoWandb = None,
) -> int:
    """Run COMMAND under a rehearsed preemption and report what would have been saved. Exit 0: saved, 1: not.

    A metadata server on loopback announces it; all the rest is real. What still runs at the end of the grace is
    killed, as the platform would.
    """
    asked = {"lead": lead, "act_on": act_on, "checkpoint_dir": checkpoint_dir, "journal": journal, "signal": signal}
    flags = options.given({**asked, "no_wandb": no_wandb})
    if not command:
        raise ConfigError("no command: preemptd rehearse [options] -- COMMAND...")
    if platform not in CLOUDS:
        raise ConfigError(f"--provider {platform!r} cannot be rehearsed; choose one of {', '.join(CLOUDS)}")
    event = CLOUDS[platform].first if event is None else event
    if event not in CLOUDS[platform].events:
        raise ConfigError(f"--event {event!r} is none of {platform}'s; it has {', '.join(CLOUDS[platform].events)}")
    if not (math.isfinite(after) and after >= 0):
        raise ConfigError(f"--after {after} is no time to wait: seconds, 0 or more")
    wishes = _wishes(flags | {"provider": (platform,), "grace": grace, "when_pending": "start"}, platform, event)
    return _rehearse(tuple(command), _Scene(platform, event, after, wishes))


class _Scene(NamedTuple):
    """What is rehearsed."""

    platform: str
    event: str
    after: float
    """Seconds from the first look to the announcement."""
    wishes: "Settings"

    @property
    def grace(self) -> float:
        return self.wishes.grace or 0.0


def _wishes(flags: Mapping[str, object], platform: str, event: str) -> "Settings":
    """Put the settings together; raises ConfigError, also where nobody would be told."""
    from preemptd.config import settings

    wishes = settings(flags, _rehearsed(os.environ), None)
    played = CLOUDS[platform].events[event]
    if played.advice is not None and played.advice not in wishes.act_on:
        raise ConfigError(f"--event {event} is advice, of which nobody is told; --act-on {played.advice} would tell")
    if wishes.grace is not None and not 0 < wishes.grace <= LONGEST:
        raise ConfigError(f"--grace {wishes.grace:g} cannot be rehearsed: seconds, more than 0 and at most {LONGEST:g}")
    if wishes.lead > LONGEST:
        raise ConfigError(f"--lead {wishes.lead:g} cannot be rehearsed: at most {LONGEST:g} seconds")
    if wishes.lead <= 0 and played.grace is None:
        raise ConfigError(f"--lead {wishes.lead:g} leaves no time between the notice and --event {event}")
    if wishes.grace is not None:
        return wishes
    return wishes.model_copy(update={"grace": wishes.lead + AHEAD if played.grace is None else played.grace})


def _rehearse(command: tuple[str, ...], scene: _Scene) -> int:
    from preemptd.cli.compose import run
    from preemptd.cli.jobs import Job
    from preemptd.escalation import Killing
    from preemptd.journal_file import Lines
    from preemptd.rehearsal.report import Rehearsal, Verdict, judge, render
    from preemptd.targets.child import Helpers
    from preemptd.targets.terminal import interrupt_own_group

    environ, helpers, kept, platform = _rehearsed(os.environ), Helpers(), Lines(), scene.platform
    with _server(helpers, scene) as url:
        platform_environ = {name: value for name, value in environ.items() if name not in _ENVIRONMENT_KEYS}
        platform_environ |= variables(platform, url)
        ours = table(platform, scene.event, scene.grace, url)
        theirs = scene.wishes.providers if CLOUDS[platform].endpoint else {}  # their own page is not this one
        tables = {**theirs, platform: {**theirs.get(platform, {}), **ours}}
        wishes = scene.wishes.model_copy(update={"providers": tables})
        ended = run(Job(command, environ, wishes, helpers, platform_environ, Killing.AT_DEADLINE, (kept,)))
    played = platform if scene.event == CLOUDS[platform].first else f"{platform} {scene.event}"
    rehearsal = Rehearsal(played, scene.grace, kept.lines, _written(wishes.checkpoint_dir, kept.lines))
    print(render(rehearsal), flush=True)
    if ended.interrupted:
        interrupt_own_group()
    return 0 if judge(rehearsal)[0] is Verdict.SAVED else 1


def _rehearsed(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is about the real job: its ledger, and the preemptd around us, which hears other notices."""
    from preemptd.config import PREFIX

    return {name: value for name, value in environ.items() if name not in {f"{PREFIX}JOB_ID", f"{PREFIX}LINK"}}


def _written(directory: str | None, lines: Sequence["Line"]) -> "Sequence[Written] | None":
    """List what was written since the notice; None: nobody said where to look."""
    from preemptd.rehearsal.report import number
    from preemptd.written import written_since

    if directory is None:
        return None
    raised = next((line for line in lines if line["event"] == "notice" and line["acted"]), None)
    return written_since(directory, number(raised["t"])) if raised else ()


@contextmanager
def _server(helpers: "Helpers", scene: _Scene) -> Iterator[str]:
    """Run the metadata server of the rehearsal; it ends with its standard input, so never later than we do."""
    times = ["--after", str(scene.after), "--grace", str(scene.grace)]
    command = [sys.executable, "-m", "preemptd.rehearsal.servers", scene.platform, "--event", scene.event, *times]
    lifeline, ours = os.pipe()
    server = helpers.popen(command, stdin=lifeline, stdout=subprocess.PIPE)
    os.close(lifeline)
    try:
        ready, _, url = (server.stdout.readline() if server.stdout else b"").decode().strip().partition(" ")
        if ready != "ready":
            raise PreemptdError(f"the rehearsal's metadata server did not start (status {server.wait()})")
        yield url
    finally:
        os.close(ours)
        server.communicate()
        helpers.release(server)
