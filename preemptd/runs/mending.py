"""Sees to it, when a preempted training has ended, that each of its W&B runs has ended as preempted."""

import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from preemptd.runs.amendment import AmendError, amend
from preemptd.runs.ending import Action, Decision, Left, decide, left_behind
from preemptd.runs.owner import Owner
from preemptd.runs.repair_process import (
    Release,
    RepairError,
    RepairProcess,
    Spawn,
    Target,
    identity_of,
    released,
    spawn_directly,
)
from preemptd.runs.roster import Entry, Roster

CORE_ENDS_WITHIN = 2.0
"""Seconds for wandb-core to end after its process: it looks for it every 100 ms. One that is stuck never does."""
SAME_BLOW = 3.0
"""Seconds from the signal that is itself the notice (SLURM's last SIGTERM, to all of a job) to our first telling."""
LOOK_EVERY = 0.02
QUICK = 3.0
"""Seconds below which the official API is not tried first: it takes 0.7 to 1.5 s on an idle machine."""
FOR_HTTP = 1.5
"""Seconds that the official API leaves for the second way."""
AT_ONCE = 4
"""Runs that are repaired at the same time: each costs an interpreter and a wandb-core."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is known of the end of the training."""

    code: int
    """What a run gets that reported 0 or nothing; not 0."""
    told_at: float
    """time.monotonic() when the first process was told: a run that had closed before ended by itself."""
    done: Container[int] = ()
    """Pids of processes that said they are done: what they reported is right."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one run."""

    run_id: str
    ok: bool
    """The server (offline: the log) says that it was preempted, as far as can be known."""
    how: str
    """``nothing`` was to be done; ``api``, ``http`` or ``log``: the way; empty: no way was found."""
    why: str
    """The reason for it; if not *ok*, for the failure."""
    code: int | None
    """The exit code that holds now."""
    ms: float


