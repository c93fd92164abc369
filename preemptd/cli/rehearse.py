"""`preemptd rehearse`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from preemptd.cli.options import given
from preemptd.errors import ConfigError, PreemptdError

if TYPE_CHECKING:
    from preemptd.targets.child import Helpers

GRACE = {"ec2": 120.0, "gce": 30.0}
"""Seconds that the platforms give."""
_ENDPOINTS = {"ec2": "AWS_EC2_METADATA_SERVICE_ENDPOINT", "gce": "GCE_METADATA_HOST"}
_ENVIRONMENT_KEYS = ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK")
"""Would have the provider not look at all; a rehearsal never leaves the machine."""


def rehearse(  # noqa: PLR0913, PLR0917 - a command's options
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="What to rehearse with.", show_default=False)
    ] = None,
    platform: Annotated[
        str, typer.Option("--provider", metavar="ec2|gce", help="The platform whose notice is rehearsed.")
    ] = "ec2",
    after: Annotated[float, typer.Option(metavar="S", help="Seconds from the start to the notice.")] = 5.0,
    grace: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds from the notice to the end. Default: 120 (ec2), 30 (gce)."),
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
    if platform not in GRACE:
        raise ConfigError(f"--provider {platform!r} cannot be rehearsed; choose one of {', '.join(GRACE)}")
    seconds = GRACE[platform] if grace is None else grace
    with tempfile.TemporaryDirectory(prefix="preemptd-") as scratch:
        flags = {"journal": os.path.join(scratch, "journal"), **flags, "provider": (platform,), "grace": seconds}
        return _rehearse(tuple(command), platform, after, flags)


def _rehearse(command: tuple[str, ...], platform: str, after: float, flags: Mapping[str, object]) -> int:
    from preemptd.cli.compose import Job, run
    from preemptd.config import settings
    from preemptd.escalation import Killing
    from preemptd.rehearsal.report import Rehearsal, Verdict, judge, number, render
    from preemptd.targets.child import Helpers
    from preemptd.written import written_since

    environ, helpers = dict(os.environ), Helpers()
    wishes = settings(flags, environ, None)
    journal, grace = str(wishes.journal), wishes.grace or 0.0
    before = os.path.getsize(journal) if os.path.exists(journal) else 0
    with _server(helpers, platform, after, grace) as url:
        endpoint = url if platform == "ec2" else url.removeprefix("http://")
        platform_environ = {name: value for name, value in environ.items() if name not in _ENVIRONMENT_KEYS}
        platform_environ[_ENDPOINTS[platform]] = endpoint
        run(Job(command, environ, wishes, helpers, platform_environ, Killing.AT_DEADLINE))
    lines = _read(journal, before)
    raised = next((line for line in lines if line["event"] == "notice" and line["acted"]), None)
    written = None
    if wishes.checkpoint_dir is not None:
        written = written_since(wishes.checkpoint_dir, number(raised["t"])) if raised else ()
    rehearsal = Rehearsal(platform, grace, lines, written)
    print(render(rehearsal))
    return 0 if judge(rehearsal)[0] is Verdict.SAVED else 1


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


def _read(path: str, offset: int) -> list[dict[str, object]]:
    """Read the journal's lines from *offset* on."""
    with open(path, "rb") as file:
        file.seek(offset)
        return [json.loads(line) for line in file]
