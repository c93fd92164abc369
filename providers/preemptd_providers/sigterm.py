"""Our own SIGTERM as the notice: Kubernetes, and clouds that announce the end by ACPI alone. Only when named."""

import os
import signal
import time

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, Provider


class Sigterm(Provider):
    name = "sigterm"
    opt_in = True  # elsewhere a SIGTERM is a person's or a service manager's wish to stop, and no preemption

    def signals(self) -> frozenset[signal.Signals]:
        return frozenset({signal.SIGTERM})

    def on_signal(self, signum: signal.Signals) -> Observation:
        if signum is not signal.SIGTERM:
            return Observation.clear()
        return Observation.of(
            Notice(
                provider=self.name,
                event_id=f"sigterm:{os.getpid()}",
                kind=Kind.TERMINATE,
                level=Level.ACT,
                source="SIGTERM",
                observed=time.monotonic(),
            )
        )

    def describe(self) -> str:
        return f"SIGTERM to process {os.getpid()}"
