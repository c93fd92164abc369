"""A SIGTERM while a daemon is around: somebody stops the job, which is no preemption; all ranks save and leave."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from preemptd.integrations.torch import agree_on

_Handler = Callable[[int, FrameType | None], object]


class Stop:
    """It is what `agree_on` takes for a client. Without a daemon the client itself hears the signal.

    Args:
        trains: says of what the signal has interrupted whether it is a training; if not, the signal does what it did
            before `catch`. None: `release` is called whatever ends the training.
    """

    def __init__(self, trains: Callable[[FrameType | None], bool] | None = None) -> None:
        self._trains = trains
        self._is_told = False
        self._agreed: Callable[[], bool] | None = None
        self._before: _Handler | int | None = None
        self._pid = os.getpid()

    def catch(self) -> None:
        """Do so in the main thread, which alone can; what is ignored stays ignored."""
        is_main = threading.current_thread() is threading.main_thread()
        if "PREEMPTD_LINK" not in os.environ or self._before is not None or not is_main:
            return
        before = signal.getsignal(signal.SIGTERM)
        if callable(before) or before is signal.SIG_DFL:
            self._before, self._pid = before, os.getpid()
            signal.signal(signal.SIGTERM, self._hear)

    def release(self) -> None:
        """Give back what was there. Who was told leaves: another SIGTERM is not to end it before W&B has all."""
        if self._before is not None and not self._is_told:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def agreed(self) -> bool:
        """Say whether a rank was told, from the same call on on all of them; each asks as often as the others."""
        if self._agreed is None:
            self._agreed = agree_on(self, "stop") if "PREEMPTD_LINK" in os.environ else self.should_preempt
        return self._agreed()

    def should_preempt(self) -> bool:
        return self._is_told

    def time_left(self) -> float | None:
        return None

    def on_notice(self, _callback: object) -> Callable[[], None]:
        return _nothing

    def notify(self, deadline_s: float | None = None, reason: str = "") -> bool:  # noqa: ARG002  # a stop is no notice
        return True

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        has_failed = self._trains is not None and not self._trains(frame)  # and whoever called it goes on
        if has_failed or os.getpid() != self._pid:  # a forked child: it has to end when its parent says so
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self._is_told = True
        if callable(self._before):
            self._before(signum, frame)


def _nothing() -> None:
    pass
