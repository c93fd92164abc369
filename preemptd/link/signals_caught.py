"""The trainer's own handlers of signals: chained to those that were there, silent in forked children."""

import atexit
import contextlib
import os
import signal
import time
from _thread import get_ident, start_new_thread
from collections.abc import Callable, Sequence
from signal import SIG_DFL, SIG_IGN, SIGTERM, SIGUSR1, Signals
from types import FrameType

Handler = Callable[[int, FrameType | None], object]

ONE_WORD = 1.0
"""Seconds in which a second SIGTERM is the same word: launchers pass on what has reached all (torchrun, dumb-init)."""
IN_C = 1.0
"""Seconds after which a handler that has not run is taken not to: the main thread is in C, perhaps for ever."""
RAN = 0x80
"""Set in the byte of a signal that its handler has written; the interpreter writes them without."""


class SignalsCaught:
    """Handlers that set a flag, write one byte, and call whom they replaced; a thread does the rest.

    The interpreter itself writes the same byte, also while the main thread is in C, if nobody else uses its wake-up
    descriptor (asyncio does).

    Args:
        signums: what is caught, unless it is ignored, or caught by code that is not Python's.
        interrupt: called in the handler; it must not wait.
        hear: called in the thread, for the same signal once or more.
    """

    def __init__(
        self, signums: Sequence[Signals], interrupt: Callable[[Signals], None], hear: Callable[[Signals], None]
    ) -> None:
        self.caught = False
        self.listening = False
        """Whether there is a thread that hears."""
        self._signums = signums
        self._interrupt = interrupt
        self._hear = hear
        self._pid = os.getpid()
        self._handler: Handler = self._handle
        """One object: it is compared with what is installed."""
        self._before: dict[int, Handler | int] = {}
        self._reading = self._writing = -1
        self._terminated: dict[bool, float] = {}
        """Monotonic time of the first SIGTERM, as the handler (True) and the thread have it."""
        self._masks: dict[int, set[int]] = {}

    def catch(self) -> None:
        """Install the handlers and start the thread: in the main thread only."""
        self.caught = True  # first: a signal handler may ask while we are at it
        foreign = _not_by_python()
        for signum in self._signums:
            before = signal.getsignal(signum)
            # Ignored is ignored; None, or caught without Python's knowledge: faulthandler, NCCL.
            if before is None or before is SIG_IGN or (before is SIG_DFL and signum in foreign):
                continue
            self._before[signum] = SIG_DFL if before is _survive else before
        if not self._before:
            return
        with contextlib.suppress(OSError):  # no descriptor to be had
            self._reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
        with contextlib.suppress(ValueError):  # this is the main thread of a subinterpreter
            for number in self._before:
                signal.signal(number, self._handler)
            if self._writing >= 0:
                self._wake_up_by(self._writing)
            atexit.register(self._leave)
        if self._writing >= 0:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                start_new_thread(self._run, ())
                self.listening = True

    def block(self) -> None:
        """Let none of them reach a child before `release`: it would write to our pipe. Goes with `unblock`."""
        if self._before:
            self._masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)

    def unblock(self) -> None:
        mask = self._masks.pop(get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def release(self) -> None:
        """In a forked child: restore what was there."""
        for number, before in self._before.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, _survive if number == SIGUSR1 and before is SIG_DFL else before)
        if self._writing >= 0:
            installed = signal.set_wakeup_fd(-1)
            if installed not in (-1, self._writing):
                signal.set_wakeup_fd(installed)
            os.close(self._reading)
            os.close(self._writing)
            self._reading = self._writing = -1
        self.unblock()

    # -- in the main thread --------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Let signals do what they did: a handler is not run any more while the interpreter ends, which may hang."""
        for number, before in self._before.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        before = self._before.get(signum, SIG_DFL)
        if os.getpid() == self._pid:
            if signum == SIGTERM and self._is_meant(ran=True):
                _die()
            self._interrupt(Signals(signum))
            with contextlib.suppress(OSError):  # it is full of bytes that the thread is about to read, or there is none
                os.write(self._writing, bytes([signum | RAN]))
        if callable(before):
            before(signum, frame)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            for byte in os.read(self._reading, 512):
                signum = byte & ~RAN
                if signum not in self._before:
                    continue
                # Who has replaced our handler may call it, or not: until then it is no business of ours.
                if byte & RAN or signal.getsignal(signum) is self._handler:
                    is_meant = signum == SIGTERM and not byte & RAN and self._is_meant(ran=False)
                    self._hear(Signals(signum))
                    if is_meant:
                        time.sleep(IN_C)
                        _die_in_c()

    # -- a second SIGTERM ----------------------------------------------------------------------------------------

    def _is_meant(self, *, ran: bool) -> bool:
        """Say whether this SIGTERM is a second one, of somebody who wants the process to end as it would without us."""
        now = time.monotonic()
        is_second = now - self._terminated.setdefault(ran, now) > ONE_WORD
        is_ours = self._before.get(SIGTERM) is SIG_DFL and signal.getsignal(SIGTERM) is self._handler
        return is_second and is_ours

    def _wake_up_by(self, fd: int) -> None:
        installed = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        if installed == -1:
            return
        signal.set_wakeup_fd(installed)
        os.set_blocking(self._reading, False)
        with contextlib.suppress(OSError):  # what came in between is not for us
            os.write(installed, os.read(self._reading, 512))
        os.set_blocking(self._reading, True)


def _survive(signum: int, frame: FrameType | None) -> None:
    """Stand in forked children: a SIGUSR1 to all processes of a job must not kill its DataLoader workers."""


def _die() -> None:
    signal.signal(SIGTERM, SIG_DFL)
    os.kill(os.getpid(), SIGTERM)


def _die_in_c() -> None:
    """End the process by SIGTERM although its handlers do not run: Python restores actions in the main thread only."""
    import ctypes

    ctypes.CDLL(None).signal(int(SIGTERM), None)
    os.kill(os.getpid(), SIGTERM)


def _not_by_python() -> set[int]:
    """List what the kernel knows to be caught or ignored, Python's own handlers included; nothing without /proc."""
    masks = {b"SigIgn", b"SigCgt"}
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        for line in status:
            name, _, mask = line.partition(b":")
            if name in masks:
                bits = int(mask, 16)
                found |= {number + 1 for number in range(64) if bits >> number & 1}
    return found
