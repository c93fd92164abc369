"""Who is shown that the loop turns."""

from collections.abc import Callable, Mapping, Sequence

from preemptd.observe.sdnotify import ServiceManager
from preemptd.parts import Pulse

Status = Callable[[], Mapping[str, object]]


class Watchdog:
    """systemd's: fed by the loop itself, so that one that hangs is ended and started anew."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self.interval = manager.interval

    def beat(self, status: Status) -> None:  # noqa: ARG002 - see parts.Pulse
        self._manager.alive()


class Pulses:
    """All of them at once, as often as the one that asks most often."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses
        self.interval = min((p.interval for p in pulses if p.interval is not None), default=None)

    def beat(self, status: Status) -> None:
        for pulse in self._pulses:
            pulse.beat(status)
