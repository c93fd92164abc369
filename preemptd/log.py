"""What people see on stderr: the journal's lines, put into words."""

import json
import os
import select
import time
from collections.abc import Callable, Mapping

Line = Mapping[str, object]

WRITABLE_WITHIN = 1.0
"""Seconds that the log waits, once, for a pipe that is full: one that nobody reads loses lines, it does not stop us."""
SAME_END = 2.0
"""Seconds by which the end of a notice may differ that is not said once more."""


class Log:
    """A sink: one line of text or JSON for each journal line that says something to people."""

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
    left = line["grace"]
    when = f"was due {_seconds(-left)} ago" if isinstance(left, (int, float)) and left < -1 else f"in {_seconds(left)}"
    what = f"{line['kind']} {when}"
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
    words = {
        "seen": "has seen the notice",
        "saving": "is saving",
        "saved": "has saved",
        "done": "says it is done",
        "undone": "trains again, and is not done",
    }
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


_LEVELS = {"act": "notice", "advise": "advice"}

_WORDS: Mapping[str, Callable[[Line], str]] = {
    "started": _started,
    "serving": lambda line: (
        ("" if line["targets"] else "warning: there is no [[target]], so only who registers over the link is told: ")
        + f"looking after {line['targets']} target{'s' * (line['targets'] != 1)}"
        + ("" if line["wandb"] else "; W&B runs are neither marked nor mended (--no-wandb)")
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
    "undone": _acknowledged,
    "escalated": _escalated,
    "waiting": lambda line: f"exit put off: {line['why']}",
    "restarted": lambda line: f"starts the command again ({line['number']} of {line['of']}): {line['why']}",
    "outlived": lambda line: f"{line['provider']} still announces what this machine has outlived: {line['kind']}",
    "revoked": lambda line: f"{line['provider']} takes its {_LEVELS[str(line['level'])]} back",
    "exited": lambda line: _exited(line) if line["told"] and line["status"] is not None else "",
    "settled": _settled,
    "let-go": lambda line: str(line["why"]),
    "hook": _hook,
    "webhook": _webhook,
    "sync": lambda line: str(line["text"]),
    "warning": lambda line: f"warning: {line['text']}",
}


def say(line: Line) -> str:
    """Put a journal line into words; empty for what only the journal keeps."""
    words = _WORDS.get(str(line["event"]))
    text = words(line) if words else ""
    where = f"{line['node']}: " if "node" in line else ""
    return f"preemptd: {where}{text}" if text else ""
