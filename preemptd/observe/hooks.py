"""``--on-advice``, ``--on-notice``, ``--on-saved``, ``--on-exit``: the user's own commands, beside everything else."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preemptd.config import PREFIX
from preemptd.discretion import discreet
from preemptd.observe.announced import Announced, Line, deadline_of, number
from preemptd.observe.shell_command import Ran, run
from preemptd.provider import Commands

LONGEST = 30.0
"""Seconds for one command at the most."""
SHORTEST = 2.0
"""Seconds for one when the deadline is near or past: platforms are late."""
AT_ONCE = 8
"""Commands of one option at a time: each of 500 processes may say that it has saved."""
LOOK_EVERY = 0.02

OPTIONS: Mapping[str, str] = {"advice": "advice", "notice": "notice", "saved": "saved", "exited": "exit"}
"""By the journal's event: the word behind ``--on-``, which is also PREEMPTD_EVENT."""
BRINGS_AWAY = frozenset({"saved", "exited"})
"""What may have been run to bring away what was saved: then a failure has left that on this machine."""
OF_THE_NOTICE = ("kind", "provider", "source", "event_id")
OF_THE_EVENT = ("pid", "step", "path", "status", "preempted")


@dataclass(frozen=True, slots=True)
class _Call:
    event: str
    command: str
    known: Mapping[str, str]
    deadline: float | None
    """On the monotonic clock; None: nothing is announced."""


class Hooks:
    """A sink that runs commands, each with a time limit of its own; what became of it is a line of the journal."""

    def __init__(
        self, commands: Mapping[str, str], environ: Mapping[str, str], popen: Commands, report: Callable[..., None]
    ) -> None:
        """Make it.

        Args:
            commands: by event of the journal (see `OPTIONS`), for ``/bin/sh -c``.
            environ: what they get, besides what they are told.
            popen: starts them.
            report: writes to the journal.
        """
        self._commands = commands
        self._environ = environ
        self._popen = popen
        self._report = report
        self._announced = Announced()
        self._lock = threading.Lock()  # for the two below
        self._waiting: dict[str, deque[_Call]] = {event: deque() for event in commands}
        self._at_work: dict[str, int] = dict.fromkeys(commands, 0)
        self._over = False
        self._failed = ""
        """What of `BRINGS_AWAY` has failed since the first notice that is open, and how."""
        self._ends: float | None = None
        """time.monotonic() up to which what runs at our end is waited for; None: it is not the end, or all is done."""

    # -- in the journal's thread -----------------------------------------------------------------------------------

    def write(self, line: Line) -> None:
        new, event = self._announced.hear(line), str(line["event"])
        if event == "revoked" and self._announced.first is None:
            self._failed = ""
        if event not in self._commands or not self._concerns(line, new):
            return
        call = self._call(event, line)
        with self._lock:
            self._waiting[event].append(call)
            if self._at_work[event] == AT_ONCE:
                return
            self._at_work[event] += 1
        try:
            threading.Thread(target=self._work, args=(event,), name=f"on-{OPTIONS[event]}", daemon=True).start()
        except RuntimeError as error:  # no more threads
            with self._lock:
                self._at_work[event] -= 1
                self._waiting[event].remove(call)
            self._say(call, Ran(None, f"could not be run: {error}"), 0.0)

    def close(self) -> None:
        """Do nothing: what runs has its time limits."""

    def _concerns(self, line: Line, new: bool) -> bool:
        if line["event"] in {"notice", "advice"}:
            return new
        return line["event"] != "saved" or self._announced.first is not None  # else it is a periodic checkpoint

    def _call(self, event: str, line: Line) -> _Call:
        notice = line if event == "advice" else self._announced.first
        known = {"EVENT": OPTIONS[event]}
        for source, names in ((notice or {}, OF_THE_NOTICE), (line, OF_THE_EVENT)):
            known |= {name.upper(): _text(source[name]) for name in names if source.get(name) is not None}
        deadline = None
        if notice is not None and (event != "advice" or notice["remaining"] is not None):
            deadline = deadline_of(notice)
            known["DEADLINE"] = str(int(number(notice["t"]) + number(notice["grace"])))
        return _Call(event, self._commands[event], known, deadline)

    # -- in threads of its own -------------------------------------------------------------------------------------

    def _work(self, event: str) -> None:
        while True:
            with self._lock:
                if not self._waiting[event]:
                    self._at_work[event] -= 1
                    return
                call = self._waiting[event].popleft()
            began = time.monotonic()
            self._say(call, self._run(call, began), time.monotonic() - began)

    def _run(self, call: _Call, now: float) -> Ran:
        known = dict(call.known)
        if call.deadline is not None:
            known["REMAINING"] = str(int(max(0.0, call.deadline - now)))
        env = {**self._environ, **{PREFIX + name: value for name, value in known.items()}}
        left = None if call.deadline is None else call.deadline - now
        return run(self._popen, call.command, env, seconds_for(left), lambda: self._over)

    def _say(self, call: _Call, ran: Ran, seconds: float) -> None:
        if ran.why is not None and call.event in BRINGS_AWAY:
            self._failed = f"the command of --on-{OPTIONS[call.event]} {ran.why}"
        self._report(
            "hook",
            on=OPTIONS[call.event],
            command=discreet(call.command),
            status=ran.status,
            ms=round(seconds * 1000, 1),
            why=ran.why,
            output=ran.output,
        )

    # -- at our end ------------------------------------------------------------------------------------------------

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Wait for what runs, no longer than one command may take; then, or when we are *stopped*, kill what is left.

        On return all of it has ended and is written down, but for what hangs in the kernel.
        """
        self._wait(stopped)
        with self._lock:
            never = [call for waiting in self._waiting.values() for call in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
        for call in never:
            self._say(call, Ran(None, "was not run: the time was over"), 0.0)
        self._over = True
        ends = time.monotonic() + SHORTEST
        while self._is_at_work() and time.monotonic() < ends:
            time.sleep(LOOK_EVERY)

    def rest(self, stopped: Callable[[], bool]) -> str:
        """Wait as `finish` does, which then waits no longer; say what is not done or has failed, empty: nothing."""
        self._wait(stopped)
        with self._lock:
            running = [f"the command of --on-{OPTIONS[event]} still runs" for event, n in self._at_work.items() if n]
        self._ends = self._ends if running else None
        return "; ".join([self._failed, *running] if self._failed else running)

    def _wait(self, stopped: Callable[[], bool]) -> None:
        if self._ends is None:
            self._ends = time.monotonic() + seconds_for(self._announced.left)
        while self._is_at_work() and time.monotonic() < self._ends and not stopped():
            time.sleep(LOOK_EVERY)

    def _is_at_work(self) -> bool:
        with self._lock:
            return any(self._at_work.values())


def seconds_for(left: float | None) -> float:
    """Say how long a command may take when so many seconds are *left*: never more than half of them, while it can be.

    None: nothing is announced.
    """
    return LONGEST if left is None else max(SHORTEST, min(LONGEST, left / 2))


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
