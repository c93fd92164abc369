"""A script that uses W&B and ends in a given way, the marker that knows it, and the mending after it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from preemptd.events import Event, MarkingDone, RunEnded
from preemptd.procfs import Tree
from preemptd.runs import discovery
from preemptd.runs.marker import Marker
from preemptd.runs.mending import Mender, Policy, Repair
from preemptd.runs.roster import Entry, Roster
from tests.lab.wandb_watching import PATIENCE
from tests.waiting import wait_until

SCRIPT = str(Path(__file__).parent.parent / "standins" / "wandb_ends.py")
CODE = 75
BUDGET = 30.0
WAYS = {
    # the way that the stand-in ends: what W&B hears without us
    "falls_off": 0,
    "sys_exit_0": 0,
    "finish_then_143": 0,
    "early_sys_exit": 0,
    "raise_system_exit": 0,
    "builtin_exit": 0,
    "sys_exit_143": 143,
    "finish_143": 143,
    "exception": 1,
    "with_block": 1,
    "interrupt": 255,
    "os_exit": None,
    "uncaught TERM": None,
    "uncaught KILL": None,
    "uncaught TERM, wandb-core too": None,
}


class Ending:
    """Start it, `mark` it, `end` it, `mend` it."""

    def __init__(
        self,
        python: str,
        way: str,
        env: Mapping[str, str],
        directory: Path,
        *options: str,
        before: Sequence[str] = (),
        script: str = SCRIPT,
    ) -> None:
        """Start it; *before* is a command that starts it in its turn (setpriv, unshare)."""
        self.way, _, self._signal = way.partition(" ")
        self._core_too = "wandb-core" in way
        self.popen = subprocess.Popen(
            [*before, python, script, self.way, *options],
            env={**os.environ, **env},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.events: list[Event] = []
        self.repairs: list[Repair] = []
        self.roster = Roster()
        self.marker = Marker(self.events.append, self.roster)
        self.mender = Mender(self.roster, self.repairs.append)
        self.told_at = 0.0
        self._tree = Tree(self.popen.pid, include_root=True)

    def wait_ready(self) -> str:
        """Wait until it trains; return the id of its run."""
        assert self.popen.stdout is not None
        words = self.popen.stdout.readline().split()
        assert words[:1] == ["ready"]
        self.marker.start()
        self.marker.look(self._tree.snapshot())
        wait_until(lambda: any(entry.owner for entry in self.roster.entries()))
        return words[2]

    @property
    def entry(self) -> Entry:
        (entry,) = self.roster.entries()
        return entry

    def core(self) -> int:
        (core,) = discovery.cores(self._tree.snapshot())
        return core.pid

    def mark(self) -> None:
        self.marker.mark(1)
        wait_until(lambda: MarkingDone(1) in self.events)

    def finish(self) -> RunEnded:
        """End the run over the wire."""
        self.marker.finish(2, CODE)
        wait_until(lambda: MarkingDone(2) in self.events)
        (ended,) = (event for event in self.events if isinstance(event, RunEnded))
        return ended

    def end(self) -> int:
        """Tell it, or kill it, as its way is; return its exit status."""
        self.told_at = time.monotonic()
        if self._core_too:
            os.kill(self.core(), signal.SIGTERM)
        number = signal.Signals[f"SIG{self._signal.split(',')[0]}"] if self._signal else signal.SIGUSR1
        os.kill(self.entry.run.owner_pid, number)
        return self.popen.wait(timeout=PATIENCE)

    def policy(self, done: tuple[int, ...] = ()) -> Policy:
        return Policy(CODE, self.told_at, done)

    def mend(self, budget: float = BUDGET, done: tuple[int, ...] = ()) -> Repair:
        """Mend its run; return what became of it."""
        self.mender.start(self.policy(done), budget)
        assert self.mender.wait()
        (repair,) = self.repairs
        return repair

    def close(self) -> None:
        self.mender.stop()
        self.marker.stop()
        self.popen.kill()
        self.popen.wait()
        self.roster.close()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
