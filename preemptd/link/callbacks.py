"""Calls what a script wants to be called at a notice: once a notice, in a thread of the client's own."""

import contextlib
import logging
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from preemptd.link.open_notice import OpenNotice

Callback = Callable[[OpenNotice], object]

logger = logging.getLogger("preemptd")


class Callbacks:
    """Nothing here waits, or takes a lock that a signal handler could find taken.

    Args:
        due: maps each notice that is to be told now, by a number that it alone has, to what it says.
    """

    def __init__(self, due: Callable[[], Mapping[int, OpenNotice]]) -> None:
        self._due = due
        self._listeners: list[_Listener] = []
        self._looks: SimpleQueue[None] = SimpleQueue()  # its put() is safe in signal handlers; only the thread waits
        self._running = allocate_lock()
        """Held for the thread's life by whoever started it."""
        self._forgotten = False

    def add(self, callback: Callback) -> Callable[[], None]:
        """Call *callback* for each notice; the result takes it off again."""
        listener = _Listener(callback)
        self._listeners.append(listener)
        self.look()

        def remove() -> None:
            listener.removed = True
            with contextlib.suppress(ValueError):  # it was taken off before
                self._listeners.remove(listener)

        return remove

    def look(self) -> None:
        """Have the thread look what is to be told, if anybody wants to hear it."""
        if not self._listeners:
            return
        self._looks.put(None)
        if self._running.acquire(blocking=False):
            try:
                # Not threading.Thread: its start() takes locks that a signal handler may find taken.
                start_new_thread(self._run, ())
            except RuntimeError:  # no thread to be had, or the interpreter is at its end: the next look tries again
                self._running.release()

    def forget(self) -> None:
        """In a forked child, which may have been made by a callback: call nobody any more."""
        self._forgotten = True

    def _run(self) -> None:
        while not self._forgotten:
            self._looks.get()
            while (due := self._next()) is not None:
                listener, notice = due
                listener.call(notice)

    def _next(self) -> "tuple[_Listener, OpenNotice] | None":
        if self._forgotten:
            return None
        for listener in tuple(self._listeners):
            for number, notice in self._due().items():
                if number not in listener.told:
                    listener.told.add(number)
                    return listener, notice
        return None


class _Listener:
    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.told: set[int] = set()
        self.removed = False

    def call(self, notice: OpenNotice) -> None:
        if self.removed:
            return
        try:
            self._callback(notice)
        except BaseException:  # the script's own code, and SystemExit would end the thread in silence
            with contextlib.suppress(Exception):
                logger.warning("what on_notice() was given failed at %s", notice.event_id, exc_info=True)
