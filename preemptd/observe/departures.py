"""Writes down when told processes end that are no children of ours: ``exited``, for the hooks and for history."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from preemptd.model import ProcessId
from preemptd.notices import AFTER_REVOCATION
from preemptd.observe.announced import Announced, Line
from preemptd.procfs import process_id

LOOK_EVERY = 0.2


class Departures:
    """A sink of ``preemptd daemon``. Its thread lives only while somebody is told and has not ended."""

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report
        self._announced = Announced()
        self._lock = threading.Lock()  # for all below
        self._told: dict[ProcessId, float] = {}
        """Since when (monotonic)."""
        self._explained_until = float("inf")
        self._looking = False
        self._closed = False

    def write(self, line: Line) -> None:
        self._announced.hear(line)
        event = line["event"]
        with self._lock:
            if event == "told" and not line["dry_run"]:
                process = ProcessId(int(str(line["pid"])), int(str(line["start"])))
                self._told.setdefault(process, float(str(line["mono"])))
                self._begin()
            elif event == "notice" and line["acted"]:
                self._explained_until = float("inf")
            elif event == "revoked" and self._announced.first is None:
                self._explained_until = time.monotonic() + AFTER_REVOCATION

    def close(self) -> None:
        self._closed = True

    def _begin(self) -> None:
        if not self._looking:
            with suppress(RuntimeError):  # no more threads: with the next one, perhaps
                threading.Thread(target=self._run, name="departures", daemon=True).start()
                self._looking = True

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                if time.monotonic() > self._explained_until:
                    self._told.clear()
                gone = {process: at for process, at in self._told.items() if process_id(process.pid) != process}
                self._told = {process: at for process, at in self._told.items() if process not in gone}
                self._looking = bool(self._told)
            self._say(gone)
            if not self._looking:
                return
            time.sleep(LOOK_EVERY)

    def _say(self, gone: Mapping[ProcessId, float]) -> None:
        left = self._announced.left
        for process, told_at in gone.items():
            self._report(
                "exited",
                pid=process.pid,
                status=None,
                preempted=True,
                told=True,
                ms=round((time.monotonic() - told_at) * 1000, 1),
                spare=None if left is None else round(left, 2),
            )
