"""Asks slurmctld, and has it requeue the job, through SLURM's own commands; each with a time limit."""

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from preemptd.errors import ProviderError
from preemptd.provider import Commands
from preemptd_providers.slurm.job import Job
from preemptd_providers.slurm.row import FORMAT, Row, parse_row

LIMIT = 5.0
"""Seconds for one command: a hung slurmctld keeps squeue waiting for 20, scontrol for 10."""
DEFAULT_KILL_WAIT = 30.0
"""SLURM's own default, for as long as nobody has told us the cluster's."""
SHORTEST_KILL_WAIT = 5.0
"""SLURM waits for so long even if KillWait is less."""
TEXT_LIMIT = 200
SILENCE = ("unable to contact", "timed out", "connection refused", "zero bytes were transmitted")
"""What SLURM's commands say when they have heard nothing from it."""


class NoAnswerError(ProviderError):
    """The controller is not there, or hangs: it may answer later."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said; *status* is never 0 when something is wrong with it."""

    status: int
    output: str
    complaint: str
    """stderr on one line."""

    @property
    def is_silence(self) -> bool:
        """The controller has said nothing at all."""
        return self.status != 0 and any(words in self.complaint.lower() for words in SILENCE)


@dataclass(frozen=True, slots=True)
class Record:
    """What `scontrol show job` says; None: it does not say."""

    requeue: bool | None
    batch: bool | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """What `scontrol show config` says."""

    kill_wait: float
    """Seconds from the last SIGTERM to SIGKILL."""
    signals_batch_scripts: bool
    """preempt_send_user_signal: at the start of a grace the batch script gets the signal of ``--signal=B:``."""


class Controller:
    """SLURM's commands as one thread uses them; `close` may be called from another."""

    def __init__(self, job: Job, commands: Commands, environ: Mapping[str, str]) -> None:
        self._number = job.number
        self._asked_by = job.number
        self._commands = commands
        self._environ = environment(environ)
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    def row(self, limit: float = LIMIT) -> Row:
        """Ask for the job's row.

        Raises:
            NoAnswerError: there was no answer in *limit* seconds.
            ProviderError: there was one that makes no sense.
        """
        command = ["squeue", "-h", "-t", "all", "-j", self._asked_by, "-O", FORMAT]
        row = parse_row(self._ask(command, limit), self._number)
        self._asked_by = row.id  # by the array's own number squeue lists every task of it
        return row

    def record(self, job_id: str) -> Record:
        said = _keys(self._ask(["scontrol", "show", "job", "-o", job_id], LIMIT))
        return Record(_flag(said.get("Requeue")), _flag(said.get("BatchFlag")))

    def configuration(self) -> Configuration:
        text = self._ask(["scontrol", "show", "config"], LIMIT)
        found = re.search(r"^KillWait\s*=\s*(\d{1,6})\b", text, re.MULTILINE)
        parameters = re.findall(r"^(?:SlurmctldParameters|PreemptParameters)\s*=\s*(.*)$", text, re.MULTILINE)
        words = {word.strip() for line in parameters for word in line.lower().split(",")}
        return Configuration(
            max(float(found[1]), SHORTEST_KILL_WAIT) if found else DEFAULT_KILL_WAIT,
            bool(words & {"preempt_send_user_signal", "send_user_signal"}),
        )

    def node(self, name: str) -> tuple[frozenset[str], str]:
        """Return the words of a node's state (``ALLOCATED+DRAIN``), and the reason that was given for it."""
        text = self._ask(["scontrol", "show", "node", name, "-o"], LIMIT)
        state = _keys(text).get("State", "")
        reason = re.search(r"\bReason=(.*?)\s*(?:\[[^\]]*\])?\s*$", text)
        if not state:
            raise ProviderError(f"scontrol show node {name} answered {text[:TEXT_LIMIT]!r}")
        return frozenset(word.strip("*~#!%$@^-") for word in state.split("+")), reason[1] if reason else ""

    def batch_script(self, job_id: str) -> str:
        """Return its text; SLURM shows it to the job's user alone."""
        return self._ask(["scontrol", "write", "batch_script", job_id, "-"], LIMIT)

    def requeue(self, job_id: str, limit: float) -> Answer:
        return self._run(["scontrol", "requeue", job_id], limit)

    def start_in(self, job_id: str, seconds: int, limit: float) -> Answer:
        """Have the requeued job start in so many *seconds* at the earliest, instead of after cred_expire (121 s)."""
        return self._run(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{seconds}"], limit)

    def close(self) -> None:
        """Break off the command that runs, and start no other."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                with suppress(OSError):
                    self._running.kill()

    def _ask(self, command: Sequence[str], limit: float) -> str:
        answer = self._run(command, limit)
        if answer.status != 0:
            said = answer.complaint or answer.output.strip()[:TEXT_LIMIT] or "nothing"
            problem = NoAnswerError if answer.is_silence else ProviderError
            raise problem(f"{' '.join(command[:3])}: status {answer.status}, {said}")
        return answer.output

    def _run(self, command: Sequence[str], limit: float) -> Answer:
        """Run *command*, for *limit* seconds at the most.

        Raises:
            NoAnswerError: it was not done in time. A requeue may be carried out all the same.
            ProviderError: it could not be started.
        """
        process = self._start(command)
        try:
            output, complaint = process.communicate(timeout=max(limit, 0.0))
        except subprocess.TimeoutExpired as error:
            raise NoAnswerError(f"{' '.join(command[:2])}: no answer in {limit:.1f} s") from error
        finally:
            self._end(process)
        return Answer(process.returncode, output.decode(errors="replace"), _one_line(complaint))

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        path = shutil.which(command[0], path=self._environ.get("PATH"))
        if path is None:
            raise ProviderError(f"there is no {command[0]} on the PATH")
        with self._lock:
            if self._closed:
                raise ProviderError("the watch is closed")
            try:
                process = self._commands.popen(
                    [path, *command[1:]], env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            except OSError as error:
                raise ProviderError(f"{command[0]} cannot be started: {error.strerror}") from error
            self._running = process
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        with self._lock:
            self._running = None
        self._commands.release(process)


def is_reachable(environ: Mapping[str, str]) -> bool:
    """Say whether SLURM's commands are there; in a container they mostly are not."""
    return all(shutil.which(program, path=environ.get("PATH")) for program in ("squeue", "scontrol"))


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Make the environment in which SLURM's commands answer in the one way that we understand.

    Users set their own formats and filters (SQUEUE_STATES, SLURM_TIME_FORMAT=relative). SLURM_CLUSTERS may have come
    along from the machine where the job was submitted: the job is in the cluster of this node.
    """
    ours = {"LC_ALL": "C", "TZ": "UTC0", "SLURM_TIME_FORMAT": "standard"}
    foreign = ("SQUEUE_", "SCONTROL_", "SLURM_CLUSTERS")
    return {name: text for name, text in environ.items() if not name.startswith(foreign)} | ours


def _keys(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def _flag(text: str | None) -> bool | None:
    return {"0": False, "1": True}.get(text or "")


def _one_line(complaint: bytes) -> str:
    return " ".join(complaint.decode(errors="replace").split())[:TEXT_LIMIT]
