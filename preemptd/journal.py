"""The journal: one JSON line an event, and what the log says of it to people."""

import json
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from preemptd.errors import place_of

Line = Mapping[str, object]

WRITABLE_WITHIN = 1.0
"""Seconds that the log waits, once, for a pipe that is full: one that nobody reads loses lines, it does not stop us."""
LOOK_EVERY = 0.005
"""Seconds between two looks of one who waits in the main thread, where no `Event` may be waited for."""
SAME_END = 2.0
"""Seconds by which the end of a notice may differ that is not said once more."""


class Sink(Protocol):
    """Where lines go. Called in the journal's own thread only."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class Journal:
    """Takes lines from any thread without ever blocking; a thread of its own writes them to the sinks.

    A disk or a terminal that hangs must not keep a notice from the process: that is why nobody else writes.
    """

    def __init__(self) -> None:
        self._sinks: list[Sink] = []
        self._failed: set[int] = set()
        self._lines: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def add(self, sink: Sink) -> None:
        """Add a sink, before `start`."""
        self._sinks.append(sink)

    def start(self) -> None:
        """Start writing; lines from before are kept until then."""
        self._thread.start()

    def write(self, event: str, **fields: object) -> None:
        self._lines.put({"event": event, "t": round(time.time(), 3), "mono": round(time.monotonic(), 4), **fields})

    def warn(self, text: str) -> None:
        self.write("warning", text=text)

    def progress(self, text: str) -> None:
        """Show *text* on the last line of a terminal; nowhere else."""
        self._lines.put({"event": "progress", "text": text})

    def flush(self, timeout: float) -> None:
        """Wait until the sinks have all that was written so far, no longer than *timeout* seconds."""
        passed = threading.Event()
        self._lines.put(passed)
        end = time.monotonic() + timeout
        while self._thread.is_alive() and not passed.is_set() and time.monotonic() < end:
            time.sleep(LOOK_EVERY)

    def close(self, timeout: float = 2.0) -> None:
        """Write out what is left, within *timeout* seconds; also what was said before a start that never came."""
        self._lines.put(None)
        try:
            if self._thread.ident is None:
                self._thread.start()
            self._thread.join(timeout)
        except RuntimeError:  # no more threads here
            self._run()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._pass_on(line)
        while not self._lines.empty():  # what sinks complained of behind the end
            if (line := self._lines.get()) is not None:
                self._pass_on(line)
        for sink in self._sinks:
            sink.close()

    def _pass_on(self, line: Line | threading.Event) -> None:
        if isinstance(line, threading.Event):
            line.set()
            return
        for sink in self._sinks:
            self._give(sink, line)

    def _give(self, sink: Sink, line: Line) -> None:
        try:
            sink.write(line)
        except Exception as error:  # noqa: BLE001 - a bug, or no thread to be had: the other sinks go on
            if id(sink) not in self._failed:
                self._failed.add(id(sink))
                self.warn(f"{type(sink).__name__} failed: {error} at {place_of(error)}")


class Log:
    """What people see on stderr: one line of text or JSON for each journal line that says something to them."""

    def __init__(self, fd: int, form: str) -> None:
        self._fd = fd
        self._form = form
        self._terminal = form == "text" and os.isatty(fd)
        self._progress = False
        self._announced: tuple[object, object, float] | None = None
        self._patience = WRITABLE_WITHIN
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, line: Line) -> None:
        if line["event"] == "progress":
            if self._terminal:
                self._progress = True
                self._put(f"\r\x1b[K{line['text']}")
            return
        if self._form == "json":
            text = json.dumps(line, default=str)
        else:
            text = "" if self._repeats(line) else printable(say(line))
        if text:
            self._clear()
            self._put(text + "\n")

    def close(self) -> None:
        self._clear()

    def _repeats(self, line: Line) -> bool:
        """Say whether a notice tells people nothing new: SLURM's comes again when it is known what it means."""
        grace = line.get("grace")
        if line["event"] != "notice" or not isinstance(grace, float):
            return False
        before, end = self._announced, time.monotonic() + grace
        self._announced = line.get("event_id"), line.get("kind"), end
        same = before is not None and before[:2] == self._announced[:2]
        return same and (not line.get("acted") or (before is not None and abs(end - before[2]) < SAME_END))

    def _clear(self) -> None:
        """Take the progress line away: return to column 1, erase to the end."""
        if self._progress:
            self._put("\r\x1b[K")
            self._progress = False

    def _put(self, text: str) -> None:
        data = text.encode()
        try:
            while data and self._poll.poll(self._patience * 1000):
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]  # so much never blocks after poll()
        except OSError:
            pass  # stderr is gone (nohup, a closed terminal): the training goes on
        else:
            self._patience = 0.0 if data else WRITABLE_WITHIN


