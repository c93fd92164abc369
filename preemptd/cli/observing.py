"""Makes those who hear of what happens besides the log and ``--journal``: only what is asked for is imported."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from preemptd.cli.environment import passed_on, state_directory
from preemptd.config import DaemonSettings, Settings
from preemptd.events import Event, Inbox, SignalArrived
from preemptd.journal import Journal, Sink
from preemptd.observe.history_file import NAME, HistoryFile
from preemptd.targets.reaping import Helpers, Shielded
from preemptd.targets.scripts import of_the_user

if TYPE_CHECKING:
    from preemptd.parts import Pulse


def observers(
    settings: Settings,
    environ: Mapping[str, str],
    helpers: Helpers,
    journal: Journal,
    *,
    rehearsed: bool = False,
) -> Sequence[Sink]:
    """Make them; their threads begin with the journal's first line.

    A *rehearsed* notice is no part of the history, and nobody else hears of it.

    Raises:
        ConfigError: what they were given cannot be used.
    """
    sinks: list[Sink] = []
    if isinstance(settings, DaemonSettings):
        from preemptd.observe.departures import Departures

        sinks.append(Departures(journal.write))
    if not rehearsed:
        sinks += [*_webhook(settings, environ, journal), *_hooks(settings, environ, helpers, journal)]
        sinks += _sync(settings, environ, helpers, journal)
        sinks.append(_history(settings, environ, journal.warn))
    if settings.listen is not None and not rehearsed:
        from preemptd.observe.pages import Pages

        # Last of all: it holds a port, and whoever fails before it would leave that to nobody.
        sinks.append(Pages(settings.listen, journal.warn))
    return sinks


FLUSH_WITHIN = 1.0


@runtime_checkable
class Finishing(Protocol):
    """A sink that has something under way when all is written."""

    def finish(self, stopped: Callable[[], bool]) -> None: ...


def finish(journal: Journal, sinks: Sequence[Sink], stopped: Callable[[], bool]) -> None:
    """Wait for what is under way, before the journal is closed: each sink knows for how long, or until *stopped*."""
    finishing = [sink for sink in sinks if isinstance(sink, Finishing)]
    if finishing:
        journal.flush(FLUSH_WITHIN, finishing)
    for sink in finishing:
        sink.finish(stopped)


@runtime_checkable
class Resting(Protocol):
    """A sink whose work has to be done before the machine may go."""

    def rest(self, stopped: Callable[[], bool]) -> str: ...


def rest(journal: Journal, sinks: Sequence[Sink], stopped: Callable[[], bool]) -> str:
    """Wait, as `finish` does, for what is under way; say what is not done or has failed, empty: nothing."""
    resting = [sink for sink in sinks if isinstance(sink, Resting)]
    if resting:
        journal.flush(FLUSH_WITHIN, resting)
    return "; ".join(text for text in (sink.rest(stopped) for sink in resting) if text)


class Latecomers:
    """What comes in at the end, while `finish` or `rest` wait: the loop, which took it before, has ended."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._events: list[Event] = []

    def taken(self) -> Sequence[Event]:
        """Take what has come in; return all that has come so far."""
        self._events += iter(partial(self._inbox.get, 0.0), None)
        return self._events

    def stopped(self) -> bool:
        """Say whether Ctrl-C is among it: nothing is to be waited for any longer."""
        return any(isinstance(event, SignalArrived) and event.signum is Signals.SIGINT for event in self.taken())


def _hooks(settings: Settings, environ: Mapping[str, str], helpers: Helpers, journal: Journal) -> Sequence[Sink]:
    wishes = {
        "advice": settings.on_advice,
        "notice": settings.on_notice,
        "saved": settings.on_saved,
        "exited": settings.on_exit,
    }
    commands = {event: command for event, command in wishes.items() if command}
    if not commands or settings.dry_run:
        return ()
    from preemptd.observe.hooks import Hooks

    return (Hooks(commands, passed_on(environ), of_the_user(helpers, environ), journal.write),)


def _webhook(settings: Settings, environ: Mapping[str, str], journal: Journal) -> Sequence[Sink]:
    if not settings.webhook and not settings.webhook_file:
        return ()
    from preemptd.observe.webhook import Webhook, read_url, shape_of

    url = settings.webhook or read_url(settings.webhook_file or "")
    shape = shape_of(settings.webhook_format, settings.job_id or environ.get("SLURM_JOB_ID") or None)
    return (Webhook(url, shape, journal.write),)


def _sync(settings: Settings, environ: Mapping[str, str], helpers: Helpers, journal: Journal) -> Sequence[Sink]:
    if not settings.sync or settings.dry_run:
        return ()
    from preemptd.cli.syncing import pairs_of
    from preemptd.cli.url_sync import UrlSync

    return (UrlSync(pairs_of(settings.sync), environ, settings.job_id or "", Shielded(helpers), journal),)


def _history(settings: Settings, environ: Mapping[str, str], warn: Callable[[str], None]) -> Sink:
    """Keep the past notices; where nobody named the directory, nobody hears that it cannot be written."""
    path = os.path.join(state_directory(environ, settings.state_dir), NAME)
    return HistoryFile(path, warn if settings.state_dir else lambda _: None)


def pulses_among(sinks: Sequence[Sink]) -> "list[Pulse]":
    """Pick those who also want to know that the loop turns."""
    from preemptd.parts import Pulse

    return [sink for sink in sinks if isinstance(sink, Pulse)]
