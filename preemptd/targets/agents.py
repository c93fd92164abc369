"""W&B sweep agents: one that is left running takes the sweep's next run, on the machine that goes away."""

from collections.abc import Container, Sequence
from signal import Signals

from preemptd.model import Process, ProcessId
from preemptd.procfs import Sent, command_line, parent, send
from preemptd.targets.roles import is_agent, is_core
from preemptd.targets.selection import Selection

PASSES_ON_WITHIN = 1.0
"""Seconds that an agent which was told itself (``--signal-target main``) has to pass the signal on."""


class Agents:
    """Ends agents, by SIGKILL: every other signal may be passed on to the training, which was told already."""

    def __init__(self) -> None:
        self._told: dict[ProcessId, float] = {}
        """Agents that were told themselves, and when that was first seen."""
        self.ended: set[ProcessId] = set()
        self._started: set[ProcessId] = set()
        """What they had started: trainings, or scripts that start one."""

    def end(self, processes: Sequence[Process], told: Container[ProcessId], now: float) -> list[ProcessId]:
        """End the agents among *processes*, and return those; *now* is monotonic."""
        agents = [process for process in _agents(processes) if self._may_end(process, told, now)]
        ended = [process for process in agents if self._end(process)]
        pids = {process.pid for process in ended}
        self._started.update(process.id for process in processes if process.ppid in pids and not is_core(process))
        return ended

    def _may_end(self, process: ProcessId, told: Container[ProcessId], now: float) -> bool:
        if process in self.ended:
            return False
        return process not in told or now - self._told.setdefault(process, now) >= PASSES_ON_WITHIN

    def _end(self, process: ProcessId) -> bool:
        if send(process, Signals.SIGKILL, only_if_caught=False) is not Sent.SENT:
            return False
        self.ended.add(process)
        return True

    def left(self, seen: Selection) -> bool:
        """Say whether an agent that was ended has left work behind, or may have: *seen* is from before its end."""
        concerned = self.ended | self._started
        lives = any(choice.process.id in concerned for choice in (*seen.told, *seen.spared))
        return bool(self.ended) and bool(lives or seen.told or seen.unreachable)

    def pass_on(self, signum: Signals, seen: Selection) -> None:
        """Give an ordinary signal to what an agent has left that was ended: the command itself has gone."""
        for choice in seen.told if self.ended else ():
            send(choice.process.id, signum)


def _agents(processes: Sequence[Process]) -> list[ProcessId]:
    """Pick the agents, but no fork of one: that is its next training, a moment before its exec."""
    living = {process.pid: process for process in processes if process.state not in "ZX"}
    found = {pid for pid, process in living.items() if is_agent(process.cmdline)}
    return [
        living[pid].id
        for pid in found
        if living[pid].ppid not in found or living[living[pid].ppid].cmdline != living[pid].cmdline
    ]


def agent_above(pid: int) -> int | None:
    """Find the agent that *pid* runs under; None: there is none."""
    seen = {pid}
    while (pid := parent(pid)) > 1 and pid not in seen:
        if is_agent(command_line(pid)):
            return pid
        seen.add(pid)
    return None
