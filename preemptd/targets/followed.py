"""One target of the daemon, from look to look."""

from dataclasses import dataclass

from preemptd.model import ProcessId
from preemptd.targets.census import Census, id_of
from preemptd.targets.exempt import Exempt
from preemptd.targets.ways import Found, How, State, Way


@dataclass(frozen=True, slots=True)
class News:
    """What is different since the last look."""

    changed: bool
    """It has come, has gone, or is another one now."""
    complaint: str = ""
    """What is wrong with it, once."""


class ByLink:
    """A process that registered over the link; *pid* is its own as long as the connection lasts."""

    how: How = "link"
    only_heads = False

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def find(self, _census: Census) -> Found:
        return Found([self._pid])

    def close(self) -> None:
        """Nothing is held."""


class Followed:
    """A target and the processes that it was seen to have: they stay its own when those above them end."""

    def __init__(self, name: str, way: Way) -> None:
        self.name = name
        self.way = way
        self.state: State = "waiting"
        self.why = "not looked for yet"
        self.head: int | None = None
        """The pid of one that heads it, or did; None: it never had a process."""
        self._pids: list[int] = []
        self._members: frozenset[ProcessId] = frozenset()
        self._groups: frozenset[int] = frozenset()
        """Process groups that members of it lead, or led: whoever is in them belongs to it."""
        self._found = Found()
        self._said = False
        self._complained_of = ""

    def look(self, census: Census) -> set[int]:
        """Find its processes."""
        self._found = self.way.find(census)
        if self.way.only_heads:
            return set(self._found.pids)
        heads = {pid for pid in self._found.pids if census.id(pid) is not None}
        # One that ended while we looked is no more than a number that others still name as their parent.
        stayed = {process.pid for process in self._members if process in census or census.id(process.pid) is None}
        groups = {census[pid].pgid for pid in heads if census[pid].pgid == pid}
        groups |= {census[pid].pgid for pid in stayed if census.id(pid) is not None} & self._groups
        pids = census.below(heads | stayed | {pid for group in groups for pid in census.group(group)})
        self._groups = frozenset(groups | {pid for pid in pids if census[pid].pgid == pid})
        return pids

    def judge(self, census: Census, pids: set[int], exempt: Exempt) -> News:
        """Take note of *pids*, which `look` has found, and say what is new."""
        before = self.state
        members = frozenset(id_of(census[pid]) for pid in pids)
        living = {pid for pid in pids if census.lives(id_of(census[pid]))}
        is_another = bool(living) and self._members.isdisjoint(members)
        self._members = members
        self._pids = census.topmost(living)
        self.state = "running" if living else "gone" if self._found.for_ever else "waiting"
        self.why = self._found.why or (self._exempted(exempt) if living else "its processes have ended")
        if self._pids:
            self.head = self._pids[0]
        changed = not self._said or self.state != before or is_another
        self._said = True
        return News(changed, self._complaint())

    def status(self) -> dict[str, object]:
        return {"name": self.name, "how": self.way.how, "state": self.state, "why": self.why, "pids": self._pids}

    def _exempted(self, exempt: Exempt) -> str:
        by = {exempt.by(pid) for pid in self._pids}
        if None in by or not by:
            return ""
        return f"another preemptd tells it: pid {', '.join(str(pid) for pid in by)}"

    def _complaint(self) -> str:
        """Say what is wrong with it, if that was not said last."""
        complaint = self._found.why if self._found.refused else ""
        is_new = complaint != self._complained_of
        self._complained_of = complaint
        return complaint if is_new else ""
