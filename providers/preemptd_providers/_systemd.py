"""What systemd says of the machine's state and of our own unit, asked through `systemctl`, with a time limit."""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from preemptd.provider import Commands

ANSWER_WITHIN = 1.0
"""Seconds for one question; it takes 10 ms. While the host goes down, the bus may be gone: root needs none."""
_SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
    "month": 30.44 * 86400.0,
    "y": 365.25 * 86400.0,
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d|w|month|y)")


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit that we run in."""

    stop_timeout: float | None = None
    """Seconds from its SIGTERM to its SIGKILL; None: there is no limit, or nobody knows it."""
    kills_all: bool = True
    """A stop sends SIGTERM to each of its processes (``KillMode=control-group``), and not to us alone."""


@dataclass(frozen=True, slots=True)
class Systemctl:
    commands: Commands | None
    within: float = ANSWER_WITHIN

    def state(self) -> str:
        """Return ``running``, ``degraded``, ``stopping``, ...; empty: no answer."""
        (state,) = self._ask(_STATE)
        return state.strip()

    def own_unit(self) -> Unit:
        (answer,) = self._ask(_about_own_unit())
        return _unit(answer)

    def state_and_own_unit(self) -> tuple[str, Unit]:
        """Ask for both at the same time: the loop waits for this."""
        state, answer = self._ask(_STATE, _about_own_unit())
        return state.strip(), _unit(answer)

    def _ask(self, *questions: Sequence[str]) -> list[str]:
        """Ask them side by side; an empty question, or one without an answer in time, has an empty answer."""
        end = time.monotonic() + self.within
        asked = [self._begin(question) if question else None for question in questions]
        return [self._answer(process, end) if process is not None else "" for process in asked]

    def _begin(self, words: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        if self.commands is None:
            return None
        try:
            return self.commands.popen(["systemctl", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return None

    def _answer(self, process: "subprocess.Popen[bytes]", end: float) -> str:
        try:
            answer, _ = process.communicate(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return ""
        finally:
            if self.commands is not None:
                self.commands.release(process)
        return answer.decode(errors="replace")


_STATE = ("is-system-running",)


def _about_own_unit() -> Sequence[str]:
    """Make the question; empty: we are in no unit."""
    name, of_user = unit_of(_own_cgroup())
    if not name:
        return ()
    manager = ["--user"] if of_user else []
    return [*manager, "show", "--property=KillMode", "--property=TimeoutStopUSec", "--", name]


def _unit(answer: str) -> Unit:
    said = dict(line.partition("=")[::2] for line in answer.splitlines())
    if not said:
        return Unit()
    return Unit(seconds(said.get("TimeoutStopUSec", "")), said.get("KillMode") not in {"mixed", "process", "none"})


def _own_cgroup() -> str:
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def unit_of(cgroups: str) -> tuple[str, bool]:
    """Read the innermost unit out of ``/proc/self/cgroup``, and whether a user's manager has it; empty: there is none.

    On a machine with both hierarchies systemd's own is the one that is called so, or the second version's.
    """
    for line in sorted(cgroups.splitlines(), key=lambda line: not line.startswith("0::")):
        head, _, path = line.partition(":/")
        if head not in {"0:", "1:name=systemd"}:
            continue
        parts = path.split("/")
        units = [part for part in parts if part.endswith((".service", ".scope"))]
        if units:
            return units[-1], len(units) > 1 and units[0].startswith("user@")
    return "", False


def seconds(span: str) -> float | None:
    """Understand ``1min 30s``; None: ``infinity``, or no time at all."""
    parts = span.split()
    matches = [_SPAN.fullmatch(part) for part in parts]
    if not parts or not all(matches):
        return None
    return sum(float(match[1]) * _SECONDS[match[2]] for match in matches if match)
