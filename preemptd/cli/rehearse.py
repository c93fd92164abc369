"""`preemptd rehearse`."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from preemptd.cli.options import given
from preemptd.errors import ConfigError, PreemptdError
from preemptd.rehearsal.clouds import CLOUDS

if TYPE_CHECKING:
    from preemptd.journal import Line
    from preemptd.targets.child import Helpers
    from preemptd.written import Written

_ENVIRONMENT_KEYS = ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK")
"""Would have the provider not look at all; a rehearsal never leaves the machine."""


def rehearse(  # noqa: PLR0913, PLR0917 - a command's options
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="What to rehearse with.", show_default=False)
    ] = None,
    platform: Annotated[
        str, typer.Option("--provider", metavar="|".join(CLOUDS), help="The platform whose notice is rehearsed.")
    ] = "ec2",
    after: Annotated[float, typer.Option(metavar="S", help="Seconds from the start to the notice.")] = 5.0,
    grace: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds from the notice to the end. Default: what the platform gives."),
    ] = None,
    checkpoint_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the command writes checkpoints: shows what it saved.")
    ] = None,
    journal: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keep the journal: one JSON line an event.")
    ] = None,
    signal: Annotated[str | None, typer.Option(metavar="auto|USR1|USR2|TERM", help="The signal that tells.")] = None,
    no_wandb: Annotated[
        bool | None, typer.Option("--no-wandb", help="Leave W&B runs alone.", show_default=False)
    ] = None,
) -> int:
    """Run COMMAND under a rehearsed preemption and report what would have been saved. Exit 0: saved, 1: not.

    A metadata server on loopback raises the notice; all the rest is real. What still runs at the end of the grace is
    killed, as the platform would.
    """
    flags = given({"checkpoint_dir": checkpoint_dir, "journal": journal, "signal": signal, "no_wandb": no_wandb})
    if not command:
        raise ConfigError("no command: preemptd rehearse [options] -- COMMAND...")
    if platform not in CLOUDS:
        raise ConfigError(f"--provider {platform!r} cannot be rehearsed; choose one of {', '.join(CLOUDS)}")
    if not (math.isfinite(after) and after >= 0):
        raise ConfigError(f"--after {after} is no time to wait: seconds, 0 or more")
    seconds = CLOUDS[platform].grace if grace is None else grace
    flags |= {"provider": (platform,), "grace": seconds, "when_pending": "start"}
    return _rehearse(tuple(command), platform, after, flags)


def _rehearse(command: tuple[str, ...], platform: str, after: float, flags: Mapping[str, object]) -> int:
    from preemptd.cli.compose import run
    from preemptd.cli.jobs import Job
    from preemptd.config import settings
    from preemptd.escalation import Killing
    from preemptd.journal_file import Lines
    from preemptd.rehearsal.report import Rehearsal, Verdict, judge, render
    from preemptd.targets.child import Helpers
    from preemptd.targets.terminal import interrupt_own_group

    environ, helpers, kept = _rehearsed(os.environ), Helpers(), Lines()
    wishes = settings(flags, environ, None)
    grace = wishes.grace or 0.0
    with _server(helpers, platform, after, grace) as url:
        cloud = CLOUDS[platform]
        platform_environ = {name: value for name, value in environ.items() if name not in _ENVIRONMENT_KEYS}
        platform_environ[cloud.endpoint] = url if cloud.takes_url else url.removeprefix("http://")
        ended = run(Job(command, environ, wishes, helpers, platform_environ, Killing.AT_DEADLINE, (kept,)))
    rehearsal = Rehearsal(platform, grace, kept.lines, _written(wishes.checkpoint_dir, kept.lines))
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
def _server(helpers: "Helpers", platform: str, after: float, grace: float) -> Iterator[str]:
    """Run the metadata server of the rehearsal; it ends with its standard input, so never later than we do."""
    command = [
        sys.executable,
        "-m",
        "preemptd.rehearsal.servers",
        platform,
        "--after",
        str(after),
        "--grace",
        str(grace),
    ]
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