def printable(text: str) -> str:
    """Put *text* on one line that any terminal can show: commands and answers hold what they like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _seconds(value: object) -> str:
    return f"{round(value)} s" if isinstance(value, (int, float)) else "unknown time"


def _ms(value: object) -> str:
    return f"{value:.0f} ms" if isinstance(value, (int, float)) else "?"


def _started(line: Line) -> str:
    again = "still runs, taken over" if line["adopted"] else "runs"
    attempt = f", attempt {line['attempt']}" if line["attempt"] else ""
    return f"{line['command']} {again} as pid {line['pid']}{attempt}"


def _target(line: Line) -> str:
    why = f": {line['why']}" if line["why"] else ""
    pid = "" if line["pid"] is None else f" (pid {line['pid']})"
    return f"target {line['name']} {line['state']}{pid}{why}"


def _provider(line: Line) -> str:
    state, name = line["state"], line["provider"]
    words = {
        "watching": f"watching {name} ({line['why']})",
        "outage": f"{name} gives no answer: {line['why']}",
        "recovered": f"{name} answers again",
        "left-out": f"provider {name} is left out: {line['why']}",
        "none": f"{line['why']}",
    }
    return words[str(state)]


def _notice(line: Line) -> str:
    acted = "" if line["acted"] else f": not acted on, {line['why']}"
    what = f"{line['kind']} in {_seconds(line['grace'])}"
    if line.get("meaning") == "stopped" and line["kind"] == "requested":
        what = "somebody stops this job, it does not come back"
    return f"NOTICE from {line['provider']}: {what} ({line['source']}){acted}"


def _advice(line: Line) -> str:
    return f"advice from {line['provider']}: {line['kind']}, {_seconds(line['remaining'])} left ({line['source']})"


def _marked(line: Line) -> str:
    if line["ok"]:
        return f"W&B run {line['run_id']} marked preempting after {_ms(line['ms'])}"
    return f"W&B run {line['run_id']} could not be marked preempting: {line['why']}"


def _repaired(line: Line) -> str:
    if not line["ok"]:
        return f"W&B run {line['run_id']} could not be ended as preempted: {line['why']}"
    why = f" ({line['why']})" if line["why"] else ""
    return "" if line["how"] == "nothing" else f"W&B run {line['run_id']} mended: preempted, code {line['code']}{why}"


def _told(line: Line) -> str:
    how = "over the link" if line["how"] == "link" else f"by SIG{line['how']}"
    told = "would tell" if line.get("dry_run") else "told"
    return f"{told} pid {line['pid']} {how} after {_ms(line['ms'])}: {line['command']}"


def _acknowledged(line: Line) -> str:
    step = "" if line.get("step") is None else f" step {line['step']}"
    path = f" to {line['path']}" if line.get("path") else ""
    words = {"seen": "has seen the notice", "saving": "is saving", "saved": "has saved", "done": "says it is done"}
    return f"pid {line['pid']} {words[str(line['event'])]}{step}{path}"


def _exited(line: Line) -> str:
    spare = line["spare"]
    in_time = f", {_seconds(spare)} to spare" if isinstance(spare, (int, float)) and spare >= 0 else ""
    return f"pid {line['pid']} ended with status {line['status']}{in_time}"


def _settled(line: Line) -> str:
    return f"exit {line['status']}: {line['why']}" if line["preempted"] or line.get("announced") else ""


def _escalated(line: Line) -> str:
    if line["step"] == "agent":
        return f"W&B agent ended, so that it takes no other run here: pids {line['pids']}"
    return f"time is nearly up: {line['step']} to pids {line['pids']}"


def _hook(line: Line) -> str:
    last = f": {str(line['output']).splitlines()[-1]}" if line["output"] else ""
    return f"the command of --on-{line['on']} {line['why']} (after {_ms(line['ms'])}){last}" if line["why"] else ""


def _webhook(line: Line) -> str:
    if line["state"] == "outage":
        return f"warning: the webhook is not reached: {line['why']}"
    return f"the webhook is reached again, {line['lost']} messages were lost"


_WORDS: Mapping[str, Callable[[Line], str]] = {
    "started": _started,
    "serving": lambda line: (
        ("" if line["targets"] else "warning: there is no [[target]], so only who registers over the link is told: ")
        + f"looking after {line['targets']} target{'s' * (line['targets'] != 1)}"
    ),
    "target": _target,
    "stopped": lambda line: f"ends: {line['why']}",
    "provider": _provider,
    "notice": _notice,
    "advice": _advice,
    "resumes": lambda line: f"W&B run {line['run_id']} is to go on",
    "marked": _marked,
    "repaired": _repaired,
    "told": _told,
    "spared": lambda _: "",
    "seen": lambda _: "",
    "saving": _acknowledged,
    "saved": _acknowledged,
    "done": _acknowledged,
    "escalated": _escalated,
    "revoked": lambda line: f"{line['provider']} takes its notice back",
    "exited": lambda line: _exited(line) if line["told"] and line["status"] is not None else "",
    "settled": _settled,
    "hook": _hook,
    "webhook": _webhook,
    "warning": lambda line: f"warning: {line['text']}",
}


def say(line: Line) -> str:
    """Put a journal line into words; empty for what only the journal keeps."""
    words = _WORDS.get(str(line["event"]))
    text = words(line) if words else ""
    where = f"{line['node']}: " if "node" in line else ""
    return f"preemptd: {where}{text}" if text else ""
