"""A preemptd inside a preemptd: the outer one watches and tells for both, the inner one only asks whether it did."""

import os
import socket
import threading
import time
from collections.abc import Mapping

from preemptd.link.peer import credentials, is_ancestor
from preemptd.link.subscription import Subscription
from preemptd.notices import AFTER_REVOCATION

ON_ITS_WAY = 0.1
"""Seconds that news of the telling may need: the process told may end before they are here."""


class Outer:
    """The preemptd that we run under. Made by `join`."""

    def __init__(self, path: str) -> None:
        self._open: set[str] = set()
        self._revoked: float | None = None
        self._told = 0
        self._changed = threading.Condition()
        self._subscription = Subscription(path, os.getpid(), "wrapper", self._hear)

    @classmethod
    def join(cls, path: str) -> "Outer | None":
        """Register with the preemptd at *path*; None: nobody answers, or it is not among our ancestors.

        Waits a second at most; makes no thread.
        """
        if not _is_ours(path):
            return None
        outer = cls(path)
        if outer._subscription.connect():
            return outer
        outer.close()
        return None

    def start(self) -> None:
        """Listen in a thread: call it after the command was forked."""
        self._subscription.start()

    @property
    def preempted(self) -> bool:
        """Whether the outer one told processes of a notice that is open, or was revoked in the last 60 s.

        While a notice is open and nobody is told yet, this waits up to 100 ms for the news.
        """
        with self._changed:
            if self._open and not self._told:
                self._changed.wait_for(lambda: self._told > 0, ON_ITS_WAY)
            return self._told > 0 and (bool(self._open) or self._is_recent())

    def close(self) -> None:
        self._subscription.close()

    def _hear(self, message: Mapping[str, object]) -> None:
        kind, count, notices = message.get("type"), message.get("count"), message.get("notices")
        event_id = str(message.get("event_id"))
        with self._changed:
            if kind == "registered" and isinstance(notices, list):
                for notice in notices:
                    if isinstance(notice, dict):
                        self._add(notice)
            elif kind == "notice":
                self._add(message)
            elif kind == "revoked" and event_id in self._open:
                self._open.discard(event_id)
                self._revoked = time.monotonic()
            elif kind == "told" and isinstance(count, int):
                self._told = count
            self._changed.notify_all()

    def _add(self, notice: Mapping[str, object]) -> None:
        if notice.get("level") != "act":
            return
        if not self._open and not self._is_recent():
            self._told = 0
        self._open.add(str(notice.get("event_id")))

    def _is_recent(self) -> bool:
        return self._revoked is not None and time.monotonic() - self._revoked <= AFTER_REVOCATION


def _is_ours(path: str) -> bool:
    """Look who listens before saying anything: the variable may come from a job that this one outlived."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
            return is_ancestor(credentials(probe)[0])
    except (OSError, ValueError):
        return False
