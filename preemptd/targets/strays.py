"""What our own commands (hooks, providers' queries) left behind in sessions of their own: no training."""

import os
from collections.abc import Sequence

from preemptd import procfs
from preemptd.model import Process, ProcessId
from preemptd.targets.reaping import OWN_COMMAND
from preemptd.targets.selection import without


class Strays:
    """Knows them by the mark that every command of ours hands on; for one thread."""

    def __init__(self) -> None:
        self._verdicts: dict[ProcessId, bool] = {}

    def left_out(self, processes: Sequence[Process]) -> tuple[Process, ...]:
        """Drop them from a snapshot, and what is below them: we have adopted them, as their parents have ended."""
        adopted = [process.id for process in processes if process.ppid == os.getpid()]
        known = self._verdicts
        self._verdicts = {one: known[one] if one in known else _is_marked(one.pid) for one in adopted}
        strays = {one.pid for one, marked in self._verdicts.items() if marked}
        return without(processes, strays) if strays else tuple(processes)


def _is_marked(pid: int) -> bool:
    return OWN_COMMAND in procfs.environ(pid)
