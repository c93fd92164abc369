"""The processes of all targets of ``preemptd daemon``, found anew at each look."""

import os
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from preemptd.model import Process, ProcessId
from preemptd.procfs import Details
from preemptd.targets.census import Census, CommandLines
from preemptd.targets.cgroups import ByUnit, Units
from preemptd.targets.exempt import Exempt
from preemptd.targets.followed import ByLink, Followed, News
from preemptd.targets.matching import ByMatch, ByRuns, Matches
from preemptd.targets.pinned import ByPid, ByPidFile
from preemptd.targets.ways import State, Way

_PATIENCE = 1.0
"""Seconds that `Finder.close` waits for a look that is under way: it may hang at a process that does."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One target of the configuration: exactly one of the last five says who is meant."""

    name: str = ""
    """For people; empty: what says who is meant."""
    pid: int | None = None
    pidfile: str | None = None
    unit: str | None = None
    match: str | None = None
    runs: bool = False

    @property
    def title(self) -> str:
        ways = (("pid", self.pid), ("pidfile", self.pidfile), ("unit", self.unit), ("match", self.match))
        return self.name or next((f"{how} {value}" for how, value in ways if value is not None), "runs")


class Changed(Protocol):
    """Hears that a target has come, has gone, or is another one now; *pid*: one of those that head(ed) it."""

    def __call__(self, name: str, state: State, why: str, pid: int | None) -> None: ...


class Finder:
    """Looks at all processes once for all targets. For one thread at a time, but for what says otherwise."""

    def __init__(
        self,
        targets: Sequence[Wanted],
        linked: Callable[[], Iterable[ProcessId]],
        ours: Callable[[], Container[int]],
        warn: Callable[[str], None],
        changed: Changed,
    ) -> None:
        """Make one; a target's pid means the process that has it now.

        Args:
            targets: those of the configuration.
            linked: tells who has registered over the link: each is a target of its own.
            ours: tells the pids of the daemon's own commands, which are no part of any target.
            warn: hears once of each target that cannot be gone by as it is.
            changed: hears of each target once at the first look, and then when it comes or goes.
        """
        self._linked = linked
        self._ours = ours
        self._warn = warn
        self._changed = changed
        self._commands = CommandLines()
        self._matches = Matches(dict.fromkeys(one.match for one in targets if one.match is not None), self._commands)
        self._units = Units(one.unit for one in targets if one.unit is not None)
        self._details = Details()
        self._looking = threading.Lock()
        self._closed = False
        self._targets = [Followed(one.title, self._way(one)) for one in dict.fromkeys(targets)]
        self._links: dict[ProcessId, Followed] = {}
        self._status: Sequence[Mapping[str, object]] = [target.status() for target in self._targets]

    def status(self) -> list[dict[str, object]]:
        """Describe each target as the last look found it. For any thread."""
        return [dict(target) for target in self._status]

    def snapshot(self, unread: Container[ProcessId] = ()) -> tuple[Process, ...]:
        """Look at every process of every target once, zombies included; *unread* as in `Tree.snapshot`.

        Nobody is there any more when we are closed.
        """
        with self._looking:
            if self._closed:
                return ()
            try:
                return self._look(unread)
            finally:
                if self._closed:
                    self._let_go()

    def close(self) -> None:
        """Let go of what is held; a look that is under way does so in the end. For any thread."""
        self._closed = True
        if self._looking.acquire(timeout=_PATIENCE):
            try:
                self._let_go()
            finally:
                self._looking.release()

    def _look(self, unread: Container[ProcessId]) -> tuple[Process, ...]:
        census = Census()
        self._units.look()
        self._matches.look(census, {os.getpid(), *census.above(os.getpid())})
        linked = self._look_at_links(census)
        targets = (*self._targets, *self._links.values())
        members = [target.look(census) for target in targets]
        exempt = Exempt(census, self._commands, linked, self._ours())
        for target, pids in zip(targets, members, strict=True):
            self._say(target, target.judge(census, pids, exempt))
        kept = sorted(pid for pid in {pid for pids in members for pid in pids} if exempt.by(pid) is None)
        self._commands.forget_others(census)
        self._status = [target.status() for target in targets]
        return self._details.of((census[pid] for pid in kept), unread)

    def _let_go(self) -> None:
        for target in self._targets:
            target.way.close()

    def _way(self, wanted: Wanted) -> Way:
        if wanted.pid is not None:
            return ByPid(wanted.pid)
        if wanted.pidfile is not None:
            return ByPidFile(wanted.pidfile)
        if wanted.unit is not None:
            return ByUnit(wanted.unit, self._units)
        return ByMatch(wanted.match, self._matches) if wanted.match is not None else ByRuns()

    def _look_at_links(self, census: Census) -> set[int]:
        linked = {process for process in self._linked() if census.add([process.pid]) and census.lives(process)}
        for process in self._links.keys() - linked:
            target = self._links.pop(process)
            self._changed(target.name, "gone", "it has left the link, or has ended", process.pid)
        for process in linked - self._links.keys():
            self._links[process] = Followed(f"link {process.pid}", ByLink(process.pid))
        return {process.pid for process in linked}

    def _say(self, target: Followed, news: News) -> None:
        if news.complaint:
            self._warn(f"target {target.name}: {news.complaint}")
        if news.changed:
            self._changed(target.name, target.state, target.why, target.head)
