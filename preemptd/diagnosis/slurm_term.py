"""Who would die of the SIGTERM with which SLURM itself begins a preemption, though it would be told by another way."""

from collections.abc import Iterable, Iterator, Sequence

from preemptd.diagnosis import standing
from preemptd.diagnosis.findings import Finding, Seen
from preemptd.diagnosis.scontrol import Answers
from preemptd.diagnosis.slurm_settings import mode_of, number, sends_user_signal
from preemptd.diagnosis.unit import is_preemptd
from preemptd.nodes.wanted import is_step
from preemptd.procfs import environ
from preemptd.targets.reachability import brief

_TO_ALL = "a preemption begins with SIGTERM to every process of the job here (GraceTime=0)"
_TO_STEPS = "a preemption begins with SIGTERM to every process that srun has started"
_SHIELD = "preemptd watch --shield-term -- ..., or let it handle SIGTERM as well"
_TRAP = "let it handle SIGTERM as well, or start it with that ignored: docs/slurm.md, Several nodes and srun"


def of_told(answers: Answers, processes: Iterable[Seen]) -> Iterator[Finding]:
    """Judge those that would be told; one finding for all that are alike."""
    alike: dict[tuple[str, str], list[Seen]] = {}
    for one in processes:
        if one.how and one.signals.get("TERM") == "default" and (when := _when(answers, one.process.pid)):
            shielded = any(map(is_preemptd, standing.ancestors(one.process.pid)))
            alike.setdefault((when, _SHIELD if shielded else _TRAP), []).append(one)
    for (when, advice), those in alike.items():
        pid = those[0].process.pid
        text = f"{_names(those)} {_how(those[0])} SIGTERM: {when}, which kills it before it has saved"
        yield Finding("dies-of-sigterm", text, advice, pid, loses=True)


def _when(answers: Answers, pid: int) -> str:
    """Say when SLURM sends *pid* a SIGTERM without a warning; empty: never, or nobody knows (each QOS has a grace)."""
    modes = {mode_of(answers.config, partition) for partition in answers.partitions} if answers.config else set()
    if modes & {"REQUEUE", "CANCEL"} and all(number(one.get("GraceTime", "")) == 0 for one in answers.partitions):
        return _TO_ALL
    if modes & {"REQUEUE", "CANCEL", "QOS"} and not sends_user_signal(answers.config) and is_step(environ(pid)):
        return _TO_STEPS
    return ""


def _names(those: Sequence[Seen]) -> str:
    pids = ", ".join(str(one.process.pid) for one in those[:5]) + (", ..." if len(those) > 5 else "")
    return f"pid {pids} ({brief(those[0].process)})"


def _how(one: Seen) -> str:
    return "listens on the link, and does not handle" if one.how == "link" else f"handles SIG{one.how}, not"
