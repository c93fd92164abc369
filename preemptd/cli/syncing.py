"""`preemptd watch --sync DIR=URL`: the command goes on with what lies at URL, and what it saves is brought there."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from preemptd.config import Settings
from preemptd.discretion import discreet
from preemptd.errors import ConfigError
from preemptd.events import Inbox
from preemptd.journal import Sink

if TYPE_CHECKING:
    from preemptd.cli.jobs import Job
    from preemptd.settling import Ending, Settled
    from preemptd.sync.keeping import Pair


@runtime_checkable
class Syncing(Protocol):
    """What `--sync` asks for; or `NoSync`."""

    def restore(self, inbox: Inbox, *, fetch: bool) -> int:
        """Bring the directories to the newest state, before the command is forked: no thread is begun.

        Args:
            inbox: where stop signals arrive.
            fetch: False: the command runs already, and what it has is its own.

        Returns:
            How often the job was started before, as far as what lies at the URLs tells.

        Raises:
            SyncError: the command must not be started.
            CommandError: somebody has stopped us.
        """
        ...

    def hasten(self, attempt: int) -> None:
        """Hear that the command has ended, which was started *attempt* times before: what it has left is complete."""
        ...

    def conclude(
        self, ending: "Ending", settled: "Settled", ends: float | None, ready: Callable[[], None]
    ) -> "Settled":
        """Send what is new for the last time, and judge how that went.

        Args:
            ending: what is known of the end.
            settled: what was made of it.
            ends: until when, on the monotonic clock; None: it may take as long as it takes.
            ready: has the rest that goes along written down.
        """
        ...


class NoSync:
    """Nothing is to be kept anywhere."""

    def restore(self, inbox: Inbox, *, fetch: bool) -> int:  # noqa: ARG002 - a null object
        return 0

    def hasten(self, attempt: int) -> None:
        pass

    def conclude(
        self,
        ending: "Ending",  # noqa: ARG002 - a null object
        settled: "Settled",
        ends: float | None,  # noqa: ARG002
        ready: Callable[[], None],  # noqa: ARG002
    ) -> "Settled":
        return settled


def named(job: "Job") -> "Job":
    """Let the URL name the job, and its directory be that of the checkpoints, where the user says nothing else."""
    settings = job.settings
    if not is_wanted(settings, rehearsed=job.platform_environ is not None):
        return job
    import hashlib  # loads OpenSSL: not before the start of a command that keeps nothing anywhere

    pairs = pairs_of(settings.sync)
    digest = hashlib.sha256("\0".join(pair.url for pair in pairs).encode(errors="surrogateescape")).hexdigest()[:12]
    more = {
        "job_id": settings.job_id or f"sync-{digest}",
        "checkpoint_dir": settings.checkpoint_dir or pairs[0].directory,
    }
    return replace(job, settings=settings.model_copy(update=more))


def is_wanted(settings: Settings, *, rehearsed: bool) -> bool:
    return bool(settings.sync) and not settings.dry_run and not rehearsed


def syncing_among(sinks: Sequence[Sink]) -> Syncing:
    return next((sink for sink in sinks if isinstance(sink, Syncing)), None) or NoSync()


def pairs_of(wishes: Sequence[str]) -> "Sequence[Pair]":
    """Read ``DIR=URL``.

    Raises:
        ConfigError: that is none, or two of them are about the same directory or URL.
    """
    from preemptd.sync.keeping import Pair

    pairs: list[Pair] = []
    for wish in wishes:
        shown = discreet(wish)
        directory, _, url = wish.partition("=")
        if url.startswith("/"):
            url = f"file://{url}"
        if not directory or "://" not in url or "\0" in wish:
            raise ConfigError(f"--sync {shown}: say DIR=URL, as in checkpoints=s3://bucket/run42")
        pair = Pair(os.path.abspath(directory), url.rstrip("/"), shown)
        for other in pairs:
            if _overlap(pair.directory, other.directory) or _overlap(pair.url, other.url):
                raise ConfigError(f"--sync {shown} and --sync {other.shown}: one lies within the other")
        if os.path.lexists(pair.directory) and not os.path.isdir(pair.directory):
            raise ConfigError(f"--sync {shown}: {directory} is no directory")
        pairs.append(pair)
    return pairs


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
