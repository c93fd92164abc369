"""Tells systemd how the service does: sd_notify(3), spoken by ourselves.

    manager = ServiceManager(os.environ)   # says nothing, and `interval` is None, where no systemd listens
    manager.ready("watching ec2")          # READY=1 and STATUS=: at the start, and again after `reloading`
    manager.status("1 notice is open")     # STATUS= alone
    manager.reloading()                    # when SIGHUP was taken; `ready` ends it (Type=notify-reload waits for it)
    manager.stopping()                     # when the end begins
    manager.alive()                        # WATCHDOG=1: each `interval` seconds, from the loop itself

Nothing here blocks, and nothing raises: what systemd's socket does not take at once goes with the next message.
"""

import os
import socket
import time
from collections.abc import Mapping

VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
"""Meant for us: a command that had them could keep a hanging preemptd alive, or end its start too early."""


class ServiceManager:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.interval: float | None = _interval(environ) if self._address else None
        """Seconds from one `alive` to the next; None: nobody waits for it."""
        self._socket: socket.socket | None = None
        self._unsent: list[str] = []

    def ready(self, status: str) -> None:
        self._say("READY=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        self._say(f"STATUS={_one_line(status)}")

    def reloading(self) -> None:
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def alive(self) -> None:
        self._say("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        self._unsent = [line for line in self._unsent if line != "WATCHDOG=1"] + list(lines)
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.sendto("\n".join(self._unsent).encode(), self._address)
        except BlockingIOError:  # systemd is behind with its reading: it must hear of READY=1 all the same
            self._unsent = self._unsent[-_KEPT:]
        except OSError:  # it has gone, or is being replaced
            self._unsent = []
        else:
            self._unsent = []


_KEPT = 8
"""Lines at the most that wait for the next message."""


def _address(path: str) -> str:
    """Return what `sendto` takes; empty: nobody listens. "@" stands for the null byte of an abstract address."""
    return "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else ""


def _interval(environ: Mapping[str, str]) -> float | None:
    """Read a third of the time after which systemd takes us for dead; None: it does not look after this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if not (usec.isascii() and usec.isdecimal() and int(usec)) or pid not in (None, "", str(os.getpid())):
        return None
    return int(usec) / 1e6 / 3


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
