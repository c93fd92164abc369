"""A running preemptd, as its answer to `status` describes it."""

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals

from preemptd.config import PREFIX
from preemptd.diagnosis import standing
from preemptd.diagnosis.findings import Finding
from preemptd.model import Process
from preemptd.procfs import environ
from preemptd.targets.selection import Policy, Reach

_MUTE = "is it stopped (kill -CONT)? If not, start it again with the same --job-id: the training is taken over"
_GOOD = ("clear", "notice")
_WITHOUT_PID = "`preemptd doctor`, without a pid, says what was asked and what came back"
_REACHES: Mapping[str, Reach] = {"auto": "auto", "main": "main", "tree": "tree"}


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back from the links that were asked."""

    answers: Sequence[Mapping[str, object]]
    mute: Sequence[str] = ()
    """Links at which somebody listens, and says nothing."""

    def findings(self, links: Container[str] | None = None) -> list[Finding]:
        """Name those that say nothing, among *links*; None: all of them."""
        mute = [link for link in self.mute if links is None or link in links]
        text = "the preemptd at {} hangs: it says nothing"
        return [Finding("mute-preemptd", text.format(link), _MUTE, loses=True) for link in mute]


@dataclass(frozen=True, slots=True)
class Watcher:
    answer: Mapping[str, object]
    pid: int
    """Of the preemptd itself; 0: it lives in a pid namespace that we cannot look into."""
    main_pid: int
    """Of the command that it watches over."""
    policy: Policy
    linked: frozenset[int]
    """Pids that subscribed over its link."""
    marks: bool
    """It marks W&B runs."""
    nodes: int
    """So many nodes of a SLURM job have an agent of its, which tells what srun has started there."""
    watches: tuple[Mapping[str, object], ...] = field(default=())

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> "Watcher":
        told = {_number(choice["pid"]) for choice in _items(answer, "would_tell") if choice.get("how") == "link"}
        linked = answer.get("linked")
        return cls(
            answer,
            _number(answer.get("preemptd")),
            _number(answer.get("pid")),
            Policy(_signals(str(answer.get("signal"))), _REACHES.get(str(answer.get("signal_target")), "auto")),
            frozenset(told | set(map(_number, linked if isinstance(linked, list) else ()))),
            not answer.get("no_wandb"),
            _number(answer.get("nodes")),
            tuple(_items(answer, "watches")),
        )

    @property
    def is_daemon(self) -> bool:
        """Whether it looks after targets that others start, and not after a command."""
        return self.pid == self.main_pid

    @property
    def heads(self) -> frozenset[int]:
        """The topmost processes of its targets."""
        pids = (target.get("pids") for target in _items(self.answer, "targets"))
        return frozenset(_number(pid) for found in pids if isinstance(found, list) for pid in found)

    @property
    def speaks_our_pids(self) -> bool:
        """Whether its pids mean the same to us: it lives in our own pid namespace."""
        found = standing.read(self.pid) if self.pid else None
        return found is not None and found.pid_inside is None

    @property
    def root(self) -> int:
        """The process below which it looks: itself, or a training that it has taken over."""
        above = standing.read(self.main_pid)
        return self.pid if above is not None and above.parent == self.pid else self.main_pid

    def findings(self) -> Iterator[Finding]:
        """Say what is wrong with it, whatever the job is like."""
        pid = self.main_pid
        if self.answer.get("dry_run"):
            text = f"the preemptd of pid {pid} runs with --dry-run: it tells nobody"
            yield Finding("dry-run", text, "leave --dry-run out", pid, loses=True)
        if not self.marks:
            yield Finding("no-wandb", f"the preemptd of pid {pid} leaves W&B runs alone (--no-wandb)", pid=pid)
        if self.answer.get("held"):
            yield Finding("held", f"pid {pid} is held back until a pending notice is revoked", pid=pid)
        if self.nodes:
            where = f"on {self.nodes} node{'s' * (self.nodes != 1)}"
            yield Finding("ranks-on-nodes", f"what srun has started {where} is told by preemptd's step there", pid=pid)
        if self.nodes > 1:
            yield Finding(
                "unseen-nodes", "the processes on other nodes are not seen from here", "ask there, for their pids"
            )
        for notice in _items(self.answer, "notices"):
            text = f"a notice is open: {notice.get('kind')} in {notice.get('remaining')} s"
            yield Finding(
                "notice", f"{text}; {self.answer.get('told')} told, {self.answer.get('saved')} saved", pid=pid
            )
        needed = [watch for watch in self.watches if not watch.get("secondary")]
        if not self.answer.get("providers"):
            text = f"the preemptd of pid {pid} would hear of nothing: it found no platform that announces preemptions"
            yield Finding("no-source", text, f"{_WITHOUT_PID}; --provider NAME, or a signal file", pid, loses=True)
        elif needed and all(watch.get("state") not in _GOOD for watch in needed):
            names = ", ".join(str(watch.get("watch")) for watch in needed)
            text = f"the preemptd of pid {pid} would hear of nothing: no good answer from {names}"
            yield Finding("no-answer", text, _WITHOUT_PID, pid, loses=True)


def link_paths(pid: int, processes: Iterable[Process]) -> list[str]:
    """List the links that *processes*, and those above *pid*, were started with: a preemptd may listen at any path."""
    pids = [pid, *(process.pid for process in processes), *standing.ancestors(pid)]
    paths = [environ(one).get(f"{PREFIX}LINK", "") for one in pids]
    return list(dict.fromkeys(os.path.abspath(path) for path in paths if os.path.isabs(path)))


def _signals(wish: str) -> tuple[Signals, ...]:
    return (Signals[f"SIG{wish}"],) if wish in ("USR1", "USR2", "TERM") else Policy().signals


def _items(answer: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    items = answer.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
