"""Watches that ask the controller: for the job's own row, and for the state of its node."""

import time
from collections.abc import Callable

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, Watch
from preemptd_providers.slurm.attempt import SETTLED, Attempt
from preemptd_providers.slurm.controller import SHORTEST_KILL_WAIT, Controller
from preemptd_providers.slurm.pace import Pace

CLOSED = "the watch is closed"
LEAVING = {
    "DRAIN": "is being drained",
    "DRAINING": "is being drained",
    "REBOOT_REQUESTED": "is to be rebooted",
    "REBOOT": "is to be rebooted",
    "REBOOT_ISSUED": "is being rebooted",
    "POWERING_DOWN": "is being powered down",
}
"""Words of a node's state that announce nothing for its jobs yet, but are worth knowing."""


class JobWatch(Watch):
    """The job's row: at intervals, and at once when something was heard."""

    name = "slurm:job"
    waits = True  # for its own time to come; the poller's pauses cannot be cut short by a signal
    notice_period = SHORTEST_KILL_WAIT  # so that the poller adds less than a second to our own, longer, back-off

    def __init__(
        self, attempt: Attempt, controller: Controller, pace: Pace, inspect: Callable[[Controller], bool]
    ) -> None:
        """Make it; *inspect* is called after good answers until it returns True."""
        self._attempt = attempt
        self._controller = controller
        self._pace = pace
        self._inspect = inspect
        self._to_inspect = False
        self._inspected = False

    def observe(self) -> Observation:
        if self._to_inspect:
            self._to_inspect, self._inspected = False, self._inspect(self._controller)
        if not self._pace.wait():
            return Observation.unknown(CLOSED)
        asked = time.monotonic()
        try:
            notice = self._attempt.took(self._controller.row(), asked)
        except ProviderError as error:
            self._pace.failed()
            notice = self._attempt.unanswered()
            return Observation.unknown(str(error)) if notice is None else Observation.of(notice)
        self._to_inspect = not self._inspected
        self._plan()
        return Observation.clear() if notice is None else Observation.of(notice)

    def _plan(self) -> None:
        self._pace.succeeded()
        if self._attempt.is_unsettled:
            self._pace.soon(SETTLED)
        limit = self._attempt.seconds_to_unasked
        if limit is not None and limit > 0:
            self._pace.soon(limit + SETTLED)

    def close(self) -> None:
        self._pace.close()
        self._controller.close()


class NodeWatch(Watch):
    """The state of our node: that it is drained or rebooted is advice, for its jobs may go on to their end."""

    name = "slurm:node"
    waits = True
    notice_period = SHORTEST_KILL_WAIT

    def __init__(self, node: str, controller: Controller, pace: Pace) -> None:
        self._node = node
        self._controller = controller
        self._pace = pace

    def observe(self) -> Observation:
        if not self._pace.wait():
            return Observation.unknown(CLOSED)
        try:
            words, reason = self._controller.node(self._node)
        except ProviderError as error:
            self._pace.failed()
            return Observation.unknown(str(error))
        self._pace.succeeded()
        leaving = [word for word in LEAVING if word in words]
        if not leaving:
            return Observation.clear()
        return Observation.of(
            Notice(
                provider="slurm",
                event_id=f"slurm:{self._node}:{leaving[0].lower()}",
                kind=Kind.MAINTENANCE,
                level=Level.ADVISE,
                source=f"node {self._node} {LEAVING[leaving[0]]}" + (f": {reason}" if reason else ""),
                observed=time.monotonic(),
                detail="+".join(sorted(words)),
            )
        )

    def close(self) -> None:
        self._pace.close()
        self._controller.close()
