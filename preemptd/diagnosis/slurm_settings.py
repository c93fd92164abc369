"""What SLURM's settings say, as scontrol shows them (docs/slurm.md)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from signal import Signals

USUAL_KILL_WAIT = 30
"""SLURM's own default, in seconds."""
_SHORTEST_KILL_WAIT = 5
"""SLURM raises what is less."""
_SIGNAL = re.compile(r"^#SBATCH\s.*?--signal[= ]\s*[\"']?([RB]*):?(?:SIG)?(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wish:
    """The ``--signal`` of a batch script."""

    name: str
    """USR1; or what stands there, if it is no signal."""
    to_batch: bool
    """To the process of the batch script alone (``B:``), not to its steps."""

    @property
    def signum(self) -> Signals | None:
        """None: there is no such signal."""
        if self.name.isdecimal():
            return next((known for known in Signals if known == int(self.name)), None)
        return Signals.__members__.get(f"SIG{self.name}")


def wish_of(script: str) -> Wish | None:
    """Read the last ``#SBATCH --signal``; None: there is none."""
    found = _SIGNAL.findall(script)
    return Wish(found[-1][1].upper(), "B" in found[-1][0]) if found else None


def mode_of(config: Mapping[str, str], partition: Mapping[str, str]) -> str:
    """Say how jobs of the partition are preempted: OFF, REQUEUE, CANCEL, SUSPEND, or QOS: each as its QOS says."""
    kind = config.get("PreemptType", "").rpartition("/")[2]
    if kind in {"", "none"}:
        return "OFF"
    if kind == "qos":
        return "QOS"
    modes = (partition.get("PreemptMode") or config.get("PreemptMode", "")).upper().split(",")
    return next((mode for mode in ("OFF", "REQUEUE", "CANCEL", "SUSPEND") if mode in modes), "SUSPEND")


def sends_user_signal(config: Mapping[str, str]) -> bool:
    """Until 22.05 it was one of the SlurmctldParameters; 23.02 has a key of its own, and knows the old name as well."""
    said = f"{config.get('PreemptParameters', '')},{config.get('SlurmctldParameters', '')}".lower().split(",")
    return bool({"send_user_signal", "preempt_send_user_signal"} & {word.strip() for word in said})


def version_of(config: Mapping[str, str]) -> tuple[int, ...]:
    """Read ``22.05.8`` as (22, 5, 8); empty: it is not said."""
    return tuple(int(part) for part in re.findall(r"\d+", config.get("SLURM_VERSION", "")))


def kill_wait(config: Mapping[str, str]) -> int:
    return max(_SHORTEST_KILL_WAIT, number(config.get("KillWait", str(USUAL_KILL_WAIT))))


def number(text: str) -> int:
    """Read ``30 sec``, ``20``, or ``00:01:30``; 0 if it is none."""
    if match := re.match(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0
