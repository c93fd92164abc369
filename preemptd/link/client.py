"""The trainer's end of the link: what is announced, and what we have done about it; standard library only."""

import math
import os
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

from preemptd.link.own_runs import OwnRuns, Wish, wish_of
from preemptd.link.subscription import Subscription


class OpenNotice(NamedTuple):
    """A platform's announcement that this machine or job will be taken away."""

    event_id: str
    kind: str
    """``preempt``, ``terminate``, ``stop``, ``hibernate`` or ``maintenance``."""
    source: str
    """Where preemptd read it: ``spot/instance-action``."""
    deadline: float | None
    """In seconds of time.monotonic(); None: nobody knows."""

    @property
    def time_left(self) -> float | None:
        """Seconds from now to the deadline, 0.0 after it; None: nobody knows."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class Client:
    """One process's subscription. Nothing here raises, and only `start` waits (a second at most)."""

    def __init__(self, path: str) -> None:
        self.told = False
        """True while a notice is open that is to be acted on."""
        self._open: Mapping[str, OpenNotice] = {}
        self._same_clock = False
        self._wish: Wish | None = None
        self._runs = OwnRuns()
        self._subscription = Subscription(path, os.getpid(), "trainer", self._hear)

    def start(self) -> bool:
        """Say whether what comes from now on is heard as it comes."""
        self._subscription.connect()
        self._subscription.start()
        return self._subscription.listens

    def notice(self) -> OpenNotice | None:
        """Return the open notice with the earliest deadline."""
        return min(self._open.values(), key=_deadline, default=None)

    def time_left(self) -> float | None:
        notice = self.notice()
        return notice and notice.time_left

    def saving(self) -> None:
        self._subscription.say("saving")

    def saved(self, step: object, path: object) -> None:
        fields = {"step": _number(step), "path": _absolute(path)}
        self._subscription.say("saved", **{name: value for name, value in fields.items() if value is not None})

    def done(self) -> None:
        self._runs.done = True
        self._subscription.say("done")

    def close(self) -> None:
        self._subscription.close()

    def forget(self) -> None:
        self._subscription.forget()

    def _hear(self, message: Mapping[str, object]) -> None:
        kind, event_id = message.get("type"), str(message.get("event_id", ""))
        if kind == "registered":
            mono = message.get("mono")
            # Between our question and now by our own clock: no time namespace lies between the daemon and us.
            self._same_clock = _is_number(mono) and self._subscription.asked_at <= mono <= time.monotonic()
            notices = message.get("notices")
            for notice in notices if isinstance(notices, list) else ():
                if isinstance(notice, dict):
                    self._hear({**notice, "type": "notice"})
        elif kind == "notice" and message.get("level") == "act" and event_id:
            self._wish = wish_of(message)
            self._keep({**self._open, event_id: self._read(event_id, message)})
            # Also for one that we know already: after a restart the daemon wants to know that we listen.
            self._subscription.say("seen", event_id=event_id)
        elif kind == "revoked":
            self._keep({known: notice for known, notice in self._open.items() if known != event_id})

    def _keep(self, notices: Mapping[str, OpenNotice]) -> None:
        self._open = notices
        self._runs.follow(self._wish if notices else None)
        self.told = bool(notices)

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


def started(path: str) -> Client:
    client = Client(path)
    if client.start():
        return client
    client.close()
    client = LookingClient(path)
    client.start()
    return client


def _deadline(notice: OpenNotice) -> float:
    return math.inf if notice.deadline is None else notice.deadline


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
