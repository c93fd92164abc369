"""What becomes of the signals that SLURM sends to the batch script's own process, if that is not preemptd."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGUSR1, Signals

from preemptd.errors import ProviderError
from preemptd_providers.slurm.controller import Controller, NoAnswerError
from preemptd_providers.slurm.job import Job

_SIGNAL = re.compile(r"^#SBATCH\s(?:.*\s)?--signal[=\s]\s*['\"]?(?:([BR]+):)?(?:SIG)?([A-Za-z]\w*|\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BatchProcess:
    """The process that slurmstepd has started for the batch script, and what it makes of signals (masks)."""

    pid: int
    name: str
    ignored: int
    heard: int
    """Those that have a handler, or are blocked, as srun has them, which waits for them in a thread."""

    def ignores(self, signum: Signals) -> bool:
        return bool(self.ignored >> (signum - 1) & 1)

    def hears(self, signum: Signals) -> bool:
        return bool(self.heard >> (signum - 1) & 1)


def batch_process(job: Job) -> BatchProcess | None:
    """Find it on this node; None: it is not here, or not to be seen (a container, /proc mounted hidepid=2)."""
    title = re.compile(rf"slurmstepd: \[{job.number}(?:\+\d+)?\.batch\]".encode())
    pid: int | None = os.getpid()
    while pid and not title.match(_read(_parent(pid) or 0, "cmdline")):
        pid = _parent(pid)
    if not pid and job.in_step:
        pid = next((other for other in _pids() if title.match(_read(_parent(other) or 0, "cmdline"))), None)
    if not pid:
        return None
    status = _read(pid, "status").decode(errors="replace")
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    try:
        masks = {name: int(said[name], 16) for name in ("SigIgn", "SigCgt", "SigBlk")}
    except (KeyError, ValueError):
        return None
    return BatchProcess(pid, said["Name"], masks["SigIgn"], masks["SigCgt"] | masks["SigBlk"])


def lost_signals(job: Job, job_id: str, controller: Controller) -> str:
    """Say what we shall never hear, because the batch script ignores it or dies of it; empty: nothing, for sure.

    Raises:
        NoAnswerError: nobody can say yet what the script has asked for.
    """
    process = batch_process(job) if job.is_first else None
    if process is None or process.pid == os.getpid():
        return ""
    wish = _wish(_script(controller, job_id))
    signum = SIGUSR1 if wish is None else wish
    if process.hears(signum):
        return ""
    last_line = f"exec {'srun ' if job.in_step else ''}preemptd watch ..."
    said = f"the batch script's own process ({process.name}, pid {process.pid})"
    if process.ignores(signum) and (wish is not None or not job.in_step):
        what = "what `scancel -b` sends" if wish is None else f"--signal=B:{wish.name.removeprefix('SIG')}"
        return f"{said} ignores {signum.name}: {what} reaches nobody. Make `{last_line}` the script's last line"
    if wish is None or process.ignores(signum):
        return ""
    trap = f"`trap '' {wish.name.removeprefix('SIG')}` its first and `{last_line}` its last line"
    return f"{said} will die of {wish.name}, which its --signal asks for, and the job with it: make {trap}"


def _script(controller: Controller, job_id: str) -> str:
    try:
        return controller.batch_script(job_id)
    except NoAnswerError:
        raise
    except ProviderError:  # it is not for us to read
        return ""


def _wish(script: str) -> Signals | None:
    """Read what the last ``--signal`` sends to the batch script itself; None: nothing."""
    flags, name = (_SIGNAL.findall(script) or [("", "")])[-1]
    if "B" not in flags:
        return None
    if name.isdecimal():
        return next((known for known in Signals if known == int(name)), None)
    return Signals.__members__.get(f"SIG{name.upper()}")


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _parent(pid: int) -> int | None:
    with suppress(ValueError, IndexError):
        return int(_read(pid, "stat").rpartition(b")")[2].split()[1])
    return None


def _read(pid: int, name: str) -> bytes:
    """Read what /proc has; empty: the process has ended, or is hidden."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
