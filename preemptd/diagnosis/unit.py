"""Processes that are judged together: those that one preemptd watches, or that none does."""

import os
from collections.abc import Container, Iterator, Sequence
from signal import Signals

from preemptd.diagnosis import standing
from preemptd.diagnosis.findings import Finding, Seen
from preemptd.diagnosis.standing import Standing
from preemptd.diagnosis.watcher import Watcher
from preemptd.model import Process
from preemptd.targets.reachability import brief, in_short
from preemptd.targets.roles import Role, roles
from preemptd.targets.selection import LINK, Choice, Policy, select

LISTEN = "handle SIGUSR1 in the script, or let it ask: `import preemptd` (docs/troubleshooting.md)"
_WATCH = "start it by `preemptd watch -- COMMAND`"
_ALWAYS_SHOWN = (Signals.SIGUSR1, Signals.SIGTERM)


class Unit:
    """*silent*: names a preemptd that is there, but cannot be asked about these processes; empty: there is none."""

    def __init__(
        self,
        processes: Sequence[Process],
        main_pid: int,
        policy: Policy,
        watcher: Watcher | None,
        silent: str = "",
    ) -> None:
        self.processes = tuple(process for process in processes if process.state not in "ZX")
        self.watcher = watcher
        self._silent = silent
        self._main_pid = main_pid
        self._policy = watcher.policy if watcher else policy
        self._linked = watcher.linked if watcher else frozenset()
        self._selection = select(self.processes, main_pid, self._policy, self._linked)
        self._sender = standing.read(watcher.pid if watcher else os.getpid())
        self._standings = {process.pid: standing.read(process.pid) for process in self.processes}

    def seen(self, below: Container[int]) -> Iterator[Seen]:
        """Describe those processes whose pids are in *below*."""
        parts = roles(self.processes, self._policy.signals, self._linked)
        for choice in (*self._selection.told, *self._selection.spared):
            process = choice.process
            if process.pid in below:
                found = self._standings[process.pid]
                yield seen(process, parts[process.pid].role, found, self._policy, choice, self.watcher is not None)

    def findings(self, below: Container[int], *, has_containers: bool, alone: bool) -> Iterator[Finding]:
        """Say what would be lost of the processes in *below*.

        Args:
            below: pids.
            has_containers: some of them only wait for a container, so that there may be no training among them.
            alone: there is no other unit.
        """
        trains = bool(self._selection.told or self._selection.unreachable)
        if self.watcher is None and not self._silent and (trains or alone):
            text = "no preemptd watches this job" if alone else f"no preemptd watches {self._names()}"
            yield Finding("not-watched", text, _WATCH, self._main_pid, loses=True)
        if self._silent:
            text = f"{self._silent} cannot be asked about these processes: judged as if it had the usual settings"
            yield Finding("silent-preemptd", text, "ask as the user who runs it, and in the same container")
        for choice in self._selection.told:
            if choice.process.pid in below and not self._may_signal(choice):
                text = f"pid {choice.process.pid} belongs to another user: SIG{choice.how} would be refused"
                advice = "run preemptd as that user, or as root"
                yield Finding("other-user", text, advice, choice.process.pid, loses=True)
        for process in self._selection.unreachable:
            if process.pid in below:
                yield self._unreachable(process)
        if not trains and alone and not has_containers and not self._linked:
            yield from self._nobody()

    def _nobody(self) -> Iterator[Finding]:
        if all(process.comm != "srun" for process in self.processes):
            text = f"nothing that looks like a training runs below pid {self._main_pid}"
            yield Finding("nobody-listens", text, "ask for the pid of the job itself", self._main_pid, loses=True)
        elif self.watcher is not None and not self.watcher.nodes:
            text = "what srun has started would not be told: there is no step of preemptd's beside it"
            advice = "ask again some seconds after the start; the output of preemptd says why it is missing"
            yield Finding("no-step", text, advice, self._main_pid, loses=True)

    def _names(self) -> str:
        work = [choice.process for choice in self._selection.told] or list(self._selection.unreachable)
        return ", ".join(f"pid {process.pid}" for process in work[:5])

    def _may_signal(self, choice: Choice) -> bool:
        other = self._standings[choice.process.pid]
        return choice.how == LINK or self._sender is None or other is None or self._sender.may_signal(other)

    def _unreachable(self, process: Process) -> Finding:
        who, found = f"pid {process.pid} ({brief(process)})", self._standings[process.pid]
        if found is not None and not found.shows_signals:
            text = f"{who}: this kernel does not say which signals it handles (gVisor), so none is sent"
            return Finding("signals-unknown", text, "let it ask: `import preemptd`", process.pid, loses=True)
        names = " nor ".join(signum.name for signum in self._policy.signals)
        text = f"{who} handles {'neither ' if len(self._policy.signals) > 1 else 'no '}{names}: it would not be told"
        return Finding("catches-nothing", text, LISTEN, process.pid, loses=True)


def seen(process: Process, role: Role, found: Standing | None, policy: Policy, choice: Choice, watched: bool) -> Seen:
    shown = dict.fromkeys((*_ALWAYS_SHOWN, *policy.signals))
    return Seen(
        process=process,
        command=in_short(process),
        role=role.value,
        signals={
            signum.name.removeprefix("SIG"): disposition(process, signum, found is None or found.shows_signals)
            for signum in shown
        },
        how=choice.how,
        why=choice.why,
        uid=found.uids[0] if found is not None and found.uids else None,
        pid_inside=found.pid_inside if found is not None else None,
        watched=watched,
    )


def disposition(process: Process, signum: int, is_known: bool) -> str:
    """Say what becomes of *signum*. caught: code runs, nobody can see which. blocked: some thread may wait for it."""
    bit = 1 << (signum - 1)
    if not is_known:
        return "unknown"
    if process.caught & bit:
        return "caught"
    if process.ignored & bit:
        return "ignored"
    return "blocked" if process.blocked & bit else "default"


def is_preemptd(pid: int) -> bool:
    """Say whether *pid* is a preemptd that watches over something."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.path.basename(word) for word in file.read(4096).decode(errors="replace").split("\0")]
    except OSError:
        return False
    if not words[0].startswith(("preemptd", "python", "pypy")):  # srun preemptd watch, sudo preemptd watch
        return False
    return "preemptd" in words[:4] and not {"watch", "rehearse", "daemon"}.isdisjoint(words[:5])
