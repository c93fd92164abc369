"""`preemptd watch --sync DIR=URL`: the command goes on with what lies at URL, and what it saves is brought there."""

import os
import re
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


_NOWHERE = frozenset({"memory", "local", "data"})
"""What fsspec knows, and what ends with the process, or is a path under another name."""


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
        ConfigError: that is none, or two of them are about the same directory or URL, or what is sent would lie in a
            directory that is sent.
    """
    pairs = [_pair(wish) for wish in wishes]
    for number, pair in enumerate(pairs):
        for other in pairs[:number]:
            both, sides = f"--sync {pair.shown} and --sync {other.shown}", (_sides(pair), _sides(other))
            for what, one, another in zip(("directory", "URL"), *sides, strict=True):
                if one == another:
                    raise ConfigError(f"{both}: the {what} is named twice")
                if _overlap(one, another):
                    raise ConfigError(f"{both}: one {what} lies within the other")
    for pair in pairs:
        for other in pairs:
            if _overlap(_sides(pair)[0], _sides(other)[1]):
                whose = "URL" if other is pair else f"URL of --sync {other.shown}"
                raise ConfigError(
                    f"--sync {pair.shown}: the directory and the {whose} lie within one another: it would send itself"
                )
    return pairs


def _pair(wish: str) -> "Pair":
    from preemptd.sync.keeping import Pair

    directory, _, url = wish.partition("=")
    if url.startswith("/"):
        url = f"file://{url}"
    if not directory or "://" not in url or "\0" in wish:
        raise ConfigError(f"--sync {discreet(wish)}: say DIR=URL, as in checkpoints=s3://bucket/run42")
    if why := _no_directory(os.path.abspath(directory)) or _no_url(url):
        raise ConfigError(f"--sync {discreet(wish)}: {why}")
    return Pair(os.path.abspath(directory), url.rstrip("/"), discreet(wish))


def _no_directory(directory: str) -> str:
    """Say why that cannot be kept anywhere; empty: it can."""
    if os.path.realpath(directory) == "/":
        return "the directory is /: name one below it"
    above = directory
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    return "" if os.path.isdir(above) else f"{above} is no directory"


def _no_url(url: str) -> str:
    """Say why nothing can be kept there, as far as the name tells; empty: it can."""
    protocol, _, place = url.partition("://")
    if protocol == "file" and not place.startswith("/"):
        return "file:// takes an absolute path, as in file:///mnt/nfs/run42"
    if protocol == "file" and os.path.realpath(place) == "/":
        return "the URL is /: name a directory below it"
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", protocol) or protocol in _NOWHERE:
        return f"nothing is kept at {protocol}://, say s3://, gs://, abfs:// or a path"
    if not place.partition("/")[0] and protocol != "file":
        return f"{protocol}:// names no bucket, say {protocol}://bucket/run42"
    return ""


def _sides(pair: "Pair") -> tuple[str, str]:
    """Name both ends so that they can be compared: paths without symbolic links."""
    path = pair.url.removeprefix("file://")
    return os.path.realpath(pair.directory), pair.url if path == pair.url else os.path.realpath(path)


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
