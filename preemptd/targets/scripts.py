"""Starts what the user has written for a provider, and ends all that it has left behind."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from signal import Signals

from preemptd import procfs
from preemptd.model import ProcessId
from preemptd.provider import Commands
from preemptd.targets.reaping import Helpers, Shielded

SCRIPT = "PREEMPTD_SCRIPT"
"""In the environment of one script and of all that it starts: another text each time."""
ROUNDS = 5
"""Looks for what it has left: something may have been started during the one before."""


def of_the_user(helpers: Helpers, environ: Mapping[str, str]) -> Commands:
    """Choose what starts the user's own commands.

    SLURM signals every process of a job; elsewhere `timeout` in a script needs a SIGTERM that works.
    """
    return Shielded(helpers) if "SLURM_JOB_ID" in environ else helpers


class Scripts:
    """`Commands` for these. At `release` everything of a script is killed, also what is in a session of its own."""

    def __init__(self, commands: Commands, environ: Mapping[str, str]) -> None:
        """Make it; *environ* is what they get."""
        self._commands = commands
        self._environ = environ
        self._marks: dict[int, str] = {}

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> "subprocess.Popen[bytes]":
        mark = os.urandom(16).hex()
        marked = {**(self._environ if env is None else env), SCRIPT: mark}
        process = self._commands.popen(command, env=marked, stdin=stdin, stdout=stdout, stderr=stderr)
        self._marks[process.pid] = mark
        return process

    def release(self, process: "subprocess.Popen[bytes]") -> None:
        mark = self._marks.pop(process.pid)
        for _ in range(ROUNDS):
            left = list(_bearers(mark, process.pid))
            for one in left:
                procfs.send(one, Signals.SIGKILL, only_if_caught=False)
            if not left:
                break
        self._commands.release(process)


def _bearers(mark: str, older: int) -> Iterator[ProcessId]:
    """Find those with *mark* among the processes that were started after *older*: a thousand others are not read.

    Numbers begin anew at pid_max: what was left by the one look in thousands during which that happens is not found.
    """
    for name in os.listdir("/proc"):
        found = procfs.process_id(int(name)) if name.isdecimal() and int(name) > older else None
        if found is not None and procfs.environ(found.pid).get(SCRIPT) == mark:
            yield found
