"""W&B runs of the process itself: marked from inside, and not reported as finished while a notice is open.

For trainers whose wandb-core the daemon cannot reach (a container with a pid namespace of its own); elsewhere both do
it, which W&B does not mind. wandb is never imported here: what the script has not loaded cannot have a run.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from weakref import WeakSet

LOOK_EVERY = 0.2
"""Seconds between two looks for runs while a notice is open: one may begin only now."""
PATIENCE = 0.1
"""Seconds that the telling waits for the marks: a script that leaves at once must not outrun them."""

logger = logging.getLogger("preemptd")


class Wish(NamedTuple):
    """What the daemon asks of those that it tells, if they have W&B runs."""

    code: int | None
    """What a run reports that would report 0; None: that stands."""


def wish_of(message: Mapping[str, object]) -> Wish | None:
    """Read what *message*, a notice, asks for; None: leave W&B alone."""
    wish = message.get("wandb")
    if not isinstance(wish, dict):
        return None
    code = wish.get("code")
    return Wish(code if isinstance(code, int) and 0 < code < 256 else None)


class Run(Protocol):
    """What we call of wandb's own class, which is never imported."""

    def mark_preempting(self) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class OwnRuns:
    """Marks in a thread of its own: wandb deadlocks in signal handlers, and may hang anywhere."""

    def __init__(self) -> None:
        self.done = False
        """The script said so: its runs are its own business."""
        self._pid = os.getpid()
        self._wish: Wish | None = None
        self._wanted = threading.Event()
        self._looked = threading.Event()
        self._known: WeakSet[Run] = WeakSet()
        self._guarded: WeakSet[Run] = WeakSet()
        self._thread: threading.Thread | None = None

    def follow(self, wish: Wish | None) -> None:
        """Do from now on what *wish* says, until the next one; waits a little for the first marks."""
        self._wish = wish
        if wish is None:
            self._wanted.clear()
        elif not self._wanted.is_set():
            self._looked.clear()
            self._wanted.set()
            self._start()
            if "wandb" in sys.modules and self._thread is not None:
                self._looked.wait(PATIENCE)

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="preemptd-wandb", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had, or the interpreter is at its end
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            try:
                self._look()
            except Exception as error:  # noqa: BLE001  # wandb's insides: of another version, or in mid-start
                logger.info("W&B runs were not marked from inside: %r", error)
            self._looked.set()
            time.sleep(LOOK_EVERY)

    def _look(self) -> None:
        for run in _active():
            if self.done or run in self._known or self._pid not in (_pid(run, "_init_pid"), _pid(run, "_attach_pid")):
                continue
            if _pid(run, "_init_pid") == self._pid and run not in self._guarded:  # its owner ends it, no one else
                self._guarded.add(run)
                self._guard(run)
            run.mark_preempting()  # may fail while wandb starts: then the next look tries again
            self._known.add(run)

    def _guard(self, run: Run) -> None:
        """See to what *run* reports: now if the script finishes it, at the end of the interpreter if it does not."""
        report = getattr(run, "_atexit_cleanup", None)  # all of finish(), wandb.finish() and `with` come through here
        if report is not None:

            def cleanup(exit_code: object = None, *args: object, **more: object) -> object:
                return report(exit_code or self._code() or exit_code, *args, **more)

            setattr(run, "_atexit_cleanup", cleanup)  # noqa: B010  # nothing public is called on every way out
        # Registered last it runs first: wandb's own, which would report 0, comes after it.
        atexit.unregister(self._end)
        atexit.register(self._end)
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:  # there atexit is not run
            sys.modules["multiprocessing.util"].Finalize(None, self._end, exitpriority=0)

    def _end(self) -> None:
        """Finish what the script has left open, unless wandb knows already that it failed."""
        code = self._code()
        if code is None or _failure():
            return
        for run in _active():
            if _pid(run, "_init_pid") == self._pid:
                with contextlib.suppress(Exception):  # its core may be gone; the daemon mends it, if anybody can
                    run.finish(exit_code=code)

    def _code(self) -> int | None:
        """Return what a run reports instead of 0 now; None: nothing else."""
        ours = self._wish is not None and not self.done and os.getpid() == self._pid
        return self._wish.code if ours and self._wish is not None else None


def _active() -> list[Run]:
    """List the runs that wandb knows in this process; those of its parent among them, after a fork."""
    setup, wandb = sys.modules.get("wandb.sdk.wandb_setup"), sys.modules.get("wandb")
    runs = [*getattr(getattr(setup, "_singleton", None), "_active_runs", ())]
    current = getattr(wandb, "run", None)
    if current is not None and all(current is not run for run in runs):
        runs.append(current)
    return [run for run in runs if not vars(run).get("_is_finished")]


def _pid(run: object, name: str) -> object:
    return vars(run).get(name)  # not getattr: before wandb.init(), `wandb.run` is something that raises


def _failure() -> int:
    """Return the exit code other than 0 that wandb has seen this interpreter end with; it sees two of the ways."""
    hooks = (getattr(hook, "__self__", None) for hook in (sys.exit, sys.excepthook))
    return next((code for hook in hooks if isinstance(code := getattr(hook, "exit_code", 0), int) and code), 0)