class Mender:
    """`start` once, when the training has ended; `wait` for it, or `stop` it. The budget is kept in any case."""

    def __init__(
        self,
        roster: Roster,
        report: Callable[[Repair], None],
        spawn: Spawn = spawn_directly,
        release: Release = released,
    ) -> None:
        """Make it; *report* is called in threads of its own, once for each run."""
        self._roster = roster
        self._report = report
        self._spawn = spawn
        self._release = release
        self._lock = threading.Lock()
        self._stopped = False
        self._processes: set[RepairProcess] = set()
        self._threads: list[threading.Thread] = []
        self._end = 0.0

    def start(self, policy: Policy, budget: float, chosen: Sequence[Entry] | None = None) -> None:
        """Begin to mend the *chosen* runs, or every one on the roster.

        *budget* is in seconds, for all of them together.
        """
        self._end = time.monotonic() + budget
        entries = _each_once(self._roster) if chosen is None else list(chosen)
        begun = sum(self._begin(entries, policy) for _ in range(min(AT_ONCE, len(entries))))
        if not begun:
            for entry in entries:
                self._report(Repair(entry.run.run_id, False, "", "no more threads can be started", policy.code, 0.0))

    def _begin(self, entries: list[Entry], policy: Policy) -> bool:
        thread = threading.Thread(target=self._work, args=(entries, policy), name="wandb-mender", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads here: those that have begun do all of it
            return False
        self._threads.append(thread)
        return True

    @property
    def is_at_work(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def wait(self) -> bool:
        """Wait until all is done; no longer than the budget and the second that ending a process may take."""
        for thread in self._threads:
            thread.join(max(0.0, self._end + 1.0 - time.monotonic()))
        if self.is_at_work:
            self.stop()
            return False
        return True

    def stop(self) -> None:
        """End it now; from any thread. What is under way reports that it was stopped."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.stop()

    def _work(self, entries: list[Entry], policy: Policy) -> None:
        while True:
            with self._lock:
                if not entries:
                    return
                entry = entries.pop()
            self._report(self._mend(entry, policy))

    def _mend(self, entry: Entry, policy: Policy) -> Repair:
        began = time.monotonic()
        decision = Decision(Action.GIVE_UP, None, "")
        try:
            left, decision = self._judge(entry, policy)
            how = self._act(entry, left, decision)
            ok, why = True, decision.why
        except RepairError as error:
            ok, how, why = False, "", str(error)
        ms = round((time.monotonic() - began) * 1000, 1)
        return Repair(entry.run.run_id, ok, how, why, decision.code, ms)

    def _judge(self, entry: Entry, policy: Policy) -> tuple[Left, Decision]:
        nothing = Left(offline=False, marked=entry.marked, code=None, delivered=False)
        if entry.closed is not None and entry.closed < policy.told_at and not _was_struck(entry, policy.told_at):
            ago = policy.told_at - entry.closed
            return nothing, Decision(Action.NOTHING, None, f"it had ended {ago:.1f} s before anybody was told")
        if entry.run.owner_pid in policy.done:
            return nothing, Decision(Action.NOTHING, None, "its process said that it is done")
        if entry.ended is not None:
            return nothing, Decision(Action.NOTHING, entry.ended, "it was ended over the wire, and the server has it")
        if entry.foreign:
            raise RepairError("it belongs to another user: only root can repair it")
        if entry.owner is None:
            raise RepairError("its process could not be looked at while it lived")
        if entry.owner.lives():
            raise RepairError("its process still runs")
        self._await_core(entry.owner)
        left = left_behind(entry)
        return left, decide(left, policy.code)

    def _await_core(self, owner: Owner) -> None:
        """Let wandb-core send what it has. One that does not end by itself is stuck: the repair goes past it."""
        now = time.monotonic()
        end = min(now + CORE_ENDS_WITHIN, now + (self._end - now) / 3)
        while owner.core_lives() and time.monotonic() < end and not self._stopped:
            time.sleep(LOOK_EVERY)

    def _act(self, entry: Entry, left: Left, decision: Decision) -> str:
        if decision.action is Action.NOTHING:
            return "nothing"
        if decision.action is Action.GIVE_UP or entry.owner is None or decision.code is None:
            raise RepairError(decision.why)
        if decision.action is Action.AMEND:
            identity_of(entry.owner.rights)  # raises where nothing may be done in its name
            return _amend(entry, entry.owner, decision.code)
        return self._repair(entry, entry.owner, left, decision.code)

    def _repair(self, entry: Entry, owner: Owner, left: Left, code: int) -> str:
        settings = replace(
            entry.settings,
            entity=entry.settings.entity or left.entity,
            project=entry.settings.project or left.project,
        )
        if not settings.project:
            raise RepairError("its transaction log does not hold the run: its project is not known")
        target = Target(settings, entry.run.run_id, code)
        process = RepairProcess(self._spawn, self._release)
        with closing(process):
            with self._lock:
                if self._stopped:
                    raise RepairError("stopped")
                self._processes.add(process)
            try:
                return self._try_ways(process, owner, target)
            finally:
                with self._lock:
                    self._processes.discard(process)

    def _try_ways(self, process: RepairProcess, owner: Owner, target: Target) -> str:
        left = self._end - time.monotonic()
        if left <= 0:
            raise RepairError("no time left")
        ways = [("api", process.by_api, self._end - min(FOR_HTTP, left / 3)), ("http", process.by_http, self._end)]
        if left < QUICK:
            ways = [("http", process.by_http, self._end)]
        reasons = []
        for name, way, end in ways:
            why = _try(way, owner, target, end)
            if why is None:
                return name
            reasons.append(f"{name}: {why}")
            if self._stopped:
                break
        raise RepairError("; ".join(reasons))


def _try(way: Callable[[Owner, Target, float], None], owner: Owner, target: Target, end: float) -> str | None:
    try:
        way(owner, target, end)
    except RepairError as error:
        return str(error)
    return None


def _was_struck(entry: Entry, told_at: float) -> bool:
    """Say whether its wandb-core fell, with nothing said, to the same signal that we took for the notice."""
    return entry.closed is not None and entry.closed >= told_at - SAME_BLOW and left_behind(entry).code is None


def _amend(entry: Entry, owner: Owner, code: int) -> str:
    if owner.core_lives():
        raise RepairError("its wandb-core is stuck and has its log open")
    try:
        amend(entry.log, code, owner.rights.uid)
    except AmendError as error:
        raise RepairError(str(error)) from error
    except OSError as error:
        raise RepairError(f"its transaction log cannot be written: {error.strerror}") from error
    return "log"


def _each_once(roster: Roster) -> list[Entry]:
    """List the runs; one that several processes have written is mended once, and the last to close it counts."""
    found: dict[str, Entry] = {}
    for entry in roster.entries():
        other = found.get(entry.run.run_id)
        if other is None or _closing(entry) >= _closing(other):
            found[entry.run.run_id] = entry
    return list(found.values())


def _closing(entry: Entry) -> float:
    return float("inf") if entry.closed is None else entry.closed
