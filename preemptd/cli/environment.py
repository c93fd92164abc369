"""What a command under `preemptd watch` finds in its environment, and where our own files lie."""

import os
import stat
import tempfile
from collections.abc import Mapping

SHUTDOWN_TIMEOUT = 120
"""Seconds that torchrun gives its ranks at the least before it kills them; its own default is 30 for all together."""


def for_command(
    environ: Mapping[str, str],
    link: str | None,
    attempt: int,
    grace: float | None,
    resumed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Make the command's environment: the user's, less our settings, plus what helps a save; never over the user's.

    Args:
        environ: what we were started with.
        link: path of the socket that the client speaks to; None: there is none.
        attempt: how often this job was started before.
        grace: ``--grace`` in seconds.
        resumed: what makes it go on with its W&B run.
    """
    from preemptd.config import PREFIX
    from preemptd.targets.reaping import OWN_COMMAND

    env = passed_on(environ)
    # That of a program above us (a notebook) which uses wandb: its wandb-core ends with it, and is no part of this job.
    env.pop("WANDB_SERVICE", None)
    env.pop(OWN_COMMAND, None)  # a hook of another preemptd may start a job; that one is a training
    if link:
        env[f"{PREFIX}LINK"] = link
    env[f"{PREFIX}ATTEMPT"] = str(attempt)
    if attempt:
        env[f"{PREFIX}RESUMED"] = "1"
    else:
        env.pop(f"{PREFIX}RESUMED", None)
    # wandb >= 0.31 keeps up to 32 KiB of an offline run in memory for 15 s: lost when the machine goes.
    env.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.5")
    env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(max(SHUTDOWN_TIMEOUT, int(grace or 0))))
    return {**(resumed or {}), **env}


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out of *environ* our settings, and what systemd meant for us: no command gets these."""
    from preemptd.config import variables
    from preemptd.observe.sdnotify import VARIABLES

    ours = variables() | VARIABLES
    return {name: value for name, value in environ.items() if name not in ours}


def attempt_of(environ: Mapping[str, str], recorded: int) -> int:
    """Count how often this job was started before: by SLURM's word, else by our own record."""
    restarts = environ.get("SLURM_RESTART_COUNT", "")
    return int(restarts) if restarts.isascii() and restarts.isdecimal() else recorded


def default_link(environ: Mapping[str, str], name: str | None) -> str:
    """Choose a path for our socket: the same for the same job, so that its processes find a restarted daemon."""
    return os.path.join(link_directory(environ), f"{name or os.getpid()}.sock")


def link_directory(environ: Mapping[str, str]) -> str:
    """Name the directory of the sockets whose path nobody chose; `is_safe` says whether it may be used."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return os.path.join(runtime, "preemptd")
    return os.path.join(tempfile.gettempdir(), f"preemptd-{os.getuid()}")


def is_safe(directory: str) -> bool:
    """Say whether nobody else can put a socket of theirs in the place of ours: /tmp is everybody's."""
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def state_directory(environ: Mapping[str, str], wish: str | None) -> str:
    """Name the directory of locks and ledgers: *wish*, else XDG's place for state."""
    if wish:
        return os.path.abspath(wish)
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or "/", ".local", "state")
    return os.path.join(home, "preemptd")
