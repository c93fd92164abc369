"""What belongs to no target, wherever it hangs: ourselves, our own commands, and what another preemptd tells."""

import os
from collections.abc import Container

from preemptd.targets.census import Census, CommandLines
from preemptd.targets.roles import is_watcher


class Exempt:
    """The verdicts of one look.

    A ``preemptd watch`` that runs already tells what is below it: told by both, a training would hear everything
    twice. Who registered over our link has chosen us, and with it what is below.
    """

    def __init__(self, census: Census, commands: CommandLines, linked: Container[int], ours: Container[int]) -> None:
        self._census = census
        self._commands = commands
        self._linked = linked
        self._ours = ours
        self._by: dict[int, int | None] = {}

    def by(self, pid: int) -> int | None:
        """Find who exempts *pid*: a command of ours, or a preemptd, at or above it; None: nobody does."""
        trail: list[int] = []
        found: int | None = None
        for one in (pid, *self._census.above(pid)):
            if one in self._by:
                found = self._by[one]
                break
            trail.append(one)
            if one in self._linked:
                break
            if self._exempts(one):
                found = one
                break
        self._by.update(dict.fromkeys(trail, found))
        if pid == os.getpid():
            return pid
        return found

    def _exempts(self, pid: int) -> bool:
        if pid in self._ours:
            return True
        # What is below us, but no command of ours, is the work of whoever became this daemon by exec.
        return pid != os.getpid() and is_watcher(self._commands.of(self._census[pid]).words)
