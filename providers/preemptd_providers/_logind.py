"""logind, as it announces a shutdown over D-Bus, and holds it back for us a few seconds. Needs `jeepney`."""

import os
import socket
from contextlib import suppress

from jeepney import (
    DBusAddress,
    FileDescriptor,
    MatchRule,
    Message,
    MessageType,
    Properties,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import open_dbus_connection

from preemptd.errors import ProviderError

_INTERFACE = "org.freedesktop.login1.Manager"
_MANAGER = DBusAddress("/org/freedesktop/login1", bus_name="org.freedesktop.login1", interface=_INTERFACE)
_SIGNAL = MatchRule(
    type="signal",
    sender=_MANAGER.bus_name,
    interface=_INTERFACE,
    member="PrepareForShutdown",
    path=_MANAGER.object_path,
)
_ANSWER_WITHIN = 5.0
"""Seconds for one question; the bus may have to start logind first."""


class RefusedError(ProviderError):
    """It is there, and says no."""


class Logind:
    """One connection to the system bus, with a delay lock on shutdowns: who holds it hears of one before it begins.

    The lock ends with `release`, or with our process; logind waits `delay` seconds for it, and no longer. Where we get
    none (no polkit, and we are not root), `delay` is 0: we hear of a shutdown when it begins.

    Raises:
        ProviderError: there is no bus, or no logind.
    """

    def __init__(self) -> None:
        try:
            self._bus = open_dbus_connection(bus="SYSTEM", enable_fds=True)
        except Exception as error:  # a socket's errors, and whatever jeepney makes of a bad address or login
            raise ProviderError(f"the system bus is not reached: {str(error) or type(error).__name__}") from error
        self._lock: int | None = None
        try:
            self._call(message_bus.AddMatch(_SIGNAL))
            self._lock = self._inhibit()
            self.delay = _number(self._property("InhibitDelayMaxUSec")) / 1e6 if self._lock is not None else 0.0
        except BaseException:
            self.close()
            raise

    def _inhibit(self) -> int | None:
        words = ("shutdown", "preemptd", "trainings save their state", "delay")
        try:
            (lock,) = self._call(new_method_call(_MANAGER, "Inhibit", "ssss", words))
        except RefusedError:
            return None
        return lock.to_raw_fd() if isinstance(lock, FileDescriptor) else None

    def is_preparing(self) -> bool:
        """Say whether a shutdown is under way: by its own word, for anybody may send a signal that looks like its."""
        return self._property("PreparingForShutdown") is True

    def wait(self, seconds: float) -> None:
        """Wait until something comes over the bus: then `is_preparing` may have changed."""
        try:
            self._bus.receive(timeout=seconds)
        except TimeoutError:
            return
        except OSError as error:
            raise ProviderError(f"the system bus has gone: {error}") from error

    def release(self) -> None:
        """Hold the shutdown back no longer."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def wake(self) -> None:
        """Make a `wait` in another thread, and whatever comes after it, fail at once."""
        with suppress(OSError):
            self._bus.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.release()
        self._bus.close()

    def _property(self, name: str) -> object:
        (variant,) = self._call(Properties(_MANAGER).get(name))
        return variant[1] if isinstance(variant, tuple) else None

    def _call(self, message: Message) -> tuple[object, ...]:
        try:
            reply = self._bus.send_and_get_reply(message, timeout=_ANSWER_WITHIN)
        except OSError as error:  # TimeoutError is one
            raise ProviderError(f"logind does not answer: {str(error) or type(error).__name__}") from error
        if reply.header.message_type is MessageType.error:
            raise RefusedError(f"logind refuses: {' '.join(map(str, reply.body))[:300]}")
        return tuple(reply.body)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
