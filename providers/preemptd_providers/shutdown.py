"""A shutdown of the host as a notice: many clouds announce the end by the power button alone (docs/systemd.md)."""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._systemd import Systemctl

if TYPE_CHECKING:
    from preemptd_providers._logind import Logind

SYSTEMD = "/run/systemd/system"
"""There where systemd is PID 1 (sd_booted(3)); a container has it only if it runs one of its own."""
SCHEDULED = "/run/systemd/shutdown/scheduled"
BUS = "/run/dbus/system_bus_socket"
LOOK_EVERY = 10.0
"""Seconds after which a bus that says nothing is asked whether it is still there."""
IN_EXECUTION = 60.0
"""Seconds past its time in which a schedule that vanishes was carried out, and not called off."""
_NAME = "shutdown"
_HOST = "shutdown:host"
"""logind and our own SIGTERM announce the same event."""


class HostShutdown(Provider):
    name = _NAME
    stands_down_for = frozenset({"slurm"})
    holds_commands = False  # who starts a command on a host that is going down will see

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self._systemctl = Systemctl(surroundings.commands)
        self._logind: LogindWatch | None = None

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:  # noqa: ARG003 - systemd stands in no environment
        if not os.path.isdir(SYSTEMD):
            return None
        why = _unheard()
        return Detection(
            Found.MACHINE, f"systemd runs here, but logind is not heard: {why}" if why else "systemd runs here"
        )

    def prepare(self) -> None:
        if not _unheard():
            importlib.import_module("preemptd_providers._logind")

    def watches(self) -> Sequence[Watch]:
        scheduled = ScheduledWatch(SCHEDULED, self.surroundings.lead)
        if _unheard():
            return (scheduled,)
        self._logind = LogindWatch(self._systemctl, self.surroundings.grace)
        return (self._logind, scheduled)

    def signals(self) -> frozenset[signal.Signals]:
        return frozenset({signal.SIGTERM})

    def on_signal(self, signum: signal.Signals) -> Observation:
        """Tell a SIGTERM that means the whole host from one that stops this unit alone."""
        observed = time.monotonic()
        if signum is not signal.SIGTERM:
            return Observation.clear()
        state, unit = self._systemctl.state_and_own_unit()
        if state != "stopping":
            return Observation.clear()
        sent = frozenset({signal.SIGTERM}) if unit.kills_all else frozenset[int]()
        return Observation.of(_host("SIGTERM while systemd stops", observed, unit.stop_timeout, sent))

    def relax(self) -> None:
        if self._logind is not None:
            self._logind.release()

    def describe(self) -> str:
        return f"SIGTERM, {SCHEDULED}" + ("" if _unheard() else ", logind")


def _unheard() -> str:
    """Say why logind is not listened to; empty: it is."""
    if importlib.util.find_spec("jeepney") is None:
        return "jeepney is not installed: pip install 'preemptd[systemd]'"
    return "" if os.path.exists(BUS) else f"there is no {BUS}"


def _host(source: str, observed: float, remaining: float | None, sent: frozenset[int] = frozenset()) -> Notice:
    return Notice(
        provider=_NAME,
        event_id=_HOST,
        kind=Kind.STOP,
        level=Level.ACT,
        source=source,
        observed=observed,
        remaining=remaining,
        already_sent=sent,
    )


class LogindWatch(Watch):
    """Hears of a shutdown before systemd stops anything, and holds it back as long as logind lets it.

    The lock is let go when all who were told have saved, or the watch is closed: the command and preemptd have ended.
    """

    name = f"{_NAME}:logind"
    waits = True

    def __init__(self, systemctl: Systemctl, grace: float | None) -> None:
        self._systemctl = systemctl
        self._grace = grace
        self._logind: Logind | None = None
        self._notice: Notice | None = None
        self._lock = threading.Lock()
        self._closed = False

    def observe(self) -> Observation:
        try:
            logind = self._logind
            if logind is None:
                logind = self._connect()
            else:
                logind.wait(LOOK_EVERY)
            if not logind.is_preparing():
                if self._notice is not None:  # it was called off: the next one is to be held back as well
                    self._notice = None
                    self._drop()
                return Observation.clear()
        except ProviderError as error:
            self._drop()
            return Observation.unknown(f"{self.name}: {error}")
        if self._notice is None:
            self._notice = _host("logind: PrepareForShutdown", time.monotonic(), self._remaining(logind.delay))
        return Observation.of(self._notice)

    def _connect(self) -> "Logind":
        from preemptd_providers._logind import Logind

        if self._closed:
            raise ProviderError("the watch is closed")
        logind = Logind()
        with self._lock:
            if not self._closed:
                self._logind = logind
                return logind
        logind.close()
        raise ProviderError("the watch was closed meanwhile")

    def _remaining(self, delay: float) -> float | None:
        """Count until SIGTERM comes to all of our processes, or else until SIGKILL does."""
        unit = self._systemctl.own_unit()
        if unit.kills_all and delay:
            return delay
        after = self._grace if unit.stop_timeout is None else unit.stop_timeout
        return None if after is None else delay + after

    def _drop(self) -> None:
        with self._lock:
            logind, self._logind = self._logind, None
        if logind is not None:
            logind.close()

    def release(self) -> None:
        """Let a shutdown that is under way begin; before one, keep the lock."""
        with self._lock:
            if self._notice is not None and self._logind is not None:
                self._logind.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._logind is not None:
                self._logind.release()
                self._logind.wake()


class ScheduledWatch(Watch):
    """``shutdown +30``: the file in which logind keeps what is planned; ``shutdown -c`` removes it."""

    name = f"{_NAME}:scheduled"

    def __init__(self, path: str, lead: float) -> None:
        self._path = path
        self._lead = lead
        self._at: float | None = None

    def observe(self) -> Observation:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                text = file.read(4096)
        except FileNotFoundError:
            if self._at is not None and 0 <= time.time() - self._at + self.interval <= IN_EXECUTION:
                return Observation.of(self._notice(self._at, ""))
            self._at = None
            return Observation.clear()
        except OSError as error:
            return Observation.unknown(f"{self._path} cannot be read: {error.strerror}")
        said = dict(line.partition("=")[::2] for line in text.splitlines())
        usec = said.get("USEC", "")
        if not (usec.isascii() and usec.isdecimal() and len(usec) < 18):
            return Observation.unknown(f"{self._path} holds no USEC=: {text!r:.200}")
        self._at = int(usec) / 1e6
        return Observation.of(self._notice(self._at, said.get("MODE", "")))

    def _notice(self, at: float, mode: str) -> Notice:
        return Notice(
            provider=_NAME,
            event_id=self.name,
            kind=Kind.STOP,
            level=Level.ADVISE,
            source=self._path,
            observed=time.monotonic(),
            remaining=at - time.time(),
            act_within=self._lead,
            deadline=datetime.fromtimestamp(at, timezone.utc),
            detail=f"MODE={mode}"[:100],
        )
