"""Snapshots of the target's processes, taken in a thread: reading /proc/PID/cmdline may hang behind a busy process."""

import logging
import threading
import time
from collections.abc import Callable, Container, Sequence

from preemptd.events import Scanned
from preemptd.model import Process
from preemptd.targets.selection import without_own
from preemptd.targets.strays import Strays

Snapshot = Callable[[], Sequence[Process]]

logger = logging.getLogger(__name__)


class Scanner:
    """Takes a snapshot each time it is asked to; asking while one is under way asks for one more after it."""

    def __init__(self, snapshot: Snapshot, put: Callable[[Scanned], None], ours: Callable[[], Container[int]]) -> None:
        """Make a scanner.

        Args:
            snapshot: takes one.
            put: takes the result to the inbox.
            ours: pids of the daemon's own helper processes, which are no part of the target.
        """
        self._snapshot = snapshot
        self._put = put
        self._ours = ours
        self._strays = Strays()
        self._asked = threading.Event()
        self._closing = False
        self.took = 0.0
        """Seconds that the last snapshot took."""
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Ask for a snapshot; `Scanned` brings it. Never blocks."""
        self._asked.set()

    def stop(self) -> None:
        self._closing = True
        self._asked.set()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closing:
                return
            began = time.monotonic()
            try:
                before = self._ours()
                processes = self._strays.left_out(without_own(self._snapshot(), before, self._ours()))
            except OSError as error:  # EMFILE, ENOMEM: the next look may fare better, and there must be one
                logger.warning("cannot look at the processes: %s", error.strerror)
                continue
            except Exception:
                logger.exception("a look at the processes failed, please report it")
                continue
            self.took = time.monotonic() - began
            self._put(Scanned(processes))
