"""The canary: a job step of our own that hears the signals which SLURM sends to steps alone.

On a cluster in its default configuration a preemption with GraceTime sends SIGTERM to the tasks of srun's steps, and
nothing at all to the batch script: without a step there is nothing to hear until the final SIGTERM.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from preemptd.notices import Notice
from preemptd.provider import Commands, Observation, Watch
from preemptd_providers.slurm.pace import Pace
from preemptd_providers.slurm.polling import CLOSED

PROGRAM = """
import os, select, signal
names = {int(s): s.name for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
r, w = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(w)
for s in names: signal.signal(s, lambda *a: None)
os.write(1, b"ready %d\\n" % os.getpid())
while True:
    ready = select.select([0, r], [], [])[0]
    if r in ready:
        for s in os.read(r, 64): os.write(1, names.get(s, "?").encode() + b"\\n")
    if 0 in ready and not os.read(0, 64): os._exit(0)
"""
"""Ends when its stdin does: with us, or when we want it to."""
SIGNALS = {s.name: s for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
FOREIGN = ("SLURM_CPU_BIND", "SLURM_MEM_", "SLURM_STD", "SLURM_LABELIO", "SLURM_PTY", "SRUN_")
"""Variables by which the user's own srun is configured; the job's binding does not fit a step of one CPU."""
END_WITHIN = 2.0
"""Seconds in which srun has to end once its stdin has."""
BY_ITSELF_WITHIN = 0.1
"""Seconds in which the step ends by itself then; usually 15 ms. It never hears of it where its slurmd is dead."""
STEADY = 20.0
"""Seconds that a step has to live, after one that has died, to count as being back: for a while after a restart of
slurmctld or slurmd steps may start, and die again."""


class CanaryWatch(Watch):
    """Starts the step, and again when it dies; each signal that it hears is a notice."""

    name = "slurm:canary"
    waits = True

    def __init__(
        self,
        node: str,
        commands: Commands,
        environ: Mapping[str, str],
        pace: Pace,
        heard: Callable[[signal.Signals], Notice],
        standing: Callable[[], Notice | None],
    ) -> None:
        """Make it; *standing* returns the job's one notice: that a new step has heard nothing takes nothing back."""
        self._mark = f"canary-{uuid.uuid4()}"
        self._command = [*command(node, environ), self._mark]
        self._commands = commands
        self._environ = {name: text for name, text in environ.items() if not name.startswith(FOREIGN)}
        self._pace = pace
        self._heard = heard
        self._standing = standing
        self._lock = threading.Lock()  # for the three below
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._reading = threading.Lock()  # held while the pipes of the step are in use
        self._unread = b""
        self._pid: int | None = None  # of the task, as it sees itself
        self._has_failed = False

    def observe(self) -> Observation:
        with self._reading:
            process = self._process or self._start()
            if isinstance(process, str):
                return Observation.unknown(process)
            word = self._word(process)
            if word is not None and word.startswith("ready "):
                self._pid = int(word.split()[1])
                word = self._word(process, STEADY) if self._has_failed else None
            if word == "":
                return Observation.unknown(self._let_go(process))
        self._has_failed = False
        self._pace.succeeded()
        notice = self._heard(SIGNALS[word]) if word in SIGNALS else self._standing()
        return Observation.clear() if notice is None else Observation.of(notice)

    def close(self, within: float = END_WITHIN) -> None:
        """End the step, and wait up to *within* seconds: a job with a step hangs in COMPLETING for KillWait."""
        self._pace.close()
        with self._lock:
            self._closed = True
            process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        end = time.monotonic() + within
        if not _has_ended(process, min(within, BY_ITSELF_WITHIN)):
            self._end_task()  # now: we may be gone before its srun is
        _end(process, max(0.0, end - time.monotonic()))
        if self._reading.acquire(
            timeout=max(0.0, end - time.monotonic())
        ):  # else somebody else holds the pipe, and its reader waits on
            if self._process is not None:
                self._let_go(process)
            self._reading.release()

    def _end_task(self) -> None:
        """Kill a task that outlives its srun, as it does where the node's slurmd is dead and SLURM gives the node up.

        A slurmd that comes back reports the step, is told to kill the job, and so ends the new attempt that SLURM may
        just have started there (22.05: "already killed, do not launch batch job"; the job is over then).
        """
        if self._pid is None:
            return
        pid, self._pid = self._pid, None
        with suppress(OSError):  # it has ended, or is not in our namespace
            if self._mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> "subprocess.Popen[bytes] | str":
        """Start the step, or say why that cannot be done."""
        if not self._pace.wait():
            return CLOSED
        with self._lock:
            if self._closed:
                return CLOSED
            pipe = subprocess.PIPE
            try:
                process = self._commands.popen(self._command, env=self._environ, stdin=pipe, stdout=pipe, stderr=pipe)
            except OSError as error:
                self._pace.failed()
                return f"srun cannot be started: {error.strerror}"
            self._process = process
        self._unread = b""
        return process

    def _word(self, process: "subprocess.Popen[bytes]", within: float | None = None) -> str | None:
        """Wait for a line, *within* seconds or for ever; empty: the step has ended. None: there was none in this time.

        What the step says after "ready" comes seldom, and in one piece.
        """
        out = process.stdout
        while out is not None and b"\n" not in self._unread:
            if not select.select([out], [], [], within)[0]:
                return None
            got = os.read(out.fileno(), 4096)
            if not got:
                return ""
            self._unread += got
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip() or "?"

    def _let_go(self, process: "subprocess.Popen[bytes]") -> str:
        """Forget a step that has ended, and return what it said."""
        self._pace.failed()
        self._has_failed = True
        status = _end(process)
        self._end_task()
        said = _rest(process)
        with self._lock:
            self._process = None
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._commands.release(process)
        return CLOSED if self._closed else f"the canary step ended with status {status}{said and ': '}{said}"


def _has_ended(process: "subprocess.Popen[bytes]", within: float) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: "subprocess.Popen[bytes]", within: float = END_WITHIN) -> int:
    """Wait for the end of *process*, and kill it if that does not come."""
    if not _has_ended(process, within):
        process.kill()
    return process.wait()


def command(node: str, environ: Mapping[str, str]) -> list[str]:
    """Make the command of the step: it shares CPU and memory with whatever else runs in the job."""
    share = ["--overlap", "--quiet", "--unbuffered", "-N1", "-n1", "-c1", "--mem=0", "--input=all", "-w", node]
    srun = shutil.which("srun", path=environ.get("PATH")) or "srun"
    return [srun, *share, sys.executable, "-S", "-E", "-c", PROGRAM]


def _rest(process: "subprocess.Popen[bytes]") -> str:
    if process.stderr is None or not select.select([process.stderr], [], [], 0)[0]:
        return ""
    return " ".join(os.read(process.stderr.fileno(), 4096).decode(errors="replace").split())[:200]
