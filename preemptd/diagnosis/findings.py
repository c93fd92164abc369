"""What a diagnosis says: data for people and programs, that does not know how it was found out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals

from preemptd.model import Process


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. docs/doctor.md lists the kinds."""

    kind: str
    text: str
    advice: str = ""
    """What to do about it; empty: nothing needs doing."""
    pid: int | None = None
    loses: bool = False
    """Work, or the true state of a W&B run, would be lost by it."""

    def as_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "loses": self.loses,
            "pid": self.pid,
            "text": self.text,
            "advice": self.advice or None,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """One process, and what a notice would mean to it."""

    process: Process
    command: str
    """For people, without secrets."""
    role: str
    """work, launcher, helper."""
    signals: Mapping[str, str]
    """USR1, TERM...: caught, ignored, blocked, default, unknown."""
    how: str
    """link, or the name of the signal that would tell it; empty: it would be left alone."""
    why: str
    uid: int | None
    """None: nobody can tell."""
    pid_inside: int | None
    """Its pid in the pid namespace of its own; None: it lives in ours."""
    watched: bool

    @property
    def then(self) -> str | None:
        """The signal that comes later, near the deadline, if it says nothing; None: no more comes."""
        return "TERM" if self.how not in ("", "TERM") and self.process.catches(Signals.SIGTERM) else None

    @property
    def purpose(self) -> str | None:
        """What is known of the handler: that there is one says only that the process will not die; None: not told."""
        if not self.how:
            return None
        return "told by message" if self.how == "link" else f"{self.signals[self.how]}, purpose unknown"

    def as_json(self) -> dict[str, object]:
        return {
            "pid": self.process.pid,
            "ppid": self.process.ppid,
            "command": self.command,
            "role": self.role,
            "signals": dict(self.signals),
            "told_by": self.how or None,
            "then": self.then,
            "why": self.why,
            "purpose": self.purpose,
            "uid": self.uid,
            "pid_inside": self.pid_inside,
            "watched": self.watched,
        }


@dataclass(frozen=True, slots=True)
class SeenRun:
    """One W&B run, and what would become of a mark."""

    run_id: str
    core_pid: int
    owner_pid: int
    version: str | None
    """Of the wandb package; None: not found."""
    offline: bool
    survives: bool
    """Online, or offline with a log that reaches the disk before a SIGKILL could take it away."""
    key: bool
    """An API key was found where the owner would find it. The key itself is kept nowhere."""
    sweep: str | None
    undeliverable: str | None
    """Why a mark would not be taken; None: it would."""
    ms: float | None
    """Milliseconds until wandb-core said that it serves the run; None: it did not."""

    def as_json(self) -> dict[str, object]:
        return {
            "run_id": self.run_id,
            "core_pid": self.core_pid,
            "owner_pid": self.owner_pid,
            "wandb_version": self.version,
            "offline": self.offline,
            "survives_kill": self.survives,
            "api_key_present": self.key,
            "sweep_id": self.sweep,
            "deliverable": self.undeliverable is None,
            "why_not": self.undeliverable,
            "ms": self.ms,
        }


@dataclass(frozen=True, slots=True)
class JobDiagnosis:
    """A running job."""

    pid: int
    command: str
    watchers: Sequence[Mapping[str, object]]
    """What the preemptds around it, or in it, answer to `status`."""
    processes: Sequence[Seen]
    runs: Sequence[SeenRun]
    findings: Sequence[Finding]
    idle_services: Sequence[int] = field(default_factory=tuple)
    """Pids of wandb-cores without a run."""


@dataclass(frozen=True, slots=True)
class SeenProvider:
    name: str
    here: bool
    why: str
    where: str
    """What it asks, and what it heard; empty: it has not said."""
    watches: Mapping[str, tuple[str, str]]
    """Name to state (clear, notice, unknown) and the reason for it."""
    secondary: frozenset[str] = frozenset()
    """Names of those whose silence loses nothing."""

    def as_json(self) -> dict[str, object]:
        watches = [{"watch": name, "state": state, "why": why or None} for name, (state, why) in self.watches.items()]
        return {
            "name": self.name,
            "here": self.here,
            "why": self.why,
            "where": self.where or None,
            "watches": watches,
        }


@dataclass(frozen=True, slots=True)
class MachineDiagnosis:
    """The machine that we are on, and the preemptds on it."""

    providers: Sequence[SeenProvider]
    jobs: Sequence[JobDiagnosis]
    """One for each preemptd that runs, and for each process that heads a target of a daemon."""
    findings: Sequence[Finding]

    @property
    def watchers(self) -> list[Mapping[str, object]]:
        return [answer for job in self.jobs for answer in job.watchers]


def losses(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.loses]
