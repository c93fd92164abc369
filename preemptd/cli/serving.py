"""Puts the daemon together, runs it, and builds it anew when there is a new configuration."""

import gc
import hashlib
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from signal import Signals

import preemptd
from preemptd.cli import misspelt
from preemptd.cli.compose import link_of, providers_of
from preemptd.cli.environment import state_directory
from preemptd.cli.jobs import Job, Providers
from preemptd.cli.mending import reporter
from preemptd.cli.observing import finish, observers, pulses_among
from preemptd.config import DaemonSettings, daemon_settings
from preemptd.daemon import Daemon
from preemptd.errors import ConfigError, PreemptdError
from preemptd.escalation import Killing, Timing
from preemptd.events import Inbox, SignalArrived
from preemptd.fleet import HEARD, Fleet
from preemptd.journal import Journal, Sink
from preemptd.journal_file import JournalFile
from preemptd.ledger import JobLedger, Ledger, Record, TakenError
from preemptd.link.server import Server
from preemptd.log import Log
from preemptd.observe.pulses import Pulses, Watchdog
from preemptd.observe.sdnotify import ServiceManager
from preemptd.parts import Marking, NoLink, NoMarker, NoNodes, NoOuter, Parts
from preemptd.procfs import machine_life
from preemptd.runs.aftercare import Aftercare
from preemptd.runs.marker import Marker
from preemptd.runs.roster import Roster
from preemptd.supervision import STOPS
from preemptd.targets.finding import Finder, Wanted
from preemptd.targets.reaping import Helpers
from preemptd.targets.scanner import Scanner

Read = Callable[[], DaemonSettings]

AGAIN_AFTER = 5.0
"""Seconds from one try to the next with a configuration that was good, and no longer is."""
_FORGETS = "a daemon that is started after this one tells again what this one has told"


@dataclass(frozen=True, slots=True)
class _Lasting:
    """What outlives a new configuration."""

    environ: Mapping[str, str]
    helpers: Helpers
    inbox: Inbox
    manager: ServiceManager
    read: Read
    """Reads the configuration."""


def serve(flags: Mapping[str, object], environ: Mapping[str, str], config: str | None) -> int:
    """Run until somebody stops us; return the exit status.

    Raises:
        ConfigError: the first configuration is not good. A later one is refused, and the one before stays.
    """
    path = os.path.abspath(config) if config else config

    def read() -> DaemonSettings:
        return daemon_settings(flags, environ, path)

    _take_all_descriptors()
    with closing(Inbox()) as inbox, closing(ServiceManager(environ)) as manager:
        lasting = _Lasting(environ, Helpers(), inbox, manager, read)
        settings: DaemonSettings | None = read()
        before: DaemonSettings | None = None
        inbox.catch(HEARD)
        gc.freeze()
        gc.enable()  # `main` has switched it off, and we are here for months
        complaints = [*misspelt.warnings(environ)]
        while settings is not None:
            try:
                following = _Round(lasting, settings).run(complaints)
                complaints = []
            except PreemptdError as error:
                if before is None:
                    raise
                if settings is before:  # a file that it names is gone, a port is taken: that may pass
                    complaints = [f"the configuration cannot be gone by any more, it is tried again: {error}"]
                    following = _wait(lasting, before)
                else:
                    complaints = [f"the new configuration is refused: {error}"]
                    following, settings = before, None
            before, settings = settings or before, following
        manager.stopping()
        return 0


def _wait(lasting: _Lasting, settings: DaemonSettings) -> DaemonSettings | None:
    """Wait a moment; return what is tried next: *settings* again, what a SIGHUP brings, or None after a stop signal."""
    ends = time.monotonic() + AGAIN_AFTER
    while (left := ends - time.monotonic()) > 0:
        lasting.manager.alive()
        event = lasting.inbox.get(min(left, lasting.manager.interval or left))
        if not isinstance(event, SignalArrived) or event.signum not in STOPS:
            continue
        if event.signum is not Signals.SIGHUP:
            return None
        with suppress(ConfigError):
            return lasting.read()
    return settings


