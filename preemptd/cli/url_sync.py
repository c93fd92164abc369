"""Fetches what lies at a URL before the command starts, and brings there what it saves; see `cli.syncing`."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from signal import Signals

from preemptd.discretion import discreet
from preemptd.errors import CommandError
from preemptd.events import Event, Inbox, SignalArrived
from preemptd.journal import Journal
from preemptd.notices import Meaning
from preemptd.provider import Commands
from preemptd.settling import Ending, Settled
from preemptd.supervision import STOPS
from preemptd.sync.keeping import Keeping, Pair
from preemptd.sync.layout import SyncError, Writer
from preemptd.sync.transfer import Line, Transfer

EX_IOERR = 74
"""Our status when all went well, but for the last state, which is not at the URL."""
SHORTEST = 3.0
"""Seconds in which the last upload is tried in any case: platforms are late."""
LOOK_EVERY = 0.05
SHOWN_AFTER = 1.0
"""Seconds after which a transfer is long enough for a progress bar."""
READ_FOR = 0.1


class UrlSync:
    """A sink that hears when something has been saved; see `Syncing`."""

    def __init__(
        self, pairs: Sequence[Pair], environ: Mapping[str, str], job: str, popen: Commands, journal: Journal
    ) -> None:
        self._pairs = pairs
        self._environ = environ
        self._popen = popen
        self._journal = journal
        self._later: list[Event] = []
        """What came while there was no loop yet: a provider may make a notice of a signal."""
        self._attempt = 0
        self._job = job
        self._writers: dict[Pair, Writer] = {}
        self._keeping: Keeping | None = None
        self._told: set[Pair] = set()
        self._failing: set[Pair] = set()
        self._shows = False
        self._unsent: Sequence[str] = ()
        """What the last upload has left undone, and why."""

    # -- before the command starts -----------------------------------------------------------------------------------

    def restore(self, inbox: Inbox, *, fetch: bool) -> int:
        self._inbox = inbox
        attempts = [self._restore(pair, inbox, fetch=fetch) for pair in self._pairs]
        for event in self._later:
            inbox.put(event)
        self._keeping = Keeping(self._writers, self._send, self._sent, self._hear)
        return max(attempts)

    def _restore(self, pair: Pair, inbox: Inbox, *, fetch: bool) -> int:
        began, bar = time.monotonic(), _Bar()

        def hear(line: Line) -> None:
            if line["event"] == "claimed":
                self._writers[pair] = Writer(int(str(line["epoch"])), str(line["token"]))
            elif line["event"] == "progress" and time.monotonic() - began > SHOWN_AFTER:
                bar.show(str(line["text"]))
            elif line["event"] == "warning":
                self._journal.warn(discreet(str(line["text"])))

        transfer, result = self._begin(pair, hear, do="fetch", fetch=fetch), None
        while result is None:
            if (stop := _stop_in(inbox, STOPS, self._later)) is not None:
                transfer.kill(f"{stop.name} came")
                result = transfer.advance(0.0) or {}
                self._write(pair, "restored", result, time.monotonic() - began)
                bar.clear()
                raise CommandError(
                    f"--sync {pair.shown}: stopped by {stop.name}, the command was not started", 128 + stop
                )
            result = transfer.advance(READ_FOR)
        bar.clear()
        self._write(pair, str(result.get("what", "restored")), result, time.monotonic() - began)
        if result["event"] == "failed":
            raise SyncError(f"--sync {pair.shown}: {result['why']} (the command was not started)", str(result["kind"]))
        return int(str(result["attempt"])) + 1 if "attempt" in result else 0

    def _begin(self, pair: Pair, hear: Callable[[Line], None], **order: object) -> Transfer:
        about = {"directory": pair.directory, "url": pair.url, "job": self._job, "attempt": self._attempt, **order}
        return Transfer(self._popen, self._environ, about, hear)

    # -- in the journal's thread -------------------------------------------------------------------------------------

    def write(self, line: Line) -> None:
        if self._keeping is None:
            return
        if line["event"] == "started":
            self._attempt = int(str(line["attempt"]))
            self._keeping.start()
        elif line["event"] == "saved":
            self._keeping.saved()

    def close(self) -> None:
        """Do nothing: `conclude` has waited for what was under way."""

    # -- in the thread that uploads ----------------------------------------------------------------------------------

    def _send(self, pair: Pair, writer: Writer, hear: Callable[[Line], None]) -> Transfer:
        return self._begin(pair, hear, do="send", epoch=writer.epoch, token=writer.token)

    def _hear(self, line: Line) -> None:
        if line["event"] == "warning":
            self._journal.warn(discreet(str(line["text"])))
        elif line["event"] == "progress" and self._shows:
            self._journal.progress(str(line["text"]))

    def _sent(self, pair: Pair, result: Line, seconds: float, last: bool) -> None:
        self._write(pair, "sent", result, seconds, last=last)

    # -- at our end --------------------------------------------------------------------------------------------------

    def hasten(self, attempt: int) -> None:
        self._attempt = attempt
        if self._keeping is not None:
            self._keeping.saved()

    def conclude(self, ending: Ending, settled: Settled, ends: float | None, ready: Callable[[], None]) -> Settled:
        keeping = self._keeping
        if keeping is None or not ending.started or ending.meaning is Meaning.SUPERSEDED:
            return settled
        ready()
        self._shows = True
        keeping.start()
        keeping.end()
        stop = self._wait_for(keeping, ends)
        unsent = self._unsent = [
            f"--sync {pair.shown}: the last state is not there: {why}" for pair, why in keeping.unsent
        ]
        if keeping.is_alive:
            unsent.append("--sync: the last state is not there: the disk does not answer")
        for text in unsent:
            self._journal.warn(text)
        return _judged(settled, unsent, stop)

    def rest(self, stopped: Callable[[], bool]) -> str:  # noqa: ARG002 - `conclude` has waited
        return "; ".join(self._unsent)

    def _wait_for(self, keeping: Keeping, ends: float | None) -> Signals | None:
        """Wait until all is sent, the time is over, or somebody stops us: by the signal that is returned.

        Who sends for a machine that goes is not stopped by the platform's own SIGTERM.
        """
        stops = STOPS if ends is None else STOPS - {Signals.SIGTERM}
        stop: Signals | None = None
        limit = None if ends is None else max(ends, time.monotonic() + SHORTEST)
        while keeping.is_alive and stop is None and (limit is None or time.monotonic() < limit):
            time.sleep(LOOK_EVERY)
            stop = _stop_in(self._inbox, stops, [])
        keeping.stop("the time was over" if stop is None else f"{stop.name} came")
        limit = time.monotonic() + SHORTEST
        while keeping.is_alive and time.monotonic() < limit:
            time.sleep(LOOK_EVERY)
        if stop is not None:
            self._inbox.put(SignalArrived(stop))  # there are others who ask for it
        return stop

    # -- what is said ------------------------------------------------------------------------------------------------

    def _write(self, pair: Pair, what: str, result: Line, seconds: float, *, last: bool = False) -> None:
        if what == "sent" and result.get("what") == "nothing":
            return
        failed = result.get("event") != "done"
        self._journal.write(
            "sync",
            what=what,
            directory=pair.directory,
            url=discreet(pair.url),
            ok=not failed,
            why=str(result.get("why", "")),
            generation=result.get("generation"),
            files=result.get("files"),
            bytes=result.get("bytes"),
            ms=round(seconds * 1000, 1),
            text=self._text(pair, what, result, seconds, last=last),
        )
        (self._failing.add if failed else self._failing.discard)(pair)
        if what == "sent":
            self._told.add(pair)

    def _text(self, pair: Pair, what: str, result: Line, seconds: float, *, last: bool) -> str:
        """Say it to people: of uploads only the first, the last, and when they begin or cease to fail."""
        place, failing = f"--sync {pair.shown}", pair in self._failing
        if result.get("event") != "done":
            said = what == "sent" and not failing
            return f"warning: {place}: nothing could be sent: {result.get('why')}" if said else ""
        about = f"generation {result.get('generation')}, {_size(result.get('size'))}"
        aside = f"; set aside in .preemptd/replaced: {_files(result['aside'])}" if result.get("aside") else ""
        if what == "sent" and not (last or failing or pair not in self._told):
            return ""
        texts = {
            "sent": f"{place}: sent {about}, in {seconds:.1f} s",
            "restored": f"{place}: restored {about}, in {seconds:.1f} s{aside}",
            "kept": f"{place}: nothing is fetched, {result.get('why')} (there: {about})",
            "nothing": f"{place}: nothing is there yet",
        }
        return texts.get(what, "")


def _judged(settled: Settled, unsent: Sequence[str], stop: Signals | None) -> Settled:
    """Let our status tell of it where nothing else would bring somebody to look.

    A preempted job keeps its status: it is to come back, and goes on with what is there.
    """
    if not unsent:
        return settled
    status = settled.status
    if status == 0 and not settled.preempted:
        status = EX_IOERR if stop is None else 128 + stop
    return replace(settled, status=status, why="; ".join((settled.why, *unsent)))


def _stop_in(inbox: Inbox, stops: frozenset[Signals], others: list[Event]) -> Signals | None:
    """Take what has come, and return a stop signal; whatever else there is goes to *others*."""
    while (event := inbox.get(0.0)) is not None:
        if isinstance(event, SignalArrived) and event.signum in stops:
            return event.signum
        others.append(event)
    return None


def _files(count: object) -> str:
    return "1 file from here" if count == 1 else f"{count} files from here"


def _size(value: object) -> str:
    size = float(value) if isinstance(value, (int, float)) else 0.0
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


class _Bar:
    """A progress bar on a terminal, while there is no journal yet that could show it; nowhere else."""

    def __init__(self) -> None:
        self._terminal = os.isatty(2)
        self._shown = False

    def show(self, text: str) -> None:
        if self._terminal:
            self._shown = True
            os.write(2, f"\r\x1b[K{text}".encode())

    def clear(self) -> None:
        if self._shown:
            os.write(2, b"\r\x1b[K")
