"""``--webhook``: POSTs what people want to hear of to a URL, in a thread of its own."""

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import preemptd
from preemptd.config import settings
from preemptd.errors import ConfigError
from preemptd.log import printable, say
from preemptd.observe.announced import Announced, Line

if TYPE_CHECKING:
    from preemptd.observe.posting import Answer, Poster

WAITING = 100
"""Messages at the most that wait for their turn."""
ATTEMPT_SECONDS, SHORTEST_ATTEMPT = 5.0, 1.0
MESSAGE_SECONDS = 60.0
"""Seconds for which one message is tried; with a notice open no longer than to its deadline, but never below this:"""
AT_LEAST = 5.0
AT_OUR_END = 2.0
"""Seconds for what still waits then."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
LOOK_EVERY = 0.02
LONGEST_FILE = 64 * 1024

Shape = Callable[[Line], bytes | None]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who we are, for those who hear of many."""

    host: str
    version: str
    job_id: str | None

    def as_json(self, line: Line) -> bytes | None:
        """Make the journal's line, and who writes it."""
        about = {"host": self.host, "version": self.version, "job_id": self.job_id}
        return json.dumps({**about, **line}, default=str).encode()

    def as_slack(self, line: Line) -> bytes | None:
        """Make what Slack takes; None: there are no words for it."""
        words = printable(say(line)).removeprefix("preemptd: ")
        job = f" (job {self.job_id})" if self.job_id else ""
        text = f"{self.host}{job}: {words}"
        for sign, escape in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # else <!channel> in a path calls everybody
            text = text.replace(sign, escape)
        return json.dumps({"text": text}).encode() if words else None


class Webhook:
    """A sink that queues what is to be posted. That it fails is said once, and never stops anything."""

    def __init__(self, url: str, shape: Shape, report: Callable[..., None]) -> None:
        """Make it.

        Args:
            url: a secret: it is in no log, journal or error.
            shape: makes the body; None: this line is not for its readers.
            report: writes to the journal.
        """
        self._url = url
        self._shape = shape
        self._report = report
        self._announced = Announced()
        self._posted: set[tuple[str, ...]] = set()
        self._changed = threading.Condition()  # for all below
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._posting = False
        self._closing = False
        self._ends = float("inf")
        """time.monotonic() at which nothing is tried any more."""
        self._lost = 0
        """Messages since the last that was taken; more than 0: an outage, which is known."""
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    # -- in the journal's thread -----------------------------------------------------------------------------------

    def write(self, line: Line) -> None:
        if self._thread.ident is None and not self._closing:
            self._begin()
        self._announced.hear(line)
        body = self._shape(line) if self._is_wanted(line) else None
        if body is None or self._closing:
            return
        left = self._announced.left
        seconds = MESSAGE_SECONDS if left is None else max(AT_LEAST, min(MESSAGE_SECONDS, left))
        with self._changed:
            if len(self._waiting) < WAITING:
                self._waiting.append((body, time.monotonic() + seconds))
                self._changed.notify_all()
                return
        self._lose("too many messages wait")

    def close(self) -> None:
        """End when what waits is posted, or given up."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._closing = True
            self._lose(str(error))

    def _is_wanted(self, line: Line) -> bool:
        event = str(line["event"])
        if event in {"notice", "advice"}:
            return (event == "advice" or bool(line["acted"])) and self._is_news(line)
        if event == "revoked":
            before = len(self._posted)
            self._posted = {about for about in self._posted if about[0] != str(line["event_id"])}
            return len(self._posted) < before
        if event == "saved":
            return self._announced.first is not None  # else it is a periodic checkpoint
        return (event == "exited" and bool(line["told"])) or (event == "settled" and bool(line["preempted"]))

    def _is_news(self, line: Line) -> bool:
        """Say whether this was not posted yet: SLURM's notice comes again when it is known what it means."""
        about = (str(line["event_id"]), str(line["event"]), str(line["kind"]))
        new = about not in self._posted
        self._posted.add(about)
        return new

    # -- in its own thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        from preemptd.observe.posting import Poster  # requests costs 80 ms: now, not when a notice comes

        poster = Poster()
        while True:
            with self._changed:
                self._posting = False
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._posting = True
                body, ends = self._waiting.popleft()
            if (why := self._deliver(poster, body, ends)) is not None:
                self._lose(why)
            elif self._lost:
                lost, self._lost = self._lost, 0
                self._report("webhook", state="recovered", why=None, lost=lost)

    def _deliver(self, poster: "Poster", body: bytes, ends: float) -> str | None:
        """Post until it is taken; return why it was not."""
        pause = FIRST_PAUSE
        while True:
            now = time.monotonic()
            seconds = min(ATTEMPT_SECONDS, max(SHORTEST_ATTEMPT, ends - now), max(0.1, self._ends - now))
            answer = self._post(poster, body, seconds)
            if answer.why is None:
                return None
            wait = max(pause, answer.retry_after)
            if not answer.again or time.monotonic() + wait >= min(ends, self._ends):
                return answer.why
            with self._changed:
                # When our own end comes, once more, at once.
                self._changed.wait_for(partial(self._ends_before, self._ends), wait)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _ends_before(self, ends: float) -> bool:
        return self._ends < ends

    def _post(self, poster: "Poster", body: bytes, seconds: float) -> "Answer":
        try:
            return poster.post(self._url, body, seconds)
        except RuntimeError as error:  # no more threads
            from preemptd.observe.posting import Answer

            return Answer(str(error), again=True)

    def _lose(self, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            self._report("webhook", state="outage", why=why, lost=None)

    # -- at our end ------------------------------------------------------------------------------------------------

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Post what waits, within a short time, less if the deadline is near or we are *stopped*."""
        left = self._announced.left
        with self._changed:
            self._ends = time.monotonic() + (AT_OUR_END if left is None else max(0.5, min(AT_OUR_END, left / 2)))
            self._changed.notify_all()
        while (busy := self._is_at_work()) and time.monotonic() < self._ends and not stopped():
            time.sleep(LOOK_EVERY)
        if busy:
            self._lose("no answer before our own end")

    def _is_at_work(self) -> bool:
        with self._changed:
            return self._thread.is_alive() and (self._posting or bool(self._waiting))


def read_url(path: str) -> str:
    """Read the URL from the file at *path*.

    Raises:
        ConfigError: there is none in it. What is in it is not said.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # a FIFO may be empty
            text = (file.read(LONGEST_FILE) or b"").decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(f"--webhook-file {path} cannot be read: {error.strerror}") from error
    if not text:
        raise ConfigError(f"--webhook-file {path} is empty: it is to hold the URL")
    try:
        return settings({"webhook": text}, {}, None).webhook or ""
    except ConfigError as error:
        raise ConfigError(f"--webhook-file {path} holds no URL: https://..., on one line, and nothing else") from error


def shape_of(form: str, job_id: str | None) -> Shape:
    """Choose the shape that ``--webhook-format`` names."""
    sender = Sender(socket.gethostname(), preemptd.__version__, job_id)
    return sender.as_slack if form == "slack" else sender.as_json
