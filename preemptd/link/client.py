"""The trainer's end of the link: what is announced, and what we have done about it; standard library only."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TypeGuard

from preemptd.link.announced import Announced
from preemptd.link.open_notice import OpenNotice
from preemptd.link.own_runs import wish_of
from preemptd.link.subscription import Subscription

__all__ = ["Client", "LookingClient", "OpenNotice", "started"]

ANSWERED_WITHIN = 1.0
"""Seconds that `notify` waits for the daemon's word."""


class Client(Announced):
    """One process's subscription. Nothing here raises; `start` and `notify` wait, a second at most."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._same_clock = False
        self._asked: deque[_Question] = deque()
        self._subscription = Subscription(path, os.getpid(), "trainer", self._hear)

    def start(self) -> bool:
        """Say whether what comes from now on is heard as it comes."""
        self._subscription.connect()
        self._subscription.start()
        return self._subscription.listens

    def saving(self) -> None:
        self._subscription.say("saving")

    def saved(self, step: object, path: object) -> None:
        fields = {"step": _number(step), "path": _absolute(path)}
        self._subscription.say("saved", **{name: value for name, value in fields.items() if value is not None})

    def done(self) -> None:
        self._runs.done = True
        self._subscription.say("done")

    def undone(self) -> None:
        if self._runs.done:
            self._runs.done = False
            self._subscription.say("undone")

    def notify(self, deadline_s: float | None, reason: str) -> bool:
        """Ask the daemon, and if it does not take it, tell this process alone: the notice is true all the same."""
        if self._ask_daemon(deadline_s, reason):
            return True
        self._notify_self(deadline_s, reason)
        return False

    def close(self) -> None:
        self._subscription.close()

    def forget(self) -> None:
        super().forget()
        self._subscription.forget()

    def _ask_daemon(self, deadline_s: float | None, reason: str) -> bool:
        if not self._subscription.registered:
            return False
        question = _Question()
        self._asked.append(question)
        fields = {} if deadline_s is None else {"deadline_s": deadline_s}
        self._subscription.say("notify", reason=reason, **fields)
        end = time.monotonic() + ANSWERED_WITHIN
        while not question.answered.is_set() and time.monotonic() < end:
            if self._subscription.listens:
                question.answered.wait(ANSWERED_WITHIN)
            else:
                self._subscription.look(ANSWERED_WITHIN)
        return question.taken

    def _answer(self, *, taken: bool) -> None:
        with contextlib.suppress(IndexError):  # it answers what somebody else has asked on this connection
            question = self._asked.popleft()
            question.taken = taken
            question.answered.set()

    def _hear(self, message: Mapping[str, object]) -> None:
        kind, event_id = message.get("type"), str(message.get("event_id", ""))
        if kind == "registered":
            mono = message.get("mono")
            # Between our question and now by our own clock: no time namespace lies between the daemon and us.
            self._same_clock = _is_number(mono) and self._subscription.asked_at <= mono <= time.monotonic()
            self._advice = {}  # what was announced to us still holds, what was only advised may be over
            self._asked.clear()
            notices = message.get("notices")
            for notice in notices if isinstance(notices, list) else ():
                if isinstance(notice, dict):
                    self._hear({**notice, "type": "notice"})
        elif kind == "notice" and message.get("level") == "act" and event_id:
            self._wish = wish_of(message)
            self._keep(self._read(event_id, message))
            self._settle()
            # Also for one that we know already: after a restart the daemon wants to know that we listen.
            self._subscription.say("seen", event_id=event_id)
        elif kind == "notice" and message.get("level") == "advise" and event_id:
            self._advise(self._read(event_id, message))
        elif kind == "revoked":
            self._drop(event_id)
            self._settle()
        elif kind == "status" or (kind == "error" and str(message.get("text")).startswith("notify")):
            self._answer(taken=kind == "status")

    def _read(self, event_id: str, message: Mapping[str, object]) -> OpenNotice:
        mono, remaining = message.get("mono"), message.get("remaining")
        deadline: float | None = None
        if self._same_clock and _is_number(mono):
            deadline = mono
        elif _is_number(remaining):
            deadline = time.monotonic() + remaining
        return OpenNotice(event_id, str(message.get("kind", "")), str(message.get("source", "")), deadline)


class LookingClient(Client):
    """Where no thread can be started (`ulimit -u`): hears when it is asked, until there is a thread."""

    _told = False

    @property
    def told(self) -> bool:
        self._subscription.look()
        return self._told

    @told.setter
    def told(self, told: bool) -> None:
        self._told = told

    def notice(self) -> OpenNotice | None:
        self._subscription.look()
        return super().notice()

    def advice(self) -> OpenNotice | None:
        self._subscription.look()
        return super().advice()


def started(path: str) -> Client:
    client = Client(path)
    if client.start():
        return client
    client.close()
    client = LookingClient(path)
    client.start()
    return client


class _Question:
    """A `notify` that waits for the daemon's answer."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.taken = False


def _is_number(value: object) -> TypeGuard[float]:
    """Say whether *value* can be seconds: JSON's numbers may also be NaN, infinite or of a thousand digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _number(step: object) -> int | None:
    """Make an int of what trainers count steps in (int, str, NumPy, a tensor with one element)."""
    try:
        number = int(step)  # type: ignore[call-overload]  # what cannot be an int raises
    except Exception:  # noqa: BLE001  # a foreign type's own __int__; training must not end for it
        return None
    return number if -(2**63) <= number < 2**63 else None


def _absolute(path: object) -> str | None:
    """Make an absolute path that JSON can hold; None: it is no path."""
    if path is None:
        return None
    try:
        text = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # what is no path raises
    except Exception:  # noqa: BLE001  # a foreign type's own __fspath__, a deleted working directory
        return None
    return text.encode(errors="backslashreplace").decode()
