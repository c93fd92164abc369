"""The client where no preemptd is around: it hears the signals by which schedulers say that the end is near."""

import sys
import threading
from signal import SIGTERM, SIGUSR1, Signals

from preemptd.link.announced import PREEMPTED, Announced
from preemptd.link.open_notice import OpenNotice
from preemptd.link.own_runs import Wish
from preemptd.link.signals_caught import SignalsCaught

KINDS = {SIGUSR1: "preempt", SIGTERM: "terminate"}
"""SIGUSR1 comes from schedulers alone. SIGTERM may be a person's: nothing is marked for it."""


class Alone(Announced):
    """Catches nothing before somebody asks in the main thread."""

    def __init__(self) -> None:
        super().__init__()
        self._signals = SignalsCaught(tuple(KINDS), self._interrupt, self._hear)

    def listens(self) -> bool:
        if not self._signals.caught and threading.get_ident() == threading.main_thread().ident:
            self._signals.catch()
        return self._signals.caught

    def notify(self, deadline_s: float | None, reason: str) -> bool:
        self._notify_self(deadline_s, reason)
        return True

    def saving(self) -> None:
        pass

    def saved(self, step: object, path: object) -> None:
        pass

    def done(self) -> None:
        self._runs.done = True

    def undone(self) -> None:
        self._runs.done = False

    def close(self) -> None:
        """Leave: nothing was caught yet."""

    def forking(self) -> None:
        self._signals.block()

    def forked(self) -> None:
        self._signals.unblock()

    def forget(self) -> None:
        super().forget()
        self._signals.release()

    def _interrupt(self, signum: Signals) -> None:
        """Take *signum* in its handler: at once, unless a thread is at it, or the W&B runs come first."""
        if not self._changing.acquire(blocking=not self._signals.listening):
            return
        try:
            self._take(signum)
            if not (self._signals.listening and self._wish is not None and "wandb" in sys.modules):
                self.told = self.told or not self._sections
        finally:
            self._changing.release()
        if not self._signals.listening:
            self._callbacks.look()

    def _hear(self, signum: Signals) -> None:
        """Take *signum* in the listening thread."""
        with self._changing:
            self._take(signum)
        self._settle()

    def _take(self, signum: Signals) -> None:
        event_id = f"signal:{signum.name}"
        # Who was told already learns nothing new from a SIGTERM: it was announced.
        if event_id in self._open or (signum is SIGTERM and self._open):
            return
        if signum is SIGUSR1:
            self._wish = Wish(PREEMPTED)
        self._keep(OpenNotice(event_id, KINDS[signum], signum.name, None))
