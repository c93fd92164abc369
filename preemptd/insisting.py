"""What comes after the telling: SIGTERM to those who stay silent, SIGKILL if it was asked for."""

from collections.abc import Iterable, Sequence
from signal import Signals

from preemptd import procfs
from preemptd.escalation import Escalation
from preemptd.model import Process, ProcessId
from preemptd.notices import Meaning
from preemptd.parts import Parts, Timers
from preemptd.procfs import Sent
from preemptd.targets.agents import Agents
from preemptd.targets.restarts import Restarts
from preemptd.targets.roll import Roll
from preemptd.targets.selection import Choice, Policy, Selection


class Insisting:
    """Acts on those who are on the roll. Runs in the loop's thread."""

    def __init__(self, parts: Parts, timers: Timers, roll: Roll) -> None:
        self._parts = parts
        self._timers = timers
        self._roll = roll
        self.killed = False
        """Something was killed by us."""

    def term(self, processes: Sequence[Process], escalation: Escalation, policy: Policy) -> None:
        """Give SIGTERM, once, to those who were told otherwise, said nothing and are still there.

        Not if the user chose another signal: a TERM handler that raises in the middle of a save would lose it. Nor
        under ``main``, where the command told may be a launcher (srun) that makes a stop of SIGTERM.
        """
        if Signals.SIGTERM not in policy.signals or policy.reach == "main" or escalation.meaning is Meaning.STOPPED:
            return
        done = []
        for process in self._roll.for_term(processes):
            if Signals.SIGTERM in escalation.already_sent:
                continue
            if procfs.send(process.id, Signals.SIGTERM) is Sent.SENT:
                self._roll.tell(process.id, "TERM", self._timers.now())
                done.append(process.id)
        if done:
            told = ((process, "TERM") for process in done)
            self._parts.ledger.write(self._parts.ledger.record.adding(escalation.event_ids, told))
            self._write("term", escalation, done)

    def kill(self, selection: Selection, escalation: Escalation) -> None:
        """SIGKILL everything of the target but wandb-core, which ends by itself after it has sent what it has."""
        victims = _kill(choice for choice in (*selection.told, *selection.spared) if not choice.is_core)
        self.killed = self.killed or bool(victims)
        self._write("kill", escalation, victims)

    def end_launchers(self, restarts: Restarts, processes: Sequence[Process], escalation: Escalation) -> None:
        """End what starts a training anew that has left."""
        if stopped := restarts.stop(processes, bool(self._roll.alive(processes))):
            self._write("launcher", escalation, stopped)

    def end_agents(self, agents: Agents, processes: Sequence[Process], escalation: Escalation) -> None:
        """SIGKILL W&B agents, which would take the next run here; what they have started goes on saving."""
        if self._parts.settings.dry_run:
            return
        if ended := agents.end(processes, self._roll.ids, self._timers.now()):
            self._write("agent", escalation, ended)

    def fence(self, selection: Selection) -> None:
        """SIGKILL everything, wandb-core first: what it would still send is about a run that another copy writes."""
        if self._parts.settings.dry_run:
            return
        everything = sorted((*selection.told, *selection.spared), key=lambda choice: not choice.is_core)
        if victims := _kill(everything):
            self._parts.journal.write("escalated", step="fence", ms=None, pids=[process.pid for process in victims])

    def _write(self, step: str, escalation: Escalation, processes: Sequence[ProcessId]) -> None:
        ms = round((self._timers.now() - escalation.began) * 1000, 1)
        self._parts.journal.write("escalated", step=step, ms=ms, pids=[process.pid for process in processes])


def _kill(choices: Iterable[Choice]) -> list[ProcessId]:
    """Send SIGKILL, and return to whom it went."""
    victims = [choice.process.id for choice in choices if choice.process.state not in "ZX"]
    return [victim for victim in victims if procfs.send(victim, Signals.SIGKILL, only_if_caught=False) is Sent.SENT]