def _take_all_descriptors() -> None:
    """Raise the soft limit: each target and each connection holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Round:
    """One configuration's time."""

    def __init__(self, lasting: _Lasting, settings: DaemonSettings) -> None:
        self._lasting = lasting
        self._settings = settings
        self._journal = Journal()
        self._following: DaemonSettings | None = None
        self._sinks: Sequence[Sink] = ()

    def run(self, complaints: Sequence[str]) -> DaemonSettings | None:
        """Say the *complaints*, run to the end; return the configuration that comes next, None: nothing does.

        Raises:
            ConfigError: what the configuration asks for cannot be had.
        """
        settings, lasting, journal = self._settings, self._lasting, self._journal
        with ExitStack() as stack:
            stack.callback(journal.close)
            journal.add(Log(2, settings.log_format))
            if settings.journal:
                journal.add(JournalFile(settings.journal, journal.warn))
            for complaint in complaints:
                journal.warn(complaint)
            self._sinks = observers(settings, lasting.environ, lasting.helpers, journal)
            for sink in self._sinks:
                journal.add(sink)
            ledger = stack.enter_context(closing(self._ledger()))
            providers = self._providers(ledger.record.began)
            link = self._link()
            if link is not None:
                stack.callback(link.close)
            roster = stack.enter_context(closing(Roster()))
            marker = self._marker(roster, ledger)
            finder = stack.enter_context(closing(self._finder(link)))
            fleet = Fleet(
                lasting.helpers, finder.status, lambda: self._say_started(link, finder), lambda: self._reload(daemon)
            )
            parts = self._parts(providers, ledger, link, marker, finder)
            timing = Timing(settings.grace, settings.reserve, Killing.AT_RESERVE if settings.kill else Killing.NEVER)
            daemon = stack.enter_context(closing(Daemon(parts, timing, fleet)))
            daemon.run()
            journal.write("stopped", why="a new configuration" if self._following else "somebody has stopped us")
            if self._following is None:
                finish(journal, self._sinks, lambda: False)
            else:
                for signum in fleet.unheard:  # a stop, or a later configuration: the next loop goes by it
                    lasting.inbox.put(SignalArrived(signum))
            return self._following

    # -- its parts -------------------------------------------------------------------------------------------------

    def _job(self) -> Job:
        return Job((), self._lasting.environ, self._settings, self._lasting.helpers)

    def _providers(self, began: float) -> Providers:
        return providers_of(self._job(), 0, began, self._journal)

    def _ledger(self) -> Ledger:
        """Keep who was told across restarts. One page for each socket: two daemons of one user may run side by side."""
        name = "daemon"
        if self._settings.link:
            path = os.path.abspath(self._settings.link)
            name += f"-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        directory = state_directory(self._lasting.environ, self._settings.state_dir)
        try:
            ledger = JobLedger(directory, f".{name}", self._lasting.inbox.put, self._journal.warn, _FORGETS)
        except TakenError as error:
            raise ConfigError(
                f"another daemon of this user runs already (pid {error.pid}): end that one, or give this one a --link "
                "of its own"
            ) from error
        life = machine_life()
        before = ledger.record if ledger.record.life == life else Record()
        # What is announced still counts as announced in our time: a signal file from before that would be stale.
        began = before.began if before.told else time.time()
        ledger.write_now(Record(life=life, began=began, told=before.told))
        return ledger

    def _link(self) -> Server | None:
        return link_of(self._job(), self._lasting.inbox, self._journal, 0, "daemon")

    def _marker(self, roster: Roster, ledger: Ledger) -> Marking:
        put = self._lasting.inbox.put
        if self._settings.no_wandb or self._settings.dry_run:
            return NoMarker(put)
        care = Aftercare(Marker(put, roster), roster, self._settings.code_for_wandb, reporter(self._journal))
        care.take_over(told.process for told in ledger.record.told)
        self._journal.add(care)
        return care

    def _finder(self, link: Server | None) -> Finder:
        return Finder(
            [Wanted(**{**target.model_dump(), "runs": bool(target.runs)}) for target in self._settings.target],
            lambda: link.linked if link else (),
            lambda: self._lasting.helpers.pids,
            self._journal.warn,
            self._changed,
        )

    def _parts(
        self, providers: Providers, ledger: Ledger, link: Server | None, marker: Marking, finder: Finder
    ) -> Parts:
        lasting = self._lasting
        return Parts(
            settings=self._settings,
            inbox=lasting.inbox,
            journal=self._journal,
            ledger=ledger,
            scanner=Scanner(finder.snapshot, lasting.inbox.put, lambda: lasting.helpers.pids),
            marker=marker,
            link=link or NoLink(),
            outer=NoOuter(),
            nodes=NoNodes(),
            pulse=Pulses([Watchdog(lasting.manager), *pulses_among(self._sinks)]),
            providers=providers.certain,
            reasons=providers.reasons,
            candidates=providers.candidates,
        )

    # -- what happens ----------------------------------------------------------------------------------------------

    def _say_started(self, link: Server | None, finder: Finder) -> None:
        count = len(finder.status())
        self._journal.write(
            "serving",
            pid=os.getpid(),
            targets=count,
            link=link.path if link else None,
            wandb=not self._settings.no_wandb,
            version=preemptd.__version__,
        )
        self._lasting.manager.ready(f"looking after {count} target{'s' * (count != 1)}")

    def _changed(self, name: str, state: str, why: str, pid: int | None) -> None:
        self._journal.write("target", name=name, state=state, why=why, pid=pid)

    def _reload(self, daemon: Daemon) -> bool:
        if daemon.is_in_escalation:
            self._journal.warn("a notice is open: the configuration stays; send SIGHUP again when it is over")
            return False
        self._lasting.manager.reloading()
        try:
            following = self._lasting.read()
            self._try_out(following)
        except PreemptdError as error:
            self._journal.warn(f"the new configuration is refused: {error}")
            self._lasting.manager.ready("the new configuration was refused")
            return False
        self._following = following
        return True

    def _try_out(self, settings: DaemonSettings) -> None:
        """Make what may be there twice, and throw it away: what cannot be had is found out while all of us still runs.

        Raises:
            PreemptdError: it cannot be had.
        """
        silent, (environ, helpers, inbox) = (
            Journal(),
            (self._lasting.environ, self._lasting.helpers, self._lasting.inbox),
        )
        ours = [name for name in ("listen", "link") if getattr(settings, name) == getattr(self._settings, name)]
        tried = settings.model_copy(update=dict.fromkeys(ours))
        job = Job((), environ, tried, helpers)
        for sink in observers(tried, environ, helpers, silent):
            sink.close()
        providers = providers_of(job, 0, time.time(), silent)
        for provider in (*providers.certain.values(), *providers.candidates):
            provider.close()
        link = link_of(job, inbox, silent, 0, "daemon") if tried.link else None
        if link is not None:
            link.close()
