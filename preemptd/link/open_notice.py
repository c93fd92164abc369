"""What a training script is told of a notice."""

import time
from typing import NamedTuple


class OpenNotice(NamedTuple):
    """A platform's announcement that this machine or job will be taken away."""

    event_id: str
    kind: str
    """``preempt``, ``terminate``, ``stop``, ``hibernate`` or ``maintenance``."""
    source: str
    """Where preemptd read it: ``spot/instance-action``; without a daemon the signal: ``SIGUSR1``."""
    deadline: float | None
    """In seconds of time.monotonic(); None: nobody knows."""

    @property
    def time_left(self) -> float | None:
        """Seconds from now to the deadline, 0.0 after it; None: nobody knows."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
