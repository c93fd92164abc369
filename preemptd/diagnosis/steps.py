"""What srun has started on this machine: it hangs below slurmstepd, not below srun, and is told by an agent of ours."""

import os
from collections.abc import Iterable, Sequence

from preemptd import procfs
from preemptd.diagnosis.unit import Unit
from preemptd.diagnosis.watcher import Watcher
from preemptd.model import Process
from preemptd.nodes.step_tree import Place, StepTree
from preemptd.nodes.wanted import is_step
from preemptd.targets.roles import topmost
from preemptd.targets.selection import Policy, without

_AGENT = "slurm-node"


def tasks_of(processes: Sequence[Process]) -> tuple[Process, ...]:
    """Find the tasks here of the job that a srun among *processes* belongs to; none if there is no srun."""
    srun = next((process for process in processes if process.comm == "srun"), None)
    environment = procfs.environ(srun.pid) if srun is not None else {}
    if not (number := environment.get("SLURM_JOB_ID")):
        return ()
    known = {process.pid for process in processes}
    tasks = StepTree(Place.of(environment, number), os.getpid()).snapshot()  # no step is left out
    return without([process for process in tasks if process.pid not in known], {os.getpid()})


def units_of(
    tasks: Sequence[Process], watchers: Iterable[Watcher], policy: Policy, covering: Watcher | None
) -> list[Unit]:
    """Split *tasks* by who watches them: a preemptd among them, or the agent of *covering*."""
    by_pid = {process.pid: process for process in tasks}
    inside = [watcher for watcher in watchers if watcher.main_pid in by_pid]
    tops = topmost(by_pid, {watcher.root for watcher in inside})
    below = [(watcher, tuple(one for one in tasks if tops[one.pid] == watcher.root)) for watcher in inside]
    units = [Unit(those, watcher.main_pid, policy, watcher) for watcher, those in below]
    if rest := tuple(process for process in tasks if tops[process.pid] is None):
        watcher = covering if covering is not None and covering.nodes else None
        units.append(Unit(rest, rest[0].pid, policy, watcher))
    return units


def covering(pid: int, watchers: Iterable[Watcher]) -> Watcher | None:
    """Find the preemptd whose agent here tells the task *pid*; None: that is no task, or there is none on this node."""
    environment = procfs.environ(pid)
    if not is_step(environment):
        return None
    number = environment.get("SLURM_JOB_ID")
    return next((one for one in watchers if one.nodes and _number(one.pid) == number), None)


def agent_beside(pid: int) -> bool:
    """Say whether an agent of ours runs here for the job of the task *pid*: its preemptd is on another node."""
    environment = procfs.environ(pid)
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal()) if is_step(environment) else ()
    number = environment.get("SLURM_JOB_ID")
    return any(_AGENT in procfs.command_line(one) and _number(one) == number for one in pids)


def _number(pid: int) -> str | None:
    return procfs.environ(pid).get("SLURM_JOB_ID")
