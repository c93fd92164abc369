"""The processes of a SLURM job's steps on this node: children of slurmstepd, and in nobody's tree of ours."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from preemptd import procfs
from preemptd.model import Process, ProcessId
from preemptd.nodes.wanted import is_step
from preemptd.procfs import Tree
from preemptd.targets.reaping import OWN_COMMAND
from preemptd.targets.selection import without

_STEPD = "slurmstepd"
# The steps of the batch script and of salloc's shell, and the one that ssh sessions are put into, have names.
_TITLE = re.compile(r"slurmstepd: \[(\d+)\.\d+(?:\+\d+)?\]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are in SLURM: which job, which attempt of it, which node."""

    component: str
    """The job's id; if it is heterogeneous that of this part, which slurmstepd has in its title."""
    job: str
    """The id that tasks have as SLURM_JOB_ID."""
    attempt: str
    node: str

    @classmethod
    def of(cls, environ: Mapping[str, str], component: str) -> "Place":
        node = environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]
        return cls(component, environ.get("SLURM_JOB_ID", component), environ.get("SLURM_RESTART_COUNT", "0"), node)

    def has(self, environ: Mapping[str, str]) -> bool:
        """Say whether a task with *environ* belongs to this attempt here, and is no command of some preemptd.

        A machine may play several nodes, and a copy that SLURM has given up may live beside the new one. A task that
        knows nothing of SLURM (``env -i``) has the right parent, and that is enough.
        """
        if OWN_COMMAND in environ:
            return False
        if "SLURM_JOB_ID" not in environ:
            return True
        attempt = environ.get("SLURM_RESTART_COUNT", self.attempt)
        node = environ.get("SLURMD_NODENAME", self.node)
        return (environ["SLURM_JOB_ID"], attempt, node) == (self.job, self.attempt, self.node)


class StepTree:
    """Takes snapshots, for one thread at a time."""

    def __init__(self, place: Place, own: int | None = None) -> None:
        """Make it; *own*: pid of the slurmstepd whose step is left out, None: the one that has started us."""
        self._place = place
        self._own = os.getppid() if own is None else own
        # With /proc mounted hidepid=2 nobody sees what is root's.
        self._sees_stepd = procfs.process_id(self._own) is not None
        self._trees: dict[ProcessId, Tree] = {}
        self._verdicts: dict[ProcessId, bool] = {}

    def snapshot(self) -> tuple[Process, ...]:
        """Look at every process of the job's steps here, but for those of the step that we run in."""
        roots = self._stepds() if self._sees_stepd else self._tasks()
        self._trees = {
            root: self._trees.get(root) or Tree(root.pid, include_root=not self._sees_stepd) for root in roots
        }
        seen: list[Process] = []
        verdicts: dict[ProcessId, bool] = {}
        for root, tree in self._trees.items():
            processes = tree.snapshot()
            tasks = [process.id for process in processes if root.pid in {process.ppid, process.pid}]
            verdicts |= {task: self._judge(task) for task in tasks}
            seen += without(processes, {task.pid for task in tasks if not verdicts[task]})
        self._verdicts = verdicts
        return tuple(seen)

    def _stepds(self) -> Sequence[ProcessId]:
        found = (procfs.process_id(pid) for pid in _pids() if _comm(pid) == _STEPD and pid != self._own)
        return [stepd for stepd in found if stepd and (stepd in self._trees or self._is_of_job(stepd.pid))]

    def _is_of_job(self, pid: int) -> bool:
        title = _TITLE.match(" ".join(procfs.command_line(pid)))
        return title is not None and title[1] == self._place.component

    def _tasks(self) -> Sequence[ProcessId]:
        """Find processes of ours that say of themselves that they are in a step, and whose parents are hidden."""
        orphans = (pid for pid in _pids() if procfs.parent(pid) != self._own and _is_ours(pid) and _is_topmost(pid))
        found = (procfs.process_id(pid) for pid in orphans)
        return [task for task in found if task and (task in self._trees or _is_in_step(procfs.environ(task.pid)))]

    def _judge(self, task: ProcessId) -> bool:
        """Say whether *task* is one of ours; False also for one that is not yet the program that it will be."""
        if self._verdicts.get(task):
            return True
        # Before its exec it is a copy of slurmstepd, and root's.
        return _is_ours(task.pid) and self._place.has(procfs.environ(task.pid))


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _is_ours(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except OSError:
        return False


def _is_topmost(pid: int) -> bool:
    return procfs.process_id(procfs.parent(pid)) is None


def _is_in_step(environ: Mapping[str, str]) -> bool:
    return "SLURM_JOB_ID" in environ and is_step(environ)


def _comm(pid: int) -> str:
    """Read a process's name: unlike its command line this waits for nothing."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
